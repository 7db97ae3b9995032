#include "esl/lif.h"

#include "bindings.h"

namespace esl {

void bind_lif(py::module_& m) {
  m.def("lif_forward",
        [](int64_t T, int64_t M, uintptr_t x, int64_t x_stride, uintptr_t v, int64_t v_stride, float tau,
           float v_threshold, bool hard_reset, float v_reset, uintptr_t spikes, uintptr_t v_last, int threads) {
          const LifForward p{{tau, v_threshold, hard_reset, v_reset},
                             T,
                             M,
                             at<const float>(x),
                             x_stride,
                             at<const float>(v),
                             v_stride,
                             at<float>(spikes),
                             at<float>(v_last),
                             threads};
          py::gil_scoped_release release;
          ESL_DISPATCH(lif_forward, p);
        });
  // Returns the floats of scratch that are needed if `scratch` is null, else 0 when done.
  m.def("lif_backward",
        [](int64_t T, int64_t M, uintptr_t x, int64_t x_stride, uintptr_t v, int64_t v_stride, float tau,
           float v_threshold, bool hard_reset, float v_reset, int surrogate, float width, bool detach_reset,
           uintptr_t grad_spikes, uintptr_t grad_v_last, uintptr_t grad_x, uintptr_t grad_v, uintptr_t grad_tau,
           int threads, uintptr_t scratch) -> int64_t {
          const LifBackward p{{tau, v_threshold, hard_reset, v_reset},
                              static_cast<Surrogate>(surrogate),
                              width,
                              detach_reset,
                              T,
                              M,
                              at<const float>(x),
                              x_stride,
                              at<const float>(v),
                              v_stride,
                              at<const float>(grad_spikes),
                              at<const float>(grad_v_last),
                              at<float>(grad_x),
                              at<float>(grad_v),
                              at<double>(grad_tau),
                              at<float>(scratch),
                              threads};
          py::gil_scoped_release release;
          if (!scratch) return ESL_DISPATCH(lif_backward_scratch, p);
          ESL_DISPATCH(lif_backward, p);
          return 0;
        });
}

}  // namespace esl
