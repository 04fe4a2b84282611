"""What can be seen of a GPU without one: structs that Python mirrors, what has a device, the choice of kernels."""

import ctypes
import re
import types

import numpy as np
import pytest
import torch
from test_native_objective import SPACES, STEP
from test_native_particles import GRIDS

from hpc_kjko import kernels
from hpc_kjko.errors import UserError
from hpc_kjko.inner.control import ControlField, smallest_eigenvalue
from hpc_kjko.inner.objective import DensityObjective, JKOObjective, linear_part, tracked_log_det
from hpc_kjko.inner.potential import PotentialField
from hpc_kjko.inner.solvers.least_squares import LeastSquares
from hpc_kjko.inner.solvers.potential_sums import PotentialSums
from hpc_kjko.kernels import cuda
from hpc_kjko.kernels import objective as fused
from hpc_kjko.kernels.cuda import network as cuda_network
from hpc_kjko.kernels.cuda import pairs as cuda_pairs
from hpc_kjko.kernels.cuda import particles as cuda_particles
from hpc_kjko.kernels.cuda import potential as cuda_potential
from hpc_kjko.operators import Bath
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import NODES, Beta
from hpc_kjko.particles.state import Particles, Shard, drifted, equal_weights, folds

needs_module = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


@needs_module
def test_python_mirrors_the_structs_of_the_kernels():
    """Every field by its place, and the size; of the launch and of the settings the names in their order."""
    layouts = kernels.require().struct_layouts()
    for module in (cuda_network, cuda_pairs, cuda_particles, cuda_potential):
        for name, mirror in vars(module).items():
            own = getattr(mirror, "__module__", None) == module.__name__
            if own and isinstance(mirror, type) and issubclass(mirror, ctypes.Structure):
                places = [getattr(mirror, field[0]).offset for field in mirror._fields_]
                assert [*places, ctypes.sizeof(mirror)] == layouts.pop(name.removeprefix("_")), name
    assert not layouts
    text = (cuda.FOLDER / "cuda" / "shape.hpp").read_text()
    assert tuple(re.findall(r"(\w+)[,;]", re.sub(r"//.*", "", text.split("struct Shape {")[1]))) == cuda.Shape._fields
    text = (cuda.FOLDER / "math" / "settings.hpp").read_text()
    fields = re.findall(r"^    \w+ (\w+);", text, re.MULTILINE)
    assert fields == [name for name, _ in cuda_network._Settings._fields_]


# -- a step, on a device that is not the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("logdet", ["exact", "linear"])
@pytest.mark.parametrize("space", ["1D1V", "3D3V unbounded"])
def test_an_inner_solve_stays_on_its_device(space, logdet):
    """On torch's meta device, which computes nothing but refuses to mix with the CPU."""
    meta, (periods, dx, dv) = torch.device("meta"), SPACES[space]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.zeros(2, device=meta) + torch.zeros(2)
    control = ControlField(periods, dx, dv, skip=True, device=meta)
    objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet=logdet)
    x, v, share = (torch.zeros(size, device=meta) for size in ((100, dx), (100, dv), (100,)))
    z = control.features(x, v)
    tangents = torch.zeros(100, dv, z.shape[1], device=meta)
    tangents[:, :dx] -= control.position_derivatives(x)
    for more in ((), (tangents,), (None, share)):
        objective(STEP, z, v, share, *more).backward()
    assert all(parameter.grad.device == meta for parameter in objective.parameters())
    g, along = control.basis(z)
    control.coefficients = torch.zeros(dv, g.shape[1])
    assert along.device == control.coefficients.device == meta
    u, jacobian = control.with_jacobian(z)
    smallest = smallest_eigenvalue(linear_part(jacobian, STEP))
    assert u.device == smallest.device == tracked_log_det(jacobian, STEP, logdet).device == meta


class OnMeta(LeastSquares):
    """Sums that say of what kind they are, instead of what they are."""

    def summed(self, function, samples):
        found = [function(*sample) for sample in samples][-1]
        assert all(part.device == torch.device("meta") for part in found)
        return [np.ones(tuple(part.shape)) for part in found]


@pytest.mark.parametrize("space", ["1D1V", "3D3V unbounded"])
def test_a_regression_stays_on_its_device(space, alone):
    """What it computes of particles in torch: the functions, their sums, the gradient of the fit, the field."""
    meta, (periods, dx, dv) = torch.device("meta"), SPACES[space]
    field = PotentialField(periods, dx, dv, hidden=(64, 64), device=meta)
    x, v = (torch.zeros(200, dims, device=meta) for dims in (dx, dv))
    share, wanted = (torch.zeros(200, dtype=torch.float64, device=meta) for _ in range(2))
    z, k = field.features(x, v), field.coefficients
    c = torch.zeros(1, field.of_density, dtype=torch.float64, device=meta)
    objective = DensityObjective(field, operator=Bath(1.0, 1.0), mass=1.0, lengths=periods, together=128)
    with torch.no_grad():
        value, gradient = objective.evaluate(0.0, z, wanted, share, c[0], with_gradient=True)
        found = [value, gradient, field.values(z, c), *field.slopes(z, k[None], bent=1), field.hidden(z)]
        sums = PotentialSums(field, OnMeta(alone, 128, meta))
        sums.normal([(z, wanted, share)])
        sums.derivatives([(z, share)])
        sums.of_velocity([(z, share)], np.zeros(len(k)))
    assert all(tensor.device == meta for tensor in found)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_particles_stay_on_their_device(grid):
    meta, shard, dims = torch.device("meta"), Shard(0, 100, 100), len(grid.cells)
    x, v, log_f = (torch.zeros(size, device=meta) for size in ((100, dims), (100, 3), (100,)))
    values = torch.zeros(*grid.cells, dims, dtype=torch.float64, device=meta)
    weight = equal_weights(1.0, shard, meta)
    particles = Particles(x, v, log_f, weight, shard, 1.0, grid.lengths)
    beta = Beta(np.ones_like(NODES), 1.0, 0.0)
    found = [drifted(x, v, 0.1, grid.lengths), grid.gather(values, x), grid.kick(values, x, v, 0.1)]
    found += [particles.drift(0.1).x, particles.shares(), folds(shard, meta), beta.weights(particles, slice(None))]
    assert all(tensor.device == meta for tensor in (*found, *beta.drag(particles, slice(None))))


# -- the choice, and the launch ----------------------------------------------------------------------------------------


class OnGPU:
    """As much of a tensor as the choice of a kernel looks at."""

    is_cuda, dtype, device = True, torch.float32, torch.device("cuda", 0)


def test_kernels_of_the_gpu_are_taken_where_they_can_be(monkeypatch):
    monkeypatch.delenv("KJKO_KERNELS", raising=False)
    for there in (False, True):
        monkeypatch.setattr(cuda, "available", lambda there=there: there)
        assert cuda.take(OnGPU()) is there and fused.fused((3, 32, 32, 1), OnGPU()) is there
        assert not fused.fused((3, 24, 24, 1), OnGPU()) and not fused.fused((3, 32, 1), OnGPU())
        assert not cuda.take(OnGPU(), torch.zeros(1))
    assert cuda.describe() == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("KJKO_KERNELS", "torch")
    assert not cuda.take(OnGPU()) and cuda.describe() == "torch, chosen by KJKO_KERNELS"
    monkeypatch.setattr(cuda, "available", lambda: False)
    assert "no CuPy: pip install" in cuda.describe()
    monkeypatch.setenv("KJKO_KERNELS", "native")
    with pytest.raises(ImportError, match="no CuPy.*install 'hpc_kjko\\[cuda13\\]'"):
        cuda.take(OnGPU())


@pytest.mark.parametrize(
    "visible, expected",
    [
        ([["a", "b"], ["a", "b"]], ["cuda:0", "cuda:1"]),  # each rank sees all of a node
        ([["a"], ["b"]], ["cuda:0", "cuda:0"]),  # the launcher shows each rank its own
        ([["a"], ["a"]], ["cpu", "cpu"]),
        ([["a"], []], ["cpu", "cpu"]),
    ],
    ids=str,
)
def test_every_rank_takes_a_gpu_of_its_own(visible, expected, monkeypatch):
    ranks, gathered = [Communicator() for _ in visible], []

    def select(rank, wanted="auto"):
        gpus = visible[rank]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda k: types.SimpleNamespace(uuid=gpus[k]))
        monkeypatch.setattr(torch.cuda, "set_device", lambda k: None)
        ranks[rank].local_rank = rank
        ranks[rank].select_device(wanted)
        return str(ranks[rank].device)

    for rank in (0, 1):  # what each has to say, then what it hears from all
        monkeypatch.setattr(ranks[rank], "allgather", lambda mine: gathered.append(mine) or [mine])
        select(rank)
        monkeypatch.setattr(ranks[rank], "allgather", lambda mine: gathered[:2])
    assert [select(0), select(1)] == expected
    if "cpu" in expected:
        with pytest.raises(UserError, match="rank 1 has none"):
            select(0, "cuda")
