// The Python module hpc_kjko.kernels._kernels. Kernels are in separate files. Here they only get names.
#include "cpu/bind.hpp"
#include "cpu/cpu.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;

static nb::dict build_info() {
    nb::dict info;
    info["version"] = KJKO_VERSION;
    info["compiler"] = KJKO_COMPILER_ID;
    info["compiler_version"] = KJKO_COMPILER_VERSION;
    info["isa"] = kjko::kernels().level;
    info["openmp"] = kjko::has_openmp();
    info["max_threads"] = kjko::max_threads();
    return info;
}

NB_MODULE(_kernels, m) {
    m.doc() = "Native kernels of hpc_kjko; chosen by hpc_kjko.kernels, not imported directly.";
    kjko::kernels();  // reports an unknown KJKO_ISA at import
    m.def("build_info", &build_info,
          "Package version and compiler at build time; instruction set level in use and OpenMP threads now.");
    kjko::bind_device(m);
    kjko::bind_field(m);
    kjko::bind_machine(m);
    kjko::bind_objective(m);
    kjko::bind_pairs(m);
    kjko::bind_particles(m);
    kjko::bind_potential(m);
    kjko::bind_tensor(m);
}
