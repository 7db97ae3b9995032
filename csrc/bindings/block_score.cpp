#include "esl/block_score.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "bindings.h"

namespace esl {

void bind_block_score(py::module_& m) {
  using Call = std::tuple<int64_t, int64_t, float, uintptr_t, uintptr_t, bool>;  // T, B, scale, words, grad, bf16
  // Without scratch: the bytes of it that are needed.
  m.def("block_score",
        [](int64_t rows, int64_t cols, int64_t bm, int64_t bn, const std::vector<Call>& calls, int64_t first,
           int64_t count, uintptr_t scores, int threads, uintptr_t scratch) -> int64_t {
          py::gil_scoped_release release;
          std::vector<ScoreCall> list;
          for (const auto& [T, B, scale, words, grad, bf16] : calls)
            list.push_back({{T, B}, scale, at<const uint64_t>(words), at<const void>(grad), dtype(bf16)});
          const BlockScore p{rows,
                             cols,
                             bm,
                             bn,
                             list.data(),
                             static_cast<int64_t>(list.size()),
                             first,
                             count,
                             at<float>(scores),
                             at<void>(scratch),
                             threads};
          if (!scratch) return ESL_DISPATCH(block_score_scratch, p);
          ESL_DISPATCH(block_score, p);
          return 0;
        });
  m.def("count_spikes",
        [](uintptr_t words, int64_t count) { return ESL_DISPATCH(count_spikes, at<const uint64_t>(words), count); });
}

}  // namespace esl
