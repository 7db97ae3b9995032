// esl_sparse._C. No torch here: tensors arrive as addresses and sizes, checked in Python.
#include "bindings.h"
#include "esl/isa.h"

namespace esl {
namespace {

Isa isa_from_name(const std::string& name) {
  for (Isa isa : kAllIsas) {
    if (name == isa_name(isa)) return isa;
  }
  throw py::value_error("unknown instruction set '" + name + "'");
}

py::list isas(bool (*keep)(Isa)) {
  py::list names;
  for (Isa isa : kAllIsas) {
    if (keep(isa)) names.append(isa_name(isa));
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = ESL_VERSION;
  info["build"] = ESL_BUILD;
  info["compiler"] = ESL_COMPILER;
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["isas"] = isas(isa_compiled);
  info["cuda"] = ESL_CUDA;
  return info;
}

}  // namespace
}  // namespace esl

PYBIND11_MODULE(_C, m) {
  using namespace esl;
  m.def("build_info", build_info);
  m.def("get_isa", [] { return isa_name(isa_current()); });
  m.def("set_isa", [](const std::string& name) { isa_set(isa_from_name(name)); });
  m.def("supported_isas", [] { return isas([](Isa isa) { return isa_compiled(isa) && isa_supported(isa); }); });
  bind_pack(m);
  bind_pool(m);
  bind_linear(m);
  bind_conv2d(m);
  bind_lif(m);
  bind_norm_lif(m);
  bind_panel_stats(m);
  bind_block_score(m);
  bind_select(m);
  bind_sample(m);
  bind_transpose_index(m);
  bind_temporal(m);
#ifdef ESL_HAVE_CUDA
  bind_cuda(m);
#endif
}
