// One bind_<op> per op, defined in csrc/bindings/<op>.cpp and called by module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace esl {

namespace py = pybind11;

}  // namespace esl
