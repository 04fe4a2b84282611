// Vectors of the width of the instruction set level, by the vector extensions of the compilers (GCC, Clang), and small
// matrix products of such vectors.
#pragma once

#ifndef KJKO_LEVEL
#error "a kernel's header: include it in files that are compiled for each level"
#endif

#if defined(__SSE__)
#include <immintrin.h>  // always_inline functions only
#endif

#include "math/constants.hpp"
#include "math/rational.hpp"

#if defined(__AVX512F__)
#include "cpu/tanh.hpp"
#endif

#define KJKO_INLINE inline __attribute__((always_inline))
#define KJKO_UNROLL _Pragma("GCC unroll 16")

namespace kjko::KJKO_LEVEL {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#define KJKO_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define KJKO_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define KJKO_FINE_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define KJKO_FINE_ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif defined(__AVX__)
constexpr int LANES = 8;
#define KJKO_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define KJKO_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define KJKO_FINE_EVEN 0, 2, 4, 6
#define KJKO_FINE_ODD 1, 3, 5, 7
#else
constexpr int LANES = 4;
#define KJKO_EVEN 0, 2, 4, 6
#define KJKO_ODD 1, 3, 5, 7
#define KJKO_FINE_EVEN 0, 2
#define KJKO_FINE_ODD 1, 3
#endif

typedef float Floats __attribute__((vector_size(4 * LANES), may_alias));
typedef int Ints __attribute__((vector_size(4 * LANES), may_alias));
typedef float UnalignedFloats __attribute__((vector_size(4 * LANES), may_alias, aligned(4)));

static KJKO_INLINE Floats broadcast(float x) { return x - Floats{}; }
static KJKO_INLINE Floats load(const float *from) { return *reinterpret_cast<const Floats *>(from); }
static KJKO_INLINE Ints load_ints(const int *from) { return *reinterpret_cast<const Ints *>(from); }
static KJKO_INLINE Floats load_anywhere(const float *from) { return *reinterpret_cast<const UnalignedFloats *>(from); }
static KJKO_INLINE void store(float *to, Floats x) { *reinterpret_cast<Floats *>(to) = x; }

// The same in double precision: half as many lanes.
typedef double Doubles __attribute__((vector_size(4 * LANES), may_alias));
typedef long long Longs __attribute__((vector_size(4 * LANES), may_alias));

static KJKO_INLINE Doubles broadcast(double x) { return x - Doubles{}; }
static KJKO_INLINE Doubles load(const double *from) { return *reinterpret_cast<const Doubles *>(from); }
static KJKO_INLINE void store(double *to, Doubles x) { *reinterpret_cast<Doubles *>(to) = x; }

// A constant in the precision of a vector.
static KJKO_INLINE float in_precision_of(Floats, double constant) { return static_cast<float>(constant); }
static KJKO_INLINE double in_precision_of(Doubles, double constant) { return constant; }

template <class Real>
struct OfReal;
template <>
struct OfReal<float> {
    typedef Floats Vector;
};
template <>
struct OfReal<double> {
    typedef Doubles Vector;
};
template <class Real>
using VectorOf = typename OfReal<Real>::Vector;
template <class Real>
constexpr int LANES_OF = 4 * LANES / static_cast<int>(sizeof(Real));

static KJKO_INLINE float sum_of_lanes(Floats x) {
    float sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += x[lane];
    return sum;
}

static KJKO_INLINE Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
    const Floats guess = _mm512_maskz_rcp14_ps(0xffff, x);  // 14 bits; one Newton step doubles them
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// x, or ±end if it is beyond. NaN stays NaN, because it is the second operand of minimum and maximum.
static KJKO_INLINE Floats within(float end, Floats x) {
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(0xffff, broadcast(-end), _mm512_maskz_min_ps(0xffff, broadcast(end), x));
#elif defined(__AVX__)
    return _mm256_max_ps(broadcast(-end), _mm256_min_ps(broadcast(end), x));
#elif defined(__SSE__)
    return _mm_max_ps(broadcast(-end), _mm_min_ps(broadcast(end), x));
#else
    const Floats below = x > end ? broadcast(end) : x;
    return below < -end ? broadcast(-end) : below;
#endif
}

// tanh; NaN stays NaN.
static KJKO_INLINE Floats tanh_of(Floats x) {
#if defined(__AVX512F__)
    return tanh_by_table(x);
#else
    Floats numerator, denominator;
    rational_tanh(within(TANH_END, x), numerator, denominator);
    return numerator * reciprocal(denominator);
#endif
}

// 1 / √x for x of normal size.
static KJKO_INLINE Floats inverse_root(Floats x) {
#if defined(__AVX512F__)
    const Floats guess = _mm512_maskz_rsqrt14_ps(0xffff, x);  // 14 bits; one Newton step doubles them
    return guess + (0.5f * guess) * (1.0f - x * (guess * guess));
#elif defined(__SSE__)
#if defined(__AVX__)
    const Floats guess = _mm256_rsqrt_ps(x);
#else
    const Floats guess = _mm_rsqrt_ps(x);
#endif
    const Floats error = 1.0f - x * (guess * guess);  // 12 bits; a Newton step with one more term makes 24
    return guess + (guess * error) * (0.5f + 0.375f * error);
#else
    Floats root;
    for (int lane = 0; lane < LANES; ++lane) root[lane] = 1 / __builtin_sqrtf(x[lane]);
    return root;
#endif
}
static KJKO_INLINE Doubles inverse_root(Doubles x) {
    Doubles root;
    for (int lane = 0; lane < LANES / 2; ++lane) root[lane] = __builtin_sqrt(x[lane]);
    return 1.0 / root;
}

// A power of x, for x of normal size. In single precision the relative error is a few 1e-7. Its logarithm to the base 2
// is limited to 126.
static KJKO_INLINE Floats power_of(Floats x, double power) {
    const Ints bits = reinterpret_cast<const Ints &>(x);
    const Ints exponent = (bits - 0x3f3504f3) >> 23;  // x = 2^exponent · mantissa, mantissa in [√½, √2)
    const Ints scaled = bits - (exponent << 23);
    const Floats mantissa = reinterpret_cast<const Floats &>(scaled), whole = __builtin_convertvector(exponent, Floats);
    const Floats s = (mantissa - 1.0f) / (mantissa + 1.0f), t = s * s;  // log m = 2 artanh s
    const Floats series = 1.0f + t * (1.0f / 3 + t * (1.0f / 5 + t * (1.0f / 7 + t * (1.0f / 9))));
    const Floats log = 2.88539008f * s * series;
    const float factor = static_cast<float>(power), shift = 0x1.8p23f;
    const Floats n = (within(126.0f, factor * (whole + log)) + shift) - shift;
    const Floats f = (factor * whole - n) + factor * log;
    Floats q = f * 1.5252734e-5f + 1.5403530e-4f;  // 2^f, by its Taylor series
    q = q * f + 1.3333558e-3f;
    q = q * f + 9.6181291e-3f;
    q = q * f + 5.5504109e-2f;
    q = q * f + 2.4022651e-1f;
    q = q * f + 6.9314718e-1f;
    q = q * f + 1.0f;
    const Ints lifted = reinterpret_cast<const Ints &>(q) + (__builtin_convertvector(n, Ints) << 23);
    return reinterpret_cast<const Floats &>(lifted);
}
static KJKO_INLINE Doubles power_of(Doubles x, double power) {
    for (int lane = 0; lane < LANES / 2; ++lane) x[lane] = __builtin_pow(x[lane], power);
    return x;
}

// a / b for b of normal size.
static KJKO_INLINE Doubles quotient(Doubles a, Doubles b) {
#if defined(__AVX512F__)
    Doubles inverse = _mm512_maskz_rcp14_pd(0xff, b);  // 14 bits; each Newton step doubles them
    inverse += inverse * (1.0 - b * inverse);
    inverse += inverse * (1.0 - b * inverse);
    const Doubles near = a * inverse;
    return near + inverse * (a - b * near);
#else
    return a / b;
#endif
}

// tanh to the last bits, from e^2|x| − 1 = 2^n (e^r − 1) + 2^n − 1 with |r| ≤ ½ log 2, and the Taylor series of e^r − 1
// (error 5e-18). Odd; NaN stays NaN.
static KJKO_INLINE Doubles tanh_of(Doubles x) {
    const Longs sign = reinterpret_cast<const Longs &>(x) & static_cast<long long>(1ULL << 63);
    const Longs absolute = reinterpret_cast<const Longs &>(x) ^ sign;
    Doubles t = 2.0 * reinterpret_cast<const Doubles &>(absolute);
    t = t > 40.0 ? broadcast(40.0) : t;                          // tanh is 1 there
    const Doubles shifted = t * 1.4426950408889634 + ROUNDING_SHIFT;  // n is in its last bits
    const Doubles n = shifted - ROUNDING_SHIFT;
    const Doubles r = (t - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    const Longs bits = (reinterpret_cast<const Longs &>(shifted) << 52) + 0x3ff0000000000000;
    const Doubles scale = reinterpret_cast<const Doubles &>(bits);
    Doubles q = r * (1.0 / 6227020800) + 1.0 / 479001600;
    q = q * r + 1.0 / 39916800;
    q = q * r + 1.0 / 3628800;
    q = q * r + 1.0 / 362880;
    q = q * r + 1.0 / 40320;
    q = q * r + 1.0 / 5040;
    q = q * r + 1.0 / 720;
    q = q * r + 1.0 / 120;
    q = q * r + 1.0 / 24;
    q = q * r + 1.0 / 6;
    q = q * r + 0.5;
    const Doubles beyond = scale * (q * (r * r) + r) + (scale - 1.0);
    const Doubles result = quotient(beyond, beyond + 2.0);
    const Longs signed_bits = reinterpret_cast<const Longs &>(result) | sign;
    return reinterpret_cast<const Doubles &>(signed_bits);
}

// sin and cos to the last bits for |x| < 1e6: whole multiples of ½π, in three parts, are subtracted from x; then the
// polynomials of fdlibm.
static KJKO_INLINE void sine_and_cosine(Doubles x, Doubles &sine, Doubles &cosine) {
    // the number of quarter turns is in its last bits
    const Doubles shifted = x * 0.63661977236758134308 + ROUNDING_SHIFT;
    const Doubles n = shifted - ROUNDING_SHIFT;
    const Longs quarter = reinterpret_cast<const Longs &>(shifted) & 3;
    const Doubles r =
        ((x - n * 1.57079632673412561417e+00) - n * 6.07710050630396597660e-11) - n * 2.02226624879595063154e-21;
    const Doubles y = r * r;
    Doubles p = y * 1.58969099521155010221e-10 - 2.50507602534068634195e-08;
    p = p * y + 2.75573137070700676789e-06;
    p = p * y - 1.98412698298579493134e-04;
    p = p * y + 8.33333333332248946124e-03;
    p = p * y - 1.66666666666666324348e-01;
    const Doubles s = r + r * y * p;
    Doubles q = y * -1.13596475577881948265e-11 + 2.08757232129817482790e-09;
    q = q * y - 2.75573143513906633035e-07;
    q = q * y + 2.48015872894767294178e-05;
    q = q * y - 1.38888888888741095749e-03;
    q = q * y + 4.16666666666666019037e-02;
    const Doubles c = (1.0 - 0.5 * y) + y * y * q;
    const auto odd = (quarter & 1) != 0;
    const Longs sine_sign = (quarter & 2) << 62, cosine_sign = ((quarter + 1) & 2) << 62;
    const Doubles up = odd ? c : s, along = odd ? s : c;
    const Longs of_sine = reinterpret_cast<const Longs &>(up) ^ sine_sign;
    const Longs of_cosine = reinterpret_cast<const Longs &>(along) ^ cosine_sign;
    sine = reinterpret_cast<const Doubles &>(of_sine);
    cosine = reinterpret_cast<const Doubles &>(of_cosine);
}

static KJKO_INLINE Doubles log_of(Doubles x) {
    for (int lane = 0; lane < LANES / 2; ++lane) x[lane] = __builtin_log(x[lane]);
    return x;
}

// log(1 + e) for 1 + e of normal size, to the last bits, also for small e.
static KJKO_INLINE Floats log_of_one_plus(Floats e) {
    const Floats whole = 1.0f + e, lost = (e - (whole - 1.0f)) / whole;
    const Ints bits = reinterpret_cast<const Ints &>(whole);
    const Ints exponent = (bits - 0x3f3504f3) >> 23;  // 1 + e = 2^exponent · mantissa, mantissa in [√½, √2)
    const Ints scaled = bits - (exponent << 23);
    const Floats mantissa = reinterpret_cast<const Floats &>(scaled);
    const Floats s = (mantissa - 1.0f) / (mantissa + 1.0f), t = s * s;  // log m = 2 artanh s
    const Floats series = t * (2.0f / 3 + t * (2.0f / 5 + t * (2.0f / 7 + t * (2.0f / 9))));
    return __builtin_convertvector(exponent, Floats) * 0.69314718f + (s * series + (2.0f * s + lost));
}

// Sums of neighbouring lanes: those of a, then those of b.
static KJKO_INLINE Floats sums_of_neighbours(Floats a, Floats b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, KJKO_EVEN) + __builtin_shufflevector(a, b, KJKO_ODD);
#else
    return __builtin_shuffle(a, b, Ints{KJKO_EVEN}) + __builtin_shuffle(a, b, Ints{KJKO_ODD});
#endif
}
static KJKO_INLINE Doubles sums_of_neighbours(Doubles a, Doubles b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, KJKO_FINE_EVEN) + __builtin_shufflevector(a, b, KJKO_FINE_ODD);
#else
    return __builtin_shuffle(a, b, Longs{KJKO_FINE_EVEN}) + __builtin_shuffle(a, b, Longs{KJKO_FINE_ODD});
#endif
}

// The sums over lanes of the vectors term(first), term(first + 1), ..., one sum in each lane; COUNT is at most the
// number of lanes.
template <int COUNT, class Term>
static KJKO_INLINE auto folded(Term term, int first) {
    if constexpr (COUNT == 1)
        return term(first);
    else
        return sums_of_neighbours(folded<COUNT / 2>(term, first), folded<COUNT / 2>(term, first + COUNT / 2));
}

// The dot products of `weights` with LANES rows, one in each lane. The dot products of `more` with the same number of
// other rows are added.
template <int WIDTH, int MORE = 0>
__attribute__((noinline)) static Floats dots(const float *weights, const float *rows, const float *more = nullptr,
                                             const float *more_rows = nullptr) {
    constexpr int OWN = WIDTH / LANES, OTHER = MORE / LANES;
    Floats factors[OWN + OTHER];
    for (int j = 0; j < OWN; ++j) factors[j] = load(weights + j * LANES);
    for (int j = 0; j < OTHER; ++j) factors[OWN + j] = load(more + j * LANES);
    return folded<LANES>(
        [&](int row) __attribute__((always_inline)) {
            Floats sum = factors[0] * load(rows + row * WIDTH);
            for (int j = 1; j < OWN; ++j) sum += factors[j] * load(rows + row * WIDTH + j * LANES);
            for (int j = 0; j < OTHER; ++j) sum += factors[OWN + j] * load(more_rows + row * MORE + j * LANES);
            return sum;
        },
        0);
}

// Tiles of products that stay in registers: ROWS × VECTORS sums, VECTORS factors and one more vector.
template <int WIDTH>
struct Tile {
#if defined(__AVX512F__)
    static constexpr int VECTORS = WIDTH / LANES;  // 1 to 5
    static constexpr int ROWS = VECTORS == 1 ? 16 : VECTORS < 4 ? 8 : 4;
#else
    static constexpr int VECTORS = 2, ROWS = 4;
#endif
};

template <int WIDTH, int ROWS, int VECTORS>
static KJKO_INLINE void multiply_tile(const float *x, int stride, int depth, const float *b, const float *start,
                                      float *y) {
    Floats sums[ROWS][VECTORS];
    KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) {
        const Floats first = start ? load(start + j * LANES) : Floats{};
        KJKO_UNROLL for (int i = 0; i < ROWS; ++i) sums[i][j] = first;
    }
    for (int k = 0; k < depth; ++k) {
        Floats factors[VECTORS];
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) factors[j] = load(b + k * WIDTH + j * LANES);
        KJKO_UNROLL for (int i = 0; i < ROWS; ++i) {
            const Floats xi = broadcast(x[i * stride + k]);
            KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += xi * factors[j];
        }
    }
    KJKO_UNROLL for (int i = 0; i < ROWS; ++i)
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) store(y + i * WIDTH + j * LANES, sums[i][j]);
}

// y = x b, for x [rows, depth] with rows `stride` apart, b [depth, WIDTH] and y [rows, WIDTH]. `start` [WIDTH] is added
// to the first `started` rows. Both numbers of rows are multiples of the height of a tile, which is at most 16.
template <int WIDTH>
__attribute__((noinline)) static void multiply(const float *x, int stride, int depth, int rows, const float *b, float *y,
                                               const float *start = nullptr, int started = 0) {
    constexpr bool TALL = LANES == 16 && Tile<WIDTH>::VECTORS <= 2;  // such tiles are 1 % faster
    constexpr int ROWS = TALL ? 16 : Tile<WIDTH>::ROWS, VECTORS = TALL ? 1 : Tile<WIDTH>::VECTORS;
    for (int column = 0; column < WIDTH; column += VECTORS * LANES)
        for (int row = 0; row < rows; row += ROWS)
            multiply_tile<WIDTH, ROWS, VECTORS>(x + row * stride, stride, depth, b + column,
                                                row < started ? start + column : nullptr, y + row * WIDTH + column);
}

template <int WIDTH, int HEIGHT, int VECTORS>
static KJKO_INLINE void add_outer_tile(const float *a, int down, int across, int rows, const float *b, float *c) {
    Floats sums[HEIGHT][VECTORS];
    KJKO_UNROLL for (int i = 0; i < HEIGHT; ++i)
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] = load(c + i * WIDTH + j * LANES);
    for (int row = 0; row < rows; ++row) {
        Floats factors[VECTORS];
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) factors[j] = load(b + row * WIDTH + j * LANES);
        KJKO_UNROLL for (int i = 0; i < HEIGHT; ++i) {
            const Floats ai = broadcast(a[row * down + i * across]);
            KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += ai * factors[j];
        }
    }
    KJKO_UNROLL for (int i = 0; i < HEIGHT; ++i)
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) store(c + i * WIDTH + j * LANES, sums[i][j]);
}

// c += aᵀ b, for a [rows, height] whose element (r, i) is a[r * down + i * across], b [rows, WIDTH], c [height, WIDTH].
// The height must be a multiple of 4.
template <int WIDTH>
__attribute__((noinline)) static void add_outer(const float *a, int down, int across, int height, int rows,
                                                const float *b, float *c) {
    constexpr int VECTORS = Tile<WIDTH>::VECTORS, TALL = LANES == 16 && VECTORS < 3 ? 8 : 4;
    for (int column = 0; column < WIDTH; column += VECTORS * LANES) {
        int i = 0;
        for (; i + TALL <= height; i += TALL)
            add_outer_tile<WIDTH, TALL, VECTORS>(a + i * across, down, across, rows, b + column, c + i * WIDTH + column);
        for (; i < height; i += 4)
            add_outer_tile<WIDTH, 4, VECTORS>(a + i * across, down, across, rows, b + column, c + i * WIDTH + column);
    }
}

}  // namespace kjko::KJKO_LEVEL
