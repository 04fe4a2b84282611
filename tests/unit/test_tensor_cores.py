"""Products on tensor cores: what lanes hold, how well TF32 is compensated, and the GPU's kernels with such products."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_cuda_compiles import assert_in_registers, compiled, needs_nvrtc
from test_cuda_network import assert_agrees, assert_field, assert_moments, evaluate, sum_moments, true_moments
from test_cuda_potential import Case, carried
from test_native_objective import folding, objective_of, particles_of

from hpc_kjko import kernels
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import potential as cuda_potential
from hpc_kjko.kernels.potential import Carry

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

#: Of every lane and each number that it holds: row and column, of a left matrix [16, 8], a right one [8, 8] and the
#: product [16, 8]. From the PTX ISA, "Matrix Fragments for mma.m16n8k8", .tf32 and .f64.
LANES = range(32)
LEFT = [[(lane // 4 + 8 * (a in (1, 3)), lane % 4 + 4 * (a in (2, 3))) for a in range(4)] for lane in LANES]
RIGHT = [[(lane % 4 + 4 * b, lane // 4) for b in range(2)] for lane in LANES]
PRODUCT = [[(lane // 4 + 8 * (c in (2, 3)), 2 * (lane % 4) + c % 2) for c in range(4)] for lane in LANES]


def held(matrix, places):
    """What lanes hold of a matrix."""
    return np.array([[matrix[place] for place in own] for own in places])


def tf32(x):
    """The nearest number with ten bits after the first."""
    bits = (x.astype(np.float32).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(float)


def random(rng, *shape):
    """Numbers of several sizes and both signs."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-3, 4, shape)).astype(np.float32)


@needs_module
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanes_hold_what_the_ptx_isa_says(dtype):
    """Whole numbers, which have no rounding errors."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-9, 10, shape).astype(dtype) for shape in ((16, 8), (8, 8), (16, 8)))
    sums = held(c, PRODUCT)
    kernels.require().tensor_multiply_add(held(a, LEFT), held(b, RIGHT), sums)
    assert np.array_equal(sums, held(c + a @ b, PRODUCT))


@needs_module
def test_an_instruction_has_the_errors_of_tf32():
    """It sees ten bits after the first of each number, and truncates what it adds: never rounds up."""
    rng = np.random.default_rng(1)
    multiply_add, nothing = kernels.require().tensor_multiply_add, np.zeros((32, 4), np.float32)
    a, b = random(rng, 16, 8), random(rng, 8, 8)
    exact, found = held(a.astype(float) @ b, PRODUCT), nothing.copy()
    multiply_add(held(a, LEFT), held(b, RIGHT), found)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 2e-4 < error < 2e-3
    a, b = np.abs(a), np.abs(b)
    a, b = (tf32(part).astype(np.float32) for part in (a, b))
    exact, found = held(a.astype(float) @ b, PRODUCT), nothing.copy()
    multiply_add(held(a, LEFT), held(b, RIGHT), found)
    assert np.all(found <= exact) and np.all(found > exact * (1 - 2.0**-20)) and np.any(found < exact * (1 - 2.0**-24))


@needs_module
def test_three_products_of_tf32_are_as_good_as_float32():
    """One is not. And errors do not grow with the number of products, as they would inside of a tensor core."""
    rng = np.random.default_rng(2)
    for k in (32, 64, 1024):
        for sign in (True, False):
            a, b = random(rng, 16, k), random(rng, k, 8)
            a, b = (a, b) if sign else (np.abs(a), np.abs(b))
            exact, found = a.astype(float) @ b, np.zeros((16, 8), np.float32)
            kernels.require().tensor_product(a, b, found)
            assert np.linalg.norm(found - exact) <= 4e-7 * np.linalg.norm(exact)
            if sign:
                assert np.linalg.norm(tf32(a) @ tf32(b) - exact) > 1e-4 * np.linalg.norm(exact)
    a, b = rng.standard_normal((16, 64)), rng.standard_normal((64, 8))
    found = np.zeros((16, 8))
    kernels.require().tensor_product(a, b, found)
    assert np.linalg.norm(found - a @ b) <= 1e-15 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.fixture
def tensor_cores():
    with cuda.on_tensor_cores():
        yield


@needs_module
def test_they_are_asked_for():
    def all_kernels():
        yield cuda_network.objective_kernel(32, True, 3, False)
        yield from cuda_network.moments_kernels(32, True, 3)
        yield from (cuda_potential.potential_kernel(f"potential_{name}", torch.float32, 64, 3) for name in POTENTIAL)

    assert not any(dict(kernel.constants).get("KJKO_TENSOR") for kernel in all_kernels())
    with cuda.on_tensor_cores():
        assert all(dict(kernel.constants)["KJKO_TENSOR"] == "true" for kernel in all_kernels())
        barrier = cuda_potential.potential_kernel("potential_barrier", torch.float32, 64, 3)
    assert "KJKO_TENSOR" not in dict(barrier.constants)


#: (space, width, activation, logdet)
NETWORKS = [
    ("1D1V", 16, "tanh", "exact"),
    ("1D1V unbounded", 32, "tanh", "exact"),
    ("2D2V", 32, "tanh", "exact"),
    ("3D3V", 32, "tanh", "exact"),
    ("1D2V", 32, "leaky_relu", "linear"),
    ("2D2V unbounded", 48, "tanh", "linear"),
    ("3D3V", 64, "tanh", "exact"),
]


@needs_module
@pytest.mark.parametrize("network", NETWORKS, ids=str)
def test_the_objective_on_tensor_cores(network, tensor_cores):
    """As accurate as it is without them, and of the same bits in any order of warps and lanes."""
    space, width, activation, logdet = network
    objective = objective_of(space, width=width, activation=activation, logdet=logdet, skip=width != 16)
    particles = particles_of(objective, 1100 if width == 32 else 300, known=True)
    assert_agrees(objective, particles)
    few = [None if part is None else part[:100] for part in particles]
    forwards, backwards = (evaluate(objective, few, backwards=backwards) for backwards in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(forwards, backwards, strict=True))


@needs_module
def test_the_continuation_of_the_logarithm_on_tensor_cores(tensor_cores):
    objective = folding(objective_of("2D2V", size=6.0))
    assert_agrees(objective, particles_of(objective, 500))


@needs_module
@pytest.mark.parametrize("space, width", [("1D1V", 16), ("2D2V unbounded", 32), ("3D3V", 32), ("3D3V", 64)])
def test_moments_on_tensor_cores(space, width, tensor_cores):
    objective = objective_of(space, width=width)
    particles = particles_of(objective, 300, known=True)
    assert_moments(sum_moments(objective, particles), true_moments(objective, particles))


@needs_module
@pytest.mark.parametrize("space, width, dtype", [("3D3V", 64, torch.float32), ("3D3V", 32, torch.float64)])
def test_the_field_on_tensor_cores(space, width, dtype, tensor_cores):
    objective = objective_of(space, width=width).to(dtype)
    z = particles_of(objective, 133)[0].to(dtype)
    parameters = [*objective.control.layers.parameters(), objective.control.skip]
    found = cuda_network.field(z, parameters, tanh=True)
    assert_field(objective, z, dtype, found)
    other = cuda_network.field(z[50:101], parameters, tanh=True, backwards=True)
    assert all(torch.equal(part, whole[50:101]) for part, whole in zip(other, found, strict=True))


POTENTIAL = ("values", "slopes", "carry", "normal", "tied", "missed", "training")
FUNCTIONS = [
    (True, 3, 3, 16, torch.float32),
    (False, 2, 2, 32, torch.float32),
    (False, 3, 3, 64, torch.float32),
    (True, 1, 1, 32, torch.float64),
    (True, 2, 2, 48, torch.float64),
    (True, 3, 3, 64, torch.float64),
]


@needs_module
@pytest.mark.parametrize("functions", FUNCTIONS, ids=str)
def test_a_potential_on_tensor_cores(functions, monkeypatch):
    """What threads make by themselves, to the precision of the network; the bits do not depend on the order."""
    monkeypatch.setenv("KJKO_KERNELS", "torch")

    def everything(**options):
        yield cuda_potential.values(case.of, case.z, higher, **options)
        yield from cuda_potential.slopes(case.of, case.z, case.k, 1, **options)
        yield cuda_potential.normal(*given, case.wanted, **options)
        yield cuda_potential.tied(*given, case.k[1], **options)
        yield cuda_potential.missed(*given, case.wanted, case.c[0], 1.0, **options)[0]
        yield from cuda_potential.training(*given, case.wanted, case.c[0], **options)
        yield from carried(case, x, v, how, True, **options)

    with torch.no_grad():
        case = Case(functions)
        dx, dv, generator = case.field.space_dims, case.field.velocity_dims, torch.Generator().manual_seed(7)
        x, v = (torch.randn(len(case.z), dims, generator=generator, dtype=case.dtype) for dims in (dx, dv))
        how = Carry(0.2, 0.2, 1.3, True, case.field.periods or (), (), 0.7)
        given, higher = (case.of, case.z, case.terms.pieces), torch.cat([case.c, case.c[:, : 2 * dv]], dim=1)
        wanted = list(everything())
        with cuda.on_tensor_cores():
            found = list(everything())
            again = list(everything(backwards=True)) if case.of.width < 64 else found  # slow to emulate
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
        changed = 0
        for one, other in zip(found, wanted, strict=True):
            case.near(one, other, 4)
            changed += not torch.equal(one, other)
        assert changed > 0
        exact = copy.deepcopy(case.exact).slopes(case.z.double(), case.k, 1)
        with cuda.on_tensor_cores():
            for one, other in zip(cuda_potential.slopes(case.of, case.z, case.k, 1), exact, strict=True):
                case.near(one, other)


# -- the text, for GPUs ------------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, width, dims, closed, most",
    [("sm_80", 32, 1, False, 128), ("sm_90", 32, 3, False, 128), ("sm_90", 32, 3, True, 168)],
)
def test_the_objective_compiles_for_tensor_cores(arch, width, dims, closed, most, tensor_cores):
    log, code = compiled(cuda_network.objective_kernel(width, True, dims, closed), arch)
    assert_in_registers(log, most, 80)
    assert b"shape" in code


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, name, dtype, most, spilt",
    [
        ("sm_80", "carry", torch.float64, 128, 200),
        ("sm_90", "carry", torch.float64, 128, 0),
        ("sm_90", "tied", torch.float32, 255, 0),
        ("sm_80", "training", torch.float32, 128, 120),
    ],
)
def test_the_potential_compiles_for_tensor_cores(arch, name, dtype, most, spilt, tensor_cores):
    log, code = compiled(cuda_potential.potential_kernel(f"potential_{name}", dtype, 64, 3), arch)
    assert_in_registers(log, most, spilt)
    assert b"shape" in code


@needs_module
def test_shared_memory_for_tensor_cores_is_no_more(tensor_cores):
    """Two blocks of threads of the default's step in double precision still fit into the 228 KB of an H100."""
    for dtype, width, dv in ((torch.float32, 64, 3), (torch.float64, 64, 3), (torch.float64, 48, 2)):
        for name in POTENTIAL:
            shape = cuda_potential.potential_kernel(f"potential_{name}", dtype, width, dv).shape(torch.device("cpu"))
            assert shape.shared_bytes <= cuda_potential.MOST_SHARED
    shape = cuda_potential.potential_kernel("potential_carry", torch.float64, 64, 3).shape(torch.device("cpu"))
    assert 2 * (shape.shared_bytes + 1024) <= 228 * 1024
