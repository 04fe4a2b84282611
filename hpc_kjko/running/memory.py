"""The memory that a run needs, predicted from its case before anything is allocated, and whether it is available.

The numbers below count the arrays that exist at the same time at the memory peak of each part of a step. A test
compares their sum with the measured memory of runs (tests/unit/test_memory.py). If you add an array of particles, nodes
or parameters to a step, add it here too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from hpc_kjko.case.config import Case
from hpc_kjko.collisions.pairs import NUMBERS, PAIRS
from hpc_kjko.errors import UserError
from hpc_kjko.inner.potential import CACHED, FUSED, number_of_functions
from hpc_kjko.kernels import Backend, backend, has_network
from hpc_kjko.kernels import available as has_kernels
from hpc_kjko.kernels.constants import MOST_FIELD_WIDTH
from hpc_kjko.operators import OPERATORS
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.parallel.limits import Limit, memory_limits
from hpc_kjko.particles.exact import rows_together
from hpc_kjko.particles.state import FOLDS, ON_GPU, PASS, Shard, at_once

#: Memory of Python, torch, MPI and HDF5 after the start, for code and small buffers, in bytes.
LIBRARIES = 35e6
DOUBLE = 8


@dataclass(frozen=True)
class Part:
    """The memory that one part of a run needs on one rank.

    Attributes:
        name: a description for users.
        key: the key of the case with which it grows; "" if there is none.
        nbytes: peak memory in bytes.
        on_gpu: whether it is memory of the GPU of the rank.
    """

    name: str
    key: str
    nbytes: float
    on_gpu: bool = False


def parts_of(case: Case, rank: int, size: int, device: torch.device) -> list[Part]:
    """The parts of one rank out of ``size``, which computes on ``device``. The largest part comes first."""
    on_gpu = device.type == "cuda"
    here = len(Shard.of(case.particles.count, rank, size))
    sizes = _Sizes(case, device)
    found = [Part("libraries", "", LIBRARIES), Part("particles", "particles.count", here * sizes.particle, on_gpu)]
    if on_gpu:
        found.append(Part("particles on their way to files", "particles.count", here * sizes.state))
    rows = min(here, sizes.chunk)
    passed = min(here, PASS * ON_GPU) * 12 * DOUBLE if on_gpu else 0  # negligible on a CPU
    found.append(Part("chunks of particles", "method.chunk", rows * sizes.chunk_row + passed, on_gpu))
    if sizes.network:
        network = sizes.network + sizes.idle_networks + sizes.moments
        found.append(Part("network and its optimiser", "method.hidden", network, on_gpu))
        if on_gpu:
            found.append(Part("network's moments", "method.hidden", sizes.moments))
    if any(OPERATORS[name].sums_pairs for name in case.collision_operators):
        found.append(Part("pairs of particles", "", PAIRS * NUMBERS * DOUBLE + here * sizes.exchanged))
    if case.grid:
        nodes = math.prod(case.grid.cells)
        if walls := case.problem.walls:
            nodes = round(nodes / walls.part)  # the mesh of the whole torus
        found.append(Part("mesh and field", "grid.cells", nodes * DOUBLE * sizes.node(size)))
        if on_gpu:
            found.append(Part("mesh", "grid.cells", nodes * DOUBLE * sizes.node_on_gpu, on_gpu))
    if sizes.trajectory:
        found.append(Part("trajectories of velocity matching", "time.end", here * sizes.trajectory, on_gpu))
    return sorted(found, key=lambda part: -part.nbytes)


@dataclass(frozen=True)
class _Sizes:
    """Sizes on one rank: bytes per particle, per row of a chunk and for the network; numbers per node of the mesh."""

    case: Case
    device: torch.device

    # -- what the case says ------------------------------------------------------------------------------------

    @property
    def _dims(self) -> tuple[int, int]:
        return self.case.problem.space_dims, self.case.problem.velocity_dims

    @property
    def _real(self) -> int:
        return 4 if self.case.particles.precision == "float32" else 8

    @property
    def _trained(self) -> int:
        return 4 if self.case.method.precision == "float32" else 8

    @property
    def _matches(self) -> bool:
        return self.case.method.collision == "velocity_matching"

    @property
    def _has_control(self) -> bool:
        others = ("langevin", "binary", "none")
        return self.case.physics.collision_strength > 0 and self.case.method.collision not in others

    @property
    def _regresses(self) -> bool:
        return self._has_control and self.case.method.solver == "regression"

    @property
    def _folds(self) -> int:
        """Number of groups into which the particles of an inner solve are sorted; 1 if they are not sorted."""
        method = self.case.method
        return FOLDS - 2 * method.held_out if method.held_out or method.solver != "adam" else 1

    @property
    def _inputs(self) -> int:
        dx, dv = self._dims
        return self._matches + (2 if self.case.problem.periods else 1) * dx + dv

    @property
    def _widths(self) -> list[int]:
        return [self._inputs, *self.case.method.hidden, self._dims[1]]

    # -- particles ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> int:
        """Bytes per particle of x, v, log f, and of a weight if each particle has its own."""
        dx, dv = self._dims
        return (dx + dv + 1) * self._real + DOUBLE * (self.case.particles.weights == "density")

    @property
    def particle(self) -> int:
        """The state at the beginning of the step, and the arrays of the push or of the collisions, whichever is
        larger."""
        rehearsed = self.state if self._matches else 0
        # accelerations in an external field, before and after a drift
        accelerations = 2 * self._dims[0] * self._real if self.case.physics.field == "external" else 0
        return self.state + rehearsed + accelerations + max(self._push, self._collision)

    @property
    def _push(self) -> int:
        dx, dv = self._dims
        carried = DOUBLE * (2 * self.case.particles.control_variate + (self.case.particles.weights == "density"))
        if self.case.physics.field == "ampere":
            carried += 2 * DOUBLE * dx
        gyrated = dv * self._real if any(self.case.physics.magnetic_field) else 0  # mean velocities during a drift
        return (dx + 2 * dv) * self._real + gyrated + carried  # x and v of two stages

    @property
    def _has_local_moments(self) -> bool:
        return any(OPERATORS[name].frame == "local" for name in self.case.collision_operators)

    @property
    def _collision(self) -> int:
        """The pushed x and v, and the arrays of the collision step."""
        dx, dv = self._dims
        case, real = self.case, self._real
        pushed = (dx + dv) * real
        if case.physics.collision_strength == 0 or case.method.collision == "none":
            return pushed
        frame = 0
        if self._has_local_moments:
            frame = (3 * dv + 2) * real + DOUBLE * (dv + 2)  # rest frame, velocities in it, deposited moments
        moved = (dv + 1) * real
        if not self._has_control:
            return pushed + frame + moved
        row = self._trained * (self._inputs + 1)  # inputs of the network, and the weight
        order = DOUBLE * (self._folds > 1)
        if case.method.form != "split":
            row += self._trained * dv * (1 + self._inputs)  # velocities and tangents
        variate = 0
        if case.particles.control_variate:
            row += self._trained * (dv + 1)
            variate = DOUBLE * (dv + 1)
        copies = 2 if self._folds > 1 else 1  # unsorted, and sorted by folds
        held_out = 4 * DOUBLE * case.method.held_out
        row += 3 * DOUBLE * self._regresses  # log f, the target of ψ, and its residual
        return pushed + frame + order + max(copies * row + variate, moved + held_out) + 2 * DOUBLE

    @property
    def exchanged(self) -> int:
        """Rows that are exchanged with their collision blocks, with the score and its derivatives."""
        dv = self._dims[1]
        if self.case.method.collision == "binary":
            return 4 * DOUBLE * (dv + (dv + 2) * max(1, len(self.case.species)))
        sums = 4 * DOUBLE * (3 * dv + dv**2 + 1) + (dv + dv**2) * self._real
        if self.case.method.collision == "jko":  # D, V, ∂V/∂v at the start and at the end, u and its Jacobian
            others = max(0, len(self.case.species) - 1)  # each other species adds a D
            sums += DOUBLE * (4 * (2 * dv**2 + dv) + (8 + others) * dv**2 + 8 * dv)
        return sums

    @property
    def trajectory(self) -> float:
        """The inputs of the network at all times, on which velocity matching trains."""
        return self.case.time.steps * self._inputs * self._trained if self._matches and self._has_control else 0

    @property
    def chunk(self) -> int:
        """Number of particles in one pass."""
        chunk = self.case.method.chunk
        return at_once(min(chunk, FUSED if self._fused else CACHED) if self._regresses else chunk, self.device)

    @property
    def _fused(self) -> bool:
        """Whether there are kernels for the functions of a potential."""
        return self.device.type == "cpu" and backend() is Backend.NATIVE and max(self._widths) <= MOST_FIELD_WIDTH

    @property
    def chunk_row(self) -> int:
        """Bytes per particle in a pass over a chunk, in which the field is evaluated."""
        if not self._has_control:
            return 0
        dv, widths = self._dims[1], self.case.method.hidden
        in_torch = not has_kernels() or max(self._widths) > MOST_FIELD_WIDTH
        layers = sum(widths) * (2 + 2 * dv) if in_torch else 0
        if self._regresses:
            layers = 0 if self._fused else 2 * (2 * sum(widths) + self._features) * (1 + dv + self._pairs)
        solving = 0
        if not (has_kernels() and has_network(self._widths)) and not self.case.run.reproducible:
            solving = sum(widths) * (6 + 2 * dv) * self._trained
        return (self._inputs + 4 * dv * (dv + 1) + 12 + layers) * self._real + solving

    # -- network -----------------------------------------------------------------------------------------------

    @property
    def network(self) -> float:
        """Parameters, gradients, moments of Adam, and the copies that are kept to return to the best iterate."""
        if not self._has_control:
            return 0
        parameters = self._parameters
        together = self._folds if self.case.method.solver == "adam" else 1  # gradients that are summed
        return parameters * (10 * self._trained + self._real + DOUBLE * (7 + 2 * together)) + self._pieces

    @property
    def idle_networks(self) -> float:
        """Parameters, gradients and moments of Adam of the species that do not collide at the moment."""
        species = self.case.species.values()
        together = OPERATORS[self.case.physics.collision_operator].sums_pairs
        colliding = sum(together or one.collision_strength > 0 for one in species)
        return max(0, colliding - 1) * self._parameters * (4 * self._trained + DOUBLE) if self._has_control else 0

    @property
    def _parameters(self) -> int:
        """Number of parameters of a network."""
        return sum((m + 1) * n for m, n in zip(self._widths, self._widths[1:], strict=False))

    @property
    def _pieces(self) -> float:
        """Arrays for the particles that are summed at a time: in torch if there is no kernel, else a kernel's
        workspace."""
        case = self.case
        dv, together = self._dims[1], rows_together(case.particles.count)
        if self._regresses:
            numbers = self._features * (1 + dv + self._pairs) * DOUBLE  # bytes per particle, with the derivatives
            pairs = OPERATORS[case.physics.collision_operator].sums_pairs
            if self._fused and not (pairs and case.method.collision == "jko"):
                return 512 * numbers  # twice the number of particles that a kernel takes at a time
            if not case.run.reproducible:
                together = at_once(case.method.chunk, self.device)
            return 4 * max(at_once(CACHED, self.device), together) * numbers
        if not case.run.reproducible or (has_kernels() and has_network(self._widths)):
            return 0
        return together * (sum(case.method.hidden) * (6 + 2 * dv) * self._trained + self._features * dv * 4 * DOUBLE)

    @property
    def _pairs(self) -> int:
        """Number of different second derivatives."""
        dv = self._dims[1]
        return dv * (dv + 1) // 2

    @property
    def _features(self) -> int:
        """Number M of features in variable projection or regression; 0 with another solver."""
        method = self.case.method
        if method.solver == "adam" or not self._has_control:
            return 0
        dx, dv = self._dims
        if self._regresses:
            return number_of_functions(method.hidden[-1], dx, dv, self.case.problem.periods is not None)
        skipped = (dv if self.case.problem.periods else dx + dv) if method.skip or not method.hidden else 0
        return (method.hidden[-1] if method.hidden else self._inputs) + skipped + 1

    @property
    def moments(self) -> float:
        """The sums of variable projection for each fold, and the matrices of Newton's steps."""
        if self._regresses:
            free = 10 * (self._dims[1] * self._features) ** 2  # of a field whose components have different functions
            pairs = OPERATORS[self.case.physics.collision_operator].sums_pairs
            return DOUBLE * (12 * self._features**2 + free * (pairs and self.case.method.collision == "jko"))
        gram, hessian = self._features**2, (self._dims[1] * self._features) ** 2
        return DOUBLE * ((self._folds + 5) * (gram + hessian) + 10 * hessian)

    # -- mesh --------------------------------------------------------------------------------------------------

    def node(self, ranks: int) -> float:
        """Numbers per node: two fields, derivatives in Fourier space, the wave, and the arrays of a solve."""
        case, (dx, dv) = self.case, self._dims
        shared = float(ranks > 1)  # the sum over ranks needs its own array
        densities = max(1, len(case.species))
        fields = 2 * (2 + densities + dx) + (1 + 2 * dx) / 2 if case.physics.field != "external" else 0.0
        solve = 2 + (2 + 2 * dx) + shared if fields else 0.0
        if case.physics.field == "ampere":
            solve += 1 + 4 * dx + shared * dx
        if case.time.energy_conserving:
            reach = 2 * case.grid.shape_order + 1 if case.grid else 0
            distances = (reach**dx + 1) / 2  # for the nodes that one particle touches
            solve += 3 * distances + 3 * dx + shared * distances
        if case.grid and case.grid.solver == "distributed":
            solve += 2 * (1 + dx)
        moments = 0.0
        if self._has_local_moments:
            moments = (3.5 + shared) * (dv + 2)
        drawing = 5 * dx + 6 if case.particles.start == "grid" else 0
        return max(fields + solve + moments, drawing)

    @property
    def node_on_gpu(self) -> float:
        """Numbers per node on a GPU: the deposited density and the gathered field."""
        dx, dv = self._dims
        return 3 * (1 + dx) + (2 * (dv + 2) if self._has_local_moments else 0)


def state_bytes(case: Case) -> int:
    """Bytes per particle of x, v and log f, and of a weight if each particle has its own."""
    return _Sizes(case, torch.device("cpu")).state


# -- available memory ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """The memory that some ranks need from a memory that they share.

    Attributes:
        limit: the shared memory.
        ranks: number of ranks that share it.
        nbytes: bytes that they need in addition to what they hold.
        by_key: the same bytes, separated by the key with which they grow.
    """

    limit: Limit
    ranks: int
    nbytes: float
    by_key: dict[str, float]

    @property
    def fits(self) -> bool:
        return self.nbytes <= self.limit.free


def needs_of(case: Case, comm: Communicator, held: int = 0) -> list[Need]:
    """The needs of a run for each memory limit of its ranks, equal on every rank. Collective.

    Args:
        case: the case.
        comm: the ranks.
        held: bytes of the particles that a rank has already loaded.
    """
    parts = parts_of(case, comm.rank, comm.size, comm.device)
    limits = [(limit, False) for limit in memory_limits()]
    if comm.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(comm.device)
        limits.append((Limit(f"{comm.rank}:gpu", f"the GPU of rank {comm.rank}", free), True))
    mine = [
        (limit, [(part.key, part.nbytes) for part in parts if part.on_gpu == on_gpu], 0 if on_gpu else held)
        for limit, on_gpu in limits
    ]
    shared: dict[str, list[Any]] = defaultdict(list)
    for of_a_rank in comm.allgather(mine):
        for limit, needed, loaded in of_a_rank:
            shared[limit.scope].append((limit, needed, loaded))
    found = []
    for ranks in shared.values():
        by_key: dict[str, float] = defaultdict(float)
        for _, needed, loaded in ranks:
            for key, nbytes in needed:
                by_key[key] += nbytes
            by_key["particles.count"] -= loaded
        least = min((limit for limit, *_ in ranks), key=lambda limit: limit.free)
        found.append(Need(least, len(ranks), sum(by_key.values()), dict(by_key)))
    return found


def require(case: Case, comm: Communicator, held: int = 0) -> None:
    """Refuse a case that needs more memory than is available, before it is allocated. Collective.

    Args:
        case, comm, held: as in :func:`needs_of`.

    Raises:
        UserError: on every rank. The message names the key that takes most memory.
    """
    lacking = [need for need in needs_of(case, comm, held) if not need.fits]
    if lacking:
        worst = max(lacking, key=lambda need: need.nbytes / max(need.limit.free, 1))
        what = _what_takes_most(case, worst.by_key, worst.ranks)
        ranks = f" for {worst.ranks} ranks" if worst.ranks > 1 else ""
        raise UserError(
            f"this case needs about {amount(worst.nbytes)} of memory{ranks}, and {worst.limit.name} has "
            f"{amount(worst.limit.free)} free: {what}"
        )


def advice(case: Case, comm: Communicator) -> str:
    """Advice after memory has run out, from the memory that this rank was expected to need. Not collective."""
    by_key: dict[str, float] = defaultdict(float)
    for part in parts_of(case, comm.rank, comm.size, comm.device):
        if part.on_gpu == (comm.device.type == "cuda"):
            by_key[part.key] += part.nbytes
    what = _what_takes_most(case, by_key, comm.local_size)
    return f"not enough memory, a rank of this case needs about {amount(sum(by_key.values()))}: {what}"


def _what_takes_most(case: Case, by_key: dict[str, float], ranks: int) -> str:
    key = max((key for key in by_key if key), key=lambda key: by_key[key])
    section, _, name = key.partition(".")
    value = getattr(getattr(case, section), name)
    value = list(value) if isinstance(value, tuple) else value
    cure = "reduce it, or start fewer ranks on a node" if ranks > 1 else "reduce it"
    if key == "particles.count":
        cure = "reduce it, or use more nodes"
    elif key == "time.end":
        cure = "velocity matching keeps every step, so increase time.step, reduce particles.count, or use more nodes"
    return f"{key} = {value} takes {amount(by_key[key])} of that; {cure}"


def amount(nbytes: float) -> str:
    """A number of bytes as text: "1.5 GB"."""
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes / 1e3:.3g} kB"
