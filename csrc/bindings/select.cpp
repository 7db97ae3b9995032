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
}

}  // namespace esl
