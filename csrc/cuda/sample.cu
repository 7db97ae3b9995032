// Op sample: a thread for each number.
#include "esl/sample.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

struct Draw {
  static constexpr int kThreads = 256, kPhases = 1;
  using Shared = Empty;
  Sample p;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t i = static_cast<int64_t>(block) * kThreads + thread;
    if (i < p.count) p.out[i] = p.at(i);
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_sample(const Sample& p, Stream stream) {
  launch("sample", Draw{p}, ceil_div(p.count, Draw::kThreads), stream);
}

}  // namespace esl
