// What parallel.h runs on under the thread sanitizer: threads that it knows, started and joined anew each time.
#include <thread>
#include <vector>

namespace esl {

void run_threads(int threads, void (*f)(void*, int), void* arg);

void run_threads(int threads, void (*f)(void*, int), void* arg) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(f, arg, thread);
  f(arg, 0);
  for (std::thread& other : others) other.join();
}

}  // namespace esl
