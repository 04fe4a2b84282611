// How one source text is both a kernel of a GPU and a function of the CPU.
//
// A kernel is a sequence of phases f(thread, state). All threads of a thread block finish a phase before the next one
// begins. Data that a phase writes to shared memory are read only in later phases. On a GPU the threads run at the same
// time, their states are in registers, and a barrier ends each phase. On the CPU, for tests, a phase is a loop over the
// threads.
//
// A phase may also be one of warps, f(warp). Then the 32 threads of a warp can do work together, such as an instruction of
// a tensor core. What each of them does by itself is warp.each(f(thread, state)).
#pragma once

#include "math/inline.hpp"
#include "math/rational.hpp"

#ifdef __CUDACC__
#define KJKO_DEVICE __device__ __forceinline__
#define KJKO_UNROLLED_BY_4 _Pragma("unroll 4")
#define KJKO_ROLLED _Pragma("unroll 1")
#else
#define KJKO_DEVICE inline
#define KJKO_UNROLLED_BY_4
#define KJKO_ROLLED
#endif

namespace kjko::KJKO_LEVEL {

#ifdef __CUDACC__
template <class State>
struct Warp {
    int index;
    State &state;

    template <class Each>
    KJKO_DEVICE void each(const Each &what) {
        what(static_cast<int>(threadIdx.x), state);
    }
};

template <int THREADS, class State>
struct Team {
    State state;

    template <class Phase>
    KJKO_DEVICE void operator()(const Phase &phase) {
        phase(static_cast<int>(threadIdx.x), state);
        __syncthreads();
    }
    template <class Phase>
    KJKO_DEVICE void warps(const Phase &phase) {
        Warp<State> warp{static_cast<int>(threadIdx.x / 32), state};
        phase(warp);
        __syncthreads();
    }
};

KJKO_DEVICE float log_of_one_plus(float e) { return log1pf(e); }
KJKO_DEVICE double log_of_one_plus(double e) { return log1p(e); }
KJKO_DEVICE double log_of(double x) { return log(x); }
KJKO_DEVICE void sine_and_cosine(double x, double &sine, double &cosine) { sincos(x, &sine, &cosine); }
KJKO_DEVICE double tanh_of(double a) { return tanh(a); }
KJKO_DEVICE double not_a_number() { return nan(""); }
KJKO_DEVICE void add_atomically(double *sum, double term) { atomicAdd(sum, term); }
#else
template <class State>
struct Warp {
    int index;
    State *states;
    bool backwards;

    template <class Each>
    void each(const Each &what) {
        for (int i = 0; i < 32; ++i) {
            const int thread = 32 * index + (backwards ? 31 - i : i);
            what(thread, states[thread]);
        }
    }
};

template <int THREADS, class State>
struct Team {
    State states[THREADS] = {};
    bool backwards;  // the order of the threads, on which results must not depend

    explicit Team(bool backwards) : backwards(backwards) {}

    template <class Phase>
    void operator()(const Phase &phase) {
        for (int i = 0; i < THREADS; ++i) {
            const int thread = backwards ? THREADS - 1 - i : i;
            phase(thread, states[thread]);
        }
    }
    template <class Phase>
    void warps(const Phase &phase) {
        for (int i = 0; i < THREADS / 32; ++i) {
            const int index = backwards ? THREADS / 32 - 1 - i : i;
            Warp<State> warp{index, states, backwards};
            phase(warp);
        }
    }
};

inline float log_of_one_plus(float e) { return __builtin_log1pf(e); }
inline double log_of_one_plus(double e) { return __builtin_log1p(e); }
inline double log_of(double x) { return __builtin_log(x); }
inline void sine_and_cosine(double x, double &sine, double &cosine) {
    sine = __builtin_sin(x);
    cosine = __builtin_cos(x);
}
inline double tanh_of(double a) { return __builtin_tanh(a); }
inline double not_a_number() { return __builtin_nan(""); }
inline void add_atomically(double *sum, double term) { *sum += term; }
#endif

KJKO_DEVICE float tanh_of(float a) {
    a = a > TANH_END ? TANH_END : a;  // NaN stays NaN
    a = a < -TANH_END ? -TANH_END : a;
    float numerator, denominator;
    rational_tanh(a, numerator, denominator);
    return numerator / denominator;
}

// Four adjacent numbers: one access to shared memory, or two.
template <class Real>
struct alignas(16) Four {
    Real at[4];
#ifndef __CUDACC__
} __attribute__((may_alias));
#else
};
#endif

template <class Real>
KJKO_DEVICE Four<Real> load_four(const Real *from) {
    return *reinterpret_cast<const Four<Real> *>(from);
}
template <class Real>
KJKO_DEVICE void store_four(Real *to, const Four<Real> &x) {
    *reinterpret_cast<Four<Real> *>(to) = x;
}

}  // namespace kjko::KJKO_LEVEL
