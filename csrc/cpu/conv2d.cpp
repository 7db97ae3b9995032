// Op conv2d, forward. Tiles of up to 4 output channels x 4 vectors of lanes (of one pixel, or of several where a block
// has fewer rows) stay in registers while all blocks of their row pass, and leave once.
//
// Floor, per active weight, output pixel and 64 lanes: 4 masked adds, or 1 permute + 1 add per 4 weights by tables;
// 4 fused multiply-adds on float and, without tables, on levels. docs/decisions.md has the figures.
#include "esl/conv2d.h"

#include "esl/conv_image.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kWorkPerThread = 1 << 17;  // multiply-adds worth a second thread

bool is_binary(const Conv2dForward& p) { return p.planes == 1 && p.scale == 1.f; }

Unit unit_of(const Conv2dForward& p) {
  if (!p.words) return Unit::panel;
  if (p.kernel == SpikeKernel::masked) return Unit::word;
  if (kHasTables) return p.w.bn % 4 == 0 ? Unit::nibbles : Unit::word;
  return pays_levels(p.shape, is_binary(p)) ? Unit::levels : Unit::word;
}
int64_t planes_of(const Conv2dForward& p) { return p.words ? p.planes : 1; }

// Some blocks of one row of blocks, TM rows from `inside` on.
struct Blocks {
  const Place* place;
  const float* values;
  int64_t n, size, bn;
};

// What the source of a block looks like, and what one of its channels adds to the accumulators.

struct Spikes {  // words; a value is sum over planes of factor[p] * bit
  const uint64_t* image;
  int64_t plane_units;
  int planes;
  float factor[4];

  template <int TM, int PX, int R>
  void add(const Blocks& b, const int64_t* pixel, int q, f32x16 (&acc)[TM][PX][R]) const {
    for (int64_t k = 0; k < b.n; ++k) {
      const float* v = b.values + k * b.size;
      const uint64_t* words = image + b.place[k].offset;
      for (int c = 0; c < b.place[k].n; ++c, ++v)
        for (int plane = 0; plane < planes; ++plane) {
          const uint64_t* w = words + plane * plane_units + c;
          f32x16 weight[TM];
          for (int i = 0; i < TM; ++i) weight[i] = set1(v[i * b.bn] * factor[plane]);
          for (int x = 0; x < PX; ++x) {
            const auto* bits = reinterpret_cast<const uint16_t*>(w + pixel[x]) + q;
            for (int i = 0; i < TM; ++i)
              for (int j = 0; j < R; ++j) acc[i][x][j] = add_where(acc[i][x][j], bits + j, weight[i]);
          }
        }
    }
  }
};

struct BinarySpikes {
  const uint64_t* image;

  template <int TM, int PX, int R>
  void add(const Blocks& b, const int64_t* pixel, int q, f32x16 (&acc)[TM][PX][R]) const {
    for (int64_t k = 0; k < b.n; ++k) {
      const float* v = b.values + k * b.size;
      const uint64_t* words = image + b.place[k].offset;
      for (int c = 0; c < b.place[k].n; ++c, ++v)
        for (int x = 0; x < PX; ++x) {
          const auto* bits = reinterpret_cast<const uint16_t*>(words + c + pixel[x]) + q;
          for (int i = 0; i < TM; ++i) {
            const f32x16 weight = set1(v[i * b.bn]);
            for (int j = 0; j < R; ++j) acc[i][x][j] = add_where(acc[i][x][j], bits + j, weight);
          }
        }
    }
  }
};

template <class T>
struct Numbers {  // panels of floats, or of levels
  const T* image;

  template <int TM, int PX, int R>
  void add(const Blocks& b, const int64_t* pixel, int q, f32x16 (&acc)[TM][PX][R]) const {
    for (int64_t k = 0; k < b.n; ++k) {
      const float* v = b.values + k * b.size;
      const T* from = image + int64_t{b.place[k].offset} * kWord + q * kLanes;
      for (int c = 0; c < b.place[k].n; ++c, ++v, from += kWord)
        for (int x = 0; x < PX; ++x)
          for (int j = 0; j < R; ++j) {
            const f32x16 source = load(from + pixel[x] * kWord + j * kLanes);
            for (int i = 0; i < TM; ++i) acc[i][x][j] = fmadd(source, set1(v[i * b.bn]), acc[i][x][j]);
          }
    }
  }
};

#if defined(ESL_ISA_AVX512)
// Tables of TM rows of some blocks, with the place of each table's four channels in the image.
template <int TM>
struct Tables {
  const uint64_t* image;
  int64_t plane_units;
  float scale;
  int n = 0;
  alignas(64) float table[kTables * 16];
  int32_t place[kTables / TM];

  // Tables of as many of the blocks [first, b.n) as fit; returns the first one left.
  int64_t build(const Blocks& b, int64_t first) {
    const int64_t fours = b.bn / 4;
    n = 0;
    for (; first < b.n && (n + fours) * TM <= kTables; ++first) {
      const float* v = b.values + first * b.size;
      for (int64_t f = 0; f * 4 < b.place[first].n; ++f) {
        place[n] = static_cast<int32_t>(b.place[first].offset + f);
        build_tables<TM>(v + f * 4, b.bn, b.place[first].n - f * 4, table + n++ * TM * 16);
      }
    }
    if (scale != 1.f)
      for (int i = 0; i < n * TM; ++i) store(table + i * 16, set1(scale) * load(table + i * 16));
    return first;
  }
  template <int P, int PX, int R>
  void add(const int64_t* pixel, int q, f32x16 (&acc)[TM][PX][R]) const {
    for (int e = 0; e < n; ++e) {
      const float* t = table + e * TM * 16;
      for (int p = 0; p < P; ++p)
        for (int x = 0; x < PX; ++x) {
          const uint64_t* bits = image + (p * plane_units + place[e] + pixel[x]) * 4 + q;
          for (int j = 0; j < R; ++j) {
            const __m512i index = nibble_index(bits + j);
            for (int i = 0; i < TM; ++i) {
              const f32x16 sum{_mm512_permutexvar_ps(index, _mm512_load_ps(t + i * 16))};
              acc[i][x][j] = p ? fmadd(sum, set1(static_cast<float>(1 << p)), acc[i][x][j]) : acc[i][x][j] + sum;
            }
          }
        }
    }
  }
};
#endif

// Where TM output channels of a run go.
struct Rows {
  float* y;        // of the run's first pixel and the first row
  int64_t stride;  // between pixels
  int valid;       // rows that exist
  const float* bias;
};

// One tile: PX pixels, R vectors from vector q on. `first`: it starts from the bias, not from what it has so far.
template <int TM, int PX, int R, class Add>
inline void tile(const Rows& rows, bool first, int px, int q, Add add) {
  f32x16 acc[TM][PX][R];
  float* const y = rows.y + px * rows.stride + q * kLanes;
  for (int i = 0; i < TM; ++i)
    for (int x = 0; x < PX; ++x)
      for (int j = 0; j < R; ++j)
        acc[i][x][j] = i >= rows.valid ? zero()
                       : first         ? set1(rows.bias ? rows.bias[i] : 0.f)
                                       : load(y + x * rows.stride + i * kWord + j * kLanes);
  add(acc);
  for (int i = 0; i < TM; ++i)
    if (i < rows.valid)
      for (int x = 0; x < PX; ++x)
        for (int j = 0; j < R; ++j) store(y + x * rows.stride + i * kWord + j * kLanes, acc[i][x][j]);
}

// All pixels and vectors of a run; add(pixel sources, q, accumulators).
template <int TM, class Add>
void tiles(const Runs::Run& run, const Rows& rows, bool first, Add add) {
  constexpr int kWide = 4 / TM;  // pixels that fill the registers where a pixel alone does not
  int px = 0;
  if (run.quarters == 4)
    for (; px + kWide <= run.n; px += kWide)
      for (int q = 0; q < 4; q += kTileVectors)
        tile<TM, kWide, kTileVectors>(rows, first, px, q, [&](auto& acc) { add(run.source + px, q, acc); });
  else
    for (; px + 4 <= run.n; px += 4)
      for (int q = 0; q < run.quarters; ++q)
        tile<TM, 4, 1>(rows, first, px, q, [&](auto& acc) { add(run.source + px, q, acc); });
  for (; px < run.n; ++px)
    for (int q = 0; q < run.quarters; ++q)
      tile<TM, 1, 1>(rows, first, px, q, [&](auto& acc) { add(run.source + px, q, acc); });
}

struct Scratch {
  Place* places;
  char* image;
  double* sums;     // [runs, rows, 2]: mean and squared deviations of each run
  uint64_t* lanes;  // [groups of lanes]: those that are no padding
  float* values;    // times the scale of levels; null where it is 1
  int64_t bytes;

  Scratch(const Conv2dForward& p, const Image& im, int64_t runs) {
    const int64_t groups = p.lanes.groups(), blocks = p.w.crow[p.shape.groups * ConvBlocks(p.w, p.shape).row_blocks];
    const int64_t place_bytes = align64(blocks * static_cast<int64_t>(sizeof(Place))), image_bytes = im.bytes(groups);
    const int64_t sum_bytes = p.stats ? align64(runs * p.w.rows * 16) : 0;
    const int64_t lane_bytes = p.stats ? align64(groups * 8) : 0;
    const int64_t value_bytes = im.unit == Unit::levels && p.scale != 1.f ? blocks * p.w.bm * p.w.bn * 4 : 0;
    char* const at = static_cast<char*>(p.scratch);
    places = reinterpret_cast<Place*>(at);
    image = at + place_bytes;
    sums = reinterpret_cast<double*>(image + image_bytes);
    lanes = reinterpret_cast<uint64_t*>(image + image_bytes + sum_bytes);
    values = value_bytes ? reinterpret_cast<float*>(image + image_bytes + sum_bytes + lane_bytes) : nullptr;
    bytes = place_bytes + image_bytes + sum_bytes + lane_bytes + value_bytes;
  }
};

// Mean and squared deviations of one channel over a run, while the run is in the cache: of float32 sums the mean is
// only close, and what it is off is taken back.
void run_sums(const Runs& runs, const Runs::Run& run, const Rows& rows, int i, const uint64_t* lanes, double* out) {
  const auto each = [&](auto f) {
    for (int px = 0; px < run.n; ++px) {
      const uint64_t valid = lanes[(run.first + px) / runs.pixels];
      for (int q = 0; q < run.quarters; ++q)
        f(q, static_cast<uint16_t>(valid >> 16 * q), load(rows.y + px * rows.stride + i * kWord + q * kLanes));
    }
  };
  const auto all = [](const f32x16* v) { return esl::ESL_ISA::sum((v[0] + v[1]) + (v[2] + v[3])); };
  f32x16 sum[4] = {zero(), zero(), zero(), zero()}, off[4] = {zero(), zero(), zero(), zero()};
  f32x16 square[4] = {zero(), zero(), zero(), zero()};
  int64_t count = 0;
  for (int px = 0; px < run.n; ++px) count += count_ones(lanes[(run.first + px) / runs.pixels]);
  each([&](int q, uint16_t valid, f32x16 y) { sum[q] = add_where(sum[q], valid, y); });
  const float centre = all(sum) / static_cast<float>(count ? count : 1);
  each([&](int q, uint16_t valid, f32x16 y) {
    const f32x16 away = keep_where(valid, y - set1(centre));
    off[q] = off[q] + away;
    square[q] = fmadd(away, away, square[q]);
  });
  const double shift = count ? static_cast<double>(all(off)) / static_cast<double>(count) : 0.;
  out[0] = centre + shift;
  out[1] = all(square) - shift * shift * static_cast<double>(count);
  if (out[1] < 0) out[1] = 0;  // rounding of equal values; NaN stays
}

// Runs joined in their order (Chan, Golub, LeVeque 1979), so that no squares of large means cancel.
void join_sums(const Conv2dForward& p, const Runs& runs, const Scratch& s, int threads) {
  parallel_for(0, p.w.rows, threads, [&](int64_t row) {
    double n = 0, mean = 0, square = 0;
    for (int64_t k = 0; k < runs.count(); ++k) {
      const Runs::Run run = runs.run(k);
      int64_t count = 0;
      for (int px = 0; px < run.n; ++px) count += count_ones(s.lanes[(run.first + px) / runs.pixels]);
      if (!count) continue;
      const double* of_run = s.sums + (k * p.w.rows + row) * 2;
      const double m = static_cast<double>(count), away = of_run[0] - mean;
      mean += away * m / (n + m);
      square += of_run[1] + away * away * n * m / (n + m);
      n += m;
    }
    p.stats[row] = mean;
    p.stats[p.w.rows + row] = n > 0 ? square / n : 0.;
  });
}

template <int TM>
void rows_of_blocks(const Conv2dForward& p, const Image& image, const char* source, const Scratch& s,
                    const Runs::Run& run, int64_t rb, int64_t inside, const Rows& rows) {
  const int64_t first = p.w.crow[rb];
  const Blocks blocks{s.places + first, (s.values ? s.values : p.w.values) + first * p.w.bm * p.w.bn + inside * p.w.bn,
                      p.w.crow[rb + 1] - first, p.w.bm * p.w.bn, p.w.bn};
  const int64_t plane_units = image.plane_units(p.lanes.groups());
  if (image.unit == Unit::panel) {
    const Numbers<float> floats{reinterpret_cast<const float*>(source)};
    tiles<TM>(run, rows, true, [&](const int64_t* pixel, int q, auto& acc) { floats.add(blocks, pixel, q, acc); });
  } else if (image.unit == Unit::levels) {
    const Numbers<uint8_t> levels{reinterpret_cast<const uint8_t*>(source)};
    tiles<TM>(run, rows, true, [&](const int64_t* pixel, int q, auto& acc) { levels.add(blocks, pixel, q, acc); });
#if defined(ESL_ISA_AVX512)
  } else if (image.unit == Unit::nibbles) {
    Tables<TM> tables;
    tables.image = reinterpret_cast<const uint64_t*>(source);
    tables.plane_units = plane_units;
    tables.scale = p.scale;
    int64_t done = 0;
    do {
      const bool is_first = done == 0;
      done = tables.build(blocks, done);
      with_planes(p.planes, [&](auto planes) {
        tiles<TM>(run, rows, is_first, [&](const int64_t* pixel, int q, auto& acc) {
          tables.template add<decltype(planes)::value>(pixel, q, acc);
        });
      });
    } while (done < blocks.n);
#endif
  } else if (is_binary(p)) {
    const BinarySpikes spikes{reinterpret_cast<const uint64_t*>(source)};
    tiles<TM>(run, rows, true, [&](const int64_t* pixel, int q, auto& acc) { spikes.add(blocks, pixel, q, acc); });
  } else {
    Spikes spikes{reinterpret_cast<const uint64_t*>(source), plane_units, p.planes, {}};
    for (int plane = 0; plane < p.planes; ++plane) spikes.factor[plane] = p.scale * static_cast<float>(1 << plane);
    tiles<TM>(run, rows, true, [&](const int64_t* pixel, int q, auto& acc) { spikes.add(blocks, pixel, q, acc); });
  }
}

}  // namespace

int64_t conv2d_forward_scratch(const Conv2dForward& p) {
  const Image image(p.w, p.shape, unit_of(p), planes_of(p));
  return Scratch(p, image, Runs(p.shape, image, p.lanes).count()).bytes;
}

void conv2d_forward(const Conv2dForward& p) {
  const Image image(p.w, p.shape, unit_of(p), planes_of(p));
  const Runs runs(p.shape, image, p.lanes);
  const Scratch s(p, image, runs.count());
  const ConvBlocks blocks(p.w, p.shape);
  const int64_t row_blocks = p.shape.groups * blocks.row_blocks, groups = p.lanes.groups();
  const int64_t work = int64_t{p.w.crow[row_blocks]} * p.w.bm * p.w.bn * p.shape.Ho * p.shape.Wo * p.lanes.count();
  const int threads = static_cast<int>(min(p.threads, 1 + work / kWorkPerThread));

  make_places(p.w, p.shape, image, s.places, threads);
  const char* source = p.words ? reinterpret_cast<const char*>(p.words) : reinterpret_cast<const char*>(p.x);
  if (!image.in_place) {
    make_image(image, p.shape, blocks.ci, groups, p.words, p.x, s.image, threads);
    source = s.image;
  }
  if (s.values)
    for (int64_t k = 0; k < p.w.crow[row_blocks] * p.w.bm * p.w.bn; ++k) s.values[k] = p.scale * p.w.values[k];
  if (p.stats)
    for (int64_t g = 0; g < groups; ++g) {
      s.lanes[g] = 0;
      for (int64_t l = 0; l < kWord && g * kWord + l < p.lanes.count(); ++l)
        s.lanes[g] |= uint64_t{p.lanes.row(g * kWord + l) >= 0} << l;
    }

  // Few runs are cut by rows of blocks as well, so that all threads have work.
  const int64_t cuts = min(row_blocks, runs.count() >= 4 * threads ? 1 : ceil_div(4 * threads, runs.count() + 1));
  parallel_tasks(runs.count() * cuts, threads, [&](int64_t task, int64_t) {
    const int64_t k = task / cuts, cut = task % cuts;
    const Runs::Run run = runs.run(k);
    for (int64_t rb = row_blocks * cut / cuts; rb < row_blocks * (cut + 1) / cuts; ++rb) {
      const int64_t first = blocks.first_row(rb, p.w.bm), n = blocks.rows(rb, p.w.bm), tm = min(4, p.w.bm);
      for (int64_t inside = 0; inside < n; inside += tm) {
        const int64_t row = first + inside;
        const Rows rows{p.y + (run.first * p.w.rows + row) * kWord, p.w.rows * kWord,
                        static_cast<int>(min(tm, n - inside)), p.bias ? p.bias + row : nullptr};
        if (tm == 4)
          rows_of_blocks<4>(p, image, source, s, run, rb, inside, rows);
        else if (tm == 2)
          rows_of_blocks<2>(p, image, source, s, run, rb, inside, rows);
        else
          rows_of_blocks<1>(p, image, source, s, run, rb, inside, rows);
        if (p.stats)
          for (int i = 0; i < rows.valid; ++i)
            run_sums(runs, run, rows, i, s.lanes, s.sums + (k * p.w.rows + row + i) * 2);
      }
    }
  });
  if (p.stats) join_sums(p, runs, s, threads);
}

}  // namespace esl::ESL_ISA
