// Vectors of the width that the level has, by the compilers' vector extensions (GCC, Clang).
#pragma once

#ifndef KJKO_LEVEL
#error "a kernel's header: include it in files that are compiled for each level"
#endif

#define KJKO_INLINE inline __attribute__((always_inline))

namespace kjko::KJKO_LEVEL {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int Ints __attribute__((vector_size(4 * LANES)));

static KJKO_INLINE Floats broadcast(float x) { return x - Floats{}; }

}  // namespace kjko::KJKO_LEVEL
