// One bind_<op> per op, defined in csrc/bindings/<op>.cpp and called by module.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include "esl/lanes.h"

namespace esl {

namespace py = pybind11;

// Tensors arrive as addresses; 0 is null.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
inline Dtype dtype(bool bf16) { return bf16 ? Dtype::bf16 : Dtype::f32; }

void bind_pack(py::module_& m);
void bind_pool(py::module_& m);
void bind_linear(py::module_& m);
void bind_conv2d(py::module_& m);
void bind_lif(py::module_& m);
void bind_norm_lif(py::module_& m);
void bind_panel_stats(py::module_& m);
void bind_block_score(py::module_& m);
void bind_select(py::module_& m);
void bind_sample(py::module_& m);
void bind_transpose_index(py::module_& m);
void bind_temporal(py::module_& m);
void bind_cuda(py::module_& m);  // where csrc/cuda is compiled in

}  // namespace esl
