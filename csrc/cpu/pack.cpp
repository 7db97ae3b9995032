// Op pack. Moves 4 bytes in and 1 bit out per element (unpack: the reverse), so memory reads are the floor; the compare
// and the 64 x 64 bit transposition (about 0.1 operations per element) stay below it.
#include "esl/pack.h"

#include "esl/panels.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

// The bits of 16 elements, per plane. False if one is neither 0 nor 1.
inline bool binary_bits(f32x16 v, uint16_t* bits) {
  bits[0] = equals(v, set1(1.f));
  return static_cast<uint16_t>(bits[0] | equals(v, zero())) == 0xFFFF;
}

// False if one is no level: what is left after taking the highest plane away, then the next, must be 0. Each
// subtraction is exact, and NaN, infinities, negative and too large numbers all leave something.
template <int planes>
inline bool level_bits(f32x16 v, float scale, uint16_t* bits) {
  for (int p = planes - 1; p >= 0; --p) {
    const float weight = scale * static_cast<float>(1 << p);
    bits[p] = at_least(v, set1(weight));
    v = add_where(v, bits[p], set1(-weight));
  }
  return equals(v, zero()) == 0xFFFF;
}

// The same for n <= 64 elements.
template <int planes, class T>
inline bool word_bits(const T* x, int n, float scale, uint64_t* bits) {
  bool good = true;
  for (int p = 0; p < planes; ++p) bits[p] = 0;
  for (int e = 0; e < n; e += 16) {
    const f32x16 v = n - e < 16 ? load(x + e, n - e) : load(x + e);
    uint16_t piece[planes];
    good &= planes == 1 && scale == 1.f ? binary_bits(v, piece) : level_bits<planes>(v, scale, piece);
    for (int p = 0; p < planes; ++p) bits[p] |= static_cast<uint64_t>(piece[p]) << e;
  }
  return good;
}

// A share of work is a span of one group's elements; the bits of its 64 lanes stay in L1.
constexpr int64_t kSpan = 1024;

template <class T>
inline void prefetch_row(const T* x, int n) {
  for (int e = 0; e < n; e += 64 / static_cast<int>(sizeof(T))) prefetch(x + e);
}

template <class F>
void for_spans(const Lanes& lanes, int64_t size, int threads, F f) {  // f(group, first element, elements)
  const int64_t spans = ceil_div(size, kSpan);
  parallel_for(0, lanes.groups() * spans, threads, [&](int64_t i) {
    const int64_t first = i % spans * kSpan;
    f(i / spans, first, min(size - first, kSpan));
  });
}

template <int planes, class T>
bool pack_rows(const PackParams& p) {
  const int64_t groups = p.lanes.groups(), size = p.channels * p.pixels;
  const T* rows = static_cast<const T*>(p.rows);
  bool good = true;
  for_spans(p.lanes, size, p.threads, [&](int64_t g, int64_t first, int64_t count) {
    bool go_on;  // another thread may have met a bad element
#pragma omp atomic read
    go_on = good;
    if (!go_on) return;
    const LaneRows lanes(p.lanes, g);
    uint64_t bits[planes][kSpan / 64][64];
    bool fine = true;
    for (int l = 0; l < 64; ++l)
      for (int64_t e = 0; e < count; e += 64) {
        const int n = static_cast<int>(min(count - e, 64));
        uint64_t word[planes] = {};
        if (lanes.row[l] >= 0) fine &= word_bits<planes>(rows + lanes.row[l] * size + first + e, n, p.scale, word);
        for (int plane = 0; plane < planes; ++plane) bits[plane][e / 64][l] = word[plane];
        // Each lane's piece begins anew for the hardware's prefetcher: without this line it takes 2.5 times as long.
        if (l < 63 && lanes.row[l + 1] >= 0) prefetch_row(rows + lanes.row[l + 1] * size + first + e, n);
      }
    if (!fine) {
#pragma omp atomic write
      good = false;
      return;
    }
    Place place(p.channels, p.pixels, first);
    for (int64_t e0 = 0; e0 < count; e0 += 64) {
      for (int plane = 0; plane < planes; ++plane) transpose_bits(bits[plane][e0 / 64]);
      for (int64_t e = 0; e < min(count - e0, 64); ++e, place.next())
        for (int plane = 0; plane < planes; ++plane)
          p.words[(plane * groups + g) * size + place.at] = bits[plane][e0 / 64][e];
    }
  });
  return good;
}

template <class T>
bool pack_planes(const PackParams& p) {
  switch (p.planes) {
    case 1:
      return pack_rows<1, T>(p);
    case 2:
      return pack_rows<2, T>(p);
    case 3:
      return pack_rows<3, T>(p);
    default:
      return pack_rows<4, T>(p);
  }
}

template <class T>
void unpack_rows(const UnpackParams& p) {
  const int64_t groups = p.lanes.groups(), size = p.channels * p.pixels;
  T* rows = static_cast<T*>(p.rows);
  for_spans(p.lanes, size, p.threads, [&](int64_t g, int64_t first, int64_t count) {
    const LaneRows lanes(p.lanes, g);
    const uint64_t* words = p.words + g * size;
    Place place(p.channels, p.pixels, first);
    for (int64_t e0 = 0; e0 < count; e0 += 64) {
      const int n = static_cast<int>(min(count - e0, 64));
      uint64_t bits[kMaxPlanes][64];
      for (int e = 0; e < n; ++e, place.next())
        for (int plane = 0; plane < p.planes; ++plane) bits[plane][e] = words[plane * groups * size + place.at];
      for (int plane = 0; plane < p.planes; ++plane) {
        std::memset(bits[plane] + n, 0, static_cast<size_t>(64 - n) * sizeof(uint64_t));
        transpose_bits(bits[plane]);
      }
      for (int l = 0; l < 64; ++l) {
        if (lanes.row[l] < 0) continue;
        T* x = rows + lanes.row[l] * size + first + e0;
        for (int e = 0; e < n; e += 16) {
          f32x16 v = zero();
          for (int plane = 0; plane < p.planes; ++plane)
            v = add_where(v, static_cast<uint16_t>(bits[plane][l] >> e),
                          set1(p.scale * static_cast<float>(1 << plane)));
          if (n - e < 16)
            store(x + e, v, n - e);
          else
            store(x + e, v);
        }
      }
    }
  });
}

template <class T>
void to_panels_from(const PanelParams& p) {
  const int64_t size = p.channels * p.pixels;
  for_spans(p.lanes, size, p.threads, [&](int64_t g, int64_t first, int64_t count) {
    rows_to_panel(static_cast<const T*>(p.rows), p.channels, p.pixels, LaneRows(p.lanes, g), first, count,
                  p.panels + g * size * kWord);
  });
}

template <class T>
void from_panels_to(const PanelParams& p) {
  const int64_t size = p.channels * p.pixels;
  for_spans(p.lanes, size, p.threads, [&](int64_t g, int64_t first, int64_t count) {
    panel_to_rows(p.panels + g * size * kWord, p.channels, p.pixels, LaneRows(p.lanes, g), first, count,
                  static_cast<T*>(p.rows));
  });
}

}  // namespace

bool pack(const PackParams& p) { return p.dtype == Dtype::f32 ? pack_planes<float>(p) : pack_planes<bf16>(p); }
void unpack(const UnpackParams& p) { p.dtype == Dtype::f32 ? unpack_rows<float>(p) : unpack_rows<bf16>(p); }
void to_panels(const PanelParams& p) { p.dtype == Dtype::f32 ? to_panels_from<float>(p) : to_panels_from<bf16>(p); }
void from_panels(const PanelParams& p) { p.dtype == Dtype::f32 ? from_panels_to<float>(p) : from_panels_to<bf16>(p); }

}  // namespace esl::ESL_ISA
