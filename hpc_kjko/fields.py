"""The field that acts on particles, and how it follows them: Poisson, Ampère, Ampère with exact energy, external."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import scipy.fft
import torch

from hpc_kjko.comm import Communicator
from hpc_kjko.config import Case
from hpc_kjko.control_variate import ControlVariate
from hpc_kjko.errors import SolverFailure, UserError
from hpc_kjko.exact import UNIT
from hpc_kjko.mesh import Grid, MassMatrix, SlabSpectrum, Spectrum
from hpc_kjko.particles import Particles, passes_over
from hpc_kjko.problems import Problem


@dataclass(frozen=True)
class MeshField:
    """A self-consistent field: density, potential [*cells] and electric field [*cells, dx], and what acts on x."""

    grid: Grid
    density: np.ndarray
    potential: np.ndarray
    electric: np.ndarray

    @property
    def energy(self) -> float:
        """Field energy ½ ∫ |E|² dx."""
        return 0.5 * float(np.sum(self.electric**2)) * self.grid.cell_volume

    def acceleration(self, x: torch.Tensor) -> torch.Tensor:
        """E at the particles: [n, dx]."""
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
    """What turns particles into the field that acts on them."""

    @abstractmethod
    def start(self, particles: Particles) -> F:
        """The field of these particles at t = 0. Collective."""

    @abstractmethod
    def drift(self, field: F, particles: Particles, duration: float) -> tuple[F, Particles]:
        """The field and the particles once these have drifted for ``duration``. Collective."""

    def kick(self, field: F, particles: Particles, duration: float) -> tuple[F, Particles]:
        """The field and the particles once it has acted on their velocities for ``duration``, at fixed x. Collective.

        Most fields depend on x alone and stay as they are: v ← v + duration · a(x).
        """
        return field, field.kick(particles, duration)

    def after_collision(self, field: F, before: Particles, after: Particles) -> tuple[F, float]:
        """The field once velocities and log f have changed, and by how much that changed its energy. Collective.

        Only with a control variate, whose weights depend on them, does either change.
        """
        return field, 0.0

    def state(self, field: F) -> dict[str, np.ndarray]:
        """What a checkpoint must hold of a field that the positions alone do not determine, alike on every rank."""
        return {}

    def resume(self, particles: Particles, arrays: dict[str, np.ndarray]) -> F:
        """The field of a run that goes on from :meth:`state`. Collective."""
        return self.start(particles)


class PoissonSolver(FieldSolver[MeshField]):
    """−Δφ = n − n̄ on the periodic mesh, E = −∇φ, by FFT.

    The density of every rank is summed by an allreduce. With ``solver = "root"`` rank 0 solves and broadcasts E; with
    ``"replicated"`` every rank solves for itself, which saves the broadcast; with ``"distributed"`` each transforms a
    part of the mesh. The potential stays with the ranks that solved: elsewhere it is zero.

    Args:
        variate: takes noise from what the particles deposit; its weights change with v and log f.
        unit: what each particle adds to a density at a node is rounded to (:mod:`hpc_kjko.exact`); 0: not at all.
    """

    def __init__(
        self,
        grid: Grid,
        comm: Communicator,
        solver: Literal["root", "replicated", "distributed"] = "root",
        variate: ControlVariate | None = None,
        unit: float = UNIT,
    ):
        self.grid, self.comm, self.solver, self.variate, self.unit = grid, comm, solver, variate, unit
        self.spectrum: Spectrum | SlabSpectrum = SlabSpectrum(grid, comm) if solver == "distributed" else Spectrum(grid)

    def start(self, particles: Particles) -> MeshField:
        """The field of the particles of all ranks. Collective.

        Raises:
            SolverFailure: a position is not finite (on every rank).
        """
        return self.solve(self.density(particles))

    def density(self, particles: Particles) -> np.ndarray:
        """n [*cells] of the particles of all ranks. Collective."""
        local = self.grid.deposit(particles.x, self.deposited(particles)[None], self.unit)
        return self.whole(self.comm.sum(local.cpu().numpy())[0], particles.mass)

    def deposited(self, particles: Particles) -> torch.Tensor:
        """The mass that each particle deposits [n]. Collective."""
        return self.variate.masses(particles) if self.variate else particles.weight

    def whole(self, density: np.ndarray, mass: float) -> np.ndarray:
        """The density with what the control variate took: a constant, such that the mass is that of the particles."""
        if not self.variate:
            return density
        return density + (mass / (density.size * self.grid.cell_volume) - density.mean())

    def drift(self, field: MeshField, particles: Particles, duration: float) -> tuple[MeshField, Particles]:
        carried = self.deposited(particles)[None]  # no drift changes it
        x, local = self.grid.drift(particles.x, particles.v, duration, carried, self.unit)
        density = self.whole(self.comm.sum(local.cpu().numpy())[0], particles.mass)
        return self.solve(density), replace(particles, x=x)

    def after_collision(self, field: MeshField, before: Particles, after: Particles) -> tuple[MeshField, float]:
        if not self.variate:
            return field, 0.0
        pushed = self.reweighted(field, before)
        collided = self.reweighted(pushed, after)
        return collided, collided.energy - pushed.energy

    def reweighted(self, field: MeshField, particles: Particles) -> MeshField:
        """The field of the same positions with the weights that the particles have now. Collective."""
        return self.start(particles)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {"field/density": field.density} if self.variate else {}

    def resume(self, particles: Particles, arrays: dict[str, np.ndarray]) -> MeshField:
        return self.solve(self.saved(arrays, "density", self.grid.cells)) if self.variate else self.start(particles)

    def saved(self, arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of :meth:`state`.

        Raises:
            UserError: it is that of another mesh.
        """
        array = arrays[f"field/{name}"]
        if array.shape != shape:
            raise UserError(f"the checkpoint's field has the shape {array.shape}, the case {shape}")
        return array

    def solve(self, density: np.ndarray) -> MeshField:
        """The field of a density [*cells], the same on every rank.

        Raises:
            SolverFailure: the density is not finite.
        """
        _require_finite(density)
        if isinstance(self.spectrum, SlabSpectrum):
            return MeshField(self.grid, density, *self.spectrum.solve(density))
        potential, electric = np.zeros_like(density), np.empty((*density.shape, density.ndim))
        if self.solver == "replicated" or self.comm.is_root:
            potential_hat = self.spectrum.inverse_laplacian * scipy.fft.rfftn(density)
            potential = self.spectrum.back(potential_hat)
            for axis, gradient in enumerate(self.spectrum.gradient):
                electric[..., axis] = self.spectrum.back(-gradient * potential_hat)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return MeshField(self.grid, density, potential, electric)


class AmpereSolver(PoissonSolver):
    """∂t E = −(J − mean J), J = ∫ v f dv: Vlasov-Ampère-Fokker-Planck (paper's eq. 13), E carried along in time.

    A drift changes E by the current of the particles half way along it: second order in the step. In two and three
    dimensions E takes the curl-free part of J, Ê_t = −k (k·Ĵ)/|k|²: without it a curl would grow that the Poisson
    equation does not have. Gauss's law ∇·E = n − n̄ is then kept as well as the step and the mesh allow; see
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

    def start(self, particles: Particles) -> MeshField:
        field = super().start(particles)
        if self.initial == "zero":
            nothing = np.zeros_like(field.electric)
            return replace(field, electric=nothing, potential=np.zeros_like(field.potential))
        return field

    def drift(self, field: MeshField, particles: Particles, duration: float) -> tuple[MeshField, Particles]:
        if self.variate:
            field = self.reweighted(field, particles)
        carried, velocity = self.deposited(particles), particles.v[:, : len(self.grid.cells)]
        momentum = (carried[:, None] * velocity).T
        _, flux = self.grid.drift(particles.x, particles.v, 0.5 * duration, momentum, self.unit)
        x, deposit = self.grid.drift(particles.x, particles.v, duration, carried[None], self.unit)
        summed = self.comm.sum(torch.cat([deposit, flux]).cpu().numpy())
        density, current = summed[0], summed[1:]
        _require_finite(density)
        density = self.whole(density, particles.mass)
        electric, potential = field.electric.copy(), np.zeros_like(density)
        if self.solver == "replicated" or self.comm.is_root:
            electric -= duration * self.spectrum.curl_free(np.stack(list(current), axis=-1))
            potential = self.spectrum.potential_of(electric)
        if self.solver == "root":
            self.comm.bcast_array(electric)
        return MeshField(self.grid, density, potential, electric), replace(particles, x=x)

    def gauss_residual(self, field: MeshField) -> float:
        """max |∇·E − (n − n̄)| over the mesh, in the spectral derivative."""
        divergence = self.spectrum.divergence(field.electric)
        return float(np.abs(divergence - self.spectrum.resolved(field.density)).max())

    def reweighted(self, field: MeshField, particles: Particles) -> MeshField:
        density = self.density(particles)
        change = self.solve(density - field.density)
        potential, electric = field.potential + change.potential, field.electric + change.electric
        return MeshField(self.grid, density, potential, electric)

    def state(self, field: MeshField) -> dict[str, np.ndarray]:
        return {**super().state(field), "field/electric": field.electric}

    def resume(self, particles: Particles, arrays: dict[str, np.ndarray]) -> MeshField:
        field = super().resume(particles, arrays)
        electric = self.saved(arrays, "electric", field.electric.shape)
        return replace(field, electric=electric, potential=self.spectrum.potential_of(electric))


class ConservingAmpereSolver(AmpereSolver):
    """Ampère's law with kinetic + field energy exact to round-off, whatever the step: E changes in the kick.

    While x stays, particles and field are a linear oscillator: dv/dt = E(x), dE/dt = −P J and therefore dJ/dt = M E,
    with P the projection on curl-free fields of zero mean and M the mass matrix. A kick is its exact flow, which keeps
    kinetic + field energy because gather and deposit are adjoint; a drift changes neither E nor any velocity. So every
    composition of the two conserves energy, and has the order that it has with other fields. Momentum is not exact:
    like Gauss's law (:meth:`gauss_residual`) it holds as well as step and mesh allow.

    The flow is summed as its Taylor series on the mesh. M is assembled once a drift, so all that the particles do in a
    kick is to deposit J and to gather the mean of E over the kick.

    The mass matrix is that of G. Lapenta's energy-conserving semi-implicit method, doi:10.1016/j.jcp.2017.01.002, which
    takes the implicit midpoint rule where the exact flow is taken here. L. F. Ricketson, J. Hu,
    doi:10.1016/j.jcp.2025.114098, conserve energy explicitly instead, by a correction of each particle's push.
    """

    def start(self, particles: Particles) -> CoupledField:
        return self._coupled(super().start(particles), particles)

    def resume(self, particles: Particles, arrays: dict[str, np.ndarray]) -> CoupledField:
        return self._coupled(super().resume(particles, arrays), particles)

    def drift(self, field: MeshField, particles: Particles, duration: float) -> tuple[CoupledField, Particles]:
        after = particles.drift(duration)
        return self._coupled(field, after), after

    def kick(self, field: MeshField, particles: Particles, duration: float) -> tuple[CoupledField, Particles]:
        assert isinstance(field, CoupledField)
        momentum = particles.weight[:, None] * particles.v[:, : len(self.grid.cells)]
        local = self.grid.deposit(particles.x, momentum.T, self.unit)
        current = np.moveaxis(self.comm.sum(local.cpu().numpy()), 0, -1)
        flow, potential = np.empty((2, *field.electric.shape)), np.zeros_like(field.density)
        if self.solver == "replicated" or self.comm.is_root:
            flow[:] = self._flow(field, current, duration)
            potential = self.spectrum.potential_of(flow[0])
        if self.solver == "root":
            self.comm.bcast_array(flow)
        electric, mean = flow
        kicked = replace(field, electric=mean).kick(particles, duration)
        return replace(field, electric=electric, potential=potential), kicked

    def _coupled(self, field: MeshField, particles: Particles) -> CoupledField:
        """The same E, at other positions.

        Raises:
            SolverFailure: one of them is not finite (on every rank).
        """
        entries = self.comm.sum(self.grid.mass_matrix(particles.x, particles.weight, self.unit).cpu().numpy())
        mass_matrix = MassMatrix(self.grid, entries)
        density = (mass_matrix @ np.ones((*self.grid.cells, 1)))[..., 0]  # its row sums: shape functions add up to one
        _require_finite(density)
        return CoupledField(self.grid, density, field.potential, field.electric, mass_matrix)

    def _flow(self, field: CoupledField, current: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
        """E after ``duration`` and its mean until then, [*cells, dx] each: dE/dt = −P J, dJ/dt = M E.

        M has no eigenvalue above its largest row sum, the density's maximum: term k is within (√n_max t)^k / k!. In
        pieces of √n_max t ≤ 1 no term is larger than the state, and no digits are lost.
        """
        angle = math.sqrt(field.density.max()) * abs(duration)
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

    def start(self, particles: Particles) -> ExternalField:
        return ExternalField(self.problem)

    def drift(self, field: ExternalField, particles: Particles, duration: float) -> tuple[ExternalField, Particles]:
        return field, particles.drift(duration)

    def kick(self, field: ExternalField, particles: Particles, duration: float) -> tuple[ExternalField, Particles]:
        with self.comm.together():  # a potential of the user's may fail on one rank only
            return super().kick(field, particles, duration)


def grid_of(case: Case) -> Grid | None:
    """The mesh of a case, if it has one."""
    mesh, periods = case.grid, case.problem.periods
    return Grid(mesh.cells, periods, mesh.shape_order) if mesh and periods else None


def field_solver_of(case: Case, grid: Grid | None, comm: Communicator) -> FieldSolver[Any]:
    """The field solver that a case asks for, on its mesh."""
    physics = case.physics
    if physics.field == "external":
        return ExternalSolver(case.problem, comm)
    assert grid is not None and case.grid is not None  # config has seen to it
    variate = ControlVariate(physics.temperature, comm) if case.particles.control_variate else None
    unit = UNIT if case.run.reproducible else 0.0
    if physics.field == "poisson":
        return PoissonSolver(grid, comm, case.grid.solver, variate, unit)
    assert case.grid.solver != "distributed"
    ampere = ConservingAmpereSolver if case.time.energy_conserving else AmpereSolver
    return ampere(grid, comm, case.grid.solver, physics.initial_field, variate, unit)


def _require_finite(density: np.ndarray) -> None:
    if not np.isfinite(density).all():
        raise SolverFailure(
            "what the particles deposit is no longer finite, for a position, a velocity or log f is not: reduce "
            "time.step, or look at the last checkpoint"
        )
