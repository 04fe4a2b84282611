#include "cpu/kernels.hpp"
#include "math/mesh.hpp"

// Every particle is computed by the same operations at any place. So multiply-adds are not fused here
// (-ffp-contract=off), and the results have the same bits at every instruction set level.
namespace kjko::KJKO_LEVEL {

constexpr int BLOCK = 256;    // particles of a cache block: their temporary data stay in the first-level cache
constexpr int TOGETHER = 32;  // particles of a cache block whose shape functions are computed together, in vectors

// Two or four adjacent numbers. A row of the mesh may begin at any address, so these types are not aligned.
typedef double Pair __attribute__((vector_size(16), may_alias));
typedef double Four __attribute__((vector_size(32), may_alias));
typedef double PairAnywhere __attribute__((vector_size(16), may_alias, aligned(8)));
typedef double FourAnywhere __attribute__((vector_size(32), may_alias, aligned(8)));

// Prefetches the cache line of data that are read soon, or (TO_WRITE) written. This is harmless beyond the end of an
// array.
template <bool TO_WRITE = false>
static inline __attribute__((always_inline)) void fetch(const void *at) {
    __builtin_prefetch(at, TO_WRITE ? 1 : 0);
}

template <int DIMS>
struct Geometry {
    double cells[DIMS], per_spacing[DIMS];
    int stride[DIMS];  // of the padded mesh

    explicit Geometry(const Mesh &mesh) {
        int next = 1;
        for (int axis = DIMS - 1; axis >= 0; --axis) {
            cells[axis] = mesh.cells[axis];
            per_spacing[axis] = mesh.cells[axis] / mesh.lengths[axis];
            stride[axis] = next;
            next *= mesh.cells[axis] + 1 + mesh.order;
        }
    }
};

// A cache block of particles on the padded mesh: the first node that each touches, and its distance from node_of.
template <int DIMS>
struct Places {
    int first[BLOCK];
    double offset[DIMS][BLOCK];
};

// The drift of `count` particles, to `moved`.
template <class Real, int DIMS, int VELOCITY_DIMS>
static void drift_block(const Real (&box)[3], const Real *__restrict x, const Real *__restrict v, Real duration,
                        int count, Real *__restrict moved) {
    constexpr int PERIOD = 16 * DIMS;  // whole vectors of coordinates that belong to the same axes
    Real lengths[PERIOD];              // a copy, which cannot be the same memory as `moved`
    for (int coordinate = 0; coordinate < PERIOD; ++coordinate) lengths[coordinate] = box[coordinate % DIMS];
    int far = 0, first = 0;
    if constexpr (VELOCITY_DIMS == DIMS)
        for (; first + 16 <= count; first += 16)
            for (int coordinate = 0; coordinate < PERIOD; ++coordinate) {
                const int at = first * DIMS + coordinate;
                const Real next = advanced(x[at], duration, v[at]);
                far |= !is_near(next, lengths[coordinate]);
                moved[at] = wrap_near(next, lengths[coordinate]);
            }
    for (int i = first; i < count; ++i)
        for (int axis = 0; axis < DIMS; ++axis) {
            const Real next = advanced(x[i * DIMS + axis], duration, v[i * VELOCITY_DIMS + axis]);
            far |= !is_near(next, lengths[axis]);
            moved[i * DIMS + axis] = wrap_near(next, lengths[axis]);
        }
    if (!far) return;
    for (int i = 0; i < count; ++i)
        for (int axis = 0; axis < DIMS; ++axis) {
            const Real next = advanced(x[i * DIMS + axis], duration, v[i * VELOCITY_DIMS + axis]);
            moved[i * DIMS + axis] = wrap(next, lengths[axis]);
        }
}

// After this many particles a row of numbers begins a new cache line, or nearly so.
template <class Real, int DIMS>
constexpr int EVERY = 64 / static_cast<int>(sizeof(Real)) / (DIMS == 1 ? 1 : DIMS == 2 ? 2 : 4);

template <class Real, int DIMS>
struct Drift {
    Real lengths[3];
    const Real *x, *v;
    int velocity_dims;
    Real duration;
    Real *moved;

    Drift(const double *box, const Particles &particles, double duration, void *moved)
        : x(static_cast<const Real *>(particles.x)),
          v(static_cast<const Real *>(particles.v)),
          velocity_dims(particles.velocity_dims),
          duration(static_cast<Real>(duration)),
          moved(static_cast<Real *>(moved)) {
        for (int axis = 0; axis < DIMS; ++axis) lengths[axis] = static_cast<Real>(box[axis]);
    }

    // Prefetches the data that the drift of a particle needs.
    __attribute__((always_inline)) void fetch_for(long long i) const {
        fetch(x + i * DIMS);
        fetch(v + i * velocity_dims);
        fetch<true>(moved + i * DIMS);
    }

    void operator()(long long start, int count) const {
        const Real *from = x + start * DIMS, *speed = v + start * velocity_dims;
        Real *to = moved + start * DIMS;
        if (velocity_dims == 1) drift_block<Real, DIMS, 1>(lengths, from, speed, duration, count, to);
        if (velocity_dims == 2) drift_block<Real, DIMS, 2>(lengths, from, speed, duration, count, to);
        if (velocity_dims == 3) drift_block<Real, DIMS, 3>(lengths, from, speed, duration, count, to);
    }
};

// Finds a cache block of particles on the mesh. Returns the number of particles whose position is not finite: their
// offset is NaN.
template <class Real, int DIMS, int ORDER>
static int place(Geometry<DIMS> mesh, const Real *__restrict x, int count, Places<DIMS> &__restrict places) {
    long long outside = 0;  // as wide as the numbers from which it is counted
    for (int i = count; i < BLOCK && i % TOGETHER; ++i)  // the shape functions are computed for whole vectors
        for (int axis = 0; axis < DIMS; ++axis) places.offset[axis][i] = 0;
    for (int i = 0; i < count; ++i) {
        double first = 0;
        for (int axis = 0; axis < DIMS; ++axis) {
            const Place place = place_near<ORDER>(in_cells(x[i * DIMS + axis], mesh.per_spacing[axis]));
            outside |= !is_on_mesh(place.padded, mesh.cells[axis]);
            places.offset[axis][i] = place.offset;
            first += place.padded * mesh.stride[axis];
        }
        places.first[i] = static_cast<int>(first);
    }
    if (!outside) return 0;

    int lost = 0;
    for (int i = 0; i < count; ++i) {
        places.first[i] = 0;
        bool somewhere = true;
        for (int axis = 0; axis < DIMS; ++axis) {
            const Place place =
                place_anywhere<ORDER>(in_cells(x[i * DIMS + axis], mesh.per_spacing[axis]), mesh.cells[axis]);
            places.offset[axis][i] = place.offset;
            if (place.offset == place.offset)
                places.first[i] += static_cast<int>(place.padded) * mesh.stride[axis];
            else
                somewhere = false;
        }
        lost += !somewhere;
    }
    return lost;
}

// The number of rows of nodes along the last axis that a particle touches.
template <int DIMS, int ORDER>
constexpr int ROWS = DIMS == 1 ? 1 : DIMS == 2 ? ORDER + 1 : (ORDER + 1) * (ORDER + 1);

// Calls what(row, factor, s) for each of these rows. The shape function at node k of the row is factor · s[k].
template <int DIMS, int ORDER, class What>
static inline __attribute__((always_inline)) void at_rows(const Places<DIMS> &places, int i, double carried,
                                                          const What &what) {
    double s[DIMS][ORDER + 1];
    for (int axis = 0; axis < DIMS; ++axis) shape<ORDER>(places.offset[axis][i], s[axis]);
    if constexpr (DIMS == 1) what(0, carried, s[0]);
    if constexpr (DIMS == 2)
        for (int j = 0; j <= ORDER; ++j) what(j, carried * s[0][j], s[1]);
    if constexpr (DIMS == 3)
        for (int l = 0; l <= ORDER; ++l)
            for (int j = 0; j <= ORDER; ++j) what(l * (ORDER + 1) + j, carried * s[0][l] * s[1][j], s[2]);
}

// The distance from the first node that a particle touches to the first node of a row along the last axis.
template <int DIMS, int ORDER>
static inline __attribute__((always_inline)) int row_start(const Geometry<DIMS> &mesh, int row) {
    if constexpr (DIMS == 1) return 0;
    if constexpr (DIMS == 2) return row * mesh.stride[0];
    if constexpr (DIMS == 3) return row / (ORDER + 1) * mesh.stride[0] + row % (ORDER + 1) * mesh.stride[1];
}

// Adds row · s, rounded, to the nodes of a row along the last axis. Three nodes are added as four, with a fourth s of
// 0.
template <int ORDER>
static inline __attribute__((always_inline)) void add_row(double row, const double *s, double shift, double *nodes) {
    if constexpr (ORDER == 1) {
        const Pair term = (row * *reinterpret_cast<const Pair *>(s) + shift) - shift;
        PairAnywhere &sums = *reinterpret_cast<PairAnywhere *>(nodes);
        sums = sums + term;
    } else {
        const Four term = (row * *reinterpret_cast<const Four *>(s) + shift) - shift;
        FourAnywhere &sums = *reinterpret_cast<FourAnywhere *>(nodes);
        sums = sums + term;
    }
}

// Adds the quantities of a cache block of particles to the nodes that they touch. `ahead` prefetches data for the next
// cache block.
template <int DIMS, int ORDER, class Ahead>
static void scatter(Geometry<DIMS> mesh, const Places<DIMS> &places, const double *carried, int count, double shift,
                    double *sums, const Ahead &ahead) {
    constexpr int TOUCHED = ORDER + 1, LAST = ORDER == 1 ? 2 : 4;
    for (int start = 0; start < count; start += TOGETHER) {
        const int rest = count - start, size = rest < TOGETHER ? rest : TOGETHER;
        if constexpr (DIMS == 1) {  // neighbouring particles overlap too often on a short row to be added in vectors
            double terms[TOUCHED][TOGETHER];
            for (int i = 0; i < TOGETHER; ++i)
                at_rows<1, ORDER>(places, start + i, carried[start + i], [&](int, double row, const double *s) {
                    for (int k = 0; k <= ORDER; ++k) terms[k][i] = rounded(row * s[k], shift);
                });
            for (int i = 0; i < size; ++i) {
                ahead(start + i);
                for (int k = 0; k <= ORDER; ++k) sums[places.first[start + i] + k] += terms[k][i];
            }
        } else {
            double rows[ROWS<DIMS, ORDER>][TOGETHER];
            alignas(32) double last[TOGETHER][LAST] = {};
            for (int i = 0; i < TOGETHER; ++i)
                at_rows<DIMS, ORDER>(places, start + i, carried[start + i],
                                     [&](int row, double part, const double *) { rows[row][i] = part; });
            for (int i = 0; i < TOGETHER; ++i) {
                double s[TOUCHED];
                shape<ORDER>(places.offset[DIMS - 1][start + i], s);
                for (int k = 0; k <= ORDER; ++k) last[i][k] = s[k];
            }
            for (int i = 0; i < size; ++i) {
                ahead(start + i);
                double *corner = sums + places.first[start + i];
                for (int row = 0; row < ROWS<DIMS, ORDER>; ++row)
                    add_row<ORDER>(rows[row][i], last[i], shift, corner + row_start<DIMS, ORDER>(mesh, row));
            }
        }
    }
}

// Adds the products of the shape functions at every pair of nodes that a particle touches, at the first node of the
// pair: sums [distances][nodes].
template <int DIMS, int ORDER>
static void scatter_pairs(Geometry<DIMS> mesh, const Places<DIMS> &places, const double *carried, int count,
                          long long nodes, double shift, double *sums) {
    constexpr int TOUCHED = ORDER + 1, REACH = 2 * ORDER + 1;
    constexpr int CORNERS = DIMS == 1 ? TOUCHED : DIMS == 2 ? TOUCHED * TOUCHED : TOUCHED * TOUCHED * TOUCHED;
    int node[CORNERS] = {}, place[CORNERS] = {};  // on the padded mesh; among all distances from the first corner
    for (int corner = 0; corner < CORNERS; ++corner) {
        int rest = corner, power = 1;
        for (int axis = DIMS - 1; axis >= 0; --axis, rest /= TOUCHED, power *= REACH) {
            node[corner] += rest % TOUCHED * mesh.stride[axis];
            place[corner] += rest % TOUCHED * power;
        }
    }
    for (int i = 0; i < count; ++i) {
        double s[DIMS][TOUCHED], product[CORNERS];
        for (int axis = 0; axis < DIMS; ++axis) shape<ORDER>(places.offset[axis][i], s[axis]);
        for (int corner = 0; corner < CORNERS; ++corner) {
            product[corner] = 1;
            int rest = corner;
            for (int axis = DIMS - 1; axis >= 0; --axis, rest /= TOUCHED) product[corner] *= s[axis][rest % TOUCHED];
        }
        for (int one = 0; one < CORNERS; ++one) {
            double *at = sums + places.first[i] + node[one];
            for (int other = one; other < CORNERS; ++other)
                at[(place[other] - place[one]) * nodes] += rounded(carried[i] * product[one] * product[other], shift);
        }
    }
}

// Adds a row of the padded mesh to the row of the mesh of which it is an image.
static void fold_row(const double *padded, int cells, int size, double *row) {
    row[cells - 1] += padded[0];
    for (int node = 0; node < cells; ++node) row[node] += padded[node + 1];
    for (int ghost = cells + 1; ghost < size; ++ghost) row[(ghost - 1) % cells] += padded[ghost];
}

// Adds the padded meshes of the chunks, in their order, to the mesh.
template <int DIMS>
static void fold(const Mesh &mesh, const double *padded, long long chunks, long long stride, double *sums) {
    constexpr int LAST = DIMS - 1;
    int cells[3] = {1, 1, 1}, size[3] = {1, 1, 1};  // of the axes before the last one, right-aligned
    for (int axis = 0; axis < LAST; ++axis) {
        cells[3 - LAST + axis] = mesh.cells[axis];
        size[3 - LAST + axis] = mesh.cells[axis] + 1 + mesh.order;
    }
    const int row_cells = mesh.cells[LAST], row_size = row_cells + 1 + mesh.order;
    const long long nodes = static_cast<long long>(cells[1]) * cells[2] * row_cells;
    for (long long node = 0; node < nodes; ++node) sums[node] = 0;
    // a thread has whole rows, and adds the terms of a node in the same order for any division of rows among threads
#pragma omp parallel for schedule(static) if (nodes > 10000)
    for (int row = 0; row < cells[1] * cells[2]; ++row) {
        const int j = row / cells[2], k = row % cells[2];
        const int ghosts = LAST > 0, outer_ghosts = LAST > 1;
        for (int p = (j + outer_ghosts) % cells[1]; p < size[1]; p += cells[1])
            for (int q = (k + ghosts) % cells[2]; q < size[2]; q += cells[2])
                for (long long chunk = 0; chunk < chunks; ++chunk)
                    fold_row(padded + chunk * stride + (static_cast<long long>(p) * size[2] + q) * row_size,
                             row_cells, row_size, sums + static_cast<long long>(row) * row_cells);
    }
}

// The densities of the quantities, or with PAIRS the mass matrix of the only quantity.
template <class Real, int DIMS, int ORDER, bool PAIRS = false>
static long long deposit(const Mesh &mesh, const Particles &particles, double duration, void *moved,
                         const Carried &carried, long long chunks, double *workspace, double *densities) {
    const Geometry<DIMS> geometry(mesh);
    const Drift<Real, DIMS> drift(mesh.lengths, particles, duration, moved);
    const Real *x = static_cast<const Real *>(moved ? moved : particles.x);
    const long long count = particles.count, nodes = mesh.padded_nodes();
    const int rows = PAIRS ? distances(mesh) : carried.quantities;
    const long long stride = chunk_stride(rows * nodes);
    const double shift = shift_of(carried.unit), density = per_volume<DIMS>(mesh);
    long long lost = 0;
#pragma omp parallel for schedule(dynamic) reduction(+ : lost) if (chunks > 1)
    for (long long chunk = 0; chunk < chunks; ++chunk) {
        double *sums = workspace + chunk * stride;
        __builtin_memset(sums, 0, sizeof(double) * rows * nodes);
        Places<DIMS> places;
        double carry[BLOCK] = {};
        for (long long start = count * chunk / chunks, stop = count * (chunk + 1) / chunks; start < stop;) {
            const int size = stop - start < BLOCK ? static_cast<int>(stop - start) : BLOCK;
            if (moved) drift(start, size);
            lost += place<Real, DIMS, ORDER>(geometry, x + start * DIMS, size, places);
            for (int quantity = 0; quantity < carried.quantities; ++quantity) {
                const double *column =
                    carried.data + quantity * carried.quantity_stride + start * carried.particle_stride;
                for (int i = 0; i < size; ++i) carry[i] = column[i * carried.particle_stride] * density;
                if constexpr (PAIRS)
                    scatter_pairs<DIMS, ORDER>(geometry, places, carry, size, nodes, shift, sums);
                else
                    scatter<DIMS, ORDER>(geometry, places, carry, size, shift, sums + quantity * nodes,
                                         [&](int at) __attribute__((always_inline)) {
                        if (at % EVERY<Real, DIMS> == 0 && moved && quantity == 0) drift.fetch_for(start + BLOCK + at);
                    });
            }
            start += size;
        }
    }
    long long cells = 1;
    for (int axis = 0; axis < DIMS; ++axis) cells *= mesh.cells[axis];
    for (int row = 0; row < rows; ++row)
        fold<DIMS>(mesh, workspace + row * nodes, chunks, stride, densities + row * cells);
    return lost;
}

// Numbers of a node in the workspace of a gather. Three components are padded to four, so that a node is one vector.
template <int COMPONENTS>
constexpr int NUMBERS = COMPONENTS == 3 ? 4 : COMPONENTS;

// Copies the values [*cells, COMPONENTS of every `components`] to the padded mesh.
template <int DIMS, int COMPONENTS>
static void pad(const Mesh &mesh, const double *values, int components, double *padded) {
    int cells[3] = {1, 1, 1}, size[3] = {1, 1, 1};
    for (int axis = 0; axis < DIMS; ++axis) {
        cells[3 - DIMS + axis] = mesh.cells[axis];
        size[3 - DIMS + axis] = mesh.cells[axis] + 1 + mesh.order;
    }
    const long long nodes = mesh.padded_nodes();
#pragma omp parallel for schedule(static) if (nodes > 10000)
    for (int row = 0; row < size[0] * size[1]; ++row) {
        const int p = row / size[1], q = row % size[1];
        const int j = DIMS > 2 ? (p + cells[0] - 1) % cells[0] : 0, k = DIMS > 1 ? (q + cells[1] - 1) % cells[1] : 0;
        const double *from = values + (static_cast<long long>(j) * cells[1] + k) * cells[2] * components;
        double *to = padded + static_cast<long long>(row) * size[2] * NUMBERS<COMPONENTS>;
        const auto copy = [&](int r, int node) {
            for (int number = 0; number < NUMBERS<COMPONENTS>; ++number)
                to[r * NUMBERS<COMPONENTS> + number] = number < COMPONENTS ? from[node * components + number] : 0;
        };
        copy(0, cells[2] - 1);
        for (int node = 0; node < cells[2]; ++node) copy(node + 1, node);
        for (int r = cells[2] + 1; r < size[2]; ++r) copy(r, (r - 1) % cells[2]);
    }
}

// The gathered values at a particle: one number for each component.
template <int COMPONENTS>
struct Gathered {
    typedef double Sum, Anywhere;
};
template <>
struct Gathered<2> {
    typedef Pair Sum;
    typedef PairAnywhere Anywhere;
};
template <>
struct Gathered<3> {
    typedef Four Sum;
    typedef FourAnywhere Anywhere;
};

// Σ_j S(x_j − x_i) values_j for TOGETHER particles, from `start` on, of a cache block of `size` particles: [TOGETHER,
// COMPONENTS], with room for one number more. `ahead` prefetches data for the particles that follow.
template <int DIMS, int ORDER, int COMPONENTS, class Ahead>
static void gather_some(Geometry<DIMS> mesh, const Places<DIMS> &places, const double *values, int start, int size,
                        double *gathered, const Ahead &ahead) {
    typedef typename Gathered<COMPONENTS>::Sum Sum;
    constexpr int TOUCHED = ORDER + 1, CORNERS = ROWS<DIMS, ORDER> * TOUCHED, AHEAD = 8;
    double weights[CORNERS][TOGETHER];
    for (int i = 0; i < TOGETHER; ++i)
        at_rows<DIMS, ORDER>(places, start + i, 1, [&](int row, double factor, const double *s) {
            for (int k = 0; k < TOUCHED; ++k) weights[row * TOUCHED + k][i] = factor * s[k];
        });
    const auto corner_of = [&](int i) {
        return reinterpret_cast<const Sum *>(values + static_cast<long long>(places.first[i]) * NUMBERS<COMPONENTS>);
    };
    for (int i = 0; i < TOGETHER && start + i < size; ++i) {
        ahead(start + i);
        if constexpr (DIMS == 3) {  // a mesh that does not fit into the first-level cache
            const Sum *const corner = corner_of(start + i + AHEAD < size ? start + i + AHEAD : size - 1);
            for (int row = 0; row < ROWS<DIMS, ORDER>; ++row) {
                fetch(corner + row_start<DIMS, ORDER>(mesh, row));
                if (TOUCHED > 2) fetch(corner + row_start<DIMS, ORDER>(mesh, row) + TOUCHED - 1);
            }
        }
        const Sum *const corner = corner_of(start + i);
        Sum sum = {};
        for (int row = 0; row < ROWS<DIMS, ORDER>; ++row)
            for (int k = 0; k < TOUCHED; ++k)
                sum += weights[row * TOUCHED + k][i] * corner[row_start<DIMS, ORDER>(mesh, row) + k];
        // the first number of the next particle overwrites the padding
        *reinterpret_cast<typename Gathered<COMPONENTS>::Anywhere *>(gathered + i * COMPONENTS) = sum;
    }
}

template <class Real, int DIMS, int ORDER, int COMPONENTS>
static void gather(const Mesh &mesh, const Particles &particles, const double *values, int components, double duration,
                   double *workspace, void *gathered, void *kicked) {
    const Geometry<DIMS> geometry(mesh);
    pad<DIMS, COMPONENTS>(mesh, values, components, workspace);
    const Real *x = static_cast<const Real *>(particles.x), *v = static_cast<const Real *>(particles.v);
    const Real step = static_cast<Real>(duration);
    const int velocity_dims = particles.velocity_dims;
    const long long blocks = (particles.count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic, 32) if (blocks > 32)
    for (long long block = 0; block < blocks; ++block) {
        Places<DIMS> places;
        double at_particles[TOGETHER * COMPONENTS + 1];
        const long long rest = particles.count - block * BLOCK;
        const int size = rest < BLOCK ? static_cast<int>(rest) : BLOCK;
        place<Real, DIMS, ORDER>(geometry, x + block * BLOCK * DIMS, size, places);
        for (int first = 0; first < size; first += TOGETHER) {
            const long long start = block * BLOCK + first;
            const int some = size - first < TOGETHER ? size - first : TOGETHER;
            // always_inline, because GCC would drop the call, which has no result
            const auto ahead = [&](int at) __attribute__((always_inline)) {
                if (at % EVERY<Real, DIMS>) return;
                const long long next = block * BLOCK + at;
                fetch(x + (next + BLOCK) * DIMS);
                if (!kicked) return;
                fetch(v + (next + TOGETHER) * velocity_dims);
                fetch<true>(static_cast<Real *>(kicked) + (next + TOGETHER) * velocity_dims);
            };
            gather_some<DIMS, ORDER, COMPONENTS>(geometry, places, workspace, first, size, at_particles, ahead);
            if (kicked) {
                const Real *__restrict before = v + start * velocity_dims;
                Real *__restrict after = static_cast<Real *>(kicked) + start * velocity_dims;
                if (velocity_dims == COMPONENTS) {
                    for (int i = 0; i < some * COMPONENTS; ++i)
                        after[i] = advanced(before[i], step, static_cast<Real>(at_particles[i]));
                } else {
                    __builtin_memcpy(after, before, sizeof(Real) * some * velocity_dims);
                    for (int i = 0; i < some; ++i)
                        for (int component = 0; component < COMPONENTS; ++component) {
                            Real &velocity = after[i * velocity_dims + component];
                            velocity = advanced(velocity, step,
                                                static_cast<Real>(at_particles[i * COMPONENTS + component]));
                        }
                }
            } else {
                Real *out = static_cast<Real *>(gathered) + start * components;
                for (int i = 0; i < some; ++i)
                    for (int component = 0; component < COMPONENTS; ++component)
                        out[i * components + component] = static_cast<Real>(at_particles[i * COMPONENTS + component]);
            }
        }
    }
}

// A field has as many components as the mesh has axes. Other values are gathered one component after another.
template <class Real, int DIMS, int ORDER>
static void gather_all(const Mesh &mesh, const Particles &particles, const double *values, int components,
                       double duration, double *workspace, void *gathered, void *kicked) {
    if (components == DIMS)
        return gather<Real, DIMS, ORDER, DIMS>(mesh, particles, values, components, duration, workspace, gathered,
                                               kicked);
    for (int component = 0; component < components; ++component)
        gather<Real, DIMS, ORDER, 1>(mesh, particles, values + component, components, duration, workspace,
                                     static_cast<Real *>(gathered) + component, nullptr);
}

template <class Real, int DIMS>
static void drift_all(const double *lengths, const Particles &particles, double duration, void *moved) {
    const Drift<Real, DIMS> drift(lengths, particles, duration, moved);
    const long long blocks = (particles.count + BLOCK - 1) / BLOCK;
#pragma omp parallel for schedule(dynamic, 32) if (blocks > 32)
    for (long long block = 0; block < blocks; ++block) {
        const long long start = block * BLOCK, rest = particles.count - start;
        drift(start, rest < BLOCK ? static_cast<int>(rest) : BLOCK);
    }
}

// Calls what(real, dims, order), with these as constants.
template <class What>
static void with_constants(bool is_double, int dims, int order, const What &what) {
    const auto with_real = [&](auto real) {
        const auto with_dims = [&](auto dims) {
            order == 1 ? what(real, dims, Constant<1>()) : what(real, dims, Constant<2>());
        };
        if (dims == 1) with_dims(Constant<1>());
        if (dims == 2) with_dims(Constant<2>());
        if (dims == 3) with_dims(Constant<3>());
    };
    is_double ? with_real(double()) : with_real(float());
}

static void drift_any(const double *lengths, int dims, const Particles &particles, double duration, void *moved) {
    with_constants(particles.is_double, dims, 1, [&](auto real, auto dims, auto order) {
        if constexpr (order.value == 1)
            drift_all<decltype(real), dims.value>(lengths, particles, duration, moved);
    });
}

static long long deposit_any(const Mesh &mesh, const Particles &particles, double duration, void *moved,
                             const Carried &carried, long long chunks, double *workspace, double *densities) {
    long long lost = 0;
    with_constants(particles.is_double, mesh.dims, mesh.order, [&](auto real, auto dims, auto order) {
        lost = deposit<decltype(real), dims.value, order.value>(mesh, particles, duration, moved, carried, chunks,
                                                                workspace, densities);
    });
    return lost;
}

static long long mass_matrix_any(const Mesh &mesh, const Particles &particles, const Carried &carried,
                                 long long chunks, double *workspace, double *entries) {
    long long lost = 0;
    with_constants(particles.is_double, mesh.dims, mesh.order, [&](auto real, auto dims, auto order) {
        lost = deposit<decltype(real), dims.value, order.value, true>(mesh, particles, 0, nullptr, carried, chunks,
                                                                      workspace, entries);
    });
    return lost;
}

static void gather_any(const Mesh &mesh, const Particles &particles, const double *values, int components,
                       double duration, double *workspace, void *gathered, void *kicked) {
    with_constants(particles.is_double, mesh.dims, mesh.order, [&](auto real, auto dims, auto order) {
        gather_all<decltype(real), dims.value, order.value>(mesh, particles, values, components, duration, workspace,
                                                            gathered, kicked);
    });
}

const ParticleKernels particles = {&drift_any, &deposit_any, &mass_matrix_any, &gather_any};

}  // namespace kjko::KJKO_LEVEL
