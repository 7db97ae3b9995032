// Op conv2d, gradients.
//
// Of the input: destination pixels in pieces of a row. Where a tap has several blocks per block of input channels, a
// source pixel stays in L1 while it passes through all blocks of all taps, and destinations pass through L2; else a
// destination stays in registers and sources are fetched. Of the values: per block, sums over the lanes and pixels of
// a run, whose output gradients lie side by side in L1.
//
// Floor, per active weight, output pixel and 64 lanes: 4 fused multiply-adds (input), 4 masked adds (values).
#include "esl/conv2d.h"
#include "esl/conv_image.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kWorkPerThread = 1 << 17;  // multiply-adds worth a second thread
constexpr int kStrip = 16;                   // output channels whose gradients are laid side by side at a time

int useful_threads(const Conv2dBackward& p) {
  const int64_t weights = int64_t{p.w.crow[p.shape.groups * ConvBlocks(p.w, p.shape).row_blocks]} * p.w.bm * p.w.bn;
  return static_cast<int>(min(p.threads, 1 + weights * p.shape.Ho * p.shape.Wo * p.lanes.count() / kWorkPerThread));
}

// ---- gradient of the input

struct Columns {
  const Conv2dBackward& p;
  const ConvShape& s;
  ConvBlocks blocks;
  int64_t channels;  // of the input

  explicit Columns(const Conv2dBackward& p) : p(p), s(p.shape), blocks(p.w, p.shape), channels(s.groups * blocks.ci) {}

  // Blocks [first, last) of the column order that stand in column block cb of a tap and in group g.
  struct Range {
    int64_t first, last;
  };
  Range range(int64_t column, int64_t g) const {
    Range r{p.w.ccol[column], p.w.ccol[column + 1]};
    if (s.groups == 1) return r;
    r.first = lower(r, g * blocks.row_blocks);
    r.last = lower(r, (g + 1) * blocks.row_blocks);
    return r;
  }
  int64_t lower(Range r, int64_t row_block) const {  // the first block whose row is not below
    while (r.first < r.last) {
      const int64_t middle = (r.first + r.last) / 2;
      if (p.w.row_t[middle] < row_block)
        r.first = middle + 1;
      else
        r.last = middle;
    }
    return r.first;
  }
};

// acc[i] += weight[r, inside + i] * source[r], over the rows r of some blocks of group g.
template <int TN, int R, int kStride>
inline void add_blocks(const Columns& c, Columns::Range range, int64_t g, int64_t inside, const float* source,
                       f32x16 (&acc)[TN][R]) {
  const BlockSparse& w = c.p.w;
  const int64_t first_block = g * c.blocks.row_blocks, bm = w.bm, bn = w.bn, co = c.blocks.co;
  const float* const base = source + g * co * kStride;
  const auto add_row = [&](const float* v, const float* from) {
    f32x16 x[R];
    for (int j = 0; j < R; ++j) x[j] = load(from + j * kLanes);
    for (int i = 0; i < TN; ++i) {
      const f32x16 weight = set1(v[i]);
      for (int j = 0; j < R; ++j) acc[i][j] = fmadd(x[j], weight, acc[i][j]);
    }
  };
  for (int64_t q = range.first; q < range.last; ++q) {
    const int64_t row = (w.row_t[q] - first_block) * bm;
    const float* v = w.values + w.offset_t[q] * bm * bn + inside;
    const float* from = base + row * kStride;
    if (bm == 4 && row + 4 <= co) {
      for (int r = 0; r < 4; ++r) add_row(v + r * bn, from + r * kStride);
    } else {
      const int64_t n = min(bm, co - row);
      for (int64_t r = 0; r < n; ++r, v += bn, from += kStride) add_row(v, from);
    }
  }
}

// One source pixel [rows, R vectors] through all blocks of one tap to one destination pixel.
template <int TN, int R>
void scatter(const Columns& c, int64_t tap, const float* source, float* to) {
  const int64_t bn = c.p.w.bn;
  for (int64_t cb = 0; cb < c.blocks.col_blocks; ++cb)
    for (int64_t g = 0; g < c.s.groups; ++g) {
      const Columns::Range range = c.range(tap * c.blocks.col_blocks + cb, g);
      if (range.first == range.last) continue;
      const int64_t valid = min(bn, c.blocks.ci - cb * bn);
      for (int64_t inside = 0; inside < valid; inside += TN) {
        float* const out = to + (g * c.blocks.ci + cb * bn + inside) * kWord;
        f32x16 acc[TN][R];
        for (int i = 0; i < TN; ++i)
          for (int j = 0; j < R; ++j) acc[i][j] = inside + i < valid ? load(out + i * kWord + j * kLanes) : zero();
        add_blocks<TN, R, R * kLanes>(c, range, g, inside, source, acc);
        for (int i = 0; i < TN; ++i)
          if (inside + i < valid)
            for (int j = 0; j < R; ++j) store(out + i * kWord + j * kLanes, acc[i][j]);
      }
    }
}

// The output row that reads input row `at` at tap i, or -1.
inline int64_t source_of(int64_t at, int64_t padding, int64_t i, int64_t dilation, int64_t stride, int64_t size) {
  const int64_t y = at + padding - i * dilation;
  return y >= 0 && y % stride == 0 && y / stride < size ? y / stride : -1;
}

// Vectors [q, q + R) of the input pixels [w0, w1) of row h. A source pixel is copied to `pixel` [rows, R vectors]: read
// from where it is, it took a third longer, for it shares its cache sets with the destinations.
template <int TN, int R>
void by_source(const Columns& c, int64_t g, int64_t h, int64_t w0, int64_t w1, int q, float* pixel) {
  const ConvShape& s = c.s;
  float* const to = c.p.grad_x + (g * s.H + h) * s.W * c.channels * kWord + q * kLanes;
  for (int64_t k = w0 * c.channels; k < w1 * c.channels; ++k)
    for (int j = 0; j < R; ++j) store(to + k * kWord + j * kLanes, zero());
  const int64_t reach = w0 + s.pw - (s.kw - 1) * s.dw;
  const int64_t first = reach > 0 ? ceil_div(reach, s.sw) : 0, last = min(s.Wo - 1, (w1 - 1 + s.pw) / s.sw);
  for (int64_t i = 0; i < s.kh; ++i) {
    const int64_t y = source_of(h, s.ph, i, s.dh, s.sh, s.Ho);
    if (y < 0) continue;
    for (int64_t x = first; x <= last; ++x) {
      const float* source = c.p.grad + ((g * s.Ho + y) * s.Wo + x) * c.p.w.rows * kWord + q * kLanes;
      for (int64_t k = 0; k < c.p.w.rows; ++k)
        for (int j = 0; j < R; ++j) store(pixel + (k * R + j) * kLanes, load(source + k * kWord + j * kLanes));
      for (int64_t j = 0; j < s.kw; ++j) {
        const int64_t w = x * s.sw - s.pw + j * s.dw;
        if (w >= w0 && w < w1) scatter<TN, R>(c, i * s.kw + j, pixel, to + w * c.channels * kWord);
      }
    }
  }
}

template <int TN, int R>
void by_destination(const Columns& c, int64_t g, int64_t h, int64_t w, int q) {
  const ConvShape& s = c.s;
  const int64_t bn = c.p.w.bn;
  float* const to = c.p.grad_x + ((g * s.H + h) * s.W + w) * c.channels * kWord + q * kLanes;
  for (int64_t cb = 0; cb < c.blocks.col_blocks; ++cb)
    for (int64_t of = 0; of < s.groups; ++of) {
      const int64_t valid = min(bn, c.blocks.ci - cb * bn);
      for (int64_t inside = 0; inside < valid; inside += TN) {
        f32x16 acc[TN][R];
        for (int i = 0; i < TN; ++i)
          for (int j = 0; j < R; ++j) acc[i][j] = zero();
        for (int64_t i = 0; i < s.kh; ++i) {
          const int64_t y = source_of(h, s.ph, i, s.dh, s.sh, s.Ho);
          if (y < 0) continue;
          for (int64_t j = 0; j < s.kw; ++j) {
            const int64_t x = source_of(w, s.pw, j, s.dw, s.sw, s.Wo);
            if (x < 0) continue;
            const float* source = c.p.grad + ((g * s.Ho + y) * s.Wo + x) * c.p.w.rows * kWord + q * kLanes;
            const Columns::Range range = c.range((i * s.kw + j) * c.blocks.col_blocks + cb, of);
            add_blocks<TN, R, kWord>(c, range, of, inside, source, acc);
          }
        }
        for (int i = 0; i < TN; ++i)
          if (inside + i < valid)
            for (int j = 0; j < R; ++j)
              store(to + (of * c.blocks.ci + cb * bn + inside + i) * kWord + j * kLanes, acc[i][j]);
      }
    }
}

// Mean blocks of a column block and group from which destinations pass instead of sources (docs/decisions.md).
constexpr double kStationary = 2;
constexpr int64_t kTileFloats = 1 << 16;  // of destinations that pass through L2 at a time: 256 KB

template <int TN>
void input_gradient(const Conv2dBackward& p, float* pixels, int threads) {
  constexpr int R = kTileVectors;
  const Columns c(p);
  const ConvShape& s = p.shape;
  const int64_t groups = p.lanes.groups(), columns = s.kh * s.kw * c.blocks.col_blocks;
  const bool stationary = p.w.ccol[columns] >= kStationary * static_cast<double>(columns * s.groups);
  const int64_t width = stationary ? min(s.W, 1 + kTileFloats / (c.channels * R * kLanes)) : min(s.W, 8);
  const int64_t pieces = ceil_div(s.W, width);
  parallel_tasks(groups * s.H * pieces, threads, [&](int64_t task, int64_t thread) {
    float* const pixel = pixels + thread * p.w.rows * kWord;
    const int64_t g = task / pieces / s.H, h = task / pieces % s.H, w0 = task % pieces * width;
    const int64_t w1 = min(s.W, w0 + width), left = p.lanes.count() - g * kWord;
    const int quarters = static_cast<int>(left >= kWord ? 4 : ceil_div(left, kLanes));
    int q = 0;
    if (stationary) {
      for (; q + R <= quarters; q += R) by_source<TN, R>(c, g, h, w0, w1, q, pixel);
      for (; q < quarters; ++q) by_source<TN, 1>(c, g, h, w0, w1, q, pixel);
    } else {
      for (int64_t w = w0; w < w1; ++w) {
        for (q = 0; q + kTileVectors <= quarters; q += kTileVectors) by_destination<TN, kTileVectors>(c, g, h, w, q);
        for (; q < quarters; ++q) by_destination<TN, 1>(c, g, h, w, q);
      }
    }
    float* const to = p.grad_x + ((g * s.H + h) * s.W + w0) * c.channels * kWord;
    for (; q < 4; ++q)
      for (int64_t k = 0; k < (w1 - w0) * c.channels; ++k) store(to + k * kWord + q * kLanes, zero());
  });
}

// ---- gradient of the values

// Sources of a block's columns, 16 lanes at a time.

struct BinarySpikes {
  const uint64_t* image;
  static constexpr int kUnit = 1;
  static constexpr float scale = 1.f;

  template <int TM, int TN>
  void add(const uint64_t* at, int q, const f32x16* y, f32x16* sum) const {
    const auto* bits = reinterpret_cast<const uint16_t*>(at) + q;
    for (int k = 0; k < TN; ++k)
      for (int i = 0; i < TM; ++i) sum[i * TN + k] = add_where(sum[i * TN + k], bits + k * 4, y[i]);
  }
};

template <int P>
struct Spikes {  // P planes; a value is the sum of factor[p] * bit
  const uint64_t* image;
  int64_t plane_units;
  float factor[P];
  static constexpr int kUnit = 1;
  static constexpr float scale = 1.f;

  template <int TM, int TN>
  void add(const uint64_t* at, int q, const f32x16* y, f32x16* sum) const {
    for (int k = 0; k < TN; ++k) {
      const auto bits = [&](int p) { return reinterpret_cast<const uint16_t*>(at + p * plane_units + k) + q; };
      f32x16 x = keep_where(*bits(0), set1(factor[0]));
      for (int p = 1; p < P; ++p) x = add_where(x, bits(p), set1(factor[p]));
      for (int i = 0; i < TM; ++i) sum[i * TN + k] = fmadd(y[i], x, sum[i * TN + k]);
    }
  }
};

template <class T>
struct Numbers {  // floats, or levels
  const T* image;
  float scale;  // of a level: taken once, of the sums
  static constexpr int kUnit = kWord;

  template <int TM, int TN>
  void add(const T* at, int q, const f32x16* y, f32x16* sum) const {
    for (int k = 0; k < TN; ++k) {
      const f32x16 x = load(at + k * kWord + q * kLanes);
      for (int i = 0; i < TM; ++i) sum[i * TN + k] = fmadd(y[i], x, sum[i * TN + k]);
    }
  }
};

// out[TM * TN]: gradients of one tile of a block over a run. y: [pixels, TM, 64].
template <int TM, int TN, class Source>
inline void run_gradient(const Source& source, int64_t place, const Runs::Run& run, const float* y, float* out) {
  constexpr int N = TM * TN, S = kSets<N>;
  f32x16 acc[S][N];
  for (int s = 0; s < S; ++s)
    for (int i = 0; i < N; ++i) acc[s][i] = zero();
  for (int px = 0; px < run.n; ++px, y += TM * kWord) {
    const auto* const at = source.image + (place + run.source[px]) * Source::kUnit;
    const auto vector = [&](int q) {
      f32x16 rows[TM];
      for (int i = 0; i < TM; ++i) rows[i] = load(y + i * kWord + q * kLanes);
      source.template add<TM, TN>(at, q, rows, acc[q % S]);
    };
    if (run.quarters == 4)
      for (int q = 0; q < 4; ++q) vector(q);
    else
      for (int q = 0; q < run.quarters; ++q) vector(q);
  }
  sum_sets<N>(acc, out);
}

// Adds (or, in the first run, writes) the gradients of TM rows of all blocks of a row of blocks.
template <int TM, int TN, class Source>
void row_gradient(const Conv2dBackward& p, const Source& source, const Place* places, const Runs::Run& run, bool first,
                  int64_t rb, int64_t inside, int64_t rows, const float* y) {
  const int64_t bm = p.w.bm, bn = p.w.bn;
  for (int64_t q = p.w.crow[rb]; q < p.w.crow[rb + 1]; ++q) {
    float* const dv = p.grad_values + q * bm * bn + inside * bn;
    const Place place = places[q];
    for (int64_t c = 0; c < bn; c += TN) {
      float part[TM * TN] = {};
      const int64_t valid = min(TN, place.n - c);
      if (valid == TN) {
        run_gradient<TM, TN>(source, place.offset + c, run, y, part);
      } else {
        float column[TM];
        for (int64_t k = 0; k < valid; ++k) {
          run_gradient<TM, 1>(source, place.offset + c + k, run, y, column);
          for (int i = 0; i < TM; ++i) part[i * TN + k] = column[i];
        }
      }
      for (int64_t i = 0; i < TM; ++i)
        for (int64_t k = 0; k < TN; ++k) {
          const float v = i < rows && k < valid ? source.scale * part[i * TN + k] : 0.f;
          float* const out = dv + i * bn + c + k;
          *out = first ? v : *out + v;
        }
    }
  }
}

template <class F>
void with_tile(int64_t tm, int64_t tn, F f) {
  const auto columns = [&](auto m) { tn == 4 ? f(m, Int<4>{}) : tn == 2 ? f(m, Int<2>{}) : f(m, Int<1>{}); };
  tm == 4 ? columns(Int<4>{}) : tm == 2 ? columns(Int<2>{}) : columns(Int<1>{});
}

template <class Source>
void value_gradient(const Conv2dBackward& p, const Source& source, const Place* places, const Runs& runs, float* strips,
                    int threads) {
  const ConvBlocks blocks(p.w, p.shape);
  const int64_t row_blocks = p.shape.groups * blocks.row_blocks, tm = min(4, p.w.bm), tn = min(kTileColumns, p.w.bn);
  const int64_t together = p.w.bm >= kStrip ? 1 : kStrip / p.w.bm;  // rows of blocks
  parallel_tasks(ceil_div(row_blocks, together), threads, [&](int64_t task, int64_t thread) {
    float* const y = strips + thread * Runs::kPixels * 4 * kWord;
    const int64_t last = min(row_blocks, (task + 1) * together);
    for (int64_t k = 0; k == 0 || k < runs.count(); ++k) {
      const Runs::Run run = runs.count() ? runs.run(k) : Runs::Run{};
      for (int64_t rb = task * together; rb < last; ++rb) {
        if (p.w.crow[rb] == p.w.crow[rb + 1] && !p.grad_bias) continue;
        for (int64_t inside = 0; inside < p.w.bm; inside += tm) {
          const int64_t row = blocks.first_row(rb, p.w.bm) + inside, rows = blocks.rows(rb, p.w.bm) - inside;
          for (int px = 0; px < run.n; ++px)
            for (int64_t i = 0; i < tm; ++i) {
              float* const to = y + (px * tm + i) * kWord;
              if (i < rows)
                std::memcpy(to, p.grad + ((run.first + px) * p.w.rows + row + i) * kWord, kWord * 4);
              else
                std::memset(to, 0, kWord * 4);
            }
          if (p.grad_bias)
            for (int64_t i = 0; i < min(tm, rows); ++i) {
              f32x16 sum = zero();
              for (int px = 0; px < run.n; ++px)
                for (int q = 0; q < run.quarters; ++q) sum = sum + load(y + (px * tm + i) * kWord + q * kLanes);
              float* const out = p.grad_bias + row + i;
              *out = (k ? *out : 0.f) + esl::ESL_ISA::sum(sum);
            }
          if (!p.grad_values) continue;
          const auto go = [&](auto m, auto n) {
            row_gradient<decltype(m)::value, decltype(n)::value>(p, source, places, run, k == 0, rb, inside, rows, y);
          };
          with_tile(tm, tn, go);
        }
      }
    }
  });
}

struct Scratch {
  Place* places;
  char* image;
  float* strips;  // one per thread
  float* pixels;  // likewise
  int64_t bytes;

  Scratch(const Conv2dBackward& p, const Image& im, int threads) {
    const bool values = p.grad_values, sums = values || p.grad_bias;
    const int64_t blocks = p.w.crow[p.shape.groups * ConvBlocks(p.w, p.shape).row_blocks];
    const int64_t place_bytes = values ? align64(blocks * static_cast<int64_t>(sizeof(Place))) : 0;
    const int64_t image_bytes = values ? im.bytes(p.lanes.groups()) : 0;
    char* const at = static_cast<char*>(p.scratch);
    places = reinterpret_cast<Place*>(at);
    image = at + place_bytes;
    strips = reinterpret_cast<float*>(image + image_bytes);
    const int64_t strip_bytes = sums ? int64_t{threads} * Runs::kPixels * 4 * kWord * 4 : 0;
    pixels = reinterpret_cast<float*>(image + image_bytes + strip_bytes);
    bytes = place_bytes + image_bytes + strip_bytes + (p.grad_x ? threads * p.w.rows * kWord * 4 : 0);
  }
};

bool is_binary(const Conv2dBackward& p) { return p.planes == 1 && p.scale == 1.f; }

Image image_of(const Conv2dBackward& p) {
  if (!p.words) return Image(p.w, p.shape, Unit::panel, 1);
  return Image(p.w, p.shape, pays_levels(p.shape, is_binary(p)) ? Unit::levels : Unit::word, p.planes);
}

}  // namespace

int64_t conv2d_backward_scratch(const Conv2dBackward& p) { return Scratch(p, image_of(p), useful_threads(p)).bytes; }

void conv2d_backward(const Conv2dBackward& p) {
  const int threads = useful_threads(p);
  const Image image = image_of(p);
  const Scratch s(p, image, threads);
  if (p.grad_x) {
    if (p.w.bn >= 4)
      input_gradient<4>(p, s.pixels, threads);
    else if (p.w.bn == 2)
      input_gradient<2>(p, s.pixels, threads);
    else
      input_gradient<1>(p, s.pixels, threads);
  }
  if (!p.grad_values && !p.grad_bias) return;

  const Runs runs(p.shape, image, p.lanes);
  const char* source = p.words ? reinterpret_cast<const char*>(p.words) : reinterpret_cast<const char*>(p.x);
  if (p.grad_values) {
    make_places(p.w, p.shape, image, s.places, threads);
    if (!image.in_place) {
      make_image(image, p.shape, ConvBlocks(p.w, p.shape).ci, p.lanes.groups(), p.words, p.x, s.image, threads);
      source = s.image;
    }
  }
  if (!p.words)
    return value_gradient(p, Numbers<float>{reinterpret_cast<const float*>(source), 1.f}, s.places, runs, s.strips,
                          threads);
  const auto* words = reinterpret_cast<const uint64_t*>(source);
  if (image.unit == Unit::levels)
    return value_gradient(p, Numbers<uint8_t>{reinterpret_cast<const uint8_t*>(source), p.scale}, s.places, runs,
                          s.strips, threads);
  if (is_binary(p)) return value_gradient(p, BinarySpikes{words}, s.places, runs, s.strips, threads);
  const auto planes = [&](auto count) {
    Spikes<decltype(count)::value> spikes{words, image.plane_units(p.lanes.groups()), {}};
    for (int plane = 0; plane < p.planes; ++plane) spikes.factor[plane] = p.scale * static_cast<float>(1 << plane);
    value_gradient(p, spikes, s.places, runs, s.strips, threads);
  };
  with_planes(p.planes, planes);
}

}  // namespace esl::ESL_ISA
