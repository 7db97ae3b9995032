#include "esl/linear.h"

#include "bindings.h"

namespace esl {

// Both return 0 when done. When `scratch_bytes` is too small they do nothing and return what is needed, so that Python
// lends exactly that and no formula is written twice.
void bind_linear(py::module_& m) {
  m.def("linear_forward",
        [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, uintptr_t crow, uintptr_t col, uintptr_t values,
           uintptr_t bias, int64_t T, int64_t B, uintptr_t words, int planes, float scale, uintptr_t x, uintptr_t y,
           bool bf16, bool panels, int kernel, int threads, uintptr_t scratch, int64_t scratch_bytes) -> int64_t {
          LinearForward p{};
          p.w = {rows, cols, bm, bn, at<const int32_t>(crow), at<const int32_t>(col), nullptr, nullptr, nullptr,
                 at<const float>(values)};
          p.lanes = {T, B};
          p.bias = at<const float>(bias);
          p.words = at<const uint64_t>(words);
          p.planes = planes;
          p.scale = scale;
          p.x = {at<void>(x), dtype(bf16), false};
          p.y = {at<void>(y), dtype(bf16), panels};
          p.kernel = static_cast<SpikeKernel>(kernel);
          p.threads = threads;
          p.scratch = at<void>(scratch);
          py::gil_scoped_release release;
          const int64_t needed = ESL_DISPATCH(linear_forward_scratch, p);
          if (needed > scratch_bytes) return needed;
          ESL_DISPATCH(linear_forward, p);
          return 0;
        });
  m.def("linear_backward",
        [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, uintptr_t crow, uintptr_t col, uintptr_t ccol,
           uintptr_t row_t, uintptr_t offset_t, uintptr_t values, int64_t T, int64_t B, uintptr_t grad,
           bool grad_panels, bool bf16, uintptr_t words, int planes, float scale, uintptr_t x, uintptr_t grad_x,
           bool x_panels, uintptr_t grad_values, uintptr_t grad_bias, int threads, uintptr_t scratch,
           int64_t scratch_bytes) -> int64_t {
          LinearBackward p{};
          p.w = {rows, cols, bm, bn, at<const int32_t>(crow), at<const int32_t>(col), at<const int32_t>(ccol),
                 at<const int32_t>(row_t), at<const int32_t>(offset_t), at<const float>(values)};
          p.lanes = {T, B};
          p.grad = {at<void>(grad), dtype(bf16), grad_panels};
          p.words = at<const uint64_t>(words);
          p.planes = planes;
          p.scale = scale;
          p.x = {at<void>(x), dtype(bf16), false};
          p.grad_x = {at<void>(grad_x), dtype(bf16), x_panels};
          p.grad_values = at<float>(grad_values);
          p.grad_bias = at<float>(grad_bias);
          p.threads = threads;
          p.scratch = at<void>(scratch);
          py::gil_scoped_release release;
          const int64_t needed = ESL_DISPATCH(linear_backward_scratch, p);
          if (needed > scratch_bytes) return needed;
          ESL_DISPATCH(linear_backward, p);
          return 0;
        });
}

}  // namespace esl
