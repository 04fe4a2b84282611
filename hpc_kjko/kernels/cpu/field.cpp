// u and ∇v u by dv forward tangents, for a cache block of particles at a time. Layers are columns [width][column]: one
// column for the values of each particle, then one for its tangent along v_1, v_2, … . Vectors run along the particles.
// So nothing is padded to a width, a layer is one product W x for any width, and each particle has the same operations
// in every lane.
#include "cpu/kernels.hpp"
#include "cpu/columns.hpp"

#include "math/activation.hpp"

namespace kjko::KJKO_LEVEL {

template <class Real>
struct FieldPass {
    using Vector = VectorOf<Real>;
    static constexpr int VECTORS = 4, BLOCK = VECTORS * LANES_OF<Real>;

    const FieldCall<Real> &call;
    const int inputs, dv, columns;
    Real *x, *y;  // two layers [MOST width][columns]

    static int most_width(const FieldCall<Real> &call) {
        int most = 0;
        for (int layer = 0; layer <= call.layers; ++layer)
            most = call.widths[layer] > most ? call.widths[layer] : most;
        return most;
    }
    static unsigned long bytes(const FieldCall<Real> &call) {
        return sizeof(Real) * 2 * most_width(call) * BLOCK * (1 + call.widths[call.layers]);
    }

    FieldPass(const FieldCall<Real> &c, void *workspace)
        : call(c), inputs(c.widths[0]), dv(c.widths[c.layers]), columns(BLOCK * (1 + dv)),
          x(static_cast<Real *>(workspace)), y(x + most_width(c) * columns) {}

    void block(long long first) {
        const int rows = call.count - first < BLOCK ? static_cast<int>(call.count - first) : BLOCK;
        alignas(64) Real linear[MOST_VELOCITY_DIMS][BLOCK];
        take(first, rows);
        skip(linear);
        for (int layer = 0; layer < call.layers; ++layer) {
            const int width = call.widths[layer + 1];
            if (layer == 0)
                enter(width);
            else
                product(call.weights[layer], width, call.widths[layer], x, columns, y);
            if (layer + 1 < call.layers)
                call.tanh ? activate<Tanh>(call.biases[layer], width) : activate<LeakyRelu>(call.biases[layer], width);
            Real *const filled = y;
            y = x;
            x = filled;
        }
        hand_over(first, rows, linear);
    }

private:
    // The inputs z as columns. Columns beyond the last particle repeat it.
    void take(long long first, int rows) {
        for (int l = 0; l < inputs; ++l)
            for (int p = 0; p < BLOCK; ++p) x[l * columns + p] = call.z[(first + (p < rows ? p : rows - 1)) * inputs + l];
    }

    // b + S z, the contributions to u that bypass the hidden layers.
    void skip(Real (&linear)[MOST_VELOCITY_DIMS][BLOCK]) const {
        for (int k = 0; k < dv; ++k)
            for (int p = 0; p < BLOCK; p += LANES_OF<Real>) {
                Vector sum = broadcast(call.biases[call.layers - 1][k]);
                for (int l = 0; l < call.skipped; ++l)
                    sum += call.skip[k * call.skipped + l] * load(x + (inputs - call.skipped + l) * columns + p);
                store(&linear[k][p], sum);
            }
    }

    // The first layer. The tangents of its inputs are unit vectors.
    void enter(int width) {
        const Real *w = call.weights[0];
        for (int i = 0; i < width; ++i, w += inputs) {
            Vector sums[VECTORS] = {};
            for (int l = 0; l < inputs; ++l)
                for (int p = 0; p < VECTORS; ++p) sums[p] += w[l] * load(x + l * columns + p * LANES_OF<Real>);
            for (int p = 0; p < VECTORS; ++p) {
                store(y + i * columns + p * LANES_OF<Real>, sums[p]);
                for (int j = 0; j < dv; ++j)
                    store(y + i * columns + (1 + j) * BLOCK + p * LANES_OF<Real>, broadcast(w[inputs - dv + j]));
            }
        }
    }

    template <class Activation>
    __attribute__((noinline)) void activate(const Real *bias, int width) {
        for (int i = 0; i < width; ++i) {
            Real *at = y + i * columns;
            Vector slopes[VECTORS];
            KJKO_UNROLL for (int p = 0; p < VECTORS; ++p) {
                const Vector a = load(at + p * LANES_OF<Real>) + bias[i], value = Activation::value(a);
                slopes[p] = Activation::slope(value);
                store(at + p * LANES_OF<Real>, value);
            }
            for (int j = 1; j <= dv; ++j)
                KJKO_UNROLL for (int p = 0; p < VECTORS; ++p) {
                    Real *tangent = at + j * BLOCK + p * LANES_OF<Real>;
                    store(tangent, slopes[p] * load(tangent));
                }
        }
    }

    void hand_over(long long first, int rows, const Real (&linear)[MOST_VELOCITY_DIMS][BLOCK]) const {
        for (int k = 0; k < dv; ++k) {
            const Real *from = x + k * columns;
            Real *u = call.u + first * dv + k, *jacobian = call.jacobian + first * dv * dv + k * dv;
            for (int p = 0; p < rows; ++p) u[p * dv] = from[p] + linear[k][p];
            for (int j = 0; j < dv; ++j) {
                const Real through = call.skip ? call.skip[(k + 1) * call.skipped - dv + j] : Real(0);
                for (int p = 0; p < rows; ++p) jacobian[p * dv * dv + j] = from[(1 + j) * BLOCK + p] + through;
            }
        }
    }
};

template <class Real>
static void evaluate_field(const FieldCall<Real> &call) {
    using Pass = FieldPass<Real>;
    const long long blocks = (call.count + Pass::BLOCK - 1) / Pass::BLOCK;
#pragma omp parallel if (blocks > 32)
    {
        Pass pass(call, __builtin_alloca_with_align(Pass::bytes(call), 512));
#pragma omp for schedule(dynamic, 16)
        for (long long block = 0; block < blocks; ++block) pass.block(block * Pass::BLOCK);
    }
}

const FieldKernels field = {&evaluate_field<float>, &evaluate_field<double>};

}  // namespace kjko::KJKO_LEVEL
