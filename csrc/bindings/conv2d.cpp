#include "esl/conv2d.h"

#include "bindings.h"
#include "esl/check.h"

namespace esl {

namespace {

// 13 integers, in the order of ConvShape; and the weight: sizes and addresses.
ConvShape conv_shape(const py::tuple& t) {
  int64_t v[13];
  for (size_t i = 0; i < 13; ++i) v[i] = t[i].cast<int64_t>();
  return {v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12]};
}

BlockSparse weight(const py::tuple& t) {
  int64_t v[10];
  for (size_t i = 0; i < 10; ++i) v[i] = t[i].cast<int64_t>();
  const auto index = [&](int i) { return at<const int32_t>(static_cast<uintptr_t>(v[i])); };
  return {v[0],     v[1],     v[2],     v[3],     index(4),
          index(5), index(6), index(7), index(8), at<const float>(static_cast<uintptr_t>(v[9]))};
}

}  // namespace

// Both return the bytes of scratch that they need, and do nothing, unless they are lent.
void bind_conv2d(py::module_& m) {
  m.def("conv2d_forward",
        [](const py::tuple& w, const py::tuple& shape, int64_t T, int64_t B, uintptr_t bias, uintptr_t words,
           int planes, float scale, uintptr_t x, uintptr_t y, uintptr_t stats, int kernel, int threads,
           uintptr_t scratch) -> int64_t {
          Conv2dForward p{};
          p.w = weight(w);
          p.shape = conv_shape(shape);
          p.lanes = {T, B};
          p.bias = at<const float>(bias);
          p.words = at<const uint64_t>(words);
          p.planes = planes;
          p.scale = scale;
          p.x = at<const float>(x);
          p.y = at<float>(y);
          p.stats = at<double>(stats);
          p.kernel = static_cast<SpikeKernel>(kernel);
          p.threads = threads;
          p.scratch = at<void>(scratch);
          py::gil_scoped_release release;
          if (!scratch) return ESL_DISPATCH(conv2d_forward_scratch, p);
          ESL_DISPATCH(conv2d_forward, p);
          return 0;
        });
  m.def("conv2d_backward",
        [](const py::tuple& w, const py::tuple& shape, int64_t T, int64_t B, uintptr_t grad, uintptr_t words,
           int planes, float scale, uintptr_t x, uintptr_t grad_x, uintptr_t grad_values, uintptr_t grad_bias,
           int threads, uintptr_t scratch) -> int64_t {
          Conv2dBackward p{};
          p.w = weight(w);
          p.shape = conv_shape(shape);
          p.lanes = {T, B};
          p.grad = at<const float>(grad);
          p.words = at<const uint64_t>(words);
          p.planes = planes;
          p.scale = scale;
          p.x = at<const float>(x);
          p.grad_x = at<float>(grad_x);
          p.grad_values = at<float>(grad_values);
          p.grad_bias = at<float>(grad_bias);
          p.threads = threads;
          p.scratch = at<void>(scratch);
          py::gil_scoped_release release;
          if (!scratch) return ESL_DISPATCH(conv2d_backward_scratch, p);
          ESL_DISPATCH(conv2d_backward, p);
          return 0;
        });
}

}  // namespace esl
