// Parallel work on panels. For kernels only.
#pragma once

#include "esl/lanes.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {

// Rectangles of pixels and channels. They depend on the shape only, and sums over them are combined row by row, so no
// result depends on the number of threads. Where pixels are many a tile has all channels, one run of memory per group:
// with 64 channels of 128, a pass over [2, 48, 48, 128, 64] took half as long again.
struct Tiles {
  static constexpr int64_t kUnits = 2048, kFewPixels = 16, kNarrow = 64;
  int64_t channels, pixels;  // of a tile
  int64_t across, rows;

  explicit Tiles(const PanelShape& s) {
    channels = s.pixels() >= kFewPixels ? s.channels : min(s.channels, kNarrow);
    channels = max(channels, 1);
    pixels = max(kUnits / channels, 1);
    across = ceil_div(s.channels, channels);
    rows = ceil_div(s.pixels(), pixels);
  }
  int64_t count() const { return across * rows; }
};

struct Tile {
  int64_t row, pixel, last_pixel, channel, last_channel;

  Tile(const PanelShape& s, const Tiles& tiles, int64_t index) {
    row = index / tiles.across;
    pixel = row * tiles.pixels;
    last_pixel = min(s.pixels(), pixel + tiles.pixels);
    channel = index % tiles.across * tiles.channels;
    last_channel = min(s.channels, channel + tiles.channels);
  }
};

inline int threads_for(const PanelShape& s, int threads) {
  return useful_threads(s.units() * s.lanes.count(), 1 << 14, threads);
}

// f(tile, thread) for all tiles. Parameters that f reads in its inner loops it should copy: what it stores could change
// those behind a reference, and the compiler would load them again after each store.
template <class F>
void for_tiles(const PanelShape& s, int threads, F f) {
  const Tiles tiles(s);
  threads = threads_for(s, threads);
  parallel_for(0, threads, threads, [&](int64_t thread) {
    for (int64_t i = tiles.count() * thread / threads; i < tiles.count() * (thread + 1) / threads; ++i)
      f(Tile(s, tiles, i), thread);
  });
}

// f(pixel, c, n) for the channels c .. c + n - 1 of a tile's pixels, n <= block.
template <class F>
ESL_INLINE void for_blocks(const Tile& tile, int64_t block, F f) {
  for (int64_t pixel = tile.pixel; pixel < tile.last_pixel; ++pixel)
    for (int64_t c = tile.channel; c < tile.last_channel; c += block) f(pixel, c, min(block, tile.last_channel - c));
}

}  // namespace esl::ESL_ISA
