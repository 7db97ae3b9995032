// Tiles between rows [T * B, C] and panels [C, 64], and bits between lane order and channel order. For kernels only.
#pragma once

#include "esl/lanes.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {

// The rows of the 64 lanes of one group.
struct LaneRows {
  int64_t row[kWord];
  int quarters;  // vectors of 16 lanes that hold any lane at all

  LaneRows(const Lanes& lanes, int64_t group) {
    const int64_t first = group * kWord, left = lanes.count() - first;
    quarters = static_cast<int>(left >= kWord ? 4 : (left + kLanes - 1) / kLanes);
    for (int l = 0; l < kWord; ++l) row[l] = first + l < lanes.count() ? lanes.row(first + l) : -1;
  }
};

// Columns [c, c + n), n <= 16, of 16 lanes' rows into a panel: out[k * 64 + lane]. Padding lanes become zero.
template <class T>
inline void rows_to_panel(const T* rows, int64_t channels, const int64_t* row, int64_t c, int n, float* out) {
  f32x16 m[16];
  for (int l = 0; l < 16; ++l)
    m[l] = row[l] < 0 ? zero() : n == 16 ? load(rows + row[l] * channels + c) : load(rows + row[l] * channels + c, n);
  transpose(m);
  for (int k = 0; k < n; ++k) store(out + k * kWord, m[k]);
}

// The inverse; in[k * stride + lane]. Padding lanes are dropped.
template <class T>
inline void panel_to_rows(const float* in, int64_t stride, T* rows, int64_t channels, const int64_t* row, int64_t c,
                          int n) {
  f32x16 m[16];
  for (int k = 0; k < 16; ++k) m[k] = k < n ? load(in + k * stride) : zero();
  transpose(m);
  for (int l = 0; l < 16; ++l) {
    if (row[l] < 0) continue;
    T* out = rows + row[l] * channels + c;
    if (n == 16)
      store(out, m[l]);
    else
      store(out, m[l], n);
  }
}

// All channels of one group, both ways.
template <class T>
inline void group_to_panel(const T* rows, int64_t channels, const LaneRows& lanes, float* panel) {
  for (int64_t c = 0; c < channels; c += 16) {
    const int n = static_cast<int>(channels - c < 16 ? channels - c : 16);
    for (int q = 0; q < 4; ++q)
      if (q < lanes.quarters)
        rows_to_panel(rows, channels, lanes.row + q * 16, c, n, panel + c * kWord + q * 16);
      else
        for (int k = 0; k < n; ++k) store(panel + (c + k) * kWord + q * 16, zero());
  }
}

template <class T>
inline void group_to_rows(const float* panel, int64_t channels, const LaneRows& lanes, T* rows) {
  for (int64_t c = 0; c < channels; c += 16) {
    const int n = static_cast<int>(channels - c < 16 ? channels - c : 16);
    for (int q = 0; q < lanes.quarters; ++q)
      panel_to_rows(panel + c * kWord + q * 16, kWord, rows, channels, lanes.row + q * 16, c, n);
  }
}

// Transpose 64 x 64 bits in place (Warren, Hacker's Delight, 7-3).
inline void transpose_bits(uint64_t* a) {
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int j = 32; j; j >>= 1, mask ^= mask << j)
    for (int k = 0; k < 64; k = ((k | j) + 1) & ~j) {
      const uint64_t t = ((a[k] >> j) ^ a[k | j]) & mask;
      a[k] ^= t << j;
      a[k | j] ^= t;
    }
}

}  // namespace esl::ESL_ISA
