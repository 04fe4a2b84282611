#include <chrono>

#include "cpu/bind.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;

namespace kjko {

// GFLOP/s of multiply-adds in single precision on one thread, measured for about `seconds`.
static double peak_gflops(double seconds) {
    using clock = std::chrono::steady_clock;
    const auto &multiply_adds = kernels().machine.multiply_adds;
    float sink;
    long long operations = 0;
    const auto start = clock::now();
    double elapsed = 0;
    do {
        operations += multiply_adds(100000, &sink);
        elapsed = std::chrono::duration<double>(clock::now() - start).count();
    } while (elapsed < seconds);
    return 1e-9 * static_cast<double>(operations) / elapsed;
}

void bind_machine(nb::module_ &m) {
    m.def("peak_gflops", &peak_gflops, nb::arg("seconds"),
          "GFLOP/s of multiply-adds in single precision on one thread of this machine, measured now.");
}

}  // namespace kjko
