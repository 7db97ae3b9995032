// Op pool. A thread makes one word of the result, 64 lanes at once, or 4 lanes of a gradient's panel; backward gathers,
// windows in ascending order.
#include "element.h"
#include "esl/pool.h"
#include "launch.h"

namespace esl {

namespace cuda {
namespace {

constexpr int kThreads = 128;

// What a thread makes: channel c of a group's window or pixel.
struct Item {
  int64_t c, group, place;

  ESL_INLINE Item(const Pool& p, int64_t index, int64_t places) {
    c = index % p.channels;
    place = index / p.channels % places;
    group = index / p.channels / places;
  }
};

// A ripple-carry adder: plane p of a sum, of a pixel and the carry into p.
struct Average {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  AvgPool p;
  int64_t count;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= count) return;
    const Pool& pool = p.pool;
    const Item item(pool, index, pool.windows());
    uint64_t sum[kMaxPlanes] = {};
    for_pixels(pool, item.place, [&](int64_t pixel) {
      uint64_t carry = 0;
#pragma unroll
      for (int plane = 0; plane < kMaxPlanes; ++plane) {
        const uint64_t b =
            plane < p.planes
                ? p.words[((plane * pool.groups + item.group) * pool.pixels() + pixel) * pool.channels + item.c]
                : 0;
        const uint64_t either = sum[plane] ^ b, both = sum[plane] & b;
        sum[plane] = either ^ carry;
        carry = both | (either & carry);
      }
    });
#pragma unroll
    for (int plane = 0; plane < kMaxPlanes; ++plane)
      if (plane < p.sum_planes) p.sums[plane * count + index] = sum[plane];
  }
};

struct Maximum {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  MaxPool p;
  int64_t count;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= count) return;
    const Item item(p.pool, index, p.pool.windows());
    uint64_t any = 0;
    for_pixels(p.pool, item.place, [&](int64_t pixel) {
      any |= p.words[(item.group * p.pool.pixels() + pixel) * p.pool.channels + item.c];
    });
    p.out[index] = any;
  }
};

// The lanes of a window whose gradient goes to pixel `own`: those of its spikes that no pixel before has, and where it
// is the first pixel those without any spike.
struct ToFirstSpike {
  const uint64_t* words;

  ESL_INLINE uint64_t operator()(const Pool& p, const Item& item, int64_t window) const {
    const uint64_t* const own = words + item.group * p.pixels() * p.channels + item.c;
    uint64_t others = 0;
    bool first = true;
    for_pixels(p, window, [&](int64_t pixel) {
      first &= pixel >= item.place;
      if (pixel != item.place && (pixel < item.place || first)) others |= own[pixel * p.channels];
    });
    const uint64_t spikes = own[item.place * p.channels];
    return first ? spikes | ~others : spikes & ~others;
  }
};

struct ToAll {
  ESL_INLINE uint64_t operator()(const Pool&, const Item&, int64_t) const { return ~uint64_t{0}; }
};

// Sums of windows' gradients at the lanes that they reach.
template <class T, class Reach>
struct Gather {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  Pool p;
  Reach reach;
  float divisor;
  const T* grad;
  T* grad_x;
  int64_t count;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= count) return;
    const Item item(p, index / 16, p.pixels());
    const int l = static_cast<int>(index % 16) * 4;
    float sum[4] = {};
    for_windows(p.y, item.place / p.x.size, [&](int64_t y) {
      for_windows(p.x, item.place % p.x.size, [&](int64_t x) {
        const int64_t window = y * p.x.windows + x;
        const uint64_t reached = reach(p, item, window) >> l;
        const auto g = load<4>(grad + ((item.group * p.windows() + window) * p.channels + item.c) * 64 + l);
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (reached >> k & 1) sum[k] += widen(g.x[k]) / divisor;
      });
    });
    Vector<T, 4> out;
#pragma unroll
    for (int k = 0; k < 4; ++k) narrow(sum[k], out.x[k]);
    *reinterpret_cast<Vector<T, 4>*>(grad_x + index * 4) = out;
  }
};

template <class Reach>
void gather(const char* op, const Pool& p, const Reach& reach, float divisor, const float* grad, float* grad_x,
            Dtype dtype, Stream stream) {
  const int64_t count = p.groups * p.pixels() * p.channels * 16;
  with_element(dtype, [&](auto element) {
    using T = decltype(element);
    const Gather<T, Reach> body{p,    reach, divisor, reinterpret_cast<const T*>(grad), reinterpret_cast<T*>(grad_x),
                                count};
    launch(op, body, ceil_div(count, kThreads), stream);
  });
}

template <class T>
struct Mean {
  static constexpr int kThreads = cuda::kThreads, kPhases = 1;
  using Shared = Empty;
  GlobalAvgPool p;

  template <int phase>
  ESL_INLINE void run(int block, int thread, Shared&) const {
    const int64_t index = static_cast<int64_t>(block) * kThreads + thread;
    if (index >= p.lanes.rows() * p.channels) return;
    const int64_t row = index / p.channels, c = index % p.channels;
    const int64_t lane = row / p.lanes.B * p.lanes.padded() + row % p.lanes.B, groups = p.lanes.groups();
    int64_t sum = 0;
    for (int plane = 0; plane < p.planes; ++plane) {
      const uint64_t* const words = p.words + (plane * groups + lane / 64) * p.pixels * p.channels + c;
      int64_t spikes = 0;
      for (int64_t pixel = 0; pixel < p.pixels; ++pixel)
        spikes += static_cast<int64_t>(words[pixel * p.channels] >> (lane % 64) & 1);
      sum += spikes << plane;
    }
    narrow(static_cast<float>(sum) * p.scale / static_cast<float>(p.pixels), static_cast<T*>(p.rows)[index]);
  }
};

int64_t output_words(const Pool& p) { return p.groups * p.windows() * p.channels; }

}  // namespace
}  // namespace cuda

using namespace cuda;

void launch_avg_pool(const AvgPool& p, Stream stream) {
  const int64_t count = output_words(p.pool);
  launch("avg_pool", Average{p, count}, ceil_div(count, kThreads), stream);
}

void launch_max_pool(const MaxPool& p, Stream stream) {
  const int64_t count = output_words(p.pool);
  launch("max_pool", Maximum{p, count}, ceil_div(count, kThreads), stream);
}

void launch_avg_pool_backward(const AvgPoolBackward& p, Dtype dtype, Stream stream) {
  gather("avg_pool_backward", p.pool, ToAll{}, p.divisor, p.grad, p.grad_x, dtype, stream);
}

void launch_max_pool_backward(const MaxPoolBackward& p, Dtype dtype, Stream stream) {
  gather("max_pool_backward", p.pool, ToFirstSpike{p.words}, 1.f, p.grad, p.grad_x, dtype, stream);
}

void launch_global_avg_pool(const GlobalAvgPool& p, Stream stream) {
  with_element(p.dtype, [&](auto element) {
    launch("global_avg_pool", Mean<decltype(element)>{p}, ceil_div(p.lanes.rows() * p.channels, kThreads), stream);
  });
}

}  // namespace esl
