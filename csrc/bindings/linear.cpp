#include "esl/linear.h"

#include "bindings.h"
#include "esl/pack.h"

namespace esl {

namespace {

constexpr int64_t kSmallScratch = 16 * 1024;  // calls of microseconds find their scratch on the stack

// Run `kernel` with the scratch that it needs. Returns its result; when the lent scratch is too small, does nothing and
// returns what is needed, so that Python lends exactly that and no formula is written twice.
template <class Params, class Kernel>
int64_t with_scratch(Params& p, int64_t needed, uintptr_t scratch, int64_t scratch_bytes, Kernel kernel) {
  alignas(64) char small[kSmallScratch];
  if (needed > scratch_bytes && needed > kSmallScratch) return needed;
  p.scratch = needed > scratch_bytes ? small : at<void>(scratch);
  return kernel();
}

}  // namespace

void bind_linear(py::module_& m) {
  // Float rows with planes > 0 are packed into `words` first: -1 if they break that promise.
  m.def("linear_forward",
        [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, uintptr_t crow, uintptr_t col, uintptr_t ccol,
           uintptr_t row_t, uintptr_t offset_t, uintptr_t values, uintptr_t bias, int64_t T, int64_t B, uintptr_t words,
           int planes, float scale, uintptr_t x, uintptr_t y, bool bf16, bool panels, int kernel, int threads,
           uintptr_t scratch, int64_t scratch_bytes) -> int64_t {
          LinearForward p{};
          p.w = {rows,
                 cols,
                 bm,
                 bn,
                 at<const int32_t>(crow),
                 at<const int32_t>(col),
                 at<const int32_t>(ccol),
                 at<const int32_t>(row_t),
                 at<const int32_t>(offset_t),
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
          py::gil_scoped_release release;
          return with_scratch(p, ESL_DISPATCH(linear_forward_scratch, p), scratch, scratch_bytes, [&] {
            if (x && planes) {
              const PackParams rows_to_words{p.lanes, cols, 1, planes, scale, p.x.data, p.x.dtype, at<uint64_t>(words),
                                             threads};
              if (!ESL_DISPATCH(pack, rows_to_words)) return int64_t{-1};
            }
            ESL_DISPATCH(linear_forward, p);
            return int64_t{0};
          });
        });
  m.def(
      "linear_backward",
      [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, uintptr_t crow, uintptr_t col, uintptr_t ccol,
         uintptr_t row_t, uintptr_t offset_t, uintptr_t values, int64_t T, int64_t B, uintptr_t grad, bool grad_panels,
         bool bf16, uintptr_t words, int planes, float scale, uintptr_t x, uintptr_t grad_x, bool x_panels,
         uintptr_t grad_values, uintptr_t grad_bias, int threads, uintptr_t scratch, int64_t scratch_bytes) -> int64_t {
        LinearBackward p{};
        p.w = {rows,
               cols,
               bm,
               bn,
               at<const int32_t>(crow),
               at<const int32_t>(col),
               at<const int32_t>(ccol),
               at<const int32_t>(row_t),
               at<const int32_t>(offset_t),
               at<const float>(values)};
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
        py::gil_scoped_release release;
        return with_scratch(p, ESL_DISPATCH(linear_backward_scratch, p), scratch, scratch_bytes, [&] {
          ESL_DISPATCH(linear_backward, p);
          return int64_t{0};
        });
      });
}

}  // namespace esl
