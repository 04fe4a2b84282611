// The tables of kernels, one for each instruction set level, and the choice between them.
//
// A family of kernels consists of
//   NAME.hpp   a table of function pointers `struct NameKernels`, included everywhere. Arguments that GPU kernels
// share, and the mathematics of one particle, are in math/;
//   NAME.cpp   the kernels and their table, compiled once for each level into the namespace kjko::KJKO_LEVEL;
//   bind_NAME.cpp   the names that Python sees, compiled once.
// Code that is compiled for a level must stay in its namespace. Otherwise the linker might take an inline function of a
// standard header from the object file of a higher level, and it would run on processors without that level. So
// NAME.cpp includes no standard header with templates or inline functions, and uses the builtins of the compiler.
#pragma once

#include "cpu/field.hpp"
#include "cpu/machine.hpp"
#include "cpu/objective.hpp"
#include "cpu/pairs.hpp"
#include "cpu/particles.hpp"
#include "cpu/potential.hpp"

namespace kjko {

struct Kernels {
    const char *level;
    const FieldKernels &field;
    const MachineKernels &machine;
    const ObjectiveKernels &objective;
    const PairKernels &pairs;
    const ParticleKernels &particles;
    const PotentialKernels &potential;
};

#define KJKO_TABLES(level) \
    namespace level { \
    extern const FieldKernels field; \
    extern const MachineKernels machine; \
    extern const ObjectiveKernels objective; \
    extern const PairKernels pairs; \
    extern const ParticleKernels particles; \
    extern const PotentialKernels potential; \
    }

#ifdef KJKO_X86_LEVELS
KJKO_TABLES(v2)
KJKO_TABLES(v3)
KJKO_TABLES(v4)
#else
KJKO_TABLES(generic)
#endif
#undef KJKO_TABLES

// The kernels in use: those of the highest level that this machine has. The environment variable KJKO_ISA, read once,
// can select a lower one. An unknown name is an error.
const Kernels &kernels();

}  // namespace kjko
