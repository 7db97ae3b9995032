#include "esl/pool.h"

#include <pybind11/stl.h>

#include <array>

#include "bindings.h"
#include "esl/check.h"

namespace esl {

using Axis = std::array<int64_t, 6>;  // size, windows, kernel, stride, padding, dilation

static Pool pool(int64_t groups, int64_t channels, const Axis& y, const Axis& x, int threads) {
  return {groups, channels, {y[0], y[1], y[2], y[3], y[4], y[5]}, {x[0], x[1], x[2], x[3], x[4], x[5]}, threads};
}

void bind_pool(py::module_& m) {
  m.def("avg_pool", [](uintptr_t words, uintptr_t sums, int planes, int sum_planes, int64_t groups, int64_t channels,
                       const Axis& y, const Axis& x, int threads) {
    check(planes <= sum_planes && sum_planes <= kMaxPlanes, "planes: at most 4 fit");
    const AvgPool p{pool(groups, channels, y, x, threads), planes, sum_planes, at<const uint64_t>(words),
                    at<uint64_t>(sums)};
    py::gil_scoped_release release;
    ESL_DISPATCH(avg_pool, p);
  });
  m.def("avg_pool_backward", [](uintptr_t grad, uintptr_t grad_x, float divisor, int64_t groups, int64_t channels,
                                const Axis& y, const Axis& x, int threads) {
    const AvgPoolBackward p{pool(groups, channels, y, x, threads), divisor, at<const float>(grad), at<float>(grad_x)};
    py::gil_scoped_release release;
    ESL_DISPATCH(avg_pool_backward, p);
  });
  m.def("max_pool", [](uintptr_t words, uintptr_t out, int64_t groups, int64_t channels, const Axis& y, const Axis& x,
                       int threads) {
    const MaxPool p{pool(groups, channels, y, x, threads), at<const uint64_t>(words), at<uint64_t>(out)};
    py::gil_scoped_release release;
    ESL_DISPATCH(max_pool, p);
  });
  m.def("max_pool_backward", [](uintptr_t words, uintptr_t grad, uintptr_t grad_x, int64_t groups, int64_t channels,
                                const Axis& y, const Axis& x, int threads) {
    const MaxPoolBackward p{pool(groups, channels, y, x, threads), at<const uint64_t>(words), at<const float>(grad),
                            at<float>(grad_x)};
    py::gil_scoped_release release;
    ESL_DISPATCH(max_pool_backward, p);
  });
  m.def("global_avg_pool", [](uintptr_t words, uintptr_t rows, bool bf16, int64_t T, int64_t B, int64_t channels,
                              int64_t pixels, int planes, float scale, int threads) {
    const GlobalAvgPool p{{T, B},         channels,    pixels, planes, scale, at<const uint64_t>(words),
                          at<void>(rows), dtype(bf16), threads};
    py::gil_scoped_release release;
    ESL_DISPATCH(global_avg_pool, p);
  });
}

}  // namespace esl
