// Op temporal. Forward: a thread is a neuron and a sample, and goes through the sample's inputs in the order of their
// times until its potential has passed 1. Neighbours look for their row among the blocks of the same column: the search
// reads the same few lines. Backward: a thread owns one weight or one input; no two threads need each other.
#include <cmath>

#include "esl/temporal.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr float kLargest = 3.40282347e38f;
constexpr int kRun = 32;  // samples that are summed before their sum joins the others

// The next larger float.
ESL_INLINE float after(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  ++bits;
  memcpy(&x, &bits, 4);
  return x;
}

// The place of row block rb among the ascending row_t[begin, end), or -1.
ESL_INLINE int find(const int32_t* row_t, int begin, int end, int rb) {
  const int last = end;
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (row_t[middle] < rb)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin < last && row_t[begin] == rb ? begin : -1;
}

struct Forward {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  TemporalForward p;
  const int64_t* order;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const BlockSparse& w = p.w;
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= p.samples * w.rows) return;
    const int64_t sample = index / w.rows;
    const int row = static_cast<int>(index % w.rows), bm = static_cast<int>(w.bm), bn = static_cast<int>(w.bn);
    const int rb = row / bm, cols = static_cast<int>(w.cols);
    const float* const z = p.z + sample * w.cols;
    // Sums over the causal inputs so far, in double: what counts is their distance from 1. And the latest of them.
    double weight = 0, moment = 0;
    float last = 0.f;
    for (int i = 0; i < cols; ++i) {
      const float time = z[i];
      if (time > kLargest || (weight > 1 && moment < time * (weight - 1))) break;
      const int input = static_cast<int>(order[sample * w.cols + i]), column = input / bn;
      const int q = find(w.row_t, w.ccol[column], w.ccol[column + 1], rb);
      if (q < 0) continue;
      const int64_t block_row = static_cast<int64_t>(w.offset_t[q]) * bm + (row - rb * bm);
      const double value = w.values[block_row * bn + (input - column * bn)];
      weight += value;
      moment += value * time;
      last = time;
    }
    const double slope = weight - 1;
    const auto solved = static_cast<float>(moment / (slope > 0 ? slope : 1));
    // After the latest causal input, so that backward can tell causal inputs by their times.
    const float least = after(last), time = solved > least ? solved : least;
    const bool spikes = slope > 0 && time <= kLargest;
    p.z_out[index] = spikes ? time : INFINITY;
    p.slope[index] = spikes ? static_cast<float>(slope) : 0.f;
  }
};

// Of a neuron and a sample: the gradient over the slope where the input z came before the spike, else 0.
ESL_INLINE float before_spike(const TemporalBackward& p, int64_t at, float z) {
  const float slope = p.slope[at];
  return slope > 0.f && z < p.z_out[at] ? p.grad[at] / slope : 0.f;
}

// d z_out / d w = (z - z_out) / slope.
struct GradValues {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  TemporalBackward p;
  int64_t nnzb;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const BlockSparse& w = p.w;
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread, size = w.bm * w.bn;
    if (index >= nnzb * size) return;
    const int64_t b = index / size;
    const int inside = static_cast<int>(index % size), bn = static_cast<int>(w.bn);
    int rb = 0, end = static_cast<int>(ceil_div(w.rows, w.bm));  // the row block of b: crow[rb] <= b < crow[rb + 1]
    while (end - rb > 1) {
      const int middle = rb + (end - rb) / 2;
      (w.crow[middle] <= b ? rb : end) = middle;
    }
    const int64_t row = rb * w.bm + inside / bn, channel = w.col[b] * w.bn + inside % bn;
    float total = 0.f;
    if (row < w.rows && channel < w.cols)
      for (int64_t first = 0; first < p.samples; first += kRun) {
        float sum = 0.f;
        for (int64_t sample = first; sample < min(p.samples, first + kRun); ++sample) {
          const int64_t at = sample * w.rows + row;
          const float z = p.z[sample * w.cols + channel], g = before_spike(p, at, z);
          if (g != 0.f) sum += g * (z - p.z_out[at]);
        }
        total += sum;
      }
    p.grad_values[index] = total;
  }
};

// d z_out / d z = w / slope.
struct GradInput {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  TemporalBackward p;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const BlockSparse& w = p.w;
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= p.samples * w.cols) return;
    const int64_t sample = index / w.cols, channel = index % w.cols, column = channel / w.bn;
    const float z = p.z[index];
    float total = 0.f;
    for (int q = w.ccol[column]; q < w.ccol[column + 1]; ++q) {
      const int64_t first = w.row_t[q] * w.bm, at = sample * w.rows + first;
      const float* const values = w.values + w.offset_t[q] * w.bm * w.bn + (channel - column * w.bn);
      float sum = 0.f;
      for (int i = 0; i < static_cast<int>(min(w.bm, w.rows - first)); ++i) {
        const float g = before_spike(p, at + i, z);
        if (g != 0.f) sum += g * values[i * w.bn];
      }
      total += sum;
    }
    p.grad_z[index] = total;
  }
};

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_temporal_forward(const TemporalForward& p, const int64_t* order, Stream stream) {
  int32("temporal", "inputs", p.w.cols);
  int32("temporal", "neurons", p.w.rows);
  launch("temporal", Forward{p, order}, ceil_div(p.samples * p.w.rows, kThreads), stream);
}

void launch_temporal_backward(const TemporalBackward& p, int64_t nnzb, Stream stream) {
  const int64_t values = nnzb * p.w.bm * p.w.bn;
  if (p.grad_values) launch("temporal_backward", GradValues{p, nnzb}, ceil_div(values, kThreads), stream);
  if (p.grad_z) launch("temporal_backward", GradInput{p}, ceil_div(p.samples * p.w.cols, kThreads), stream);
}

}  // namespace esl
