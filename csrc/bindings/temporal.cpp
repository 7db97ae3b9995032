#include "esl/temporal.h"

#include <tuple>

#include "bindings.h"

namespace esl {
namespace {

// rows, cols, bm, bn, crow, col, ccol, row_t, offset_t, values
using Weight =
    std::tuple<int64_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>;

BlockSparse weight(const Weight& w) {
  return {std::get<0>(w),
          std::get<1>(w),
          std::get<2>(w),
          std::get<3>(w),
          at<const int32_t>(std::get<4>(w)),
          at<const int32_t>(std::get<5>(w)),
          at<const int32_t>(std::get<6>(w)),
          at<const int32_t>(std::get<7>(w)),
          at<const int32_t>(std::get<8>(w)),
          at<const float>(std::get<9>(w))};
}

}  // namespace

void bind_temporal(py::module_& m) {
  // Both: without scratch, the bytes of it that are needed. Forward else returns the number of z that are no times.
  m.def("temporal_forward",
        [](const Weight& w, int64_t samples, uintptr_t z, uintptr_t z_out, uintptr_t slope, uintptr_t visits,
           int threads, uintptr_t scratch) -> int64_t {
          const TemporalForward p{weight(w),         samples,          at<const float>(z),
                                  at<float>(z_out),  at<float>(slope), at<int64_t>(visits),
                                  at<void>(scratch), threads};
          py::gil_scoped_release release;
          return scratch ? ESL_DISPATCH(temporal_forward, p) : ESL_DISPATCH(temporal_forward_scratch, p);
        });
  m.def("temporal_backward",
        [](const Weight& w, int64_t samples, uintptr_t grad, uintptr_t z, uintptr_t z_out, uintptr_t slope,
           uintptr_t grad_z, uintptr_t grad_values, int threads, uintptr_t scratch) -> int64_t {
          const TemporalBackward p{weight(w),
                                   samples,
                                   at<const float>(grad),
                                   at<const float>(z),
                                   at<const float>(z_out),
                                   at<const float>(slope),
                                   at<float>(grad_z),
                                   at<float>(grad_values),
                                   at<void>(scratch),
                                   threads};
          py::gil_scoped_release release;
          if (!scratch) return ESL_DISPATCH(temporal_backward_scratch, p);
          ESL_DISPATCH(temporal_backward, p);
          return 0;
        });
}

}  // namespace esl
