#include <vector>

#include "esl/sample.h"
#include "testing.h"

using namespace esl;

namespace {

// All numbers, each once; and the first ones whatever their count and that of threads.
void check(int64_t total, int threads) {
  std::vector<int64_t> all(static_cast<size_t>(total), -1), few(static_cast<size_t>(total / 3), -1);
  ESL_DISPATCH(sample, Sample(total, total, 7, all.data(), threads));
  std::vector<int> times(all.size(), 0);
  for (const int64_t x : all) {
    ESL_EXPECT(x >= 0 && x < total);
    ++times[static_cast<size_t>(x)];
  }
  for (const int n : times) ESL_EXPECT(n == 1);
  ESL_DISPATCH(sample, Sample(total, total / 3, 7, few.data(), 1));
  for (size_t i = 0; i < few.size(); ++i) ESL_EXPECT(few[i] == all[i]);
}

}  // namespace

void run() {
  for (const int64_t total : {1, 2, 3, 4, 5, 7, 12, 100, 1000, 1001, 4096, 70001})
    for (const int threads : {1, 3}) check(total, threads);
  ESL_DISPATCH(sample, Sample(0, 0, 7, nullptr, 1));
  // Sides that cover the bound with little to spare, so that there is little to walk past.
  for (const int64_t total : {int64_t{1} << 62, (int64_t{1} << 62) - 1, int64_t{1} << 40, (int64_t{1} << 40) + 1}) {
    const Sample p(total, 0, 7, nullptr, 1);
    ESL_EXPECT(p.left <= int64_t{1} << 31 && p.right <= int64_t{1} << 31);
    ESL_EXPECT(p.left * p.right >= total && p.left * p.right - total < p.left);
    for (int64_t i = 0; i < 1000; ++i) {
      const int64_t x = p.at(total - 1 - i);
      ESL_EXPECT(x >= 0 && x < total);
    }
  }
}
