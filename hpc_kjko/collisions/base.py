"""The interface of a collision step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch

from hpc_kjko.case.method import Method, VelocityMatching
from hpc_kjko.collisions.witness import WaveExchange
from hpc_kjko.fields.mesh import Grid
from hpc_kjko.operators import Operator
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.particles.exact import summed_finely
from hpc_kjko.particles.state import Particles, passes_over
from hpc_kjko.problems import Problem
from hpc_kjko.problems.density import Density

#: A change of the free energy counts as certain beyond this many standard errors.
CERTAIN = 3.0


@dataclass(frozen=True)
class CollisionReport:
    """What a collision step did, over all ranks; each attribute is a column of the time series.

    Attributes:
        dissipation: (m/κ) ∫∫ |u|² f, the rate at which the free energy falls. For Coulomb collisions ∫∫ uᵀ(C D)⁻¹u f,
            the rate at which ∫f log f falls. NaN if the method has no u.
        min_eigenvalue: smallest eigenvalue of I + h sym ∇v u over all particles (in a split step over all pieces).
        objective: the JKO functional at the step that was taken, whatever the method minimised. NaN if the method has
            no u.
        inner_iterations: iterations of the inner solver.
        substeps: number of pieces into which the step was split because it was not invertible or its free energy rose
            (1: not split; 0: no step).
        drift_error: mean |u − u*|² of the control field that moved the particles (paper's eq. 38), if the exact u* = −κ
            (v + T ∇v log f) is known; otherwise NaN.
        retries: number of fits that were repeated because the step was not invertible or not certified, or held-out
            particles disagreed with the fitted density. For Coulomb collisions 1 if a field was shortened.
        collision_free_energy: ∫f times the mean of ½m|v'|² − ½m|ṽ|² − T log det(I + h ∇v u) over held-out particles:
            the change of the free energy in the step. With the Dougherty operator, the same in the local rest frame
            with Θ in place of T, divided by Θ: the change of ∫f log f. With Coulomb collisions ∫f times the mean change
            of log f. 0 if none, or too few, are held out.
        collision_free_energy_error: its standard error over the held-out particles (only indicative for a quiet start,
            whose particles are not independent).
        collision_free_energy_total: the sum of the changes since t = 0.
        collision_free_energy_total_error: the sum of their errors, which is an upper bound of the error of the sum.
        sample_free_energy: like collision_free_energy, but with the mean over all particles, fitted or not; 0 if none
            are held out.
        collision_energy: ∫½m|v'|² f − ∫½m|ṽ|² f over all particles: the kinetic energy that collisions gave them.
        collision_energy_total: the sum of these since t = 0.
        collision_field_energy: the change of ½∫|E|² dx in the collision step. It comes from the weights of a control
            variate, whose noise depends on v and log f. 0 without a control variate.
        disagreement: hT ∫f times the mean of ∇v·u + u·∇v ψ̄ over held-out particles. By Stein's identity it is 0 if ∇v
            ψ̄ = ∇v log f. It is the difference between two estimates of the change of the free energy: from the fitted
            density, and from the positions of the particles. 0 if no density is fitted.
        disagreement_error: its standard error over the held-out particles.
        log_f_residual: root mean square of ψ − log f over all particles, for the fitted ψ and the log f that they
            carry; 0 if no density is fitted.
        log_f_moved: root mean square of the change of log f in this step by relaxation towards ψ̄ (in a split step, the
            larger value).
        entropy_moved: ∫f times the mean of that change, which is its contribution to ∫f log f.
        entropy_moved_total: the sum of these since t = 0.
        wave: the changes of the moments of the wave of the problem in this step, minus those that the operator gives.
        wave_total: the sum of these since t = 0.
        sparse_nodes: the fraction of the mesh nodes with too few particles for their own moments; there the Dougherty
            operator uses those of the whole box. For Coulomb collisions the fraction of the cells with fewer than two
            particles. 0 with a bath.
    """

    dissipation: float
    min_eigenvalue: float
    objective: float
    inner_iterations: int
    substeps: int
    drift_error: float = float("nan")
    retries: int = 0
    collision_free_energy: float = 0.0
    collision_free_energy_error: float = 0.0
    collision_free_energy_total: float = 0.0
    collision_free_energy_total_error: float = 0.0
    sample_free_energy: float = 0.0
    collision_energy: float = 0.0
    collision_energy_total: float = 0.0
    collision_field_energy: float = 0.0
    sparse_nodes: float = 0.0
    disagreement: float = 0.0
    disagreement_error: float = 0.0
    log_f_residual: float = 0.0
    log_f_moved: float = 0.0
    entropy_moved: float = 0.0
    entropy_moved_total: float = 0.0
    wave: WaveExchange = WaveExchange()
    wave_total: WaveExchange = WaveExchange()

    @classmethod
    def loaded(cls, table: dict[str, Any]) -> CollisionReport:
        """The report from a table that ``dataclasses.asdict`` made."""
        waves: dict[str, Any] = {name: WaveExchange(**table[name]) for name in ("wave", "wave_total") if name in table}
        return cls(**(table | waves))

    @classmethod
    def together(cls, reports: Sequence[CollisionReport]) -> CollisionReport:
        """The report of several species: sums of energies, entropies and iterations, and the worst value of all other
        columns.
        """
        if len(reports) == 1:
            return reports[0]

        def total(name: str) -> Any:
            return sum(getattr(report, name) for report in reports)

        summed = [name for name in cls.__dataclass_fields__ if name.startswith(("collision_", "entropy_", "sample_"))]
        summed += ["dissipation", "objective", "inner_iterations", "retries", "disagreement", "disagreement_error"]
        worst = max(reports, key=lambda report: report.wave_error)
        independent = math.sqrt(sum(report.collision_free_energy_error**2 for report in reports))
        return replace(
            worst,
            **{name: total(name) for name in summed} | {"collision_free_energy_error": independent},
            min_eigenvalue=min(report.min_eigenvalue for report in reports),
            substeps=max(report.substeps for report in reports),
            log_f_residual=max(report.log_f_residual for report in reports),
            log_f_moved=max(report.log_f_moved for report in reports),
        )

    @classmethod
    def of_halves(
        cls, one: CollisionReport, two: CollisionReport, iterations: int = 0, retries: int = 0
    ) -> CollisionReport:
        """The report of a step that was made in two halves. ``iterations`` and ``retries`` are those of the rejected
        whole step.
        """
        summed = ["substeps", "collision_free_energy", "collision_free_energy_error", "sample_free_energy"]
        summed += ["disagreement", "disagreement_error", "entropy_moved"]
        return replace(
            two,
            **{name: getattr(one, name) + getattr(two, name) for name in summed},
            dissipation=0.5 * (one.dissipation + two.dissipation),
            min_eigenvalue=min(one.min_eigenvalue, two.min_eigenvalue),
            inner_iterations=iterations + one.inner_iterations + two.inner_iterations,
            drift_error=0.5 * (one.drift_error + two.drift_error),
            retries=retries + one.retries + two.retries,
            log_f_residual=max(one.log_f_residual, two.log_f_residual),
            log_f_moved=max(one.log_f_moved, two.log_f_moved),
            wave=two.wave.following(one.wave),
        )

    @property
    def certificate(self) -> int:
        """1: the free energy of held-out particles falls by more than 3 standard errors. −1: it rises by more. 0:
        neither is certain, as is normal near equilibrium.
        """
        change, error = self.collision_free_energy, self.collision_free_energy_error
        return int(change < -CERTAIN * error) - int(change > CERTAIN * error)

    @property
    def wave_error(self) -> float:
        """The largest relative error of a moment of the wave that has accumulated since t = 0."""
        return self.wave_total.error

    def following(self, before: CollisionReport) -> CollisionReport:
        """This report with the totals since t = 0, from the report of the step before."""
        return replace(
            self,
            collision_free_energy_total=before.collision_free_energy_total + self.collision_free_energy,
            collision_free_energy_total_error=(
                before.collision_free_energy_total_error + self.collision_free_energy_error
            ),
            collision_energy_total=before.collision_energy_total + self.collision_energy,
            entropy_moved_total=before.entropy_moved_total + self.entropy_moved,
            wave_total=self.wave.following(before.wave_total),
        )

    def with_energy(self, pushed: Particles, collided: Particles, mass: float, comm: Communicator) -> CollisionReport:
        """This report with the energy that the step gave to the particles of this mass. Collective.

        It is summed as ½(v' − ṽ)·(v' + ṽ), because the difference of two large sums would lose digits.
        """
        if collided is pushed:  # no collisions: the sum would take as long as the push
            return self
        change, share = torch.zeros(2, dtype=torch.float64, device=pushed.v.device), pushed.shares()
        for rows in passes_over(pushed.v):
            old, new = pushed.v[rows].double(), collided.v[rows].double()
            change += summed_finely(share[rows] * ((new - old) * (new + old)).sum(1))
        given = float(comm.sum(change.cpu().numpy()).sum())
        return replace(self, collision_energy=0.5 * mass * pushed.total_weight * given)


@dataclass(frozen=True)
class CollisionSettings:
    """Everything from which a collision step is made.

    Attributes:
        operator: the collision operator.
        problem: the initial density of the particles, and the space in which they live.
        exact: the exact density at a time, if it is known.
        mass: of a particle. Energies in the report are in its units.
        number: the index of the species in the run.
        method: the method of the step.
        velocity_matching: the settings of that method, if it is used.
        count: number of particles of all ranks.
        seed: of the initial particles, the networks and the noise.
        control_variate: whether the known equilibrium removes noise from the objective.
        wave_vector: k [dx] of the wave that is checked in each step, or None if no wave can be told from noise.
        grid: the mesh of local moments, or None.
        end: the last time, in 1/ω_p.
        steps: number of steps from 0 to the end.
        reproducible: whether sums over particles have the same bits on any number of ranks.
    """

    operator: Operator
    problem: Problem
    exact: Callable[[float], Density] | None
    mass: float
    number: int
    method: Method
    velocity_matching: VelocityMatching | None
    count: int
    seed: int
    control_variate: bool
    wave_vector: tuple[float, ...] | None
    grid: Grid | None
    end: float
    steps: int
    reproducible: bool


@dataclass(frozen=True)
class StepStart:
    """The step of the run to which a collision belongs.

    Attributes:
        index: n of the step from t^n to t^{n+1}.
        time: t^n, or the time at which the piece begins.
        particles: the particles at t^n, before the push.
        piece: 1 for the whole step; 2k and 2k + 1 for the halves of piece k.
    """

    index: int
    time: float
    particles: Particles
    piece: int = 1

    @property
    def splits(self) -> int:
        """How often the step was split to get this piece."""
        return self.piece.bit_length() - 1

    @property
    def drawn(self) -> int:
        """A number below 2⁶⁴ from which the random numbers of the step, or of its piece, follow."""
        return self.index + ((self.piece - 1) << 48)

    def halves(self, duration: float) -> tuple[StepStart, StepStart]:
        """The two halves of a piece of this duration."""
        later = self.time + duration / 2
        return replace(self, piece=2 * self.piece), replace(self, piece=2 * self.piece + 1, time=later)


class Collision(ABC):
    """Moves velocities and log-densities through one collision step."""

    #: Whether log f is known after the step. Without it there is no entropy, free energy or KL divergence.
    tracks_log_f: bool = True
    #: Whether the step moves particles along a control field u. Only then are there dissipation and drift error.
    has_control: bool = True
    #: Whether the step fits a density to the log f that particles carry.
    fits_log_f: bool = False
    #: Whether some particles are held out of the fit, to certify the step.
    held_out: bool = False
    #: Whether the step measures the change of the moments of the problem's wave.
    sees_wave: bool = False
    #: The change of log f [n] in the last step, apart from that by the determinant of its map.
    log_f_moved: torch.Tensor | float = 0.0

    @abstractmethod
    def __init__(self, settings: CollisionSettings, comm: Communicator):
        """Set up the method. Collective."""

    def prepare(self, rehearse: Callable[[], bool]) -> bool:
        """Do the work that a method needs once before the first step of a run. Most methods need none. Collective.

        Args:
            rehearse: makes all steps of the run from its start and then discards the result; returns False if the run
                is to stop.

        Returns:
            False if it was stopped; it may be called again.

        Raises:
            SolverFailure: on every rank.
        """
        return True

    def rest_frame(self, particles: Particles) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """The mean velocity [n, dv] of the local rest frame, and the unit of velocity in it [n, 1]. In a bath these are
        0 and 1. Collective.
        """
        return 0.0, 1.0

    @abstractmethod
    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        """The pushed particles (x̃, ṽ) after collisions for ``duration``. Collective.

        Raises:
            SolverFailure: on every rank, with the setting to change. The particles are as before, but :meth:`state` may
                have changed. The caller restores the state that it saved before the step.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next step depends on, as named arrays, the same on every rank."""

    @abstractmethod
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Set the state to one that :meth:`state` returned.

        Raises:
            UserError: the state does not fit this case.
        """


class PairCollision(Collision):
    """A collision step in which the particles of all species that have it collide with each other."""

    @classmethod
    @abstractmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        """The same as :meth:`Collision.step` for several species, each with a step of this kind. Collective."""

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        return self.step_together([self], [particles], duration, [start])[0]


def collide(
    steps: Sequence[Collision], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
) -> list[tuple[Particles, CollisionReport]]:
    """The pushed particles of all species after collisions, each by its own step. Collective.

    Raises:
        SolverFailure: as from :meth:`Collision.step`.
    """
    meeting = {number: step for number, step in enumerate(steps) if isinstance(step, PairCollision)}
    found: dict[int, tuple[Particles, CollisionReport]] = {}
    if meeting:
        members = list(meeting.values())  # all of one kind, because a case has one method for all species
        arguments = [pushed[number] for number in meeting], duration, [starts[number] for number in meeting]
        found |= zip(meeting, type(members[0]).step_together(members, *arguments), strict=True)
    for number, (step, particles, start) in enumerate(zip(steps, pushed, starts, strict=True)):
        if number not in found:
            found[number] = step.step(particles, duration, start)
    return [found[number] for number in range(len(steps))]
