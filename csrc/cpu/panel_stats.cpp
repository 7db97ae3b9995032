// Op panel_stats. Memory-bound: reads 4 bytes a lane. A tile is summed about the mean of its first panel, and the
// tiles' means and squares combined in double (Chan, Golub, LeVeque 1979): nothing cancels however large the mean. The
// mean of m of n values is at most sqrt(n / m) standard deviations from that of all, so the shift is a good one for any
// data.
#include "esl/panel_stats.h"

#include <cmath>

#include "esl/panel_tiles.h"
#include "esl/simd.h"

namespace esl::ESL_ISA {
namespace {

// Count, mean and sum of squared distances from it.
struct Moments {
  double count, mean, squares;

  void add(const Moments& other) {
    const double delta = other.mean - mean, share = other.count / (count + other.count);
    squares += other.squares + delta * delta * count * share;
    mean += delta * share;
    count += other.count;
  }
};

// What a thread works in, one row for each channel of a tile.
struct Sums {
  float first[kLanes], second[kLanes];  // of the distances from `centre`, of their squares
  float centre;
};

void clear(Sums* sums, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    store(sums[c].first, zero());
    store(sums[c].second, zero());
  }
}

// The lanes of panels [channels, 64] that are set in `valid`.
void add_panels(const float* panels, uint64_t valid, int64_t channels, Sums* sums) {
  for (int64_t c = 0; c < channels; ++c) {
    const f32x16 centre = set1(sums[c].centre);
    f32x16 first = load(sums[c].first), second = load(sums[c].second);
    for (int q = 0; q < kWord; q += kLanes) {
      const f32x16 d = keep_where(static_cast<uint16_t>(valid >> q), load(panels + c * kWord + q) - centre);
      first = first + d;
      second = fmadd(d, d, second);
    }
    store(sums[c].first, first);
    store(sums[c].second, second);
  }
}

void tile_moments(const PanelStats& p, const Tile& tile, Sums* sums, double* out) {
  const PanelShape& s = p.shape;
  const int64_t channels = tile.last_channel - tile.channel;
  const auto add = [&](int64_t group, int64_t pixel) {
    const float* panels = p.current + (group * s.units() + pixel * s.channels + tile.channel) * kWord;
    add_panels(panels, s.lanes.valid(group), channels, sums);
  };
  for (int64_t c = 0; c < channels; ++c) sums[c].centre = 0;
  clear(sums, channels);
  add(0, tile.pixel);
  const auto some = static_cast<float>(count_ones(s.lanes.valid(0)));
  for (int64_t c = 0; c < channels; ++c) sums[c].centre = sum(load(sums[c].first)) / some;
  clear(sums, channels);
  for (int64_t group = 0; group < s.lanes.groups(); ++group)
    for (int64_t pixel = tile.pixel; pixel < tile.last_pixel; ++pixel) add(group, pixel);
  const auto n = static_cast<double>((tile.last_pixel - tile.pixel) * s.lanes.rows());
  for (int64_t c = 0; c < channels; ++c) {
    const double off = sum(load(sums[c].first)) / n;
    out[c] = sums[c].centre + off;
    out[s.channels + c] = sum(load(sums[c].second)) - off * off * n;
  }
}

}  // namespace

int64_t panel_stats_scratch(const PanelStats& p) {
  const Tiles tiles(p.shape);
  const int64_t own = threads_for(p.shape, p.threads) * tiles.channels * static_cast<int64_t>(sizeof(Sums));
  return tiles.rows * 2 * p.shape.channels + ceil_div(own, sizeof(double));
}

void panel_stats(const PanelStats& p) {
  const PanelShape& s = p.shape;
  const Tiles tiles(s);
  const int64_t C = s.channels, rows = s.lanes.rows() > 0 ? tiles.rows : 0;
  Sums* const own = reinterpret_cast<Sums*>(p.scratch + tiles.rows * 2 * C);
  if (rows > 0)
    for_tiles(s, p.threads, [&](const Tile& tile, int64_t thread) {
      tile_moments(p, tile, own + thread * tiles.channels, p.scratch + tile.row * 2 * C + tile.channel);
    });
  for (int64_t c = 0; c < C; ++c) {
    Moments all{};
    for (int64_t row = 0; row < rows; ++row) {
      const double* const part = p.scratch + row * 2 * C + c;
      const int64_t pixels = min(tiles.pixels, s.pixels() - row * tiles.pixels);
      all.add({static_cast<double>(pixels * s.lanes.rows()), part[0], part[C]});
    }
    p.stats[c] = rows > 0 ? all.mean : double{NAN};
    p.stats[C + c] = all.squares / all.count;
  }
}

}  // namespace esl::ESL_ISA
