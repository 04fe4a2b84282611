// A cache block of particles with vectors along the particles: a layer is columns [width][particle]. So nothing is
// padded to a width, a layer is one product W x for any width, and each particle has the same operations in every lane.
#pragma once

#include "cpu/simd.hpp"

namespace kjko::KJKO_LEVEL {

// ROWS × VECTORS sums of y = W x + b, for W [rows, depth], x [depth][columns], y [rows][columns], b [rows] or null.
template <int ROWS, int VECTORS, class Real>
static KJKO_INLINE void product_tile(const Real *w, int depth, const Real *x, int columns, Real *y, const Real *b) {
    using Vector = VectorOf<Real>;
    Vector sums[ROWS][VECTORS];
    KJKO_UNROLL for (int i = 0; i < ROWS; ++i) {
        const Vector first = b ? broadcast(b[i]) : Vector{};
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] = first;
    }
    for (int l = 0; l < depth; ++l) {
        Vector factors[VECTORS];
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) factors[j] = load(x + l * columns + j * LANES_OF<Real>);
        KJKO_UNROLL for (int i = 0; i < ROWS; ++i) {
            const Vector wi = broadcast(w[i * depth + l]);
            KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) sums[i][j] += wi * factors[j];
        }
    }
    KJKO_UNROLL for (int i = 0; i < ROWS; ++i)
        KJKO_UNROLL for (int j = 0; j < VECTORS; ++j) store(y + i * columns + j * LANES_OF<Real>, sums[i][j]);
}

template <class Real>
__attribute__((noinline)) static void product(const Real *w, int rows, int depth, const Real *x, int columns, Real *y,
                                              const Real *b = nullptr) {
    constexpr int VECTORS = LANES == 16 ? 4 : 2, STEP = VECTORS * LANES_OF<Real>;
    for (int column = 0; column < columns; column += STEP) {
        int row = 0;
        const auto tile = [&](auto height) __attribute__((always_inline)) {
            product_tile<height.value, VECTORS>(w + row * depth, depth, x + column, columns, y + row * columns + column,
                                                b ? b + row : nullptr);
        };
        for (; row + 4 <= rows; row += 4) tile(Constant<4>());
        switch (rows - row) {
            case 1: tile(Constant<1>()); break;
            case 2: tile(Constant<2>()); break;
            case 3: tile(Constant<3>()); break;
        }
    }
}

// Adds Σ over columns of a_i b_j to sums[i * across + j], for a [m][stride] and b [k][stride]. `upper`: only the sums
// with j ≥ i are valid. length: a multiple of the number of lanes.
template <class Real>
__attribute__((noinline)) static void add_dots(const Real *a, int m, const Real *b, int k, int stride, int length,
                                               bool upper, double *sums, int across) {
    using Vector = VectorOf<Real>;
    constexpr int SIDE = LANES == 16 ? 4 : 2;
    for (int i = 0; i < m; i += SIDE)
        for (int j = upper ? i / SIDE * SIDE : 0; j < k; j += SIDE) {
            const Real *left[SIDE], *right[SIDE];  // rows beyond the last one repeat it
            KJKO_UNROLL for (int s = 0; s < SIDE; ++s) {
                left[s] = a + (i + s < m ? i + s : m - 1) * static_cast<long long>(stride);
                right[s] = b + (j + s < k ? j + s : k - 1) * static_cast<long long>(stride);
            }
            Vector tile[SIDE][SIDE] = {};
            for (int p = 0; p < length; p += LANES_OF<Real>) {
                Vector factors[SIDE];
                KJKO_UNROLL for (int t = 0; t < SIDE; ++t) factors[t] = load(right[t] + p);
                KJKO_UNROLL for (int s = 0; s < SIDE; ++s) {
                    const Vector own = load(left[s] + p);
                    KJKO_UNROLL for (int t = 0; t < SIDE; ++t) tile[s][t] += own * factors[t];
                }
            }
            alignas(64) Real sum[SIDE * SIDE];
            constexpr int WIDE = LANES_OF<Real>;
            if constexpr (SIDE * SIDE % WIDE == 0) {
                KJKO_UNROLL for (int first = 0; first < SIDE * SIDE; first += WIDE)
                    store(sum + first, folded<WIDE>([&](int at) __attribute__((always_inline)) {
                              return tile[at / SIDE][at % SIDE];
                          }, first));
            } else {
                for (int at = 0; at < SIDE * SIDE; ++at) {
                    sum[at] = 0;
                    for (int lane = 0; lane < WIDE; ++lane) sum[at] += tile[at / SIDE][at % SIDE][lane];
                }
            }
            double *const to = sums + i * across + j;
            if (i + SIDE <= m && j + SIDE <= k) {
                KJKO_UNROLL for (int s = 0; s < SIDE; ++s)
                    KJKO_UNROLL for (int t = 0; t < SIDE; ++t) to[s * across + t] += sum[s * SIDE + t];
            } else {
                for (int s = 0; s < SIDE && i + s < m; ++s)
                    for (int t = 0; t < SIDE && j + t < k; ++t) to[s * across + t] += sum[s * SIDE + t];
            }
        }
}

}  // namespace kjko::KJKO_LEVEL
