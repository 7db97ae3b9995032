// Op pack. Moves 4 bytes in and 1 bit out per element (unpack: the reverse), so memory reads are the floor; the compare
// and the 64 x 64 bit transposition (about 0.1 operations per element) stay below it.
#include "esl/pack.h"

#include "esl/panels.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int kMaxPlanes = 4;

// Levels of 16 elements: their bits per plane. False if one is no level.
template <class T>
inline bool binary_bits(const T* x, int n, uint16_t* bits) {
  const f32x16 v = n == 16 ? load(x) : load(x, n);
  const uint16_t ones = equals(v, set1(1.f)), zeros = equals(v, zero());
  bits[0] = ones;
  return static_cast<uint16_t>(ones | zeros) == 0xFFFF;
}

template <class T>
inline bool level_bits(const T* x, int n, int planes, float scale, uint16_t* bits) {
  float v[16];
  store(v, n == 16 ? load(x) : load(x, n));
  const float limit = static_cast<float>(1 << planes), inverse = 1.f / scale;
  for (int p = 0; p < planes; ++p) bits[p] = 0;
  for (int i = 0; i < 16; ++i) {
    const float level = v[i] * inverse;
    if (!(level >= 0.f && level < limit)) return false;
    const int k = static_cast<int>(level);
    if (static_cast<float>(k) * scale != v[i]) return false;
    for (int p = 0; p < planes; ++p) bits[p] = static_cast<uint16_t>(bits[p] | (k >> p & 1) << i);
  }
  return true;
}

// A group is read lane by lane, 1,024 channels at a time: whole rows for the prefetcher, and bits that stay in L1.
constexpr int64_t kChunks = 16;  // of 64 channels

template <class T>
bool pack_rows(const PackParams& p) {
  const int64_t groups = p.lanes.groups(), span = kChunks * 64;
  const T* rows = static_cast<const T*>(p.rows);
  const bool binary = p.planes == 1 && p.scale == 1.f;
  bool good = true;
  parallel_for(0, groups, p.threads, [&](int64_t g) {
    const LaneRows lanes(p.lanes, g);
    uint64_t bits[kMaxPlanes][kChunks][64];
    for (int64_t c0 = 0; c0 < p.channels; c0 += span) {
      const int64_t width = p.channels - c0 < span ? p.channels - c0 : span, chunks = (width + 63) / 64;
      for (int plane = 0; plane < p.planes; ++plane)
        std::memset(bits[plane], 0, static_cast<size_t>(chunks) * sizeof(bits[plane][0]));
      for (int l = 0; l < 64; ++l) {
        bool go_on;  // another thread may have met a bad element
#pragma omp atomic read
        go_on = good;
        if (!go_on) return;
        if (lanes.row[l] < 0) continue;
        const T* x = rows + lanes.row[l] * p.channels + c0;
        bool fine = true;
        for (int64_t c = 0; c < width; c += 16) {
          const int n = static_cast<int>(width - c < 16 ? width - c : 16);
          uint16_t piece[kMaxPlanes];
          fine &= binary ? binary_bits(x + c, n, piece) : level_bits(x + c, n, p.planes, p.scale, piece);
          if (!fine) break;
          for (int plane = 0; plane < p.planes; ++plane)
            bits[plane][c / 64][l] |= static_cast<uint64_t>(piece[plane]) << (c % 64);
        }
        if (!fine) {
#pragma omp atomic write
          good = false;
          return;
        }
      }
      for (int plane = 0; plane < p.planes; ++plane)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
          uint64_t* const piece = bits[plane][chunk];
          const int64_t first = c0 + chunk * 64, n = p.channels - first < 64 ? p.channels - first : 64;
          transpose_bits(piece);
          std::memcpy(p.words + (plane * groups + g) * p.channels + first, piece, static_cast<size_t>(n) * 8);
        }
    }
  });
  return good;
}

template <class T>
void unpack_rows(const UnpackParams& p) {
  const int64_t chunks = (p.channels + 63) / 64, groups = p.lanes.groups();
  T* rows = static_cast<T*>(p.rows);
  parallel_for(0, groups, p.threads, [&](int64_t g) {
    const LaneRows lanes(p.lanes, g);
    uint64_t bits[kMaxPlanes][64];
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t c0 = chunk * 64;
      const int width = static_cast<int>(p.channels - c0 < 64 ? p.channels - c0 : 64);
      for (int plane = 0; plane < p.planes; ++plane) {
        std::memset(bits[plane], 0, sizeof(bits[plane]));
        std::memcpy(bits[plane], p.words + (plane * groups + g) * p.channels + c0, static_cast<size_t>(width) * 8);
        transpose_bits(bits[plane]);
      }
      for (int l = 0; l < 64; ++l) {
        if (lanes.row[l] < 0) continue;
        T* x = rows + lanes.row[l] * p.channels + c0;
        for (int c = 0; c < width; c += 16) {
          f32x16 v = zero();
          for (int plane = 0; plane < p.planes; ++plane)
            v = add_where(v, static_cast<uint16_t>(bits[plane][l] >> c),
                          set1(p.scale * static_cast<float>(1 << plane)));
          if (width - c < 16)
            store(x + c, v, width - c);
          else
            store(x + c, v);
        }
      }
    }
  });
}

template <class T>
void to_panels_from(const PanelParams& p) {
  parallel_for(0, p.lanes.groups(), p.threads, [&](int64_t g) {
    group_to_panel(static_cast<const T*>(p.rows), p.channels, LaneRows(p.lanes, g), p.panels + g * p.channels * kWord);
  });
}

template <class T>
void from_panels_to(const PanelParams& p) {
  parallel_for(0, p.lanes.groups(), p.threads, [&](int64_t g) {
    group_to_rows(p.panels + g * p.channels * kWord, p.channels, LaneRows(p.lanes, g), static_cast<T*>(p.rows));
  });
}

}  // namespace

bool pack(const PackParams& p) { return p.dtype == Dtype::f32 ? pack_rows<float>(p) : pack_rows<bf16>(p); }
void unpack(const UnpackParams& p) { p.dtype == Dtype::f32 ? unpack_rows<float>(p) : unpack_rows<bf16>(p); }
void to_panels(const PanelParams& p) { p.dtype == Dtype::f32 ? to_panels_from<float>(p) : to_panels_from<bf16>(p); }
void from_panels(const PanelParams& p) { p.dtype == Dtype::f32 ? from_panels_to<float>(p) : from_panels_to<bf16>(p); }

}  // namespace esl::ESL_ISA
