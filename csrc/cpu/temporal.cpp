// Op temporal. Forward: a sample's inputs in the order of their times; each touches the neurons that it is connected to
// and no others. Floor: 2 additions and a comparison per connection and sample, whose state (16 bytes a neuron) stays
// in L1. Sums are double: what counts is their distance from 1. Backward: 16 samples at a time, per connection 3 loads,
// a comparison and 2 operations for each gradient.
#include "esl/temporal.h"

#include "esl/parallel.h"
#include "esl/simd.h"
#include "esl/temporal_groups.h"
#include "esl/tiles.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kWorkPerThread = 1 << 15;  // connections times samples worth a second thread
constexpr int64_t kCheck = 32;               // inputs between two looks at whether everyone has fired

int64_t row_blocks(const BlockSparse& w) { return ceil_div(w.rows, w.bm); }
int64_t blocks(const BlockSparse& w) { return w.crow[row_blocks(w)]; }

struct Event {
  uint32_t z, input;  // the bits of a positive float are ordered as the float is
};

// By z, equal ones in their order; returns the sorted of the two buffers.
Event* sort(Event* events, Event* other, int64_t n) {
  for (int shift = 0; shift < 32; shift += 8) {
    int64_t start[257] = {};
    for (int64_t i = 0; i < n; ++i) ++start[(events[i].z >> shift & 255) + 1];
    if (n && start[(events[0].z >> shift & 255) + 1] == n) continue;
    for (int k = 0; k < 256; ++k) start[k + 1] += start[k];
    for (int64_t i = 0; i < n; ++i) other[start[events[i].z >> shift & 255]++] = events[i];
    Event* const sorted = other;
    other = events;
    events = sorted;
  }
  return events;
}

// What one thread needs; a row more than there are, up to a whole block.
struct State {
  double *weight, *moment;  // sums over the causal inputs so far: w, w z
  float* last;              // z of the latest of them
  Event *events, *sorted;

  static int64_t bytes(const BlockSparse& w) {
    const int64_t rows = row_blocks(w) * w.bm;
    return align64(rows * 8) * 2 + align64(rows * 4) + align64(w.cols * 8) * 2;
  }
  State(const BlockSparse& w, char* at) {
    const int64_t rows = row_blocks(w) * w.bm;
    const auto take = [&](int64_t size) {
      char* const here = at;
      at += align64(size);
      return here;
    };
    weight = reinterpret_cast<double*>(take(rows * 8));
    moment = reinterpret_cast<double*>(take(rows * 8));
    last = reinterpret_cast<float*>(take(rows * 4));
    events = reinterpret_cast<Event*>(take(w.cols * 8));
    sorted = reinterpret_cast<Event*>(take(w.cols * 8));
  }
};

// One input to the BM neurons of a block.
template <int BM>
inline void touch(const float* w, int64_t bm, float z, double* weight, double* moment, float* last) {
  const int64_t n = BM ? BM : bm;
  for (int64_t i = 0; i < n; ++i) {
    const bool done = fired(weight[i], moment[i], z);
    const double more = done ? 0. : static_cast<double>(w[i]);
    weight[i] += more;
    moment[i] += more * z;
    last[i] = done ? last[i] : z;
  }
}

// Values in column order, the rows of a block's column side by side; those that hang over count as zero.
void by_columns(const BlockSparse& w, float* values, int threads) {
  parallel_for(0, ceil_div(w.cols, w.bn), threads, [&](int64_t c) {
    for (int64_t q = w.ccol[c]; q < w.ccol[c + 1]; ++q) {
      const float* const from = w.values + w.offset_t[q] * w.bm * w.bn;
      const int64_t valid = min(w.bm, w.rows - w.row_t[q] * w.bm);
      for (int64_t k = 0; k < w.bn; ++k)
        for (int64_t i = 0; i < w.bm; ++i) values[(q * w.bn + k) * w.bm + i] = i < valid ? from[i * w.bn + k] : 0.f;
    }
  });
}

// Inputs visited, or -1 where one is no time.
template <int BM>
int64_t forward(const TemporalForward& p, const float* values, const State& s, int64_t sample) {
  const BlockSparse& w = p.w;
  const int64_t rows = row_blocks(w) * w.bm;
  int64_t n = 0;
  for (int64_t i = 0; i < w.cols; ++i) {
    const float z = p.z[sample * w.cols + i];
    if (!(z > 0)) return -1;
    if (z <= 3.40282347e38f) s.events[n++] = {bits_of(z), static_cast<uint32_t>(i)};
  }
  const Event* const events = sort(s.events, s.sorted, n);
  for (int64_t r = 0; r < rows; ++r) s.weight[r] = s.moment[r] = 0, s.last[r] = 0;
  int64_t done = 0;
  for (; done < n; ++done) {
    const float z = float_of(events[done].z);
    if (done % kCheck == 0 && done) {
      int64_t left = 0;
      for (int64_t r = 0; r < w.rows; ++r) left += !fired(s.weight[r], s.moment[r], z);
      if (!left) break;
    }
    const int64_t column = events[done].input / w.bn, inside = events[done].input % w.bn;
    for (int64_t q = w.ccol[column]; q < w.ccol[column + 1]; ++q) {
      const int64_t row = w.row_t[q] * w.bm;
      touch<BM>(values + (q * w.bn + inside) * w.bm, w.bm, z, s.weight + row, s.moment + row, s.last + row);
    }
  }
  for (int64_t r = 0; r < w.rows; ++r) answer(p, sample * w.rows + r, s.weight[r], s.moment[r], s.last[r]);
  return done;
}

int forward_threads(const TemporalForward& p) {
  return useful_threads(blocks(p.w) * p.w.bm * p.w.bn * p.samples, kWorkPerThread, p.threads);
}

// ---- backward: [channel, samples padded to vectors]

struct Lanes16 {
  int64_t n;  // samples, padded
  float *z, *z_out, *g;

  Lanes16(const BlockSparse& w, int64_t samples, void* scratch) : n(ceil_div(samples, kLanes) * kLanes) {
    z = static_cast<float*>(scratch);
    z_out = z + w.cols * n;
    g = z_out + w.rows * n;
  }
  int64_t bytes(const BlockSparse& w) const { return (w.cols + 2 * w.rows) * n * 4; }
};

// Where nobody fires z_out is 0, and nothing is before it.
void to_lanes(const TemporalBackward& p, const Lanes16& l, int threads) {
  const int64_t cols = p.w.cols, rows = p.w.rows;
  parallel_for(0, cols, threads, [&](int64_t c) {
    for (int64_t b = 0; b < l.n; ++b) l.z[c * l.n + b] = b < p.samples ? p.z[b * cols + c] : 0.f;
  });
  parallel_for(0, rows, threads, [&](int64_t r) {
    for (int64_t b = 0; b < l.n; ++b) {
      const int64_t from = b * rows + r;
      const bool spikes = b < p.samples && p.slope[from] > 0;
      l.z_out[r * l.n + b] = spikes ? p.z_out[from] : 0.f;
      l.g[r * l.n + b] = spikes ? p.grad[from] / p.slope[from] : 0.f;
    }
  });
}

// d z_out / d w = (z - z_out) / slope for the inputs before z_out.
template <int TM, int TN>
void grad_tile(const Lanes16& l, int64_t row, int64_t rows, int64_t channel, int64_t channels, float* out, int64_t bn) {
  f32x16 acc[TM][TN];
  for (int i = 0; i < TM; ++i)
    for (int k = 0; k < TN; ++k) acc[i][k] = zero();
  for (int64_t b = 0; b < l.n; b += kLanes)
    for (int k = 0; k < TN; ++k) {
      if (k >= channels) break;
      const f32x16 z = load(l.z + (channel + k) * l.n + b);
      for (int i = 0; i < TM; ++i) {
        if (i >= rows) break;
        const f32x16 z_out = load(l.z_out + (row + i) * l.n + b), g = load(l.g + (row + i) * l.n + b);
        acc[i][k] = add_where(acc[i][k], greater(z_out, z), g * (z - z_out));
      }
    }
  for (int i = 0; i < TM; ++i)
    for (int k = 0; k < TN; ++k) out[i * bn + k] = i < rows && k < channels ? sum(acc[i][k]) : 0.f;
}

void grad_values(const TemporalBackward& p, const Lanes16& l, int threads) {
  const BlockSparse& w = p.w;
  const int64_t tm = min(4, w.bm), tn = min(4, w.bn);
  parallel_for_dynamic(0, row_blocks(w), threads, 1, [&](int64_t rb) {
    for (int64_t q = w.crow[rb]; q < w.crow[rb + 1]; ++q)
      for (int64_t i = 0; i < w.bm; i += tm)
        for (int64_t k = 0; k < w.bn; k += tn) {
          const int64_t row = rb * w.bm + i, channel = w.col[q] * w.bn + k;
          float* const out = p.grad_values + (q * w.bm + i) * w.bn + k;
          const auto go = [&](auto run) { run(l, row, w.rows - row, channel, w.cols - channel, out, w.bn); };
          if (tm == 4)
            tn == 4 ? go(grad_tile<4, 4>) : tn == 2 ? go(grad_tile<4, 2>) : go(grad_tile<4, 1>);
          else if (tm == 2)
            tn == 4 ? go(grad_tile<2, 4>) : tn == 2 ? go(grad_tile<2, 2>) : go(grad_tile<2, 1>);
          else
            tn == 4 ? go(grad_tile<1, 4>) : tn == 2 ? go(grad_tile<1, 2>) : go(grad_tile<1, 1>);
        }
  });
}

// d z_out / d z = w / slope for the inputs before z_out.
void grad_inputs(const TemporalBackward& p, const Lanes16& l, int threads) {
  const BlockSparse& w = p.w;
  parallel_for_dynamic(0, ceil_div(w.cols, w.bn), threads, 1, [&](int64_t c) {
    const int64_t channels = min(w.bn, w.cols - c * w.bn);
    for (int64_t k = 0; k < channels; ++k) {
      const int64_t channel = c * w.bn + k;
      for (int64_t b = 0; b < l.n; b += kLanes) {
        const f32x16 z = load(l.z + channel * l.n + b);
        f32x16 total = zero();
        for (int64_t q = w.ccol[c]; q < w.ccol[c + 1]; ++q) {
          const int64_t row = w.row_t[q] * w.bm, rows = min(w.bm, w.rows - row);
          const float* const v = w.values + w.offset_t[q] * w.bm * w.bn + k;
          for (int64_t i = 0; i < rows; ++i) {
            const uint16_t before = greater(load(l.z_out + (row + i) * l.n + b), z);
            total = add_where(total, before, load(l.g + (row + i) * l.n + b) * set1(v[i * w.bn]));
          }
        }
        float out[kLanes];
        store(out, total);
        for (int64_t j = 0; j < kLanes && b + j < p.samples; ++j) p.grad_z[(b + j) * w.cols + channel] = out[j];
      }
    }
  });
}

}  // namespace

int64_t temporal_forward_scratch(const TemporalForward& p) {
  const int64_t events = align64(blocks(p.w) * p.w.bm * p.w.bn * 4) + forward_threads(p) * State::bytes(p.w);
  return max(events, Groups::bytes(p.w, p.samples)) + 64;
}

int64_t temporal_forward(const TemporalForward& p) {
  const int threads = forward_threads(p);
  if (const SpikeTimes times(p.z, p.samples * p.w.cols); times.count >= 0) {
    const int64_t visits = forward_groups(p, times, static_cast<char*>(p.scratch), threads);
    if (p.visits) *p.visits = visits;
    return 0;
  }
  auto* const values = static_cast<float*>(p.scratch);
  char* const states = static_cast<char*>(p.scratch) + align64(blocks(p.w) * p.w.bm * p.w.bn * 4);
  by_columns(p.w, values, threads);
  int64_t bad = 0, visits = 0;
  parallel_tasks(p.samples, threads, [&](int64_t sample, int64_t thread) {
    const State state(p.w, states + thread * State::bytes(p.w));
    const int64_t bm = p.w.bm;
    const int64_t seen = bm == 1   ? forward<1>(p, values, state, sample)
                         : bm == 4 ? forward<4>(p, values, state, sample)
                                   : forward<0>(p, values, state, sample);
#pragma omp atomic
    bad += seen < 0;
#pragma omp atomic
    visits += seen;
  });
  if (p.visits) *p.visits = visits;
  return bad;
}

int64_t temporal_backward_scratch(const TemporalBackward& p) {
  return Lanes16(p.w, p.samples, nullptr).bytes(p.w) + 64;
}

void temporal_backward(const TemporalBackward& p) {
  const int threads = useful_threads(blocks(p.w) * p.w.bm * p.w.bn * p.samples, kWorkPerThread, p.threads);
  const Lanes16 l(p.w, p.samples, p.scratch);
  to_lanes(p, l, threads);
  if (p.grad_values) grad_values(p, l, threads);
  if (p.grad_z) grad_inputs(p, l, threads);
}

}  // namespace esl::ESL_ISA
