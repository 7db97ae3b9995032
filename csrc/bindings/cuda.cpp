// The kernels of csrc/cuda: tensors and the stream arrive as addresses, checked in Python. No call waits for the GPU.
#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "bindings.h"
#include "esl/block_score.h"
#include "esl/check.h"
#include "esl/conv2d.h"
#include "esl/norm_lif.h"
#include "esl/pack.h"
#include "esl/panel_stats.h"
#include "esl/pool.h"
#include "esl/sample.h"
#include "esl/select.h"
#include "esl/temporal.h"
#include "esl/transpose_index.h"

namespace esl {

namespace {

Stream stream_at(uintptr_t address) { return at<CUstream_st>(address); }

Dtype dtype_of(int code) {
  check(code >= 0 && code <= 2,
        "dtype: expected 0 (float32), 1 (bfloat16) or 2 (float16), got " + std::to_string(code));
  return static_cast<Dtype>(code);
}

void check_planes(int planes) {
  check(planes >= 1 && planes <= kMaxPlanes, "planes: expected 1 to 4, got " + std::to_string(planes));
}

// rows, cols, bm, bn and the addresses of crow, col, ccol, row_t, offset_t, values.
BlockSparse weight(const std::array<int64_t, 10>& w) {
  const auto index = [&](size_t i) { return at<const int32_t>(static_cast<uintptr_t>(w[i])); };
  return {w[0],     w[1],     w[2],     w[3],     index(4),
          index(5), index(6), index(7), index(8), at<const float>(static_cast<uintptr_t>(w[9]))};
}

// nnzb; the 13 numbers of ConvShape; T and B; words, planes, scale and x; the dtype of currents and gradients.
using Shape = std::array<int64_t, 13>;
Conv2dCuda conv2d(const std::array<int64_t, 10>& w, int64_t nnzb, const Shape& s, int64_t T, int64_t B, uintptr_t words,
                  int planes, float scale, uintptr_t x, int dtype) {
  return {weight(w),
          nnzb,
          {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]},
          {T, B},
          at<const uint64_t>(words),
          planes,
          scale,
          at<const float>(x),
          dtype_of(dtype)};
}

using Axis = std::array<int64_t, 6>;  // size, windows, kernel, stride, padding, dilation
Pool pool(int64_t groups, int64_t channels, const Axis& y, const Axis& x) {
  return {groups, channels, {y[0], y[1], y[2], y[3], y[4], y[5]}, {x[0], x[1], x[2], x[3], x[4], x[5]}, 0};
}

PanelShape panel_shape(const std::array<int64_t, 5>& s) { return {{s[0], s[1]}, s[2], s[3], s[4]}; }

using NeuronTuple = std::tuple<uintptr_t, float, bool, float>;  // address of tau, v_threshold, hard_reset, v_reset
LifNeuron neuron(const NeuronTuple& n) { return {0.f, std::get<1>(n), std::get<2>(n), std::get<3>(n)}; }
const float* tau(const NeuronTuple& n) { return at<const float>(std::get<0>(n)); }

using Current = std::array<uintptr_t, 3>;  // panel, a, b
NormLifInput norm_lif_input(const std::array<int64_t, 5>& shape, const NeuronTuple& n, const Current& first,
                            const Current& second, uintptr_t residual, int planes, float residual_scale) {
  const auto current = [](const Current& c) {
    return AffineCurrent{at<const float>(c[0]), at<const float>(c[1]), at<const float>(c[2])};
  };
  return {panel_shape(shape), neuron(n), {current(first), current(second)}, at<const uint64_t>(residual), planes,
          residual_scale,     0};
}

void bind_neurons(py::module_& m) {
  m.def("cuda_lif_forward", [](int64_t T, int64_t M, uintptr_t x, int64_t x_stride, uintptr_t v, int64_t v_stride,
                               const NeuronTuple& n, uintptr_t spikes, uintptr_t v_last, uintptr_t stream) {
    const LifForward p{
        neuron(n),         T, M, at<const float>(x), x_stride, at<const float>(v), v_stride, at<float>(spikes),
        at<float>(v_last), 0};
    py::gil_scoped_release release;
    launch_lif_forward(p, tau(n), stream_at(stream));
  });
  m.def("cuda_lif_backward",
        [](int64_t T, int64_t M, uintptr_t x, int64_t x_stride, uintptr_t v, int64_t v_stride, const NeuronTuple& n,
           int surrogate, float width, bool detach_reset, uintptr_t grad_spikes, uintptr_t grad_v_last,
           uintptr_t grad_x, uintptr_t grad_v, uintptr_t grad_tau, uintptr_t stream) {
          LifBackward p{};
          p.neuron = neuron(n);
          p.surrogate = static_cast<Surrogate>(surrogate);
          p.width = width;
          p.detach_reset = detach_reset;
          p.T = T;
          p.M = M;
          p.x = at<const float>(x);
          p.x_stride = x_stride;
          p.v = at<const float>(v);
          p.v_stride = v_stride;
          p.grad_spikes = at<const float>(grad_spikes);
          p.grad_v_last = at<const float>(grad_v_last);
          p.grad_x = at<float>(grad_x);
          p.grad_v = at<float>(grad_v);
          py::gil_scoped_release release;
          launch_lif_backward(p, tau(n), at<float>(grad_tau), stream_at(stream));
        });
  m.def("cuda_norm_lif_sites", [](const std::array<int64_t, 5>& shape) { return norm_lif_sites(panel_shape(shape)); });
  m.def("cuda_norm_lif_forward",
        [](const std::array<int64_t, 5>& shape, const NeuronTuple& n, const Current& first, const Current& second,
           uintptr_t residual, int planes, float residual_scale, uintptr_t words, uintptr_t stream) {
          const NormLifForward p{norm_lif_input(shape, n, first, second, residual, planes, residual_scale),
                                 at<uint64_t>(words)};
          py::gil_scoped_release release;
          launch_norm_lif_forward(p, tau(n), stream_at(stream));
        });
  m.def("cuda_norm_lif_backward",
        [](const std::array<int64_t, 5>& shape, const NeuronTuple& n, const Current& first, const Current& second,
           uintptr_t residual, int planes, float residual_scale, int surrogate, float width, bool detach_reset,
           uintptr_t words, uintptr_t grad, int64_t pool, uintptr_t mean, uintptr_t mean2, uintptr_t g, uintptr_t sums,
           uintptr_t stream) {
          NormLifBackward p{};
          p.in = norm_lif_input(shape, n, first, second, residual, planes, residual_scale);
          p.surrogate = static_cast<Surrogate>(surrogate);
          p.width = width;
          p.detach_reset = detach_reset;
          p.words = at<const uint64_t>(words);
          p.grad = at<const float>(grad);
          p.pool = pool;
          p.norm[0].mean = at<const float>(mean);
          p.norm[1].mean = at<const float>(mean2);
          py::gil_scoped_release release;
          launch_norm_lif_backward(p, tau(n), at<float>(g), at<float>(sums), stream_at(stream));
        });
  m.def("cuda_norm_lif_spread", [](const std::array<int64_t, 5>& shape, uintptr_t g, uintptr_t current,
                                   uintptr_t coefficients, uintptr_t stream) {
    py::gil_scoped_release release;
    launch_norm_lif_spread(panel_shape(shape), at<const float>(g), at<float>(current), at<const float>(coefficients),
                           stream_at(stream));
  });
  m.def("cuda_panel_stats_scratch",
        [](const std::array<int64_t, 5>& shape) { return cuda_panel_stats_scratch(panel_shape(shape)); });
  m.def("cuda_panel_stats", [](const std::array<int64_t, 5>& shape, uintptr_t current, int dtype, uintptr_t stats,
                               uintptr_t scratch, uintptr_t stream) {
    const PanelStats p{panel_shape(shape), at<const float>(current), at<double>(stats), at<double>(scratch), 0};
    const Dtype type = dtype_of(dtype);
    py::gil_scoped_release release;
    launch_panel_stats(p, type, stream_at(stream));
  });
}

void bind_pools(py::module_& m) {
  m.def("cuda_avg_pool", [](uintptr_t words, uintptr_t sums, int planes, int sum_planes, int64_t groups,
                            int64_t channels, const Axis& y, const Axis& x, uintptr_t stream) {
    check(planes <= sum_planes && sum_planes <= kMaxPlanes, "planes: at most 4 fit");
    const AvgPool p{pool(groups, channels, y, x), planes, sum_planes, at<const uint64_t>(words), at<uint64_t>(sums)};
    py::gil_scoped_release release;
    launch_avg_pool(p, stream_at(stream));
  });
  m.def("cuda_avg_pool_backward", [](uintptr_t grad, uintptr_t grad_x, int dtype, float divisor, int64_t groups,
                                     int64_t channels, const Axis& y, const Axis& x, uintptr_t stream) {
    const AvgPoolBackward p{pool(groups, channels, y, x), divisor, at<const float>(grad), at<float>(grad_x)};
    const Dtype type = dtype_of(dtype);
    py::gil_scoped_release release;
    launch_avg_pool_backward(p, type, stream_at(stream));
  });
  m.def("cuda_max_pool", [](uintptr_t words, uintptr_t out, int64_t groups, int64_t channels, const Axis& y,
                            const Axis& x, uintptr_t stream) {
    const MaxPool p{pool(groups, channels, y, x), at<const uint64_t>(words), at<uint64_t>(out)};
    py::gil_scoped_release release;
    launch_max_pool(p, stream_at(stream));
  });
  m.def("cuda_max_pool_backward", [](uintptr_t words, uintptr_t grad, uintptr_t grad_x, int dtype, int64_t groups,
                                     int64_t channels, const Axis& y, const Axis& x, uintptr_t stream) {
    const MaxPoolBackward p{pool(groups, channels, y, x), at<const uint64_t>(words), at<const float>(grad),
                            at<float>(grad_x)};
    const Dtype type = dtype_of(dtype);
    py::gil_scoped_release release;
    launch_max_pool_backward(p, type, stream_at(stream));
  });
  m.def("cuda_global_avg_pool", [](uintptr_t words, uintptr_t rows, int dtype, int64_t T, int64_t B, int64_t channels,
                                   int64_t pixels, int planes, float scale, uintptr_t stream) {
    const GlobalAvgPool p{{T, B},         channels,        pixels, planes, scale, at<const uint64_t>(words),
                          at<void>(rows), dtype_of(dtype), 0};
    py::gil_scoped_release release;
    launch_global_avg_pool(p, stream_at(stream));
  });
}

// Scores of a linear layer's blocks, and the layer of neurons that fire once.
void bind_single(py::module_& m) {
  m.def("cuda_block_score",
        [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, uintptr_t calls, uintptr_t scale, int64_t call_count,
           int64_t most_lanes, int dtype, int64_t first, int64_t count, uintptr_t scores, uintptr_t stream) {
          const BlockScoreCuda p{rows,
                                 cols,
                                 bm,
                                 bn,
                                 at<const ScoreCallCuda>(calls),
                                 at<const float>(scale),
                                 call_count,
                                 most_lanes,
                                 dtype_of(dtype),
                                 first,
                                 count,
                                 at<float>(scores)};
          py::gil_scoped_release release;
          launch_block_score(p, stream_at(stream));
        });
  m.def("cuda_temporal_forward", [](const std::array<int64_t, 10>& w, int64_t samples, uintptr_t z, uintptr_t order,
                                    uintptr_t z_out, uintptr_t slope, uintptr_t stream) {
    const TemporalForward p{weight(w), samples, at<const float>(z), at<float>(z_out), at<float>(slope), nullptr,
                            nullptr,   1};
    py::gil_scoped_release release;
    launch_temporal_forward(p, at<const int64_t>(order), stream_at(stream));
  });
  m.def("cuda_temporal_backward",
        [](const std::array<int64_t, 10>& w, int64_t nnzb, int64_t samples, uintptr_t grad, uintptr_t z,
           uintptr_t z_out, uintptr_t slope, uintptr_t grad_z, uintptr_t grad_values, uintptr_t stream) {
          const TemporalBackward p{weight(w),
                                   samples,
                                   at<const float>(grad),
                                   at<const float>(z),
                                   at<const float>(z_out),
                                   at<const float>(slope),
                                   at<float>(grad_z),
                                   at<float>(grad_values),
                                   nullptr,
                                   1};
          py::gil_scoped_release release;
          launch_temporal_backward(p, nnzb, stream_at(stream));
        });
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_neurons(m);
  bind_pools(m);
  bind_single(m);
  m.def("cuda_pack", [](uintptr_t rows, int dtype, uintptr_t words, int64_t T, int64_t B, int64_t channels,
                        int64_t pixels, int planes, float scale, uintptr_t broken, uintptr_t stream) {
    check_planes(planes);
    const PackParams p{
        {T, B}, channels, pixels, planes, scale, at<const void>(rows), dtype_of(dtype), at<uint64_t>(words), 0};
    py::gil_scoped_release release;
    launch_pack(p, at<int32_t>(broken), stream_at(stream));
  });
  m.def("cuda_unpack", [](uintptr_t words, uintptr_t rows, int dtype, int64_t T, int64_t B, int64_t channels,
                          int64_t pixels, int planes, float scale, uintptr_t stream) {
    check_planes(planes);
    const UnpackParams p{{T, B},         channels,        pixels, planes, scale, at<const uint64_t>(words),
                         at<void>(rows), dtype_of(dtype), 0};
    py::gil_scoped_release release;
    launch_unpack(p, stream_at(stream));
  });
  const auto def_transpose = [&](const char* name, void (*launch)(const PanelParams&, Stream)) {
    m.def(name, [launch](uintptr_t rows, int dtype, uintptr_t panels, int64_t T, int64_t B, int64_t channels,
                         int64_t pixels, uintptr_t stream) {
      const PanelParams p{{T, B}, channels, pixels, at<void>(rows), dtype_of(dtype), at<float>(panels), 0};
      py::gil_scoped_release release;
      launch(p, stream_at(stream));
    });
  };
  def_transpose("cuda_to_panels", launch_to_panels);
  def_transpose("cuda_from_panels", launch_from_panels);

  m.def("cuda_select_scratch", cuda_select_scratch);
  m.def("cuda_select", [](int64_t n, int64_t count, uintptr_t score, uintptr_t ids, int64_t seed, bool largest,
                          uintptr_t chosen, uintptr_t nan, uintptr_t scratch, uintptr_t stream) {
    const Select p{n,
                   count,
                   at<const float>(score),
                   at<const int64_t>(ids),
                   static_cast<uint64_t>(seed),
                   largest,
                   at<int64_t>(chosen),
                   at<void>(scratch),
                   0};
    py::gil_scoped_release release;
    launch_select(p, at<int64_t>(nan), stream_at(stream));
  });
  m.def("cuda_sample", [](int64_t total, int64_t count, int64_t seed, uintptr_t out, uintptr_t stream) {
    const Sample p(total, count, static_cast<uint64_t>(seed), at<int64_t>(out), 0);
    py::gil_scoped_release release;
    launch_sample(p, stream_at(stream));
  });
  // Without scratch: the bytes of it that are needed.
  m.def("cuda_transpose_index",
        [](int64_t row_blocks, int64_t col_blocks, int64_t nnzb, uintptr_t crow, uintptr_t col, uintptr_t ccol,
           uintptr_t row_t, uintptr_t offset_t, uintptr_t scratch, uintptr_t stream) -> int64_t {
          const TransposeIndex p{row_blocks,
                                 col_blocks,
                                 at<const int32_t>(crow),
                                 at<const int32_t>(col),
                                 at<int32_t>(ccol),
                                 at<int32_t>(row_t),
                                 at<int32_t>(offset_t),
                                 at<void>(scratch),
                                 0};
          py::gil_scoped_release release;
          if (!scratch) return cuda_transpose_index_scratch(p, nnzb);
          launch_transpose_index(p, nnzb, stream_at(stream));
          return 0;
        });

  m.def("cuda_conv2d_forward",
        [](const std::array<int64_t, 10>& w, int64_t nnzb, const Shape& shape, int64_t T, int64_t B, uintptr_t words,
           int planes, float scale, uintptr_t x, int dtype, uintptr_t bias, uintptr_t y, uintptr_t stream) {
          const Conv2dCuda p = conv2d(w, nnzb, shape, T, B, words, planes, scale, x, dtype);
          py::gil_scoped_release release;
          launch_conv2d_forward(p, at<const float>(bias), at<void>(y), stream_at(stream));
        });
  m.def("cuda_conv2d_grad_input",
        [](const std::array<int64_t, 10>& w, int64_t nnzb, const Shape& shape, int64_t T, int64_t B, uintptr_t words,
           int planes, float scale, uintptr_t x, int dtype, uintptr_t grad, uintptr_t grad_x, uintptr_t stream) {
          const Conv2dCuda p = conv2d(w, nnzb, shape, T, B, words, planes, scale, x, dtype);
          py::gil_scoped_release release;
          launch_conv2d_grad_input(p, at<const void>(grad), at<void>(grad_x), stream_at(stream));
        });
  // Without grad_values: how many times their size `parts` must hold.
  m.def("cuda_conv2d_grad_values",
        [](const std::array<int64_t, 10>& w, int64_t nnzb, const Shape& shape, int64_t T, int64_t B, uintptr_t words,
           int planes, float scale, uintptr_t x, int dtype, uintptr_t grad, uintptr_t grad_values, uintptr_t parts,
           uintptr_t stream) -> int64_t {
          const Conv2dCuda p = conv2d(w, nnzb, shape, T, B, words, planes, scale, x, dtype);
          if (!grad_values) return conv2d_grad_values_parts(p);
          py::gil_scoped_release release;
          launch_conv2d_grad_values(p, at<const void>(grad), at<float>(grad_values), at<float>(parts),
                                    stream_at(stream));
          return 0;
        });
}

}  // namespace esl
