// Functions that add the families of kernels to the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace kjko {

void bind_device(nanobind::module_ &m);
void bind_field(nanobind::module_ &m);
void bind_machine(nanobind::module_ &m);
void bind_objective(nanobind::module_ &m);
void bind_pairs(nanobind::module_ &m);
void bind_particles(nanobind::module_ &m);
void bind_potential(nanobind::module_ &m);
void bind_tensor(nanobind::module_ &m);

}  // namespace kjko
