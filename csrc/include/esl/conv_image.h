// The input of a convolution as its kernels read it: pixels in a zero border, so that no tap needs a bounds check.
// For kernels only.
#pragma once

#include "esl/conv2d.h"
#include "esl/parallel.h"
#include "esl/simd.h"
#include "esl/tiles.h"

namespace esl::ESL_ISA {

template <int N>
struct Int {
  static constexpr int value = N;
};

// f(Int<planes>), 1 to kMaxPlanes.
template <class F>
void with_planes(int planes, F f) {
  planes == 1 ? f(Int<1>{}) : planes == 2 ? f(Int<2>{}) : planes == 3 ? f(Int<3>{}) : f(Int<4>{});
}

// Numbers of channels and blocks in a group of the convolution.
struct ConvBlocks {
  int64_t ci, co;                  // channels of a group
  int64_t row_blocks, col_blocks;  // of a group; of a tap

  ConvBlocks(const BlockSparse& w, const ConvShape& s)
      : ci(w.cols / (s.kh * s.kw)),
        co(w.rows / s.groups),
        row_blocks(ceil_div(co, w.bm)),
        col_blocks(ceil_div(ci, w.bn)) {}
  int64_t first_row(int64_t rb, int64_t bm) const { return rb / row_blocks * co + rb % row_blocks * bm; }
  int64_t rows(int64_t rb, int64_t bm) const { return min(bm, co - rb % row_blocks * bm); }
};

// Where a block's sources stand, relative to an output pixel, and how many of its columns exist.
struct Place {
  int32_t offset, n;
};

// One unit is what a channel of a pixel takes: a word, or 64 floats; the four nibble words of 4 channels; or 64 bytes,
// each the level that the planes' bits of a lane make.
enum class Unit { word, panel, nibbles, levels };

// Whether to read spikes as levels: several planes always, one where several taps read the same level.
inline bool pays_levels(const ConvShape& s, bool binary) { return !kHasTables && (!binary || s.kh * s.kw > 1); }

// Adds bit `plane` of 64 lanes' levels.
inline void add_plane(uint64_t word, int plane, uint8_t* level) {
#if defined(ESL_ISA_AVX2)
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  const __m256i from =
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i value = _mm256_set1_epi8(static_cast<char>(1 << plane));
  for (int half = 0; half < 2; ++half) {
    const __m256i all = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word >> 32 * half)), from);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(all, bit), bit);
    auto* const to = reinterpret_cast<__m256i*>(level) + half;
    _mm256_storeu_si256(to, _mm256_or_si256(_mm256_loadu_si256(to), _mm256_and_si256(set, value)));
  }
#else
  for (int lane = 0; lane < kWord; ++lane) level[lane] |= static_cast<uint8_t>((word >> lane & 1) << plane);
#endif
}

struct Image {
  Unit unit;
  int64_t H, W;      // with border
  int64_t channels;  // units of a pixel
  int64_t group_channels;
  int64_t planes;  // that stay apart: levels are one
  int64_t source_planes;
  bool in_place;  // no border is read and nothing is transformed: the caller's own memory serves

  Image(const BlockSparse& w, const ConvShape& s, Unit unit, int64_t planes)
      : unit(unit),
        H((s.Ho - 1) * s.sh + (s.kh - 1) * s.dh + 1),
        W((s.Wo - 1) * s.sw + (s.kw - 1) * s.dw + 1),
        planes(unit == Unit::levels ? 1 : planes),
        source_planes(planes) {
    const int64_t ci = ConvBlocks(w, s).ci;
    group_channels = unit == Unit::nibbles ? ceil_div(ci, 4) : ci;
    channels = s.groups * group_channels;
    in_place = unit != Unit::nibbles && unit != Unit::levels && !s.ph && !s.pw && H <= s.H && W <= s.W;
    if (in_place) H = s.H, W = s.W;
  }
  int64_t unit_bytes() const {
    return unit == Unit::word ? 8 : unit == Unit::nibbles ? 32 : unit == Unit::levels ? kWord : kWord * 4;
  }
  int64_t row_units() const { return W * channels; }
  int64_t group_units() const { return H * row_units(); }  // of 64 lanes
  int64_t plane_units(int64_t groups) const { return groups * group_units(); }
  int64_t bytes(int64_t groups) const { return in_place ? 0 : align64(planes * plane_units(groups) * unit_bytes()); }
};

// Fills `out` (image.bytes()) from words or panels.
inline void make_image(const Image& image, const ConvShape& s, int64_t ci, int64_t groups, const uint64_t* words,
                       const float* x, char* out, int threads) {
  const int64_t C = s.groups * ci, pixel_bytes = image.channels * image.unit_bytes();
  parallel_for(0, image.planes * groups * image.H, threads, [&](int64_t row) {
    const int64_t plane_group = row / image.H, h = row % image.H - s.ph;
    char* to = out + row * image.W * pixel_bytes;
    if (h < 0 || h >= s.H) {
      std::memset(to, 0, static_cast<size_t>(image.W * pixel_bytes));
      return;
    }
    const int64_t from = (plane_group * s.H + h) * s.W;  // pixel
    const int64_t left = min(s.pw, image.W), inside = min(s.W, image.W - left);
    std::memset(to, 0, static_cast<size_t>(left * pixel_bytes));
    to += left * pixel_bytes;
    if (image.unit == Unit::word)
      std::memcpy(to, words + from * C, static_cast<size_t>(inside * pixel_bytes));
    else if (image.unit == Unit::panel)
      std::memcpy(to, x + from * C * kWord, static_cast<size_t>(inside * pixel_bytes));
    else if (image.unit == Unit::levels) {
      std::memset(to, 0, static_cast<size_t>(inside * pixel_bytes));
      for (int64_t plane = 0; plane < image.source_planes; ++plane)
        for (int64_t k = 0; k < inside * C; ++k)
          add_plane(words[(plane * groups * s.H * s.W + from) * C + k], static_cast<int>(plane),
                    reinterpret_cast<uint8_t*>(to) + k * kWord);
    }
#if defined(ESL_ISA_AVX512)
    else
      for (int64_t pixel = 0; pixel < inside; ++pixel)
        for (int64_t g = 0; g < s.groups; ++g)
          for (int64_t f = 0; f < image.group_channels; ++f)
            to_nibbles(words + (from + pixel) * C + g * ci + f * 4, min(4, ci - f * 4),
                       reinterpret_cast<uint64_t*>(to) + (pixel * image.channels + g * image.group_channels + f) * 4);
#endif
    to += inside * pixel_bytes;
    std::memset(to, 0, static_cast<size_t>((image.W - left - inside) * pixel_bytes));
  });
}

// A place for every block; one index entry decoded here is one division less in every pixel.
inline void make_places(const BlockSparse& w, const ConvShape& s, const Image& image, Place* places, int threads) {
  const ConvBlocks blocks(w, s);
  const int64_t block_units = image.unit == Unit::nibbles ? ceil_div(w.bn, 4) : w.bn;
  parallel_for(0, s.groups * blocks.row_blocks, threads, [&](int64_t rb) {
    const int64_t first = rb / blocks.row_blocks * image.group_channels;
    for (int64_t p = w.crow[rb]; p < w.crow[rb + 1]; ++p) {
      const int64_t tap = w.col[p] / blocks.col_blocks, cb = w.col[p] % blocks.col_blocks;
      const int64_t pixel = tap / s.kw * s.dh * image.W + tap % s.kw * s.dw;
      places[p] = {static_cast<int32_t>(pixel * image.channels + first + cb * block_units),
                   static_cast<int32_t>(min(w.bn, blocks.ci - cb * w.bn))};
    }
  });
}

// Output pixels in runs of up to 32, small enough that what they read and write stays in the cache while all blocks of
// a row pass. Groups of lanes that use all four vectors are one long row of pixels, a last group that does not is
// another: a run never mixes them, and does not depend on the number of threads.
struct Runs {
  static constexpr int kPixels = 32;
  const ConvShape& s;
  const Image& image;
  int64_t pixels, full, full_runs, last_runs;  // pixels of a group of lanes; of all full ones
  int last_quarters;

  Runs(const ConvShape& s, const Image& image, const Lanes& lanes) : s(s), image(image), pixels(s.Ho * s.Wo) {
    const int64_t whole = lanes.count() / kWord, rest = lanes.count() % kWord;
    last_quarters = static_cast<int>(ceil_div(rest, kLanes));
    const int64_t full_groups = whole + (last_quarters == 4);
    full = full_groups * pixels;
    full_runs = ceil_div(full, kPixels);
    last_runs = lanes.groups() > full_groups ? ceil_div(pixels, kPixels) : 0;
  }
  int64_t count() const { return full_runs + last_runs; }

  struct Run {
    int64_t first;  // pixel of y, over all groups of lanes
    int n, quarters;
    int64_t source[kPixels];  // units, of the first tap
  };
  Run run(int64_t k) const {
    Run r;
    const bool in_full = k < full_runs;
    r.first = in_full ? k * kPixels : full + (k - full_runs) * kPixels;
    r.n = static_cast<int>(min(kPixels, (in_full ? full : full + pixels) - r.first));
    r.quarters = in_full ? 4 : last_quarters;
    for (int i = 0; i < r.n; ++i) {
      const int64_t at = r.first + i, g = at / pixels, y = at % pixels / s.Wo, x = at % pixels % s.Wo;
      r.source[i] = g * image.group_units() + (y * s.sh * image.W + x * s.sw) * image.channels;
    }
    return r;
  }
};

}  // namespace esl::ESL_ISA
