// temporal, forward, for inputs that spike at a few times only (black and white images: two). Inputs of one time need
// no order, so that samples go side by side: the sums of a neuron's weights over the inputs of one time are masked
// additions for 64 samples, and the sum of w z follows from it. Floor: per connection, time and 64 samples 8 additions
// of 8 doubles, 4 cycles; event by event it is 64 times about 8.
#pragma once

#include <cmath>

#include "esl/parallel.h"
#include "esl/simd.h"
#include "esl/temporal.h"
#include "esl/tiles.h"

namespace esl::ESL_ISA {

constexpr int kGroups = 8;      // times, at most
constexpr int64_t kTiles = 16;  // words of 64 samples at a time

// 8 doubles. For sums whose distance from 1 counts.
#if defined(ESL_ISA_AVX512)
struct f64x8 {
  __m512d v;
};
inline f64x8 zero8() { return {_mm512_setzero_pd()}; }
inline f64x8 set8(double x) { return {_mm512_set1_pd(x)}; }
inline void store(double* p, f64x8 a) { _mm512_storeu_pd(p, a.v); }
inline f64x8 add_where(f64x8 a, uint8_t bits, f64x8 b) {
  return {_mm512_mask_add_pd(a.v, static_cast<__mmask8>(bits), a.v, b.v)};
}
#elif defined(ESL_ISA_AVX2)
struct f64x8 {
  __m256d a, b;
};
inline f64x8 zero8() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
inline f64x8 set8(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
inline void store(double* p, f64x8 x) {
  _mm256_storeu_pd(p, x.a);
  _mm256_storeu_pd(p + 4, x.b);
}
inline f64x8 add_where(f64x8 x, uint8_t bits, f64x8 y) {
  const __m256i low = _mm256_setr_epi64x(1, 2, 4, 8), high = _mm256_setr_epi64x(16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi64x(bits);
  const auto lanes = [&](__m256i bit) {
    return _mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(all, bit), bit));
  };
  return {_mm256_add_pd(x.a, _mm256_and_pd(lanes(low), y.a)), _mm256_add_pd(x.b, _mm256_and_pd(lanes(high), y.b))};
}
#else
struct f64x8 {
  double v[8];
};
inline f64x8 zero8() { return {{0, 0, 0, 0, 0, 0, 0, 0}}; }
inline f64x8 set8(double x) { return {{x, x, x, x, x, x, x, x}}; }
inline void store(double* p, f64x8 x) { std::memcpy(p, x.v, sizeof x.v); }
inline f64x8 add_where(f64x8 x, uint8_t bits, f64x8 y) {
  for (int i = 0; i < 8; ++i) x.v[i] += (bits >> i & 1) ? y.v[i] : 0.;
  return x;
}
#endif

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Has the potential, weight - moment / z, passed 1 before z? Once true for a z it is for all later ones, so that sums
// may stay as they are: no flag is needed.
inline bool fired(double weight, double moment, double z) { return weight > 1 && moment < z * (weight - 1); }

// When a neuron fires, from the sums over its causal inputs and the time of the latest of them.
inline void answer(const TemporalForward& p, int64_t at, double weight, double moment, float last) {
  const double slope = weight - 1;
  const auto z = static_cast<float>(moment / (slope > 0 ? slope : 1));
  // After the latest causal input, so that backward can tell causal inputs by their times.
  const float least = float_of(bits_of(last) + 1), time = z > least ? z : least;
  const bool spikes = slope > 0 && time <= 3.40282347e38f;
  p.z_out[at] = spikes ? time : INFINITY;
  p.slope[at] = spikes ? static_cast<float>(slope) : 0.f;
}

// The different finite times of a batch, in order; count is -1 where there are more than kGroups, or one that is no
// time.
struct SpikeTimes {
  int count = 0;
  float z[kGroups];

  SpikeTimes(const float* from, int64_t n) {
    const f32x16 never = set1(3.40282347e38f);
    for (int64_t i = 0; i < n && count >= 0; i += kLanes) {
      const int lanes = static_cast<int>(min(kLanes, n - i));
      const f32x16 x = lanes == kLanes ? load(from + i) : load(from + i, lanes);
      unsigned known = greater(x, never);
      for (int g = 0; g < count; ++g) known |= equals(x, set1(z[g]));
      for (int lane = 0; lane < lanes && known != 0xffff; ++lane)
        if (!(known >> lane & 1)) insert(from[i + lane]);
    }
  }

 private:
  void insert(float x) {
    if (count < 0) return;
    for (int g = 0; g < count; ++g)
      if (z[g] == x) return;
    if (count == kGroups || !(x > 0)) {
      count = -1;
      return;
    }
    int at = count++;
    for (; at && z[at - 1] > x; --at) z[at] = z[at - 1];
    z[at] = x;
  }
};

// Which samples an input spikes for: a word for each time, tile of 64 samples, and input. `any`: those with some input
// of that time. `looked`: of each tile and row, how many times were needed until all samples had fired.
struct Groups {
  uint64_t *bits, *any;
  uint8_t* looked;

  static int64_t bytes(const BlockSparse& w, int64_t samples) {
    const int64_t tiles = min(kTiles, ceil_div(samples, kWord));
    return align64(kGroups * tiles * w.cols * 8) + align64(kGroups * tiles * 8) + align64(tiles * w.rows);
  }
  Groups(const BlockSparse& w, int64_t samples, char* at) {
    const int64_t tiles = min(kTiles, ceil_div(samples, kWord));
    bits = reinterpret_cast<uint64_t*>(at);
    any = reinterpret_cast<uint64_t*>(at + align64(kGroups * tiles * w.cols * 8));
    looked = reinterpret_cast<uint8_t*>(any) + align64(kGroups * tiles * 8);
  }
};

// One row of the weight for one tile: until what time the sums had to be followed.
inline int solve_tile(const TemporalForward& p, const SpikeTimes& times, const uint64_t* bits, const uint64_t* any,
                      int64_t stride, int64_t row, int64_t first, int valid) {
  const BlockSparse& w = p.w;
  double weight[kWord] = {}, moment[kWord] = {};
  float last[kWord] = {};
  const int64_t rb = row / w.bm, inside = row % w.bm;
  int g = 0;
  for (; g < times.count; ++g) {
    const double z = static_cast<double>(times.z[g]);
    int left = 0;
    for (int l = 0; l < valid; ++l) left += !fired(weight[l], moment[l], z);
    if (!left) break;
    f64x8 sums[8];
    for (int v = 0; v < 8; ++v) sums[v] = zero8();
    const uint64_t* const of_time = bits + g * stride;
    for (int64_t q = w.crow[rb]; q < w.crow[rb + 1]; ++q) {
      const int64_t channel = w.col[q] * w.bn, channels = min(w.bn, w.cols - channel);
      const float* const values = w.values + (q * w.bm + inside) * w.bn;
      for (int64_t k = 0; k < channels; ++k) {
        const f64x8 value = set8(static_cast<double>(values[k]));
        const uint64_t word = of_time[channel + k];
        for (int v = 0; v < 8; ++v) sums[v] = add_where(sums[v], static_cast<uint8_t>(word >> 8 * v), value);
      }
    }
    double more[kWord];
    for (int v = 0; v < 8; ++v) store(more + 8 * v, sums[v]);
    const uint64_t here = any[g];
    for (int l = 0; l < kWord; ++l) {
      const bool done = fired(weight[l], moment[l], z);
      const double add = done ? 0. : more[l];
      weight[l] += add;
      moment[l] += add * z;
      last[l] = done || !(here >> l & 1) ? last[l] : times.z[g];
    }
  }
  for (int l = 0; l < valid; ++l) answer(p, (first + l) * w.rows + row, weight[l], moment[l], last[l]);
  return g;
}

// Inputs visited.
inline int64_t forward_groups(const TemporalForward& p, const SpikeTimes& times, char* scratch, int threads) {
  const BlockSparse& w = p.w;
  const Groups s(w, p.samples, scratch);
  int64_t visits = 0;
  for (int64_t start = 0; start < p.samples; start += kTiles * kWord) {
    const int64_t samples = min(p.samples - start, kTiles * kWord), tiles = ceil_div(samples, kWord);
    const auto valid = [&](int64_t tile) { return static_cast<int>(min(kWord, samples - tile * kWord)); };
    parallel_for(0, tiles, threads, [&](int64_t tile) {
      for (int g = 0; g < times.count; ++g) {
        uint64_t* const bits = s.bits + (g * tiles + tile) * w.cols;
        for (int64_t c = 0; c < w.cols; ++c) bits[c] = 0;
        for (int l = 0; l < valid(tile); ++l) {
          const float* const z = p.z + (start + tile * kWord + l) * w.cols;
          for (int64_t c = 0; c < w.cols; ++c) bits[c] |= static_cast<uint64_t>(z[c] == times.z[g]) << l;
        }
        uint64_t any = 0;
        for (int64_t c = 0; c < w.cols; ++c) any |= bits[c];
        s.any[tile * kGroups + g] = any;
      }
    });
    parallel_for_dynamic(0, w.rows, threads, 8, [&](int64_t row) {
      for (int64_t tile = 0; tile < tiles; ++tile)
        s.looked[tile * w.rows + row] =
            static_cast<uint8_t>(solve_tile(p, times, s.bits + tile * w.cols, s.any + tile * kGroups, tiles * w.cols,
                                            row, start + tile * kWord, valid(tile)));
    });
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int looked = 0;
      for (int64_t r = 0; r < w.rows; ++r) looked = static_cast<int>(max(looked, s.looked[tile * w.rows + r]));
      for (int g = 0; g < looked; ++g)
        for (int64_t c = 0; c < w.cols; ++c) {
          uint64_t word = s.bits[(g * tiles + tile) * w.cols + c];
          for (; word; word &= word - 1) ++visits;
        }
    }
  }
  return visits;
}

}  // namespace esl::ESL_ISA
