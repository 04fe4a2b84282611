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

#: Standard errors beyond which a change of free energy is taken for one.
CERTAIN = 3.0


@dataclass(frozen=True)
class CollisionReport:
    """What a collision step did, over all ranks; each is a column of the time series.

    Attributes:
        dissipation: (m/κ) ∫∫ |u|² f, the rate at which the free energy falls; of Coulomb collisions ∫∫ uᵀ(C D)⁻¹u f,
            that at which ∫f log f does. NaN if the method has no u.
        min_eigenvalue: smallest eigenvalue of I + h sym ∇v u over all particles (of the smallest substep).
        objective: the JKO functional at the step that was taken, whatever the method minimised.
        inner_iterations: iterations of the inner solver.
        substeps: pieces the step was split into because in one it was not invertible or its free energy rose (1: it
            was not split; 0: no step).
        drift_error: mean |u − u*|² of the control field that moved the particles (paper's eq. 38), where the exact
            u* = −κ (v + T ∇v log f) is known; NaN elsewhere.
        retries: fits that were made again because the step was not invertible or not certified, or held-out particles
            disagreed with the fitted density; of Coulomb collisions 1 if a field was shortened.
        collision_free_energy: ∫f times the mean of ½m|v'|² − ½m|ṽ|² − T log det(I + h ∇v u) over particles that are
            held out of the fit: what the step added to the free energy. With the Dougherty operator, the same in the
            local rest frame with Θ for T, over Θ: what it added to ∫f log f. With Coulomb collisions what log f gained.
            0 if none, or too few, are held out.
        collision_free_energy_error: its standard error over those particles (indicative for a quiet start, whose
            particles are not independent).
        collision_free_energy_total: the sum of the changes since t = 0.
        collision_free_energy_total_error: the sum of their errors, which bounds that of the sum.
        sample_free_energy: ∫f times the mean of the same over all particles, fitted or not; 0 if none are held out.
        collision_energy: ∫½m|v'|² f − ∫½m|ṽ|² f over all particles: the kinetic energy that collisions gave them.
        collision_energy_total: the sum of these since t = 0.
        collision_field_energy: by how much the collision changed ½∫|E|² dx through the weights of a control variate,
            whose noise depends on v and log f; 0 without one.
        disagreement: hT ∫f times the mean of ∇v·u + u·∇v ψ̄ over held-out particles, 0 by Stein's identity
            if ∇v ψ̄ = ∇v log f: by how much the fitted density and where particles are disagree on the change of the
            free energy; 0 where none is fitted.
        disagreement_error: its standard error over those particles.
        log_f_residual: root mean square, over all particles, of what the fitted ψ leaves of the log f that they carry;
            0 where none is fitted.
        log_f_moved: root mean square of what relaxation towards ψ̄ changed log f by in this step (of a split one, the
            larger).
        entropy_moved: ∫f times the mean of that change: what it added to ∫f log f.
        entropy_moved_total: the sum of these since t = 0.
        wave: what the step gave the moments of the problem's wave beside what the operator gives them; wave_total: the
            same of all steps since t = 0.
        sparse_nodes: the part of the mesh's nodes with too few particles for moments of their own, which the Dougherty
            operator takes from the whole box there; of Coulomb collisions the part of the cells with fewer than two
            particles; 0 with a bath.
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
        """From a table as ``dataclasses.asdict`` makes it."""
        waves: dict[str, Any] = {name: WaveExchange(**table[name]) for name in ("wave", "wave_total") if name in table}
        return cls(**(table | waves))

    @classmethod
    def together(cls, reports: Sequence[CollisionReport]) -> CollisionReport:
        """Of several species: sums of energies, entropies and iterations, and the worst of all else."""
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
        """Of a step that was made in two halves, after ``iterations`` and ``retries`` for nothing."""
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
        """1: the free energy of held-out particles falls, by more than 3 standard errors; −1: it rises; 0: neither
        is certain, as is normal near equilibrium."""
        change, error = self.collision_free_energy, self.collision_free_energy_error
        return int(change < -CERTAIN * error) - int(change > CERTAIN * error)

    @property
    def wave_error(self) -> float:
        """The largest of what the wave's moments were given too much since t = 0, as a part of the moment."""
        return self.wave_total.error

    def following(self, before: CollisionReport) -> CollisionReport:
        """This report with the totals up to it, given that of the step before."""
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
        """This report with the energy that the step gave particles of some mass. Collective.

        Summed as ½(v' − ṽ)·(v' + ṽ): the difference of two large sums would lose its digits.
        """
        change, share = torch.zeros(2, dtype=torch.float64, device=pushed.v.device), pushed.shares()
        for rows in passes_over(pushed.v):
            old, new = pushed.v[rows].double(), collided.v[rows].double()
            change += summed_finely(share[rows] * ((new - old) * (new + old)).sum(1))
        given = float(comm.sum(change.cpu().numpy()).sum())
        return replace(self, collision_energy=0.5 * mass * pushed.total_weight * given)


@dataclass(frozen=True)
class CollisionSettings:
    """All that a collision step is made from.

    Attributes:
        operator: what the particles collide with.
        problem: their start, and the space that they live in.
        exact: the exact density at a time, where it is known.
        mass: of a particle; what a step does to energies is reported in its units.
        number: which of the species of the run it is.
        method: how the step is made; velocity_matching: the settings of that method, where it is taken.
        count: particles of all ranks; seed: of their start, and of networks and noise.
        control_variate: whether the known equilibrium takes noise from what is learnt.
        wave_vector: k [dx] of the wave that the step is watched for; None if none could be told from noise.
        grid: the mesh of local moments, if there is one.
        end: the last time, in 1/ω_p; steps: those from 0 to the end.
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
    """The step of the run that a collision is part of.

    Attributes:
        index: n of the step from t^n to t^{n+1}.
        time: t^n, or where the piece begins.
        particles: the particles at t^n, before the push.
        piece: 1 for the whole step; 2k and 2k + 1 for the halves of piece k.
    """

    index: int
    time: float
    particles: Particles
    piece: int = 1

    @property
    def splits(self) -> int:
        """How often the step was split."""
        return self.piece.bit_length() - 1

    @property
    def drawn(self) -> int:
        """What random numbers of the step, or its piece, follow from; below 2⁶⁴."""
        return self.index + ((self.piece - 1) << 48)

    def halves(self, duration: float) -> tuple[StepStart, StepStart]:
        """The two halves of a piece of some duration."""
        later = self.time + duration / 2
        return replace(self, piece=2 * self.piece), replace(self, piece=2 * self.piece + 1, time=later)


class Collision(ABC):
    """Moves velocities and log-densities through one collision step."""

    #: Whether log f is known after the step; without it there is no entropy, free energy or KL.
    tracks_log_f: bool = True
    #: Whether the step moves particles along a control field u, which then has a dissipation and a drift error.
    has_control: bool = True
    #: Whether the step fits a density to the log f that particles carry.
    fits_log_f: bool = False
    #: Whether some particles are held out of the fit, and certify the step.
    held_out: bool = False
    #: Whether the step measures what it gives the problem's wave.
    sees_wave: bool = False
    #: What the last step added to log f [n] beside the determinant of its map.
    log_f_moved: torch.Tensor | float = 0.0

    @abstractmethod
    def __init__(self, settings: CollisionSettings, comm: Communicator):
        """The method as it is set up. Collective."""

    def prepare(self, rehearse: Callable[[], bool]) -> bool:
        """What a method must do once before the first step of a run; most have nothing to do. Collective.

        Args:
            rehearse: goes through all steps of the run from its start and forgets where it ended; False if the run is
                to stop.

        Returns:
            False if it was stopped; it may be called again.

        Raises:
            SolverFailure: on every rank.
        """
        return True

    def rest_frame(self, particles: Particles) -> tuple[torch.Tensor | float, torch.Tensor | float]:
        """Where velocities are at rest [n, dv], and the unit that they are measured in [n, 1]: 0 and 1 in a bath.
        Collective."""
        return 0.0, 1.0

    @abstractmethod
    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        """The pushed particles (x̃, ṽ) after colliding for ``duration``. Collective.

        Raises:
            SolverFailure: on every rank, with the setting to change. The particles are as before; :meth:`state` need
                not be: the caller goes back to the one it took before the step.
        """

    @abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Everything the next step depends on, as named arrays, the same on every rank."""

    @abstractmethod
    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state made by :meth:`state`.

        Raises:
            UserError: the state cannot serve this case.
        """


class PairCollision(Collision):
    """A collision step in which the particles of all species that have it meet each other."""

    @classmethod
    @abstractmethod
    def step_together(
        cls, steps: Sequence[Self], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
    ) -> list[tuple[Particles, CollisionReport]]:
        """What :meth:`Collision.step` does, for several species with a step of this kind each. Collective."""

    def step(self, particles: Particles, duration: float, start: StepStart) -> tuple[Particles, CollisionReport]:
        return self.step_together([self], [particles], duration, [start])[0]


def collide(
    steps: Sequence[Collision], pushed: Sequence[Particles], duration: float, starts: Sequence[StepStart]
) -> list[tuple[Particles, CollisionReport]]:
    """The pushed particles of all species after colliding, each by its own step. Collective.

    Raises:
        SolverFailure: as from :meth:`Collision.step`.
    """
    meeting = {number: step for number, step in enumerate(steps) if isinstance(step, PairCollision)}
    found: dict[int, tuple[Particles, CollisionReport]] = {}
    if meeting:
        members = list(meeting.values())  # of one kind: a case has one method for all
        arguments = [pushed[number] for number in meeting], duration, [starts[number] for number in meeting]
        found |= zip(meeting, type(members[0]).step_together(members, *arguments), strict=True)
    for number, (step, particles, start) in enumerate(zip(steps, pushed, starts, strict=True)):
        if number not in found:
            found[number] = step.step(particles, duration, start)
    return [found[number] for number in range(len(steps))]
