#include "esl/sample.h"

#include "bindings.h"

namespace esl {

void bind_sample(py::module_& m) {
  m.def("sample", [](int64_t total, int64_t count, int64_t seed, uintptr_t out, int threads) {
    const Sample p(total, count, static_cast<uint64_t>(seed), at<int64_t>(out), threads);
    py::gil_scoped_release release;
    ESL_DISPATCH(sample, p);
  });
}

}  // namespace esl
