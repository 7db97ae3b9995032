#include "esl/block_score.h"
#include "random.h"
#include "testing.h"

using namespace esl;

namespace {

struct Call {
  Lanes lanes;
  float scale;
};

// Block rows from `first` on, against the dense definition in double.
void check(int64_t rows, int64_t cols, int64_t bm, int64_t bn, const std::vector<Call>& calls, double rate,
           int64_t first = 0, int64_t count = -1) {
  Random random{static_cast<uint64_t>(rows * 1000 + cols)};
  const int64_t row_blocks = (rows + bm - 1) / bm, col_blocks = (cols + bn - 1) / bn;
  if (count < 0) count = row_blocks - first;
  std::vector<std::vector<uint64_t>> words;
  std::vector<std::vector<float>> grads;
  std::vector<ScoreCall> list;
  std::vector<double> dense(static_cast<size_t>(rows * cols));
  int64_t fired = 0, counted = 0;
  for (const Call& call : calls) {
    const Lanes lanes = call.lanes;
    words.emplace_back(static_cast<size_t>(lanes.groups() * cols));
    grads.push_back(random.reals(lanes.rows() * rows));
    for (int64_t lane = 0; lane < lanes.count(); ++lane)
      for (int64_t c = 0; c < cols; ++c) {
        if (lanes.row(lane) < 0 || random.uniform() >= rate) continue;
        ++fired;
        words.back()[static_cast<size_t>(lane / 64 * cols + c)] |= uint64_t{1} << lane % 64;
        for (int64_t r = 0; r < rows; ++r)
          dense[static_cast<size_t>(r * cols + c)] +=
              static_cast<double>(call.scale) * grads.back()[static_cast<size_t>(lanes.row(lane) * rows + r)];
      }
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    list.push_back({calls[i].lanes, calls[i].scale, words[i].data(), grads[i].data(), Dtype::f32});
    counted += ESL_DISPATCH(count_spikes, words[i].data(), static_cast<int64_t>(words[i].size()));
  }
  ESL_EXPECT(counted == fired);

  std::vector<float> scores = poison(count * col_blocks);
  BlockScore p{rows,  cols,          bm,      bn, list.data(), static_cast<int64_t>(list.size()), first,
               count, scores.data(), nullptr, 2};
  std::vector<float> scratch = poison((ESL_DISPATCH(block_score_scratch, p) + 3) / 4);
  p.scratch = scratch.data();
  ESL_DISPATCH(block_score, p);
  for (int64_t rb = first; rb < first + count; ++rb)
    for (int64_t cb = 0; cb < col_blocks; ++cb) {
      double sum = 0, entries = 0;
      for (int64_t r = rb * bm; r < std::min(rb * bm + bm, rows); ++r)
        for (int64_t c = cb * bn; c < std::min(cb * bn + bn, cols); ++c, ++entries)
          sum += std::abs(dense[static_cast<size_t>(r * cols + c)]);
      ESL_EXPECT(close(scores[static_cast<size_t>((rb - first) * col_blocks + cb)], sum / entries, 1e-5));
    }
}

}  // namespace

void run() {
  check(1, 1, 1, 1, {{{1, 1}, 1.f}}, 1);
  check(5, 7, 1, 1, {{{3, 30}, 1.f}}, .3);
  check(67, 18, 4, 4, {{{3, 21}, .5f}}, .2);
  check(67, 18, 4, 4, {{{3, 21}, .5f}}, .2, 3, 2);
  check(130, 300, 16, 16, {{{1, 70}, 1.f}}, .1);
  check(130, 40, 64, 2, {{{1, 9}, 1.f}}, .5);
  check(300, 140, 128, 128, {{{2, 1}, 1.f}}, .5);
  check(300, 20, 128, 4, {{{2, 8}, 1.f}}, .5, 1, 1);
  check(5, 40, 2, 4, {{{3, 900}, 1.f}}, 1);
  check(40, 30, 4, 4, {{{1, 40}, 1.f}, {{2, 0}, 1.f}, {{2, 33}, 2.f}, {{1, 1}, 1.f}}, .2);
  check(9, 10, 4, 4, {{{0, 5}, 1.f}}, 0);
}
