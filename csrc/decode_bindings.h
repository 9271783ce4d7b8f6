// Adds decoding to muomni_kernels._C.
#pragma once

#include <pybind11/pybind11.h>

namespace muomni {

void define_decode(pybind11::module_& module);

}  // namespace muomni
