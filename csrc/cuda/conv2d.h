// What the kernels of conv2d share: its sizes in 32 bits, and the products of a tile. A linear layer is a convolution
// of one pixel.
#pragma once

#include "element.h"
#include "esl/conv2d.h"
#include "launch.h"

namespace esl::cuda {

// n / d for 0 <= n < 2^31 by one multiplication (Granlund, Montgomery 1994).
struct Divider {
  uint32_t magic;
  int d, shift;

  explicit Divider(int d) : d(d), shift(31) {
    while (int64_t{1} << (shift - 31) < d) ++shift;
    magic = static_cast<uint32_t>(((uint64_t{1} << shift) + static_cast<uint64_t>(d) - 1) / static_cast<uint64_t>(d));
  }
  ESL_INLINE int operator()(int n) const {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * magic >> shift);
  }
};

struct ConvSizes {
  int groups, ci, co;          // channels of a group
  int row_blocks, col_blocks;  // of a group; of a tap
  int bm, bn;
  int H, W, Ho, Wo, kh, kw, ph, pw, dh, dw;
  int channels, rows;  // of all groups
  Divider sh, sw, by_kw, by_col_blocks;
  bool one_tap, all_inside;  // as in a linear layer: every tap is the first one; no tap reads beyond the border

  explicit ConvSizes(const Conv2dCuda& p);
};

// Where a column block of the weight reads: its first channel in the group, and the distance from the first tap.
struct Tap {
  int channel, y, x;

  ESL_INLINE Tap(const ConvSizes& s, int column) : channel(column * s.bn), y(0), x(0) {
    if (s.one_tap) return;
    const int tap = s.by_col_blocks(column), i = s.by_kw(tap);
    channel = (column - tap * s.col_blocks) * s.bn;
    y = i * s.dh;
    x = (tap - i * s.kw) * s.dw;
  }
};

// A warp holds the 64 lanes of a unit (a pixel's channel), two neighbours a thread: `pair` is 0 to 31.
constexpr int kWarps = 4;  // of a block of threads

struct Spikes {
  const uint32_t* halves;  // of words
  int64_t plane_halves;
  int planes;

  ESL_INLINE Spikes after(int64_t units) const { return {halves + 2 * units, plane_halves, planes}; }
  // acc[u][i] += weight[i] where lanes of channel k of unit[u] spike.
  template <int TM, int P>
  ESL_INLINE void add(float (&acc)[P][TM][2], const int64_t (&unit)[P], uint32_t inside, int k, int pair,
                      float (&weight)[TM]) const {
    const uint32_t even = 1u << (2 * pair & 31), odd = even << 1;
    const uint32_t* source = halves + (pair >> 4);
    for (int plane = 0;;) {
#pragma unroll
      for (int u = 0; u < P; ++u) {
        const uint32_t bits = inside >> u & 1 ? source[2 * (unit[u] + k)] : 0;
        if (bits & even) {
#pragma unroll
          for (int i = 0; i < TM; ++i) acc[u][i][0] += weight[i];
        }
        if (bits & odd) {
#pragma unroll
          for (int i = 0; i < TM; ++i) acc[u][i][1] += weight[i];
        }
      }
      if (++plane == planes) return;
      source += plane_halves;
#pragma unroll
      for (int i = 0; i < TM; ++i) weight[i] *= 2.f;
    }
  }
};

template <class T>
struct Panels {
  const T* panels;

  ESL_INLINE Panels after(int64_t units) const { return {panels + 64 * units}; }
  template <int TM, int P>
  ESL_INLINE void add(float (&acc)[P][TM][2], const int64_t (&unit)[P], uint32_t inside, int k, int pair,
                      float (&weight)[TM]) const {
#pragma unroll
    for (int u = 0; u < P; ++u) {
      if (!(inside >> u & 1)) continue;
      const Vector<T, 2> v = load<2>(panels + (unit[u] + k) * 64 + 2 * pair);
      const float a = widen(v.x[0]), b = widen(v.x[1]);
#pragma unroll
      for (int i = 0; i < TM; ++i) {
        acc[u][i][0] += weight[i] * a;
        acc[u][i][1] += weight[i] * b;
      }
    }
  }
};

// A piece of a block, n sources times at most TM outputs: w[i * w_out + k * w_in] for i < outs.
template <class Source, int TM, int P>
ESL_INLINE void multiply(const Source& source, float (&acc)[P][TM][2], const int64_t (&unit)[P], uint32_t inside, int n,
                         int pair, const float* w, int w_out, int w_in, int outs) {
  for (int k = 0; k < n; ++k, w += w_in) {
    float weight[TM];
#pragma unroll
    for (int i = 0; i < TM; ++i) weight[i] = i < outs ? w[i * w_out] : 0.f;
    source.add(acc, unit, inside, k, pair, weight);
  }
}

}  // namespace esl::cuda
