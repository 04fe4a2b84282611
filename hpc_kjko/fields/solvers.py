"""The field that acts on particles, and how it follows them: Poisson, Ampère, Ampère with exact energy, external."""

from __future__ import annotations

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import numpy as np
import scipy.fft
import torch

from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.fields.mesh import Grid, MassMatrix, SlabSpectrum, Spectrum
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.control_variate import ControlVariate
from hpc_kjko.particles.exact import UNIT
from hpc_kjko.particles.state import Particles, drifted, passes_over
from hpc_kjko.problems import Problem
from hpc_kjko.push.gyration import Gyration
from hpc_kjko.species import Plasma, Species, moved
from hpc_kjko.walls import Walls


@dataclass(frozen=True)
class MeshField:
    """A self-consistent field.

    Attributes:
        densities: n_a of each species [species, *cells].
        charge_density: Σ q_a n_a [*cells].
        potential: φ [*cells]; electric: E [*cells, dx].
        walls: of the box, if it has any: then the mesh is that of the torus, with images.
    """

    grid: Grid
    densities: np.ndarray
    charge_density: np.ndarray
    potential: np.ndarray
    electric: np.ndarray
    walls: Walls | None = field(default=None, kw_only=True)

    @property
    def energy(self) -> float:
        """Field energy ½ ∫ |E|² dx."""
        return 0.5 * float(np.sum(self.electric**2)) * self.node_volume

    @property
    def node_volume(self) -> float:
        """The volume inside that a node of the mesh stands for."""
        return self.grid.cell_volume * (self.walls.part if self.walls else 1.0)

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """E at x [n, dx]: [n, dx], the acceleration of a particle with q/m = 1."""
        return self.grid.gather(torch.from_numpy(self.electric).to(x.device), x)

    def kick(self, particles: Particles, duration: float) -> Particles:
        """v ← v + duration · E."""
        electric = torch.from_numpy(self.electric).to(particles.x.device)
        return replace(particles, v=self.grid.kick(electric, particles.x, particles.v, duration))


@dataclass(frozen=True)
class CoupledField(MeshField):
    """A field that particles change while it kicks them, with the mass matrix of their positions."""

    mass_matrix: MassMatrix


@dataclass(frozen=True)
class ExternalField:
    """The given potential of a problem."""

    problem: Problem
    energy: float = 0.0

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """−∇φ at the particles: [n, dx], by automatic differentiation of the potential.

        Raises:
            UserError: it is not finite at a particle, or cannot be had.
        """
        acceleration = torch.empty_like(x)
        for rows in passes_over(x):
            position = x[rows].detach().requires_grad_()
            with torch.enable_grad():
                potential = self.problem.potential(position).sum()
            if potential.requires_grad:
                try:
                    (gradient,) = torch.autograd.grad(potential, position)
                except RuntimeError as failure:
                    raise UserError(f"problem.potential: autograd finds no gradient ({failure})") from failure
                acceleration[rows] = -gradient
            else:
                acceleration[rows] = 0.0
            lost = torch.isfinite(x[rows]).all(1) & ~torch.isfinite(acceleration[rows]).all(1)
            if lost.any():
                where = ", ".join(f"{coordinate:.6g}" for coordinate in x[rows][lost][0].tolist())
                raise UserError(
                    f"problem.potential has no finite gradient at the particle at x = ({where}): give a potential that "
                    "is smooth and finite wherever particles go"
                )
        return acceleration

    def kick(self, particles: Particles, duration: float) -> Particles:
        """v ← v − duration · ∇φ."""
        return particles.kick(duration, self.acceleration(particles.x))


#: The kind of field of a solver.
F = TypeVar("F", MeshField, ExternalField)


class FieldSolver(ABC, Generic[F]):
    """What turns particles into the field that acts on them.

    Attributes:
        magnetic_field: a uniform B [3] in which particles drift, or None without one.
    """

    magnetic_field: tuple[float, ...] | None = None

    @abstractmethod
    def start(self, plasma: Plasma) -> F:
        """The field of these particles at t = 0. Collective."""

    @abstractmethod
    def drift(self, field: F, plasma: Plasma, duration: float) -> tuple[F, Plasma]:
        """The field and the particles once these have drifted for ``duration``. Collective."""

    def kick(self, field: F, plasma: Plasma, duration: float) -> tuple[F, Plasma]:
        """The field and the particles once it has acted on their velocities for ``duration``, at fixed x. Collective.

        Most fields depend on x alone and stay as they are: v ← v + duration · (q/m) a(x).
        """
        return field, moved(plasma, [field.kick(one.particles, duration * one.charge_to_mass) for one in plasma])

    def free_motion(self, species: Species, duration: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean velocities of a drift, and the velocities after it, [n, dv] each: the same without a magnetic field."""
        v = species.particles.v
        if self.magnetic_field is None or duration == 0:
            return v, v
        rate = [species.charge_to_mass * component for component in self.magnetic_field]
        if not any(component**2 for component in rate):  # neutral
            return v, v
        return Gyration.of(rate, duration, v.shape[1]).velocities(v)

    def drifted(self, species: Species, duration: float) -> Particles:
        """The particles of a species after a drift."""
        velocity, after = self.free_motion(species, duration)
        particles = species.particles
        return particles.arrived(drifted(particles.x, velocity, duration, particles.periods), after)

    def after_collision(self, field: F, before: Plasma, after: Plasma) -> tuple[F, float]:
        """The field once velocities and log f have changed, and by how much that changed its energy. Collective.

        Only with a control variate, whose weights depend on them, does either change.
        """
        return field, 0.0

    def state(self, field: F) -> dict[str, np.ndarray]:
        """What a checkpoint must hold of a field that the positions alone do not determine, alike on every rank."""
        return {}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> F:
        """The field of a run that goes on from :meth:`state`. Collective."""
        return self.start(plasma)


class PoissonSolver(FieldSolver[MeshField]):
    """−Δφ = ρ − ρ̄ on the periodic mesh, ρ = Σ q_a n_a, E = −∇φ, by FFT. A uniform background makes the box neutral.

    The densities of every rank are summed by one allreduce. With ``solver = "root"`` rank 0 solves and broadcasts E;
    with ``"replicated"`` every rank solves for itself, which saves the broadcast; with ``"distributed"`` each
    transforms a part of the mesh. The potential stays with the ranks that solved: elsewhere it is zero.

    Args:
        variate: takes noise from what the particles of the only species deposit; its weights change with v and log f.
        unit: what each particle adds to a density at a node is rounded to (:mod:`~hpc_kjko.particles.exact`); 0: not.
        walls: of the box, if it has any; ``grid`` is that of the torus then.
    """

    def __init__(
        self,
        grid: Grid,
        comm: Communicator,
        solver: Literal["root", "replicated", "distributed"] = "root",
        variate: ControlVariate | None = None,
        unit: float = UNIT,
        walls: Walls | None = None,
    ):
        self.grid, self.comm, self.solver, self.variate, self.unit = grid, comm, solver, variate, unit
        self.walls = walls
        self.spectrum: Spectrum | SlabSpectrum = SlabSpectrum(grid, comm) if solver == "distributed" else Spectrum(grid)

    def start(self, plasma: Plasma) -> MeshField:
        """The field of the particles of all ranks. Collective.

        Raises:
            SolverFailure: a position is not finite (on every rank).
        """
        return self.field_of(self.densities(plasma), plasma)

    def densities(self, plasma: Plasma) -> np.ndarray:
        """n_a [species, *cells] of the particles of all ranks. Collective."""
        local = [self.grid.deposit(one.particles.x, self.deposited(one)[None], self.unit_of(one)) for one in plasma]
        return self.summed(local, plasma)

    def unit_of(self, species: Species) -> float:
        """What each particle of a species adds to a node is rounded to: as fine for any mean density as for 1."""
        volume = math.prod(self.grid.lengths) * (self.walls.part if self.walls else 1.0)
        return self.unit * 2.0 ** round(math.log2(species.particles.total_weight / volume))

    def deposited(self, species: Species) -> torch.Tensor:
        """The weight that each particle deposits [n]. Collective."""
        return self.variate.masses(species.particles) if self.variate else species.particles.weight

    def summed(self, local: Sequence[torch.Tensor], plasma: Plasma) -> np.ndarray:
        """n_a [species, *cells] over all ranks, with what the control variate took: a constant, such that the total
        is that of the particles. Collective.

        Args:
            local: of each species what this rank has [1, *cells].
        """
        densities = self.comm.sum(torch.cat(list(local)).cpu().numpy())
        return self.restored(densities, plasma)

    def restored(self, densities: np.ndarray, plasma: Plasma) -> np.ndarray:
        """Densities [species, *cells] with the constant that a control variate took from each."""
        if not self.variate:
            return densities
        totals = [
            one.particles.total_weight / (density.size * self.grid.cell_volume) - density.mean()
            for one, density in zip(plasma, densities, strict=True)
        ]
        return np.stack([density + total for density, total in zip(densities, totals, strict=True)])

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[MeshField, Plasma]:
        if self.walls:
            reflected = moved(plasma, [self.drifted(one, duration) for one in plasma])
            return self.start(reflected), reflected
        arrived, local = [], []
        for one in plasma:
            particles = one.particles
            carried = self.deposited(one)[None]  # no drift changes it
            velocity, after = self.free_motion(one, duration)
            x, density = self.grid.drift(particles.x, velocity, duration, carried, self.unit_of(one))
            arrived.append(replace(particles, x=x, v=after))
            local.append(density)
        return self.field_of(self.summed(local, plasma), plasma), moved(plasma, arrived)

    def after_collision(self, field: MeshField, before: Plasma, after: Plasma) -> tuple[MeshField, float]:
        if not self.variate:
            return field, 0.0
        pushed = self.reweighted(field, before)
        collided = self.reweighted(pushed, after)
        return collided, collided.energy - pushed.energy

    def reweighted(self, field: MeshField, plasma: Plasma) -> MeshField:
        """The field of the same positions with the weights that the particles have now. Collective."""
        return self.start(plasma)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {"field/densities": field.densities} if self.variate else {}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> MeshField:
        if not self.variate:
            return self.start(plasma)
        return self.field_of(self.saved(arrays, "densities", (len(plasma), *self.grid.cells)), plasma)

    def saved(self, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of :meth:`state`.

        Raises:
            UserError: it is that of another mesh.
        """
        array = arrays[f"field/{name}"]
        if array.shape != shape:
            raise UserError(f"the checkpoint's field has the shape {array.shape}, the case {shape}")
        return array

    def field_of(self, densities: np.ndarray, plasma: Plasma) -> MeshField:
        """The field of densities [species, *cells], the same on every rank.

        Raises:
            SolverFailure: a density is not finite.
        """
        charge = charge_density(densities, plasma)
        _require_finite(charge)
        if self.walls:
            if self.walls.conducting:
                background = charge.sum() / (charge.size * self.walls.part)
                charge = self.walls.with_images(charge, -1.0) - background * self._uniform
            else:
                charge = self.walls.with_images(charge, 1.0)
            densities = self.walls.with_images(densities, 1.0)
        return MeshField(self.grid, densities, charge, *self.solve(charge), walls=self.walls)

    @functools.cached_property
    def _uniform(self) -> np.ndarray:
        """What a uniform density of 1 inside leaves on the nodes of the torus with images of the opposite sign."""
        assert self.walls is not None
        found = np.ones(self.grid.cells)
        at_wall = 3 / 4 if self.grid.shape_order == 1 else 2 / 3  # a node beside a wall sees images, by its shape
        for axis, (number, wall) in enumerate(zip(self.grid.cells, self.walls.axes, strict=True)):
            if wall:
                profile = np.ones(number // 2)
                profile[[0, -1]] = at_wall
                sides = np.concatenate([profile, -profile])
                found = found * sides.reshape([-1 if other == axis else 1 for other in range(len(self.grid.cells))])
        return found

    def solve(self, charge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """φ [*cells] and E [*cells, dx] of a charge density [*cells], the same on every rank."""
        if isinstance(self.spectrum, SlabSpectrum):
            return self.spectrum.solve(charge)
        potential, electric = np.zeros_like(charge), np.empty((*charge.shape, charge.ndim))
        if self.solver == "replicated" or self.comm.is_root:
            potential_hat = self.spectrum.inverse_laplacian * scipy.fft.rfftn(charge)
            potential = self.spectrum.back(potential_hat)
            for axis, gradient in enumerate(self.spectrum.gradient):
                electric[..., axis] = self.spectrum.back(-gradient * potential_hat)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return potential, electric


class AmpereSolver(PoissonSolver):
    """∂t E = −(J − mean J), J = Σ q_a ∫ v f_a dv: Vlasov-Ampère-Fokker-Planck (paper's eq. 13), E carried in time.

    A drift changes E by the current of the particles half way along it: second order in the step. In two and three
    dimensions E takes the curl-free part of J, Ê_t = −k (k·Ĵ)/|k|²: without it a curl would grow that the Poisson
    equation does not have. Gauss's law ∇·E = ρ − ρ̄ is then kept as well as the step and the mesh allow; see
    :meth:`gauss_residual`. No current goes with the noise that a control variate's weights take or bring as they
    change between drifts: E changes by the field of that change of density.

    Args:
        initial: E at t = 0: "poisson", which satisfies Gauss's law, or "zero".
    """

    spectrum: Spectrum

    def __init__(
        self,
        grid: Grid,
        comm: Communicator,
        solver: Literal["root", "replicated"] = "root",
        initial: Literal["poisson", "zero"] = "poisson",
        variate: ControlVariate | None = None,
        unit: float = UNIT,
    ):
        super().__init__(grid, comm, solver, variate, unit)
        self.initial = initial

    def start(self, plasma: Plasma) -> MeshField:
        field = super().start(plasma)
        if self.initial == "zero":
            nothing = np.zeros_like(field.electric)
            return replace(field, electric=nothing, potential=np.zeros_like(field.potential))
        return field

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[MeshField, Plasma]:
        if self.variate:
            field = self.reweighted(field, plasma)
        arrived, local = [], []
        for one in plasma:
            particles = one.particles
            carried, (velocity, after) = self.deposited(one), self.free_motion(one, duration)
            momentum = (carried[:, None] * velocity[:, : len(self.grid.cells)]).T
            unit = self.unit_of(one)
            _, flux = self.grid.drift(particles.x, velocity, 0.5 * duration, momentum, unit)
            x, deposit = self.grid.drift(particles.x, velocity, duration, carried[None], unit)
            arrived.append(replace(particles, x=x, v=after))
            local.append(torch.cat([deposit, flux]))
        summed = self.comm.sum(torch.stack(local).cpu().numpy())
        densities, current = self.restored(summed[:, 0], plasma), charge_density(summed[:, 1:], plasma)
        charge = charge_density(densities, plasma)
        _require_finite(charge)
        electric, potential = field.electric.copy(), np.zeros_like(charge)
        if self.solver == "replicated" or self.comm.is_root:
            electric -= duration * self.spectrum.curl_free(np.stack(list(current), axis=-1))
            potential = self.spectrum.potential_of(electric)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return MeshField(self.grid, densities, charge, potential, electric), moved(plasma, arrived)

    def gauss_residual(self, field: MeshField) -> float:
        """max |∇·E − (ρ − ρ̄)| over the mesh, in the spectral derivative."""
        divergence = self.spectrum.divergence(field.electric)
        return float(np.abs(divergence - self.spectrum.resolved(field.charge_density)).max())

    def reweighted(self, field: MeshField, plasma: Plasma) -> MeshField:
        densities = self.densities(plasma)
        change = self.field_of(densities - field.densities, plasma)
        potential, electric = field.potential + change.potential, field.electric + change.electric
        return MeshField(self.grid, densities, charge_density(densities, plasma), potential, electric)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {**super().state(field), "field/electric": field.electric}

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> MeshField:
        field = super().resume(plasma, arrays)
        electric = self.saved(arrays, "electric", field.electric.shape)
        return replace(field, electric=electric, potential=self.spectrum.potential_of(electric))


class ConservingAmpereSolver(AmpereSolver):
    """Ampère's law with kinetic + field energy exact to round-off, whatever the step: E changes in the kick.

    While x stays, particles and field are a linear oscillator: dv/dt = (q/m) E(x), dE/dt = −P J and therefore
    dJ/dt = M E, with P the projection on curl-free fields of zero mean and M the sum of all species' mass matrices,
    each times q²/m. A kick is its exact flow, which keeps kinetic + field energy because gather and deposit are
    adjoint; a drift changes neither E nor any speed. So every composition of the two conserves energy, and has the
    order that it has with other fields. Momentum is not exact: like Gauss's law (:meth:`gauss_residual`) it holds as
    well as step and mesh allow.

    The flow is summed as its Taylor series on the mesh. M is assembled once a drift, so all that the particles do in a
    kick is to deposit J and to gather the mean of E over the kick.

    The mass matrix is that of G. Lapenta's energy-conserving semi-implicit method, doi:10.1016/j.jcp.2017.01.002, which
    takes the implicit midpoint rule where the exact flow is taken here. L. F. Ricketson, J. Hu,
    doi:10.1016/j.jcp.2025.114098, conserve energy explicitly instead, by a correction of each particle's push.
    """

    def start(self, plasma: Plasma) -> CoupledField:
        return self._coupled(super().start(plasma), plasma)

    def resume(self, plasma: Plasma, arrays: dict[str, np.ndarray]) -> CoupledField:
        return self._coupled(super().resume(plasma, arrays), plasma)

    def drift(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[CoupledField, Plasma]:
        after = moved(plasma, [self.drifted(one, duration) for one in plasma])
        return self._coupled(field, after), after

    def kick(self, field: MeshField, plasma: Plasma, duration: float) -> tuple[CoupledField, Plasma]:
        assert isinstance(field, CoupledField)
        local = []
        for one in plasma:
            momentum = one.particles.weight[:, None] * one.particles.v[:, : len(self.grid.cells)]
            local.append(self.grid.deposit(one.particles.x, momentum.T, self.unit_of(one)))
        summed = self.comm.sum(torch.stack(local).cpu().numpy())
        current = np.moveaxis(charge_density(summed, plasma), 0, -1)
        flow, potential = np.empty((2, *field.electric.shape)), np.zeros_like(field.charge_density)
        if self.solver == "replicated" or self.comm.is_root:
            flow[:] = self._flow(field, current, duration)
            potential = self.spectrum.potential_of(flow[0])
        if self.solver == "root":
            self.comm.bcast_array(flow)
        electric, mean = flow
        _, kicked = super().kick(replace(field, electric=mean), plasma, duration)
        return replace(field, electric=electric, potential=potential), kicked

    def _coupled(self, field: MeshField, plasma: Plasma) -> CoupledField:
        """The same E, at other positions.

        Raises:
            SolverFailure: one of them is not finite (on every rank).
        """
        local = [self.grid.mass_matrix(one.particles.x, one.particles.weight, self.unit_of(one)) for one in plasma]
        entries = self.comm.sum(torch.stack(local).cpu().numpy())
        one_everywhere = np.ones((*self.grid.cells, 1))  # shape functions add up to one: row sums are the density
        densities = np.stack([(MassMatrix(self.grid, own) @ one_everywhere)[..., 0] for own in entries])
        charge = charge_density(densities, plasma)
        _require_finite(charge)
        response = sum(one.charge * one.charge_to_mass * own for one, own in zip(plasma, entries, strict=True))
        return CoupledField(
            self.grid, densities, charge, field.potential, field.electric, MassMatrix(self.grid, response)
        )

    def _flow(self, field: CoupledField, current: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """E after ``duration`` and its mean until then, [*cells, dx] each: dE/dt = −P J, dJ/dt = M E.

        M has no eigenvalue above its largest row sum, that of Σ q_a² n_a / m_a: term k is within (ω t)^k / k!, where
        ω² is that sum. In pieces of ω t ≤ 1 no term is larger than the state, and no digits are lost.
        """
        largest = float((field.mass_matrix @ np.ones((*self.grid.cells, 1))).max())
        angle = math.sqrt(largest) * abs(duration)
        pieces, electric = max(1, math.ceil(angle)), field.electric
        step, impulse = duration / pieces, np.zeros_like(electric)
        for _ in range(pieces):
            electric_term, current_term, mean, size = electric, current, electric, 1.0
            for k in itertools.count(1):
                electric_term, current_term = (
                    -step / k * self.spectrum.curl_free(current_term),
                    step / k * (field.mass_matrix @ electric_term),
                )
                electric, current = electric + electric_term, current + current_term
                mean = mean + electric_term / (k + 1)
                size *= angle / pieces / k
                if size < 2.0**-60:
                    break
            impulse += mean
        return electric, impulse / pieces


class ExternalSolver(FieldSolver[ExternalField]):
    """The problem's own potential, whatever the particles do."""

    def __init__(self, problem: Problem, comm: Communicator):
        self.problem, self.comm = problem, comm

    def start(self, plasma: Plasma) -> ExternalField:
        return ExternalField(self.problem)

    def drift(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        return field, moved(plasma, [self.drifted(one, duration) for one in plasma])

    def kick(self, field: ExternalField, plasma: Plasma, duration: float) -> tuple[ExternalField, Plasma]:
        with self.comm.together():  # a potential of the user's may fail on one rank only
            return super().kick(field, plasma, duration)


def charge_density(densities: np.ndarray, plasma: Plasma) -> np.ndarray:
    """Σ q_a n_a of densities, or of fluxes [species, ...]: [...]."""
    return np.add.reduce([one.charge * density for one, density in zip(plasma, densities, strict=True)])


def _require_finite(density: np.ndarray) -> None:
    if not np.isfinite(density).all():
        raise SolverFailure(
            "what the particles deposit is no longer finite, for a position, a velocity or log f is not: reduce "
            "time.step, or look at the last checkpoint"
        )
