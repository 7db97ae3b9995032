// parallel.h is for kernels; here the portable flags stand for all of them.
#define ESL_ISA portable
#include <vector>

#include "esl/parallel.h"
#include "testing.h"

static void expect_each_index_once(int64_t begin, int64_t end, int threads) {
  std::vector<int> seen(end > begin ? end - begin : 0, 0);
  esl::portable::parallel_for(begin, end, threads, [&](int64_t i) { ++seen[i - begin]; });
  for (int count : seen) ESL_EXPECT(count == 1);
  esl::portable::parallel_for_dynamic(begin, end, threads, 3, [&](int64_t i) { ++seen[i - begin]; });
  for (int count : seen) ESL_EXPECT(count == 2);
}

void run() {
  for (int threads : {1, 2, 7}) {
    for (int64_t n : {0, 1, 2, 64, 1001}) expect_each_index_once(5, 5 + n, threads);
    expect_each_index_once(5, 4, threads);
  }
}
