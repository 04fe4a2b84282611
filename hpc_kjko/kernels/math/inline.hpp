// Declaration of the mathematical functions: each is inlined into the kernel that calls it.
//
// The headers in this folder compile as C++, where Real is a number or a vector of numbers (cpu/simd.hpp), and as CUDA,
// where it is a number. Some functions depend on the processor (tanh_of, log_of_one_plus, in_precision_of of a vector).
// They must be declared before these headers are included.
#pragma once

#ifndef KJKO_LEVEL
#error "a kernel's header: define KJKO_LEVEL, the namespace that it is compiled into"
#endif

#ifdef __CUDACC__
#define KJKO_MATH static __device__ __forceinline__
#define KJKO_UNROLLED _Pragma("unroll")  // so that arrays stay in registers
#else
#define KJKO_MATH static inline __attribute__((always_inline))
#define KJKO_UNROLLED
#endif

namespace kjko::KJKO_LEVEL {

// A constant as an argument. Its value is part of its type.
template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};

// A constant in the precision of a number.
KJKO_MATH float in_precision_of(float, double constant) { return static_cast<float>(constant); }
KJKO_MATH double in_precision_of(double, double constant) { return constant; }

#ifdef __CUDACC__
KJKO_MATH double root_of(double x) { return sqrt(x); }
KJKO_MATH double cosine_of(double x) { return cos(x); }
KJKO_MATH double arc_cosine_of(double x) { return acos(x); }
#else
KJKO_MATH double root_of(double x) { return __builtin_sqrt(x); }
KJKO_MATH double cosine_of(double x) { return __builtin_cos(x); }
KJKO_MATH double arc_cosine_of(double x) { return __builtin_acos(x); }
#endif

}  // namespace kjko::KJKO_LEVEL
