#include "esl/pack.h"

#include "bindings.h"
#include "esl/check.h"

namespace esl {

static void check_planes(int planes) {
  check(planes >= 1 && planes <= kMaxPlanes, "planes: expected 1 to 4, got " + std::to_string(planes));
}

void bind_pack(py::module_& m) {
  m.def("pack", [](uintptr_t rows, bool bf16, uintptr_t words, int64_t T, int64_t B, int64_t channels, int64_t pixels,
                   int planes, float scale, int threads) {
    check_planes(planes);
    const PackParams p{{T, B}, channels, pixels, planes, scale, at<const void>(rows), dtype(bf16), at<uint64_t>(words),
                       threads};
    py::gil_scoped_release release;
    return ESL_DISPATCH(pack, p);
  });
  m.def("unpack", [](uintptr_t words, uintptr_t rows, bool bf16, int64_t T, int64_t B, int64_t channels, int64_t pixels,
                     int planes, float scale, int threads) {
    check_planes(planes);
    const UnpackParams p{{T, B},         channels,    pixels, planes, scale, at<const uint64_t>(words),
                         at<void>(rows), dtype(bf16), threads};
    py::gil_scoped_release release;
    ESL_DISPATCH(unpack, p);
  });
  m.def("to_panels", [](uintptr_t rows, bool bf16, uintptr_t panels, int64_t T, int64_t B, int64_t channels,
                        int64_t pixels, int threads) {
    const PanelParams p{{T, B}, channels, pixels, at<void>(rows), dtype(bf16), at<float>(panels), threads};
    py::gil_scoped_release release;
    ESL_DISPATCH(to_panels, p);
  });
  m.def("from_panels", [](uintptr_t panels, uintptr_t rows, bool bf16, int64_t T, int64_t B, int64_t channels,
                          int64_t pixels, int threads) {
    const PanelParams p{{T, B}, channels, pixels, at<void>(rows), dtype(bf16), at<float>(panels), threads};
    py::gil_scoped_release release;
    ESL_DISPATCH(from_panels, p);
  });
}

}  // namespace esl
