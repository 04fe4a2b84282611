// Products of small matrices on tensor cores: in double precision, and in float32 as three products of TF32.
//
// A tensor core multiplies for a whole warp, and each of its 32 threads (its lanes) holds a part of the matrices. So this
// is work of warps (Warp in cuda/phases.hpp). The part of a lane is PerLane: on a GPU a few registers, on the CPU the
// parts of all 32 lanes. multiply_add is one instruction on a GPU. On the CPU it emulates this instruction, with the
// rounding errors that are known of it.
//
// In float32, a number is high + low, and TF32 can hold both. A product is low high + high low + high high. The part that
// is left out is 2^-22 of it. Tensor cores truncate when they add. So they add only eight products at a time, and threads
// add these sums with the usual rounding. Otherwise the error would grow with the number of products.
// H. Ootomo, R. Yokota: Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical
// peak performance, Int. J. High Perform. Comput. Appl. 36 (2022) 475, doi:10.1177/10943420221090256.
#pragma once

#include "cuda/phases.hpp"

namespace kjko::KJKO_LEVEL {

constexpr int LANES = 32;
KJKO_DEVICE int lane_of(int thread) { return thread % LANES; }

// The part of a lane of a left matrix [16][8], of a right matrix [8][8] and of their product [16][8]. See the PTX ISA,
// "Matrix Fragments for mma.m16n8k8" with .tf32 or .f64 (section 9.7.14.5 of version 9.2).
template <class Real>
struct LeftPart {
    Real at[4];
    static KJKO_DEVICE int row(int lane, int e) { return lane / 4 + e % 2 * 8; }
    static KJKO_DEVICE int k(int lane, int e) { return lane % 4 + e / 2 * 4; }
};
template <class Real>
struct RightPart {
    Real at[2];
    static KJKO_DEVICE int k(int lane, int e) { return lane % 4 + e * 4; }
    static KJKO_DEVICE int column(int lane) { return lane / 4; }
};
template <class Real>
struct ProductPart {
    Real at[4];
    static KJKO_DEVICE int row(int lane, int e) { return lane / 4 + e / 2 * 8; }
    static KJKO_DEVICE int column(int lane, int e) { return lane % 4 * 2 + e % 2; }
};

// The order in which rows of shared memory are taken as k = 0, ..., 7. Neighbouring lanes read every second row. Then
// there are no bank conflicts if rows are 16 bytes longer than a multiple of all memory banks.
KJKO_DEVICE int every_second(int k) { return k % 4 * 2 + k / 4; }

#ifdef __CUDACC__
template <class Part>
struct PerLane {
    Part own;
    KJKO_DEVICE Part &operator[](int) { return own; }
    KJKO_DEVICE const Part &operator[](int) const { return own; }
};

// The nearest number of TF32, which has ten bits after the first one. Ties are rounded away from zero.
KJKO_DEVICE float to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

// sums += left right
KJKO_DEVICE void multiply_add(const PerLane<LeftPart<float>> &left, const PerLane<RightPart<float>> &right,
                              PerLane<ProductPart<float>> &sums) {
    const float(&a)[4] = left.own.at, (&b)[2] = right.own.at;
    float(&c)[4] = sums.own.at;
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
                   "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
KJKO_DEVICE void multiply_add(const PerLane<LeftPart<double>> &left, const PerLane<RightPart<double>> &right,
                              PerLane<ProductPart<double>> &sums) {
    const double(&a)[4] = left.own.at, (&b)[2] = right.own.at;
    double(&c)[4] = sums.own.at;
#if __CUDA_ARCH__ >= 900
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
                 : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else  // four smaller instructions, with the same parts
    KJKO_UNROLLED for (int half = 0; half < 2; ++half)
        KJKO_UNROLLED for (int k = 0; k < 2; ++k)
            asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                         : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
                         : "d"(a[2 * k + half]), "d"(b[k]));
#endif
}
#else
template <class Part>
struct PerLane {
    Part of[LANES];
    Part &operator[](int lane) { return of[lane]; }
    const Part &operator[](int lane) const { return of[lane]; }
};

inline unsigned bits_of(float x) {
    unsigned bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float of_bits(unsigned bits) {
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

inline float to_tf32(float x) {
    const unsigned bits = bits_of(x);
    return (bits >> 23 & 0xff) == 0xff ? x : of_bits((bits + 0x1000) & ~0x1fffu);
}

// The sum of five numbers, with the largest errors that a tensor core is known to make: each number is truncated to the
// last bit of the largest one, and the sum is truncated. (M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh: Numerical
// behavior of NVIDIA tensor cores, PeerJ Computer Science 7 (2021) e330, doi:10.7717/peerj-cs.330. Tensor cores since the
// A100 keep more bits.)
inline float truncated_sum(const double (&terms)[5]) {
    double largest = 0, plain = 0;
    for (const double term : terms) {
        const double size = __builtin_fabs(term);
        largest = size > largest ? size : largest;
        plain += term;
    }
    if (largest == 0 || !__builtin_isfinite(plain)) return static_cast<float>(plain);
    const int exponent = __builtin_ilogb(largest) - 23;
    const double per_unit = __builtin_ldexp(1.0, -exponent);
    double unit = __builtin_ldexp(1.0, exponent);
    long long sum = 0;
    for (const double term : terms) sum += static_cast<long long>(term * per_unit);
    for (; sum >= 1LL << 24 || sum <= -(1LL << 24); unit *= 2) sum /= 2;
    return static_cast<float>(static_cast<double>(sum) * unit);
}

// Applies add_products(sum, a, b) to each sum, with its row a(k) of the left matrix and its column b(k) of the right one.
template <class Real, class What>
void multiply_matrices(const PerLane<LeftPart<Real>> &left, const PerLane<RightPart<Real>> &right,
                       PerLane<ProductPart<Real>> &sums, const What &add_products) {
    Real a[16][8], b[8][8];
    for (int lane = 0; lane < LANES; ++lane) {
        for (int e = 0; e < 4; ++e) a[LeftPart<Real>::row(lane, e)][LeftPart<Real>::k(lane, e)] = left[lane].at[e];
        for (int e = 0; e < 2; ++e) b[RightPart<Real>::k(lane, e)][RightPart<Real>::column(lane)] = right[lane].at[e];
    }
    for (int lane = 0; lane < LANES; ++lane)
        for (int e = 0; e < 4; ++e) {
            const int row = ProductPart<Real>::row(lane, e), column = ProductPart<Real>::column(lane, e);
            Real &sum = sums[lane].at[e];
            sum = add_products(sum, [&](int k) { return a[row][k]; }, [&](int k) { return b[k][column]; });
        }
}

// Ignores the bits that TF32 does not have. Adds four products at a time.
inline void multiply_add(const PerLane<LeftPart<float>> &left, const PerLane<RightPart<float>> &right,
                         PerLane<ProductPart<float>> &sums) {
    const auto seen = [](float x) { return static_cast<double>(of_bits(bits_of(x) & ~0x1fffu)); };
    multiply_matrices(left, right, sums, [&](float sum, const auto &a, const auto &b) {
        for (int k = 0; k < 8; k += 4)
            sum = truncated_sum({sum, seen(a(k)) * seen(b(k)), seen(a(k + 1)) * seen(b(k + 1)),
                                 seen(a(k + 2)) * seen(b(k + 2)), seen(a(k + 3)) * seen(b(k + 3))});
        return sum;
    });
}
inline void multiply_add(const PerLane<LeftPart<double>> &left, const PerLane<RightPart<double>> &right,
                         PerLane<ProductPart<double>> &sums) {
    multiply_matrices(left, right, sums, [](double sum, const auto &a, const auto &b) {
        for (int k = 0; k < 8; ++k) sum += a(k) * b(k);
        return sum;
    });
}
#endif

// A part of a matrix that is to be multiplied.
template <class Part, class Real>
struct Factor;
template <class Part>
struct Factor<Part, float> {
    PerLane<Part> high, low;
    KJKO_DEVICE void set(int lane, int e, float x) {
        high[lane].at[e] = to_tf32(x);
        low[lane].at[e] = to_tf32(x - high[lane].at[e]);
    }
};
template <class Part>
struct Factor<Part, double> {
    PerLane<Part> whole;
    KJKO_DEVICE void set(int lane, int e, double x) { whole[lane].at[e] = x; }
};
template <class Real>
using LeftFactor = Factor<LeftPart<Real>, Real>;
template <class Real>
using RightFactor = Factor<RightPart<Real>, Real>;

// Adds left right to the sums of(state) of each lane.
template <class Warp, class Of>
KJKO_DEVICE void add_product(Warp &warp, const LeftFactor<float> &left, const RightFactor<float> &right, const Of &of) {
    PerLane<ProductPart<float>> some;
    warp.each([&](int thread, auto &) { some[lane_of(thread)] = {}; });
    multiply_add(left.low, right.high, some);
    multiply_add(left.high, right.low, some);
    multiply_add(left.high, right.high, some);
    warp.each([&](int thread, auto &state) {
        KJKO_UNROLLED for (int e = 0; e < 4; ++e) of(state).at[e] += some[lane_of(thread)].at[e];
    });
}
template <class Warp, class Of>
KJKO_DEVICE void add_product(Warp &warp, const LeftFactor<double> &left, const RightFactor<double> &right, const Of &of) {
    PerLane<ProductPart<double>> sums;
    warp.each([&](int thread, auto &state) { sums[lane_of(thread)] = of(state); });
    multiply_add(left.whole, right.whole, sums);
    warp.each([&](int thread, auto &state) { of(state) = sums[lane_of(thread)]; });
}

// Columns of a matrix times another matrix: [COLUMNS][H] sums of a thread block of H / 8 warps. A warp has COUNT
// neighbouring tiles of 16 columns by 8 features.
template <class Real, int H, int COLUMNS>
struct WarpTiles {
    static constexpr int COUNT = COLUMNS / 16, WIDE = COUNT == 8 && H % 32 == 0 ? 4 : COUNT % 2 == 0 ? 2 : 1;
    static constexpr int TALL = COUNT / WIDE;
    static constexpr int ACROSS = H / 8 / WIDE;  // warps that share the features
    static_assert(COLUMNS % 16 == 0 && H % 16 == 0, "all tiles are whole");

    // Σ_k column(k, c) factor(k, f), stored in state.product of each thread.
    template <class Warp, class Column, class Row>
    static KJKO_DEVICE void multiply(Warp &warp, const Column &column, const Row &factor) {
        const int first = first_column(warp.index), feature = first_feature(warp.index);
        warp.each([&](int, auto &state) {
            KJKO_UNROLLED for (int tile = 0; tile < COUNT; ++tile) state.product.at[tile] = {};
        });
        KJKO_ROLLED for (int k = 0; k < H; k += 8) {
            LeftFactor<Real> left[TALL];
            RightFactor<Real> right[WIDE];
            warp.each([&](int thread, auto &) {
                const int lane = lane_of(thread);
                KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e)
                        left[m].set(lane, e, column(k + every_second(LeftPart<Real>::k(lane, e)),
                                                    first + 16 * m + LeftPart<Real>::row(lane, e)));
                KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                    KJKO_UNROLLED for (int e = 0; e < 2; ++e)
                        right[n].set(lane, e, factor(k + every_second(RightPart<Real>::k(lane, e)),
                                                     feature + 8 * n + RightPart<Real>::column(lane)));
            });
            KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
                KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                    add_product(warp, left[m], right[n], [&](auto &state) -> ProductPart<Real> & {
                        return state.product.at[m * WIDE + n];
                    });
        }
    }

    // what(column, feature, sum) for each sum of a thread.
    template <class Product, class What>
    static KJKO_DEVICE void each(int thread, Product &product, const What &what) {
        const int warp = thread / LANES, lane = lane_of(thread);
        KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
            KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                KJKO_UNROLLED for (int e = 0; e < 4; ++e)
                    what(first_column(warp) + 16 * m + ProductPart<Real>::row(lane, e),
                         first_feature(warp) + 8 * n + ProductPart<Real>::column(lane, e),
                         product.at[m * WIDE + n].at[e]);
    }

    static KJKO_DEVICE int first_column(int warp) { return warp / ACROSS * (16 * TALL); }
    static KJKO_DEVICE int first_feature(int warp) { return warp % ACROSS * (8 * WIDE); }
};

// The sums over columns of a row of a times a row of b: [H][H] sums of a thread block of H / 8 warps. PARTS warps have the
// same TALL × WIDE tiles of 16 by 8, and handle some of the columns each.
template <class Real, int H>
struct WarpOuterTiles {
    static constexpr int TALL = H == 48 ? 3 : H == 16 ? 1 : 2, WIDE = H % 32 == 0 ? 4 : 2, COUNT = TALL * WIDE;
    static constexpr int ACROSS = H / 8 / WIDE, PARTS = H / 8 * COUNT / (H / 16 * (H / 8));

    // Adds the products of some columns to the sums of(state) of each thread.
    template <class Warp, class A, class B, class Of>
    static KJKO_DEVICE void add(Warp &warp, int from, int to, const A &a, const B &b, const Of &of) {
        const int row = first_row(warp.index), column = first_column(warp.index);
        KJKO_ROLLED for (int k = from; k < to; k += 8) {
            LeftFactor<Real> left[TALL];
            RightFactor<Real> right[WIDE];
            warp.each([&](int thread, auto &) {
                const int lane = lane_of(thread);
                KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
                    KJKO_UNROLLED for (int e = 0; e < 4; ++e)
                        left[m].set(lane, e, a[row + 16 * m + LeftPart<Real>::row(lane, e)][k + LeftPart<Real>::k(lane, e)]);
                KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                    KJKO_UNROLLED for (int e = 0; e < 2; ++e)
                        right[n].set(lane, e, b[column + 8 * n + RightPart<Real>::column(lane)][k + RightPart<Real>::k(lane, e)]);
            });
            KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
                KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                    add_product(warp, left[m], right[n],
                                [&](auto &state) -> ProductPart<Real> & { return of(state)[m * WIDE + n]; });
        }
    }

    // what(row, column, sum) for each sum of a thread.
    template <class What>
    static KJKO_DEVICE void each(int thread, ProductPart<Real> (&sums)[COUNT], const What &what) {
        const int warp = thread / LANES, lane = lane_of(thread);
        KJKO_UNROLLED for (int m = 0; m < TALL; ++m)
            KJKO_UNROLLED for (int n = 0; n < WIDE; ++n)
                KJKO_UNROLLED for (int e = 0; e < 4; ++e)
                    what(first_row(warp) + 16 * m + ProductPart<Real>::row(lane, e),
                         first_column(warp) + 8 * n + ProductPart<Real>::column(lane, e), sums[m * WIDE + n].at[e]);
    }

    static KJKO_DEVICE int part_of(int warp) { return warp % PARTS; }
    static KJKO_DEVICE int first_row(int warp) { return warp / PARTS / ACROSS * (16 * TALL); }
    static KJKO_DEVICE int first_column(int warp) { return warp / PARTS % ACROSS * (8 * WIDE); }
};

}  // namespace kjko::KJKO_LEVEL
