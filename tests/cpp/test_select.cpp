#include <algorithm>

#include "esl/select.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

int64_t signed_hash(int64_t id, uint64_t seed) {
  Random before{(static_cast<uint64_t>(id) + seed - 1) * 0x9E3779B97F4A7C15ull};
  return static_cast<int64_t>(before.next());
}

// Against sorting.
void check(const std::vector<float>& score, int64_t count, bool largest, int threads) {
  const auto n = static_cast<int64_t>(score.size());
  const uint64_t seed = 77;
  std::vector<int64_t> ids(score.size()), order(score.size()), chosen(static_cast<size_t>(count), -1);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int64_t>(i * 7919) - 5;
    order[i] = static_cast<int64_t>(i);
  }
  Select p{n, count, score.data(), ids.data(), seed, largest, chosen.data(), nullptr, threads};
  std::vector<double> scratch(static_cast<size_t>(ESL_DISPATCH(select_scratch, p) + 7) / 8, -1.0);
  p.scratch = scratch.data();
  ESL_EXPECT(ESL_DISPATCH(select, p) == 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const auto i = static_cast<size_t>(a), j = static_cast<size_t>(b);
    if (score[i] != score[j]) return largest ? score[i] > score[j] : score[i] < score[j];
    return signed_hash(ids[i], seed) < signed_hash(ids[j], seed);
  });
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  ESL_EXPECT(chosen == order);
}

void check_not_below(const std::vector<float>& score, float bound, int threads) {
  const auto n = static_cast<int64_t>(score.size());
  std::vector<int64_t> expected, counts(static_cast<size_t>((n + kNotBelowPart - 1) / kNotBelowPart), -1);
  for (int64_t i = 0; i < n; ++i)
    if (!(score[static_cast<size_t>(i)] < bound)) expected.push_back(i);
  NotBelow p{n, score.data(), bound, nullptr, counts.data(), threads};
  ESL_EXPECT(ESL_DISPATCH(not_below, p) == static_cast<int64_t>(expected.size()));
  std::vector<int64_t> found(expected.size(), -1);
  if (found.empty()) return;
  p.found = found.data();
  ESL_EXPECT(ESL_DISPATCH(not_below, p) == static_cast<int64_t>(expected.size()));
  ESL_EXPECT(found == expected);
}

}  // namespace

void run() {
  Random random{5};
  for (const int64_t n : {0, 1, 63, 65, 16384, 50001}) {
    std::vector<float> score = random.reals(n);
    if (n > 2) score[1] = std::nanf(""), score[2] = -std::numeric_limits<float>::infinity();
    for (const float bound : {-std::numeric_limits<float>::infinity(), -2.f, 0.f, 0.99f, 2.f})
      for (const int threads : {1, 3}) check_not_below(score, bound, threads);
  }
  for (const int64_t n : {0, 1, 63, 64, 200, 70000}) {
    std::vector<float> real = random.reals(n), levels = random.reals(n), zeros(static_cast<size_t>(n));
    for (float& x : levels) x = std::round(2 * x);  // zeros of both signs among them
    if (n > 2) real[1] = std::numeric_limits<float>::infinity(), real[2] = -real[1];
    for (const auto& score : {real, levels, zeros})
      for (const int64_t count : {int64_t{0}, std::min<int64_t>(n, 1), n / 3, n})
        for (const bool largest : {false, true})
          for (const int threads : {1, 3}) check(score, count, largest, threads);
  }
  const std::vector<float> bad = {1, -std::nanf(""), 2, std::nanf("")};
  const std::vector<int64_t> ids = {0, 1, 2, 3};
  std::vector<double> scratch(10000);
  for (const int64_t count : {0, 2}) {
    int64_t chosen[2] = {-1, -1};
    const Select p{4, count, bad.data(), ids.data(), 0, false, chosen, scratch.data(), 1};
    ESL_EXPECT(ESL_DISPATCH(select_scratch, p) <= 80000);
    ESL_EXPECT(ESL_DISPATCH(select, p) == 2);
    ESL_EXPECT(chosen[0] == -1);
  }
}
