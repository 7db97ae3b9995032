// Op panel_stats. Memory-bound: reads 4 bytes a lane. The lanes of each unit and group are summed about their own mean,
// and these means and squares combined in double (Chan, Golub, LeVeque 1979): nothing cancels however large the mean.
#include "esl/panel_stats.h"

#include "esl/panel_tiles.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {
namespace {

// Count, mean and sum of squared distances from it.
struct Moments {
  double count, mean, squares;

  void add(const Moments& other, double share) {  // share: of other's count in both
    const double delta = other.mean - mean;
    squares += other.squares + delta * delta * count * share;
    mean += delta * share;
    count += other.count;
  }
};

// Of the lanes of one panel that are set in `valid`.
inline Moments moments(const float* panel, uint64_t valid, int quarters, double n) {
  f32x16 total = zero(), first = zero(), second = zero();
  for (int q = 0; q < quarters; ++q)
    total = total + keep_where(static_cast<uint16_t>(valid >> (q * kLanes)), load(panel + q * kLanes));
  const float centre = sum(total) / static_cast<float>(n);
  for (int q = 0; q < quarters; ++q) {
    const f32x16 d = keep_where(static_cast<uint16_t>(valid >> (q * kLanes)), load(panel + q * kLanes) - set1(centre));
    first = first + d;
    second = fmadd(d, d, second);
  }
  const double off = static_cast<double>(sum(first)) / n;  // how far `centre` is from the mean
  return {n, static_cast<double>(centre) + off, static_cast<double>(sum(second)) - off * off * n};
}

void tile_moments(const PanelStats& p, const Tile& tile, double* means, double* squares) {
  const PanelShape& s = p.shape;
  Moments all[kTileChannels] = {};
  double count = 0;
  for (int64_t group = 0; group < s.lanes.groups(); ++group) {
    const uint64_t valid = s.lanes.valid(group);
    const int quarters = static_cast<int>(ceil_div(min(kWord, s.lanes.count() - group * kWord), kLanes));
    const double n = __builtin_popcountll(valid);
    for (int64_t pixel = tile.pixel; pixel < tile.last_pixel; ++pixel) {
      const float* const panels = p.current + (group * s.units() + pixel * s.channels) * kWord;
      const double share = n / (count + n);
      for (int64_t c = tile.channel; c < tile.last_channel; ++c)
        all[c - tile.channel].add(moments(panels + c * kWord, valid, quarters, n), share);
      count += n;
    }
  }
  for (int64_t c = tile.channel; c < tile.last_channel; ++c) {
    means[c] = all[c - tile.channel].mean;
    squares[c] = all[c - tile.channel].squares;
  }
}

}  // namespace

int64_t panel_stats_scratch(const PanelStats& p) { return tile_rows(p.shape) * 2 * p.shape.channels; }

void panel_stats(const PanelStats& p) {
  const PanelShape& s = p.shape;
  const int64_t C = s.channels;
  parallel_for(0, tiles(s), threads_for(s, p.threads), [&](int64_t index) {
    const Tile tile(s, index);
    double* const out = p.scratch + tile.row * 2 * C;
    tile_moments(p, tile, out, out + C);
  });
  for (int64_t c = 0; c < C; ++c) {
    Moments all{};
    for (int64_t row = 0; row < tile_rows(s); ++row) {
      const int64_t pixels = min(kTilePixels, s.pixels() - row * kTilePixels);
      const double n = static_cast<double>(pixels * s.lanes.rows());
      const double* const part = p.scratch + row * 2 * C + c;
      if (n > 0) all.add({n, part[0], part[C]}, n / (all.count + n));
    }
    p.stats[c] = all.count > 0 ? all.mean : __builtin_nan("");
    p.stats[C + c] = all.squares / all.count;
  }
}

}  // namespace esl::ESL_ISA
