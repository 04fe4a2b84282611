// The instruction set level and the OpenMP threads of this machine.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace kjko {

// The highest x86-64 level that both the CPU and the operating system support; "generic" on other architectures. It
// selects among kernels that are compiled once per level.
inline const char *isa_level() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    // The tests are by feature, because compilers before GCC 12 do not know the names of levels. v3 also includes
    // LZCNT, MOVBE and F16C, which these compilers cannot test. Every CPU that has AVX2, BMI2 and FMA has these too.
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") &&
                    __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4) return "x86-64-v4";
    if (v3) return "x86-64-v3";
    if (v2) return "x86-64-v2";
#endif
    return "generic";
}

inline bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

// The number of threads of the next parallel region; 1 without OpenMP.
inline int max_threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

}  // namespace kjko
