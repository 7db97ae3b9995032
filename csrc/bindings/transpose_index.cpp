#include "esl/transpose_index.h"

#include "bindings.h"

namespace esl {

void bind_transpose_index(py::module_& m) {
  // Without scratch: the bytes of it that are needed.
  m.def("transpose_index",
        [](int64_t row_blocks, int64_t col_blocks, uintptr_t crow, uintptr_t col, uintptr_t ccol, uintptr_t row_t,
           uintptr_t offset_t, int threads, uintptr_t scratch) -> int64_t {
          const TransposeIndex p{row_blocks,
                                 col_blocks,
                                 at<const int32_t>(crow),
                                 at<const int32_t>(col),
                                 at<int32_t>(ccol),
                                 at<int32_t>(row_t),
                                 at<int32_t>(offset_t),
                                 at<void>(scratch),
                                 threads};
          py::gil_scoped_release release;
          if (!scratch) return ESL_DISPATCH(transpose_index_scratch, p);
          ESL_DISPATCH(transpose_index, p);
          return 0;
        });
}

}  // namespace esl
