// Parallel work on panels. For kernels only.
#pragma once

#include "esl/lanes.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {

constexpr int64_t kTilePixels = 16;
constexpr int64_t kTileChannels = 64;

// A rectangle of pixels and channels, of fixed size: sums of tiles, combined row by row, do not depend on the threads.
struct Tile {
  int64_t row, pixel, last_pixel, channel, last_channel;

  Tile(const PanelShape& s, int64_t index) {
    const int64_t across = ceil_div(s.channels, kTileChannels);
    row = index / across;
    pixel = row * kTilePixels;
    last_pixel = min(s.pixels(), pixel + kTilePixels);
    channel = index % across * kTileChannels;
    last_channel = min(s.channels, channel + kTileChannels);
  }
};

inline int64_t tile_rows(const PanelShape& s) { return ceil_div(s.pixels(), kTilePixels); }
inline int64_t tiles(const PanelShape& s) { return tile_rows(s) * ceil_div(s.channels, kTileChannels); }
inline int threads_for(const PanelShape& s, int threads) {
  return useful_threads(s.units() * s.lanes.count(), 1 << 14, threads);
}

}  // namespace esl::ESL_ISA
