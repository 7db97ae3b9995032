// Loops over OpenMP threads; serial where the compiler has no OpenMP. For kernels only: see isa.h for ESL_ISA.
//
// Everything here, as in every header that kernels share, lives in namespace esl::ESL_ISA and uses no std:: template.
// An inline function with one name for all instruction sets would be merged by the linker, and portable code could then
// run the AVX-512 copy.
#pragma once

#include <cstdint>

#ifdef ESL_STD_THREADS
namespace esl {
// f(arg, thread) in threads 0 .. threads - 1 at once. For the thread sanitizer, which does not know OpenMP's barriers.
void run_threads(int threads, void (*f)(void*, int), void* arg);
}  // namespace esl
#endif

namespace esl::ESL_ISA {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads that `work` is worth, at `grain` each.
inline int useful_threads(int64_t work, int64_t grain, int threads) {
  return static_cast<int>(min(threads, 1 + work / grain));
}

#ifdef ESL_STD_THREADS
template <class F>
void in_threads(int threads, F f) {
  run_threads(threads, [](void* arg, int thread) { (*static_cast<F*>(arg))(thread); }, &f);
}
#endif

// f(i) for each i in [begin, end), in `threads` contiguous shares: thread k gets the same i in each call.
// No more threads than there is work: with one, OpenMP starts no team (and so is safe in a forked process).
template <class F>
void parallel_for(int64_t begin, int64_t end, int threads, F f) {
  if (end - begin < threads) threads = static_cast<int>(end - begin);
#ifdef ESL_STD_THREADS
  if (threads > 1) {
    const int64_t n = end - begin;
    return in_threads(threads, [&](int thread) {
      for (int64_t i = begin + n * thread / threads; i < begin + n * (thread + 1) / threads; ++i) f(i);
    });
  }
#endif
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t i = begin; i < end; ++i) f(i);
}

// The same for work of uneven size: a thread takes the next `chunk` of i when it is free.
template <class F>
void parallel_for_dynamic(int64_t begin, int64_t end, int threads, [[maybe_unused]] int64_t chunk, F f) {
  if (end - begin < threads) threads = static_cast<int>(end - begin);
#ifdef ESL_STD_THREADS
  if (threads > 1) {
    int64_t next = begin;
    return in_threads(threads, [&](int) {
      for (int64_t i; (i = __atomic_fetch_add(&next, chunk, __ATOMIC_RELAXED)) < end;)
        for (const int64_t last = min(i + chunk, end); i < last; ++i) f(i);
    });
  }
#endif
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads) if (threads > 1)
  for (int64_t i = begin; i < end; ++i) f(i);
}

// f(task, thread) for tasks of uneven cost: a thread takes the next one when it is free.
template <class F>
void parallel_tasks(int64_t tasks, int threads, F f) {
  int64_t next = 0;
  parallel_for(0, min(threads, tasks), threads, [&](int64_t thread) {
    for (;;) {
      int64_t task;
#pragma omp atomic capture
      task = next++;
      if (task >= tasks) return;
      f(task, thread);
    }
  });
}

}  // namespace esl::ESL_ISA
