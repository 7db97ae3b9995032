// Tiles between rows [T * B, C] or [T * B, C, pixels] and panels [pixels, C, 64], and bits between lane order and
// channel order. For kernels only.
#pragma once

#include "esl/lanes.h"
#include "esl/parallel.h"
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

// Consecutive elements of a feature map's row, in (channel, pixel) order, and their places in words and panels, which
// are in (pixel, channel) order. With one pixel both orders are the same.
struct Place {
  int64_t channels, pixels, pixel, at;

  Place(int64_t channels, int64_t pixels, int64_t element)
      : channels(channels), pixels(pixels), pixel(element % pixels), at(pixel * channels + element / pixels) {}
  void next() {
    at += channels;
    if (++pixel == pixels) {
      at -= pixels * channels - 1;
      pixel = 0;
    }
  }
};

// Elements [e, e + n), n <= 16, of 16 lanes' rows; column(k) is where the 16 lanes of element e + k go. Padding lanes
// become zero.
template <class T, class Column>
inline void rows_to_columns(const T* rows, int64_t size, const int64_t* row, int64_t e, int n, Column column) {
  f32x16 m[16];
  for (int l = 0; l < 16; ++l)
    m[l] = row[l] < 0 ? zero() : n == 16 ? load(rows + row[l] * size + e) : load(rows + row[l] * size + e, n);
  transpose(m);
  for (int k = 0; k < n; ++k) store(column(k), m[k]);
}

// The inverse. Padding lanes are dropped.
template <class T, class Column>
inline void columns_to_rows(Column column, T* rows, int64_t size, const int64_t* row, int64_t e, int n) {
  f32x16 m[16];
  for (int k = 0; k < 16; ++k) m[k] = k < n ? load(column(k)) : zero();
  transpose(m);
  for (int l = 0; l < 16; ++l) {
    if (row[l] < 0) continue;
    T* out = rows + row[l] * size + e;
    if (n == 16)
      store(out, m[l]);
    else
      store(out, m[l], n);
  }
}

// From a tile or panel whose columns stand `stride` apart.
template <class T>
inline void panel_to_rows(const float* in, int64_t stride, T* rows, int64_t channels, const int64_t* row, int64_t c,
                          int n) {
  columns_to_rows([=](int k) { return in + k * stride; }, rows, channels, row, c, n);
}

// Elements [first, first + count) of one group, both ways.
template <class T>
inline void rows_to_panel(const T* rows, int64_t channels, int64_t pixels, const LaneRows& lanes, int64_t first,
                          int64_t count, float* panel) {
  Place place(channels, pixels, first);
  for (int64_t e = first; e < first + count; e += 16) {
    const int n = static_cast<int>(min(first + count - e, 16));
    float* column[16];
    for (int k = 0; k < n; ++k, place.next()) column[k] = panel + place.at * kWord;
    for (int q = 0; q < 4; ++q)
      if (q < lanes.quarters)
        rows_to_columns(rows, channels * pixels, lanes.row + q * 16, e, n, [&](int k) { return column[k] + q * 16; });
      else
        for (int k = 0; k < n; ++k) store(column[k] + q * 16, zero());
  }
}

template <class T>
inline void panel_to_rows(const float* panel, int64_t channels, int64_t pixels, const LaneRows& lanes, int64_t first,
                          int64_t count, T* rows) {
  Place place(channels, pixels, first);
  for (int64_t e = first; e < first + count; e += 16) {
    const int n = static_cast<int>(min(first + count - e, 16));
    const float* column[16];
    for (int k = 0; k < n; ++k, place.next()) column[k] = panel + place.at * kWord;
    for (int q = 0; q < lanes.quarters; ++q)
      columns_to_rows([&](int k) { return column[k] + q * 16; }, rows, channels * pixels, lanes.row + q * 16, e, n);
  }
}

// All channels of one group of a linear activation.
template <class T>
inline void group_to_panel(const T* rows, int64_t channels, const LaneRows& lanes, float* panel) {
  rows_to_panel(rows, channels, 1, lanes, 0, channels, panel);
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
