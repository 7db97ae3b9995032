#include "esl/select.h"

#include "bindings.h"

namespace esl {

void bind_select(py::module_& m) {
  // Without scratch: the bytes of it that are needed. Else the number of NaN; where there is one, nothing is chosen.
  m.def("select",
        [](int64_t n, int64_t count, uintptr_t score, uintptr_t ids, int64_t seed, bool largest, uintptr_t chosen,
           int threads, uintptr_t scratch) -> int64_t {
          const Select p{n,
                         count,
                         at<const float>(score),
                         at<const int64_t>(ids),
                         static_cast<uint64_t>(seed),
                         largest,
                         at<int64_t>(chosen),
                         at<void>(scratch),
                         threads};
          py::gil_scoped_release release;
          return scratch ? ESL_DISPATCH(select, p) : ESL_DISPATCH(select_scratch, p);
        });
  // The number of positions, counted into `counts` where found is null, and written to it otherwise.
  m.def("not_below",
        [](int64_t n, uintptr_t score, float bound, uintptr_t found, uintptr_t counts, int threads) -> int64_t {
          const NotBelow p{n, at<const float>(score), bound, at<int64_t>(found), at<int64_t>(counts), threads};
          py::gil_scoped_release release;
          return ESL_DISPATCH(not_below, p);
        });
  m.attr("not_below_part") = kNotBelowPart;
}

}  // namespace esl
