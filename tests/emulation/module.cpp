// The CUDA kernels as a Python module that runs them on CPU tensors: see __init__.py.
#include "bindings.h"

PYBIND11_MODULE(_emulated, m) { esl::bind_cuda(m); }
