#include "esl/panel_stats.h"

#include <algorithm>

#include "bindings.h"

namespace esl {

void bind_panel_stats(py::module_& m) {
  // Returns the doubles of scratch that are needed (never 0: an empty tensor has no address) if `scratch` is null,
  // else 0 when done.
  m.def("panel_stats",
        [](int64_t T, int64_t B, int64_t height, int64_t width, int64_t channels, uintptr_t current, uintptr_t stats,
           int threads, uintptr_t scratch) -> int64_t {
          const PanelStats p{{{T, B}, height, width, channels},
                             at<const float>(current),
                             at<double>(stats),
                             at<double>(scratch),
                             threads};
          py::gil_scoped_release release;
          if (!scratch) return std::max<int64_t>(1, ESL_DISPATCH(panel_stats_scratch, p));
          ESL_DISPATCH(panel_stats, p);
          return 0;
        });
}

}  // namespace esl
