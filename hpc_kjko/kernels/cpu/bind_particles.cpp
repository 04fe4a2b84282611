#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/bind.hpp"
#include "cpu/cpu.hpp"
#include "cpu/kernels.hpp"

namespace nb = nanobind;

namespace kjko {

using Rows = nb::ndarray<nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Columns = nb::ndarray<double, nb::ndim<2>, nb::device::cpu>;
using Values = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

static void require(bool holds, const char *what) {
    if (!holds) throw std::invalid_argument(what);
}

static bool is_double(const Rows &rows) {
    const bool is_single = rows.dtype() == nb::dtype<float>();
    require(is_single || rows.dtype() == nb::dtype<double>(), "particles must be float32 or float64");
    return !is_single;
}

static bool alike(const Rows &one, const Rows &other) {
    return one.shape(0) == other.shape(0) && one.dtype() == other.dtype();
}

static Mesh mesh_of(const std::vector<int> &cells, const std::vector<double> &lengths, int order) {
    const int dims = static_cast<int>(cells.size());
    require(dims >= 1 && dims <= 3 && lengths.size() == cells.size(), "a mesh has one to three axes");
    require(order == 1 || order == 2, "shape functions are of order 1 or 2");
    Mesh mesh{dims, order, {1, 1, 1}, {1, 1, 1}};
    for (int axis = 0; axis < dims; ++axis) {
        require(cells[axis] > 0 && lengths[axis] > 0, "an axis of a mesh has cells and a length");
        mesh.cells[axis] = cells[axis];
        mesh.lengths[axis] = lengths[axis];
    }
    require(mesh.padded_nodes() < 1LL << 31, "a mesh has less than 2^31 nodes");
    return mesh;
}

static long long nodes_of(const Mesh &mesh) {
    return static_cast<long long>(mesh.cells[0]) * mesh.cells[1] * mesh.cells[2];
}

static Particles particles_of(const Rows &x, const std::optional<Rows> &v, int dims) {
    require(static_cast<int>(x.shape(1)) == dims, "x has as many columns as the box has axes");
    Particles particles{is_double(x), static_cast<long long>(x.shape(0)), x.data(), nullptr, 0};
    if (v) {
        require(alike(x, *v), "v has the rows and the precision of x");
        require(static_cast<int>(v->shape(1)) >= dims && v->shape(1) <= 3, "v has dims to three columns");
        particles.v = v->data();
        particles.velocity_dims = static_cast<int>(v->shape(1));
    }
    return particles;
}

namespace {

// Memory for the meshes of a pass. Particles touch it everywhere, so it is on huge pages where Linux has them. It must
// come from the system, because memory from the heap stays on small pages. It is kept for the next pass, because the
// system clears new memory.
class MeshMemory {
   public:
    ~MeshMemory() { give_back(); }

    double *of(long long numbers) {
        const std::size_t wanted = (numbers * sizeof(double) + PAGE - 1) / PAGE * PAGE;
        if (wanted > size) {
            give_back();
            take(wanted);
        }
        return reinterpret_cast<double *>((reinterpret_cast<std::uintptr_t>(memory) + PAGE - 1) / PAGE * PAGE);
    }

   private:
    static constexpr std::size_t PAGE = std::size_t(1) << 21;
    void *memory = nullptr;
    std::size_t size = 0;

    void take(std::size_t wanted) {
#ifdef __linux__
        void *found = mmap(nullptr, wanted + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (found == MAP_FAILED) throw std::bad_alloc();
        madvise(found, wanted + PAGE, MADV_HUGEPAGE);  // only a hint
#else
        void *found = ::operator new(wanted + PAGE);
#endif
        memory = found;
        size = wanted;
    }

    void give_back() {
        if (!memory) return;
#ifdef __linux__
        munmap(memory, size + PAGE);
#else
        ::operator delete(memory);
#endif
        memory = nullptr;
        size = 0;
    }
};

thread_local MeshMemory mesh_memory;

}  // namespace

// Requests huge pages for rows that are about to be written. New memory then causes 512 times fewer page faults.
static void on_huge_pages(const Rows &rows) {
#ifdef __linux__
    constexpr std::uintptr_t page = std::uintptr_t(1) << 21;
    const std::uintptr_t start = reinterpret_cast<std::uintptr_t>(rows.data());
    const std::uintptr_t first = (start + page - 1) / page * page, last = (start + rows.nbytes()) / page * page;
    if (first < last) madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#else
    (void)rows;
#endif
}

static void drift(const std::vector<double> &lengths, const Rows &x, const Rows &v, double duration,
                  const Rows &moved) {
    const int dims = static_cast<int>(lengths.size());
    const Particles particles = particles_of(x, v, dims);
    require(alike(x, moved) && moved.shape(1) == x.shape(1), "moved is like x");
    on_huge_pages(moved);
    nb::gil_scoped_release release;
    kernels().particles.drift(lengths.data(), dims, particles, duration, moved.data());
}

static long long deposit(const std::vector<int> &cells, const std::vector<double> &lengths, int order, const Rows &x,
                         const Columns &quantities, double unit, const Values &densities, const std::optional<Rows> &v,
                         double duration, const std::optional<Rows> &moved) {
    const Mesh mesh = mesh_of(cells, lengths, order);
    const Particles particles = particles_of(x, v, mesh.dims);
    require(v.has_value() == moved.has_value(), "a drift needs v and moved");
    if (moved) {
        require(alike(x, *moved) && moved->shape(1) == x.shape(1), "moved is like x");
        on_huge_pages(*moved);
    }
    require(quantities.shape(1) == x.shape(0), "quantities [m, n] are of the n particles");
    require(densities.shape(0) == quantities.shape(0) &&
                static_cast<long long>(densities.shape(1)) == nodes_of(mesh),
            "densities are [m, nodes]");
    const Carried carried{quantities.data(), static_cast<int>(quantities.shape(0)), quantities.stride(0),
                          quantities.stride(1), unit};
    nb::gil_scoped_release release;
    const long long nodes = mesh.padded_nodes(), chunks = deposit_chunks(nodes, particles.count, unit, max_threads());
    return kernels().particles.deposit(mesh, particles, duration, moved ? moved->data() : nullptr, carried, chunks,
                                       mesh_memory.of(chunks * chunk_stride(carried.quantities * nodes)),
                                       densities.data());
}

static long long mass_matrix(const std::vector<int> &cells, const std::vector<double> &lengths, int order,
                             const Rows &x, const Columns &weight, double unit, const Values &entries) {
    const Mesh mesh = mesh_of(cells, lengths, order);
    const Particles particles = particles_of(x, std::nullopt, mesh.dims);
    const int rows = distances(mesh);
    require(weight.shape(0) == 1 && weight.shape(1) == x.shape(0), "the weights [1, n] are of the n particles");
    require(static_cast<int>(entries.shape(0)) == rows && static_cast<long long>(entries.shape(1)) == nodes_of(mesh),
            "entries are [distances, nodes]");
    const Carried carried{weight.data(), 1, weight.stride(0), weight.stride(1), unit};
    nb::gil_scoped_release release;
    const long long size = rows * mesh.padded_nodes();
    const long long chunks = deposit_chunks(size, particles.count, unit, max_threads());
    return kernels().particles.mass_matrix(mesh, particles, carried, chunks, mesh_memory.of(chunks * chunk_stride(size)),
                                           entries.data());
}

static void gather(const std::vector<int> &cells, const std::vector<double> &lengths, int order, const Rows &x,
                   const Values &values, const std::optional<Rows> &v, double duration, const Rows &result) {
    const Mesh mesh = mesh_of(cells, lengths, order);
    const Particles particles = particles_of(x, v, mesh.dims);
    const int components = static_cast<int>(values.shape(1));
    require(static_cast<long long>(values.shape(0)) == nodes_of(mesh), "values are [nodes, m]");
    require(alike(x, result) && result.shape(1) == (v ? v->shape(1) : values.shape(1)), "the result is [n, m]");
    require(!v || components == mesh.dims, "a kick has one component for each axis");
    on_huge_pages(result);
    nb::gil_scoped_release release;
    double *padded = mesh_memory.of(gather_numbers(components) * mesh.padded_nodes());
    kernels().particles.gather(mesh, particles, values.data(), components, duration, padded,
                               v ? nullptr : result.data(), v ? result.data() : nullptr);
}

void bind_particles(nb::module_ &m) {
    m.def("drift", &drift, nb::arg("lengths"), nb::arg("x"), nb::arg("v"), nb::arg("duration"), nb::arg("moved"),
          "moved = x + duration v, wrapped into the box.");
    m.def("deposit", &deposit, nb::arg("cells"), nb::arg("lengths"), nb::arg("order"), nb::arg("x"),
          nb::arg("quantities"), nb::arg("unit"), nb::arg("densities"), nb::arg("v") = nb::none(),
          nb::arg("duration") = 0.0, nb::arg("moved") = nb::none(),
          "Densities [m, nodes] of quantities [m, n], after a drift to `moved` if it is given. Terms are rounded to "
          "`unit`. Returns the number of particles with x not finite.");
    m.def("mass_matrix", &mass_matrix, nb::arg("cells"), nb::arg("lengths"), nb::arg("order"), nb::arg("x"),
          nb::arg("weight"), nb::arg("unit"), nb::arg("entries"),
          "Entries [distances, nodes] of the mass matrix; returns the number of particles with x not finite.");
    m.def("gather", &gather, nb::arg("cells"), nb::arg("lengths"), nb::arg("order"), nb::arg("x"), nb::arg("values"),
          nb::arg("v").none(), nb::arg("duration"), nb::arg("result"),
          "Values [nodes, m] at the particles; with v, the velocities after a kick of `duration` instead.");
}

}  // namespace kjko
