// Op pool. A window reads kernel x kernel words per channel and a gradient as many panels, so all loops run along
// channels (words) or lanes (panels), in pieces that stay in L1. Backward gathers: one thread writes each pixel, and
// windows are added in ascending order.
#include "esl/pool.h"

#include "esl/panels.h"
#include "esl/parallel.h"

namespace esl::ESL_ISA {
namespace {

constexpr int64_t kWordPiece = 64, kPanelPiece = 16;  // channels

// f(group, window, first channel, channels) in parallel over groups and windows.
template <class F>
void for_pieces(const Pool& p, F f) {
  parallel_for(0, p.groups * p.windows(), p.threads, [&](int64_t i) {
    for (int64_t c = 0; c < p.channels; c += kWordPiece)
      f(i / p.windows(), i % p.windows(), c, min(p.channels - c, kWordPiece));
  });
}

// Sums of windows' gradients: add(group, pixel, window, first channel, channels, sum) for each window that holds a
// pixel. sum is [channels, 64] of grad_x.
template <class F>
void gather(const Pool& p, float* grad_x, F add) {
  parallel_for(0, p.groups * p.pixels(), p.threads, [&](int64_t i) {
    const int64_t g = i / p.pixels(), pixel = i % p.pixels();
    for (int64_t c = 0; c < p.channels; c += kPanelPiece) {
      const int64_t n = min(p.channels - c, kPanelPiece);
      float* sum = grad_x + (i * p.channels + c) * kWord;
      std::memset(sum, 0, static_cast<size_t>(n * kWord) * sizeof(float));
      for_windows(p.y, pixel / p.x.size, [&](int64_t oy) {
        for_windows(p.x, pixel % p.x.size, [&](int64_t ox) { add(g, pixel, oy * p.x.windows + ox, c, n, sum); });
      });
    }
  });
}

}  // namespace

// A ripple-carry adder for 64 lanes at a time: plane p of a sum, of a pixel and the carry into p.
void avg_pool(const AvgPool& p) {
  const Pool& pool = p.pool;
  for_pieces(pool, [&](int64_t g, int64_t window, int64_t c, int64_t n) {
    uint64_t sum[kMaxPlanes][kWordPiece] = {};
    for_pixels(pool, window, [&](int64_t pixel) {
      uint64_t carry[kWordPiece] = {};
      for (int plane = 0; plane < p.sum_planes; ++plane) {
        uint64_t* const a = sum[plane];
        if (plane < p.planes) {
          const uint64_t* b = p.words + ((plane * pool.groups + g) * pool.pixels() + pixel) * pool.channels + c;
          for (int64_t k = 0; k < n; ++k) {
            const uint64_t either = a[k] ^ b[k], both = a[k] & b[k];
            a[k] = either ^ carry[k];
            carry[k] = both | (either & carry[k]);
          }
        } else {
          for (int64_t k = 0; k < n; ++k) {
            const uint64_t both = a[k] & carry[k];
            a[k] ^= carry[k];
            carry[k] = both;
          }
        }
      }
    });
    for (int plane = 0; plane < p.sum_planes; ++plane)
      std::memcpy(p.sums + ((plane * pool.groups + g) * pool.windows() + window) * pool.channels + c, sum[plane],
                  static_cast<size_t>(n) * sizeof(uint64_t));
  });
}

void avg_pool_backward(const AvgPoolBackward& p) {
  const f32x16 divisor = set1(p.divisor);
  gather(p.pool, p.grad_x, [&](int64_t g, int64_t, int64_t window, int64_t c, int64_t n, float* sum) {
    const float* grad = p.grad + ((g * p.pool.windows() + window) * p.pool.channels + c) * kWord;
    for (int64_t k = 0; k < n * kWord; k += 16) store(sum + k, load(sum + k) + load(grad + k) / divisor);
  });
}

void max_pool(const MaxPool& p) {
  const Pool& pool = p.pool;
  for_pieces(pool, [&](int64_t g, int64_t window, int64_t c, int64_t n) {
    uint64_t any[kWordPiece] = {};
    for_pixels(pool, window, [&](int64_t pixel) {
      const uint64_t* words = p.words + (g * pool.pixels() + pixel) * pool.channels + c;
      for (int64_t k = 0; k < n; ++k) any[k] |= words[k];
    });
    std::memcpy(p.out + (g * pool.windows() + window) * pool.channels + c, any,
                static_cast<size_t>(n) * sizeof(uint64_t));
  });
}

void max_pool_backward(const MaxPoolBackward& p) {
  const Pool& pool = p.pool;
  gather(pool, p.grad_x, [&](int64_t g, int64_t own, int64_t window, int64_t c, int64_t n, float* sum) {
    const uint64_t* words = p.words + g * pool.pixels() * pool.channels + c;
    // The first pixel takes its own spikes and what no pixel spikes in; a later one what none before it spikes in.
    uint64_t others[kPanelPiece] = {};
    bool first = true;
    for_pixels(pool, window, [&](int64_t pixel) {
      first &= pixel >= own;
      if (pixel == own || (pixel > own && !first)) return;
      for (int64_t k = 0; k < n; ++k) others[k] |= words[pixel * pool.channels + k];
    });
    const float* grad = p.grad + ((g * pool.windows() + window) * pool.channels + c) * kWord;
    for (int64_t k = 0; k < n; ++k) {
      const uint64_t spikes = words[own * pool.channels + k];
      const uint64_t lanes = first ? spikes | ~others[k] : spikes & ~others[k];
      for (int q = 0; q < 4; ++q) {
        float* s = sum + k * kWord + q * 16;
        store(s, add_where(load(s), static_cast<uint16_t>(lanes >> q * 16), load(grad + k * kWord + q * 16)));
      }
    }
  });
}

namespace {

// The rows' channels [c, c + n), n <= 16, of one group's lanes.
template <class T>
void mean_tile(const GlobalAvgPool& p, int64_t g, int64_t c, int n) {
  float tile[16][kWord] = {};
  for (int plane = 0; plane < p.planes; ++plane) {
    const uint64_t* words = p.words + (plane * p.lanes.groups() + g) * p.pixels * p.channels + c;
    const f32x16 weight = set1(static_cast<float>(1 << plane));
    for (int k = 0; k < n; ++k) {
      f32x16 sum[4];
      for (int q = 0; q < 4; ++q) sum[q] = load(tile[k] + q * 16);
      for (int64_t pixel = 0; pixel < p.pixels; ++pixel) {
        const uint64_t word = words[pixel * p.channels + k];
        for (int q = 0; q < 4; ++q) sum[q] = add_where(sum[q], static_cast<uint16_t>(word >> q * 16), weight);
      }
      for (int q = 0; q < 4; ++q) store(tile[k] + q * 16, sum[q]);
    }
  }
  const f32x16 scale = set1(p.scale), pixels = set1(static_cast<float>(p.pixels));
  for (int k = 0; k < n; ++k)
    for (int q = 0; q < 4; ++q) store(tile[k] + q * 16, load(tile[k] + q * 16) * scale / pixels);
  const LaneRows lanes(p.lanes, g);
  for (int q = 0; q < lanes.quarters; ++q)
    panel_to_rows(tile[0] + q * 16, kWord, static_cast<T*>(p.rows), p.channels, lanes.row + q * 16, c, n);
}

}  // namespace

void global_avg_pool(const GlobalAvgPool& p) {
  const int64_t tiles = ceil_div(p.channels, 16);
  parallel_for(0, p.lanes.groups() * tiles, p.threads, [&](int64_t i) {
    const int64_t c = i % tiles * 16;
    const int n = static_cast<int>(min(p.channels - c, 16));
    if (p.dtype == Dtype::f32)
      mean_tile<float>(p, i / tiles, c, n);
    else
      mean_tile<bf16>(p, i / tiles, c, n);
  });
}

}  // namespace esl::ESL_ISA
