// Op block_score. A thread owns one input and 4 or more neurons, whole row blocks of them: it sums their gradients over
// all calls in registers, reading words of its own and gradients that its neighbours read too. The threads of a block's
// inputs then add what they have; the gradient itself is never in memory.
#include "element.h"
#include "esl/block_score.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128;  // a block of the weight has at most as many inputs
constexpr int kRows = 4;       // summed at once

template <class T>
struct Score {
  static constexpr int kThreads = cuda::kThreads, kPhases = 2;
  struct Shared {
    float sum[kRows][kThreads];  // of |gradient|, of a row block and an input
  };
  BlockScoreCuda p;
  int tiles, blocks;  // of kThreads inputs; row blocks of a thread

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared& shared) const {
    const int64_t first_block = p.first + static_cast<int64_t>(block / tiles) * blocks;
    const int64_t first_channel = static_cast<int64_t>(block % tiles) * kThreads, channel = first_channel + thread;
    const int bm = static_cast<int>(p.bm), bn = static_cast<int>(p.bn);
    const int found = static_cast<int>(min(static_cast<int64_t>(blocks), p.first + p.count - first_block));
    if constexpr (phase == 0) {
      for (int k = 0; k < found; ++k) shared.sum[k][thread] = 0.f;
      const int64_t row = first_block * bm;
      const int rows = static_cast<int>(min(static_cast<int64_t>(found) * bm, p.rows - row));
      if (channel < p.cols)
        for (int i = 0; i < rows; i += kRows) add_rows(shared, thread, channel, row, i, min(kRows, rows - i));
    } else {
      const int wide = kThreads / bn;  // blocks side by side
      for (int item = thread; item < found * wide; item += kThreads) {
        const int k = item / wide, j = item % wide * bn;
        const int64_t rb = first_block + k, cb = (first_channel + j) / bn;
        if (first_channel + j >= p.cols) continue;
        float sum = 0.f;
        for (int i = 0; i < bn; ++i) sum += shared.sum[k][j + i];
        const int64_t high = min(p.bm, p.rows - rb * bm), across = min(p.bn, p.cols - cb * bn);
        p.scores[(rb - p.first) * ceil_div(p.cols, p.bn) + cb] = sum / static_cast<float>(high * across);
      }
    }
  }

  // `outs` rows from row + i on.
  ESL_INLINE void add_rows(Shared& shared, int thread, int64_t channel, int64_t row, int i, int outs) const {
    float total[kRows] = {};
    for (int64_t n = 0; n < p.call_count; ++n) {
      float part[kRows] = {};
      const ScoreCallCuda call = p.calls[n];
      const LaneCount lanes(static_cast<int>(call.B), static_cast<int>(call.lanes));
      const T* const grad = reinterpret_cast<const T*>(call.grad) + row + i;
      for (int g = 0; g < lanes.groups; ++g) {
        float of_group[kRows] = {};
        if (call.planes)
          add_spikes(of_group, call, lanes, g, channel, grad, outs - 1);
        else
          add_floats(of_group, call, lanes, g, channel, grad, outs - 1);
#pragma unroll
        for (int r = 0; r < kRows; ++r) part[r] += of_group[r];
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) total[r] += part[r] * p.scale[n];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r < outs) shared.sum[(i + r) / static_cast<int>(p.bm)][thread] += total[r] < 0.f ? -total[r] : total[r];
  }

  // Rows after the last one do not exist: they are read as that one, and dropped.
  ESL_INLINE void add_spikes(float (&sum)[kRows], const ScoreCallCuda& call, const LaneCount& lanes, int g,
                             int64_t channel, const T* grad, int last) const {
    float factor = 1.f;
    for (int64_t plane = 0; plane < call.planes; ++plane, factor *= 2.f) {
      const auto* const words = reinterpret_cast<const uint64_t*>(call.x);
      uint64_t bits = words[(plane * lanes.groups + g) * p.cols + channel];
      LaneWalk walk(lanes, g);
      const T* from = grad + walk.row * p.rows;
      for (; bits; bits >>= 1) {
        if (!walk.next()) continue;
        if (bits & 1) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[r] += widen(from[min(r, last)]) * factor;
        }
        from += p.rows;
      }
    }
  }
  ESL_INLINE void add_floats(float (&sum)[kRows], const ScoreCallCuda& call, const LaneCount& lanes, int g,
                             int64_t channel, const T* grad, int last) const {
    LaneWalk walk(lanes, g);
    const auto* x = reinterpret_cast<const float*>(call.x) + walk.row * p.cols + channel;
    const T* from = grad + walk.row * p.rows;
    for (int l = 0; l < 64; ++l) {
      if (!walk.next()) continue;
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += widen(from[min(r, last)]) * *x;
      x += p.cols;
      from += p.rows;
    }
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_block_score(const BlockScoreCuda& p, Stream stream) {
  int32("block_score", "lanes", p.most_lanes);
  const int tiles = int32("block_score", "tiles of inputs", ceil_div(p.cols, kThreads));
  const int blocks = p.bm < kRows ? kRows / static_cast<int>(p.bm) : 1;
  with_element(p.dtype, [&](auto element) {
    const Score<decltype(element)> body{p, tiles, blocks};
    launch("block_score", body, ceil_div(p.count, blocks) * tiles, stream);
  });
}

}  // namespace esl
