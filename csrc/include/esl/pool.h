// Op pool: pooling on spike words, and its gradients on panels.
#pragma once

#include <cstdint>

#include "esl/isa.h"
#include "esl/lanes.h"
#include "esl/stream.h"

namespace esl {

// One dimension of the windows: window o covers elements o * stride - padding + k * dilation, k < kernel, of those
// below size. What lies outside is in no window.
struct PoolAxis {
  int64_t size, windows, kernel, stride, padding, dilation;
};

struct Pool {
  int64_t groups, channels;
  PoolAxis y, x;
  int threads;

  ESL_INLINE int64_t pixels() const { return y.size * x.size; }
  ESL_INLINE int64_t windows() const { return y.windows * x.windows; }
};

// f(i) for each element i of window o, ascending.
template <class F>
ESL_INLINE void for_elements(const PoolAxis& a, int64_t o, F f) {
  for (int64_t k = 0; k < a.kernel; ++k) {
    const int64_t i = o * a.stride - a.padding + k * a.dilation;
    if (i >= 0 && i < a.size) f(i);
  }
}

// f(o) for each window o that holds element i, ascending.
template <class F>
ESL_INLINE void for_windows(const PoolAxis& a, int64_t i, F f) {
  for (int64_t k = a.kernel - 1; k >= 0; --k) {
    const int64_t start = i + a.padding - k * a.dilation;
    if (start >= 0 && start % a.stride == 0 && start / a.stride < a.windows) f(start / a.stride);
  }
}

// f(pixel) for each pixel of a window, in row-major order.
template <class F>
ESL_INLINE void for_pixels(const Pool& p, int64_t window, F f) {
  for_elements(p.y, window / p.x.windows,
               [&](int64_t y) { for_elements(p.x, window % p.x.windows, [&](int64_t x) { f(y * p.x.size + x); }); });
}

struct AvgPool {
  Pool pool;
  int planes, sum_planes;  // of the input; of the sums, which must fit
  const uint64_t* words;   // [planes, groups, pixels, channels]
  uint64_t* sums;          // [sum_planes, groups, windows, channels]
};

struct AvgPoolBackward {
  Pool pool;
  float divisor;
  const float* grad;  // [groups, windows, channels, 64]
  float* grad_x;      // [groups, pixels, channels, 64]
};

struct MaxPool {
  Pool pool;
  const uint64_t* words;
  uint64_t* out;
};

struct MaxPoolBackward {
  Pool pool;
  const uint64_t* words;  // of the input
  const float* grad;
  float* grad_x;
};

struct GlobalAvgPool {
  Lanes lanes;
  int64_t channels, pixels;
  int planes;
  float scale;
  const uint64_t* words;
  void* rows;  // [T * B, channels]
  Dtype dtype;
  int threads;
};

ESL_DECLARE_CPU(void avg_pool(const AvgPool& p))
ESL_DECLARE_CPU(void avg_pool_backward(const AvgPoolBackward& p))
ESL_DECLARE_CPU(void max_pool(const MaxPool& p))
// A window's gradient goes to its first spike, or to its first pixel where it has none.
ESL_DECLARE_CPU(void max_pool_backward(const MaxPoolBackward& p))
ESL_DECLARE_CPU(void global_avg_pool(const GlobalAvgPool& p))

// On CUDA the gradients' panels are of any dtype.
void launch_avg_pool(const AvgPool& p, Stream stream);
void launch_avg_pool_backward(const AvgPoolBackward& p, Dtype dtype, Stream stream);
void launch_max_pool(const MaxPool& p, Stream stream);
void launch_max_pool_backward(const MaxPoolBackward& p, Dtype dtype, Stream stream);
void launch_global_avg_pool(const GlobalAvgPool& p, Stream stream);

}  // namespace esl
