"""Functions that are linear in coefficients on a GPU. For tests the same source text runs on the CPU.

The source texts are cuda/potential.hpp and cuda/potential_sums.hpp. The particles are summed in pieces, and the sum of
each piece is rounded before it is added. So the bits depend neither on the number of thread blocks nor on the ranks.
They differ from those of the CPU kernels.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from hpc_kjko.kernels.constants import MOST_VELOCITY_DIMS, WIDTHS
from hpc_kjko.kernels.cuda import Kernel, name_of, pointer, shared_memory
from hpc_kjko.kernels.cuda.network import _blocks, _kernel, _Network

#: Columns of the sums of a step; ``CARRY_COLUMNS`` of math/carry_step.hpp.
CARRY_COLUMNS = 17
#: The largest size of a piece in sums over few particles. More pieces keep more of a GPU busy.
FEW = 256
#: The largest shared memory that a thread block needs. All NVIDIA data-centre GPUs since the A100 have more.
MOST_SHARED = 160 * 1024
#: The number of threads at a time of a multiprocessor for which kernels leave registers, if it is not 512. Sums of
#: products in double precision need most of the registers.
RESIDENT = {"potential_normal": 256, "potential_derivatives": 256, "potential_barrier": 256, "potential_tied": 256}


class _CarryStep(ctypes.Structure):
    """``CarryStep`` of math/carry_step.hpp."""

    _fields_ = [
        *((name, ctypes.c_double) for name in ("step", "fitted", "temperature")),
        ("exact", ctypes.c_bool),
        ("periods", ctypes.c_double * MOST_VELOCITY_DIMS),
        ("wave", ctypes.c_bool),
        *((name, ctypes.c_double * MOST_VELOCITY_DIMS) for name in ("wave_vector", "direction")),
        ("strength", ctypes.c_double),
    ]


class _MovedParticles(ctypes.Structure):
    """``MovedParticles`` of math/carry_step.hpp."""

    _fields_ = [
        ("is_double", ctypes.c_bool),
        ("space_dims", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("x", "v", "moved")),
    ]


class _PotentialCall(ctypes.Structure):
    """``DevicePotentialCall`` of cuda/potential.hpp."""

    _fields_ = [
        ("network", _Network),
        ("periodic", ctypes.c_bool),
        *((name, ctypes.c_int) for name in ("sets", "bent")),
        ("count", ctypes.c_longlong),
        *((name, ctypes.c_void_p) for name in ("z", "coefficients", "share")),
        ("pieces", ctypes.c_longlong),
        ("edges", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("unit", "finer")),
        ("wanted", ctypes.c_void_p),
        ("step", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("sums", "values", "gradients", "hessians")),
        ("how", _CarryStep),
        ("particles", _MovedParticles),
        *((name, ctypes.c_void_p) for name in ("log_det", "change", "disagreement", "smallest")),
    ]


class Pieces(NamedTuple):
    """How the sums over some particles are rounded.

    Attributes:
        share: of each particle [n], float64.
        samples: number of particles of each sample; samples are stored one after the other.
        together: the largest size of a piece: particles of a sample that are added before their sum is rounded to
            ``unit``.
        unit: 0 for no rounding.
        finer: the fraction of the unit to which the remainder is rounded.
    """

    share: torch.Tensor
    samples: tuple[int, ...]
    together: int
    unit: float
    finer: float = 0.0

    def edges(self, device: torch.device, most: int | None = None) -> torch.Tensor:
        """Where the pieces begin, and where the last one ends [pieces + 1].

        Args:
            most: the largest size of a piece, if it is less than ``together``.
        """
        return _edges(self.samples, min(self.together, most or self.together), device)


class Functions(NamedTuple):
    """Two hidden layers of the same width: weights and biases, contiguous.

    Attributes:
        velocity_dims: number of inputs that are velocities; they are the last ones.
        periodic: whether positions enter as cosines and sines of a box.
    """

    w1: torch.Tensor
    b1: torch.Tensor
    w2: torch.Tensor
    b2: torch.Tensor
    velocity_dims: int
    periodic: bool

    @property
    def width(self) -> int:
        return len(self.b1)

    @property
    def shared(self) -> int:
        """The number of functions of ψ that depend on v."""
        dv, beside = self.velocity_dims, self.w1.shape[1] - self.velocity_dims
        return self.width + dv + dv * (dv + 1) // 2 + dv * beside + (beside if self.periodic else 0)

    @property
    def of_density(self) -> int:
        """The number of functions of ψ."""
        beside = self.w1.shape[1] - self.velocity_dims
        return self.shared + beside + (0 if self.periodic else beside * (beside + 1) // 2) + 1

    @property
    def of_potential(self) -> int:
        """The number of functions of Φ."""
        return self.shared + 2 * self.velocity_dims

    def call(self, count: int) -> _PotentialCall:
        """The arguments for ``count`` particles."""
        w1, b1, w2, b2 = self[:4]
        network = _Network(
            w1.shape[1], self.width, self.velocity_dims, 0, *map(pointer, (w1, b1, w2, b2)), None, None, None
        )
        return _PotentialCall(network, self.periodic, 1, 0, count)

    def kernel(self, name: str) -> Kernel:
        """The kernel of this name, for these functions."""
        return potential_kernel(name, self.w1.dtype, self.width, self.velocity_dims)


def has_functions(widths: Sequence[int], inputs: int, velocity_dims: int) -> bool:
    """Whether there are kernels for hidden layers of these widths and for this number of inputs."""
    return len(widths) == 2 and widths[0] == widths[1] and widths[0] in WIDTHS and inputs <= 3 * velocity_dims


def fit_on(device: torch.device) -> bool:
    """Whether a GPU has the shared memory that the kernels need."""
    return device.type != "cuda" or shared_memory(device) >= MOST_SHARED


def potential_kernel(name: str, dtype: torch.dtype, width: int, velocity_dims: int) -> Kernel:
    """A kernel of the functions with these hidden layers, in this precision."""
    resident = RESIDENT.get(name, 512)
    more = {"KJKO_REAL": name_of(dtype), "KJKO_KERNEL": name}
    return _kernel("cuda/potential.cu", name, resident, width, True, velocity_dims, **more)


def values(of: Functions, z: torch.Tensor, coefficients: torch.Tensor, *, backwards: bool = False) -> torch.Tensor:
    """The result of :meth:`hpc_kjko.kernels.potential.Network.values`, on the device; at most two sets at a time.

    Args:
        backwards: as for :meth:`hpc_kjko.kernels.cuda.Kernel.launch`.
    """
    found = torch.empty(len(coefficients), len(z), dtype=torch.float64, device=z.device)
    z = z.contiguous()
    for first in range(0, len(coefficients), 2):
        some, c = found[first : first + 2], coefficients[first : first + 2].double().contiguous()
        call = of.call(len(z))
        call.sets, call.z, call.coefficients, call.values = len(c), pointer(z), pointer(c), pointer(some)
        _launch_tiles(of.kernel("potential_values"), call, z, backwards)
    return found


def slopes(
    of: Functions, z: torch.Tensor, coefficients: torch.Tensor, bent: int, *, backwards: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of :meth:`hpc_kjko.kernels.potential.Network.slopes`; ``backwards`` as for :func:`values`."""
    dv, sets = of.velocity_dims, len(coefficients)
    z = z.contiguous()
    gradients, hessians = z.new_empty(sets, len(z), dv), z.new_empty(bent, len(z), dv, dv)
    for first in range(0, sets, 2):
        c = coefficients[first : first + 2].double().contiguous()
        call = of.call(len(z))
        call.sets, call.bent = len(c), min(max(bent - first, 0), len(c))
        call.z, call.coefficients = pointer(z), pointer(c)
        call.gradients, call.hessians = pointer(gradients[first:]), pointer(hessians[first:])
        _launch_tiles(of.kernel("potential_slopes"), call, z, backwards)
    return gradients, hessians


def _launch_tiles(kernel: Kernel, call: _PotentialCall, z: torch.Tensor, backwards: bool) -> None:
    if not len(z):
        return
    tiles = -(-len(z) // kernel.shape(z.device).tile)
    kernel.launch(_blocks(kernel, tiles, z.device), call, z.device, backwards=backwards)


def normal(
    of: Functions, z: torch.Tensor, pieces: Pieces, wanted: torch.Tensor, *, backwards: bool = False
) -> torch.Tensor:
    """Sums of :meth:`hpc_kjko.kernels.potential.Network.normal`, on the device."""
    number, wanted = of.of_density, wanted.contiguous()
    return _summed("potential_normal", of, z, pieces, number * (number + 1), backwards, few=True, wanted=wanted)


def missed(
    of: Functions,
    z: torch.Tensor,
    pieces: Pieces,
    wanted: torch.Tensor,
    c: torch.Tensor,
    limit: float,
    *,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of :meth:`hpc_kjko.kernels.potential.Network.missed`, on the device."""
    found = torch.empty(len(z), dtype=torch.float64, device=z.device)
    given = {"coefficients": c.contiguous(), "wanted": wanted.contiguous(), "values": found}
    return found, _summed("potential_missed", of, z, pieces, 2, backwards, few=True, step=limit, **given)


def derivatives(of: Functions, z: torch.Tensor, pieces: Pieces, *, backwards: bool = False) -> torch.Tensor:
    """Sums of :meth:`hpc_kjko.kernels.potential.Network.derivatives`, on the device."""
    number = of.of_potential
    return _summed("potential_derivatives", of, z, pieces, 2 * number**2 + number + 1, backwards, few=True)


def barrier(
    of: Functions, z: torch.Tensor, pieces: Pieces, k: torch.Tensor, step: float, *, backwards: bool = False
) -> torch.Tensor:
    """Sums of :meth:`hpc_kjko.kernels.potential.Network.barrier`, on the device."""
    k = k.contiguous()
    size = of.of_potential + 2
    return _summed("potential_barrier", of, z, pieces, size, backwards, few=True, coefficients=k, step=step)


def tied(
    of: Functions, z: torch.Tensor, pieces: Pieces, coefficients: torch.Tensor, *, backwards: bool = False
) -> torch.Tensor:
    """Sums of :meth:`hpc_kjko.kernels.potential.Network.tied`, on the device."""
    dv, coefficients = of.velocity_dims, coefficients.contiguous()
    low, places = 3 * dv + dv * (dv + 1) // 2, (0 if of.periodic else z.shape[1] - dv) + dv + 1
    size = low * (low + 2) + 2 * low + 1 + places**2
    return _summed("potential_tied", of, z, pieces, size, backwards, coefficients=coefficients)


def training(
    of: Functions, z: torch.Tensor, pieces: Pieces, wanted: torch.Tensor, c: torch.Tensor, *, backwards: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The value and the gradient of :meth:`hpc_kjko.kernels.potential.Network.training`, on the device."""
    size = sum(part.numel() for part in of[:4])
    given = {"coefficients": c.contiguous(), "wanted": wanted.contiguous()}
    found = _summed("potential_training", of, z, pieces, size, backwards, few=True, **given)
    return found[size:].sum(), found[:size]


def carry(
    of: Functions,
    x: torch.Tensor,
    v: torch.Tensor,
    pieces: Pieces,
    coefficients: torch.Tensor,
    how: Sequence[Any],
    *,
    backwards: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result of :meth:`hpc_kjko.kernels.potential.Network.carry`, on the device.

    The sums are flat, the smallest eigenvalue is a scalar.

    Args:
        how: the fields of :class:`hpc_kjko.kernels.potential.Carry`.
    """
    step, fitted, temperature, exact, periods, wave, strength = how
    x, v, coefficients = x.contiguous(), v.contiguous(), coefficients.double().contiguous()
    moved = torch.empty_like(v)
    log_det, change, disagreement = torch.empty(3, len(v), dtype=torch.float64, device=v.device)
    length = math.hypot(*wave) if wave else 1.0
    given = _CarryStep(step, fitted, temperature, exact, _three(periods), bool(wave), _three(wave))
    given.direction, given.strength = _three([part / length for part in wave]), strength
    call = of.call(len(v))
    call.sets, call.bent, call.coefficients, call.how = 2, 1, pointer(coefficients), given
    call.particles = _MovedParticles(v.dtype == torch.float64, x.shape[1], pointer(x), pointer(v), pointer(moved))
    call.log_det, call.change, call.disagreement = map(pointer, (log_det, change, disagreement))
    kernel = of.kernel("potential_carry")
    smallest = torch.full((1,), math.inf, dtype=torch.float64, device=v.device)
    sums = torch.zeros(1, 2 * CARRY_COLUMNS, dtype=torch.float64, device=v.device)
    if len(v):
        kept = _pieces(call, pieces, pieces.together, v.device)
        blocks = _blocks(kernel, call.pieces, v.device)
        sums = torch.empty(blocks, 2 * CARRY_COLUMNS, dtype=torch.float64, device=v.device)
        smallest = torch.empty(blocks, kernel.shape(v.device).more_numbers, dtype=torch.float64, device=v.device)
        call.sums, call.smallest = pointer(sums), pointer(smallest)
        kernel.launch(blocks, call, v.device, backwards=backwards)
        del kept
    return moved, log_det, change, disagreement, sums.sum(0), smallest.amin()


def _three(numbers: Sequence[float]) -> ctypes.Array[ctypes.c_double]:
    return (ctypes.c_double * MOST_VELOCITY_DIMS)(*numbers)


def _summed(
    name: str,
    of: Functions,
    z: torch.Tensor,
    pieces: Pieces,
    size: int,
    backwards: bool,
    few: bool = False,
    **given: torch.Tensor | float,
) -> torch.Tensor:
    """The sums of a kernel over all thread blocks, and the numbers that follow the sums in the result of each thread
    block.

    Args:
        few: whether it is for few particles, where smaller pieces keep more of a GPU busy.
        given: further arguments of the kernel.
    """
    kernel, z = of.kernel(name), z.contiguous()
    call = of.call(len(z))
    call.z = pointer(z)
    for key, part in given.items():
        setattr(call, key, pointer(part) if isinstance(part, torch.Tensor) else part)
    shape = kernel.shape(z.device)
    size += shape.sum_numbers
    if not len(z):
        return torch.zeros(size, dtype=torch.float64, device=z.device)
    kept = _pieces(call, pieces, min(pieces.together, FEW) if few else pieces.together, z.device)
    blocks = _blocks(kernel, call.pieces, z.device)
    sums = torch.empty(blocks, size, dtype=torch.float64, device=z.device)
    call.sums = pointer(sums)
    kernel.launch(blocks, call, z.device, shape.groups, backwards)
    del kept
    return sums.sum(0)


def _pieces(call: _PotentialCall, pieces: Pieces, together: int, device: torch.device) -> list[torch.Tensor]:
    """Store the shares and the edges of pieces in the arguments. Returns the tensors that must be kept until the
    launch.
    """
    assert sum(pieces.samples) == call.count == len(pieces.share)
    share, edges = pieces.share.contiguous(), pieces.edges(device, together)
    call.share, call.edges, call.pieces = pointer(share), pointer(edges), len(edges) - 1
    call.unit, call.finer = pieces.unit, pieces.finer
    return [share, edges]


@functools.lru_cache(maxsize=64)
def _edges(samples: tuple[int, ...], together: int, device: torch.device) -> torch.Tensor:
    """Where the pieces of samples begin, and where the last one ends [pieces + 1]. Samples are stored one after the
    other.
    """
    edges: list[int] = []
    begin = 0
    for count in samples:
        edges += range(begin, begin + count, together)
        begin += count
    return torch.tensor([*edges, begin], dtype=torch.int64, device=device)
