"""The sections of a case file but [problem], [species] and [method]: their keys, defaults and own mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from hpc_kjko.case.species_section import OperatorName
from hpc_kjko.problems.base import Mode
from hpc_kjko.push.integrators import MAPS
from hpc_kjko.schema import (
    LARGEST,
    Cadence,
    Count,
    Counts,
    Names,
    NonNegative,
    OneOrTwo,
    Positive,
    Section,
    Vector,
    Whole,
    among,
    validate,
)

if TYPE_CHECKING:
    MapName = str
else:
    MapName = among(MAPS)

#: The most steps that a run may have.
MOST_STEPS = 10**9


class DriveSettings(Section):
    """A driven wave, `E₀ cos(k·x − ωt)` along k."""

    amplitude: float
    """E₀ of the driven wave."""
    mode: Mode = (1,)
    """Periods of the driven wave in the box: one number for a wave along x_1, or one per space dimension."""
    frequency: float
    """ω of the driven wave."""
    rise: NonNegative = 0.0
    """How long the drive takes to rise, and to fall before it ends.

    Rise and fall follow a sin²."""
    until: Positive | None = None
    """When the drive ends; without it the drive does not end."""

    @model_validator(mode="after")
    def _consistent(self) -> DriveSettings:
        if not any(self.mode):
            raise ValueError("physics.drive.mode is zero: a driven wave needs a period in the box")
        if self.until is not None and self.until < 2 * self.rise:
            raise ValueError(
                f"physics.drive.until = {self.until} leaves no time to rise and fall: it must be at least twice "
                f"physics.drive.rise = {self.rise}"
            )
        return self


def _drive(value: Any) -> Any:
    """A table of a driven wave, or the name of a field of the user's own."""
    if not isinstance(value, dict | str | DriveSettings):
        raise PydanticCustomError("drive", 'should be a table, [physics.drive], or "module:name" of a function E(x, t)')
    return validate(DriveSettings, value, "physics.drive") if isinstance(value, dict) else value


class LandauSettings(Section):
    """Coulomb collisions: what particles meet each other, and how the force between them falls off."""

    exponent: Annotated[float, Field(ge=-3, le=1)] = -3.0
    """γ of `A(z) = |z|^γ (|z|² I − z zᵀ)`: −3 are Coulomb collisions, 0 Maxwell molecules.

    From −3 to 1."""
    block: Annotated[Whole, Field(ge=2, le=65536)] = 512
    """Size of a collision block: about how many particles of a cell, of each species, meet each other in a step.

    The work grows with this number. The error of a particle's velocity falls with its square root. From 2 to 65536."""
    pairs: dict[str, NonNegative] | None = None
    """With `[species]`: C for single pairs of species, instead of `collision_strength` q_a² q_b².

    For example `pairs = {electrons-ions = 0.02}`. 0 switches the collisions of a pair off. For the other
    pairs `collision_strength` holds."""
    log_lambda: Positive | None = None
    """lnΛ, the Coulomb logarithm. With `density` and `temperature` it gives C = lnΛ/(8π N_D), instead of
    `physics.collision_strength`."""
    density: Positive | None = None
    """Density of the reference species, in m⁻³."""
    temperature: Positive | None = None
    """Temperature of the reference species, in eV. Its charge is the elementary charge."""

    of_any_size: ClassVar[frozenset[str]] = frozenset({"density", "temperature"})

    @model_validator(mode="after")
    def _consistent(self) -> LandauSettings:
        plasma = {name: getattr(self, name) for name in ("log_lambda", "density", "temperature")}
        missing = [name for name, value in plasma.items() if value is None]
        if 0 < len(missing) < len(plasma):
            raise ValueError(
                f"physics.landau.{missing[0]} is missing: log_lambda, density and temperature give C together"
            )
        if not missing and self.exponent != -3:
            raise ValueError(
                f"physics.landau.exponent = {self.exponent} are not Coulomb collisions: log_lambda, density and "
                "temperature give C for -3 alone; give physics.collision_strength in their place"
            )
        return self


def _three(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 3:
        raise PydanticCustomError("three", "should be three numbers, [B_1, B_2, B_3]")
    return value


class Physics(Section):
    """Collisions, with a bath or of the particles with their like, and the force that acts on the particles."""

    collision_operator: OperatorName = "bath"
    """What particles collide with: `bath`, `dougherty` or `landau`. With `[species]` only `landau` is allowed here.

    `bath`: drag towards v = 0 and diffusion at the temperature T.

    `dougherty`: collisions of like particles, towards their own local mean velocity and temperature.

    `landau`: Coulomb collisions. With `[species]` they act between all species."""
    collision_strength: NonNegative = 0.01
    """`κ = ν/ω_p`, the collision frequency in units of the plasma frequency. Velocities relax in the time 1/κ. 0
    switches collisions off. With `landau` it is C, the factor of the operator for unit charges.

    `[physics.landau]` may give C as a Coulomb logarithm, a density and a temperature."""
    landau: LandauSettings = LandauSettings()
    """The table with the keys of Coulomb collisions."""
    temperature: Positive = 1.0
    """T of the bath.

    With `dougherty` it is only the temperature of the start, in the velocity directions in which the start is
    Maxwellian at T."""
    field: Literal["poisson", "ampere", "external"]
    """The force on the particles: `poisson`, `ampere` or `external`.

    Default: `external` for the problems `gaussian`, `confined` and `periodic`, else `poisson`.

    `poisson`: the particles' own field, from Poisson's equation.

    `ampere`: the particles' own field, carried along in time by their current.

    `external`: the force of the problem's potential. A plasma has no potential, so its particles stream freely."""
    initial_field: Literal["poisson", "zero"] = "poisson"
    """E at t = 0 with `ampere`: `poisson`, which satisfies Gauss's law, or `zero`."""

    magnetic_field: Annotated[Vector, AfterValidator(_three)] = (0.0, 0.0, 0.0)
    """B, uniform and constant. Particles gyrate in it with the frequency `(q/m) |B|`. It needs two or three velocity
    dimensions.

    With two velocity dimensions only the last component may differ from zero. A particle of a case without species has
    the charge +1. A positive charge in B along x_3 turns from x_1 towards −x_2."""

    drive: Annotated[DriveSettings | str | None, BeforeValidator(_drive)] = None
    """A driven electric field: the table of a wave, or `module:name` of a function E(x, t) of your own.

    The function takes positions x [n, dx] and a time, and returns E [n, dx], in torch. Each call is for a part of the
    particles. With `forest_ruth` times may be negative, down to −0.4 h."""

    @model_validator(mode="after")
    def _consistent(self) -> Physics:
        if self.initial_field != "poisson" and self.field != "ampere":
            raise ValueError(
                f'physics.initial_field = "{self.initial_field}" needs physics.field = "ampere": '
                "with other fields E follows from the particles"
            )
        return self


class ParticleSettings(Section):
    """The ensemble: how many particles, how they are drawn, how they are stored."""

    count: Count = 100_000
    """Number of particles of all ranks together; choose a power of two for a quiet start."""
    start: Literal["quiet", "random", "grid"] = "quiet"
    """How particles are drawn: `quiet`, `random` or `grid`.

    `quiet`: scrambled Sobol points.

    `random`: independent numbers of the Philox generator.

    `grid`: the paper's start. Positions follow the mass in each cell of `[grid]`, with uniform jitter inside the
    cell."""
    weights: Literal["equal", "density"] = "equal"
    """Masses of the particles: `equal`, or `density` with positions uniform over the box.

    With `density` the weight of a particle is proportional to the density at its place."""
    control_variate: bool = False
    """Use the known equilibrium to reduce the noise of the density and of the collision step's objective."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of the start and of the network."""
    precision: Literal["float32", "float64"] = "float64"
    """Number format of the particles' state: `float32` halves its memory."""

    @model_validator(mode="after")
    def _consistent(self) -> ParticleSettings:
        if self.start == "grid" and self.weights == "density":
            raise ValueError(
                'particles.weights = "density" places particles uniformly, and particles.start = "grid" by the '
                'density: use particles.start = "random" or "quiet" with it'
            )
        return self


class GridSettings(Section):
    """The mesh of the self-consistent field, of the moments of the Dougherty operator, and the cells of Landau's."""

    cells: Annotated[Counts, Field(min_length=1)]
    """Cells of the mesh: one number, or one per space dimension; at least 4.

    Default: 128 in one space dimension, else 32."""
    shape_order: OneOrTwo = 1
    """Shape function of a particle: 1 is cloud-in-cell, 2 is triangular-shaped cloud."""
    solver: Literal["root", "replicated", "distributed"] = "root"
    """Which ranks solve for the field: `root`, `replicated` or `distributed`.

    `root`: rank 0 solves and broadcasts.

    `replicated`: every rank solves.

    `distributed`: every rank transforms a part of the mesh. It needs `poisson` in two or three dimensions."""


def _is_whole(ratio: float) -> bool:
    """Whether an end of so many steps is taken as a whole number of them, but for rounding."""
    return ratio >= 0.5 and abs(ratio - round(ratio)) <= 1e-6


def end_after(steps: float, step: float) -> str:
    """The shortest number that is taken as ``time.end`` of the nearest whole number of steps, for advice."""
    number = int(min(max(1, round(steps)), MOST_STEPS - 1, LARGEST / step))
    texts = (f"{number * step:.{digits}g}" for digits in range(6, 18))
    ratios = ((text, float(text) / step) for text in texts)
    return next(text for text, ratio in ratios if ratio <= MOST_STEPS and _is_whole(ratio) and round(ratio) == number)


class TimeSettings(Section):
    """The step, the end, and the symplectic map of the conservative part."""

    step: Positive = 0.1
    """Time step h, in 1/ω_p."""
    end: Positive = 50.0
    """The last time: a whole number of steps."""
    integrator: MapName = "verlet"
    """Symplectic map of the push: `euler` (order 1), `verlet` (2) or `forest_ruth` (4).

    `forest_ruth` needs three field solves per step."""
    energy_conserving: bool = False
    """With `ampere`: without collisions, kinetic + field energy is conserved to round-off.

    E then changes in the kicks, together with the velocities. The round-off is that of `particles.precision`."""

    @model_validator(mode="after")
    def _whole_number_of_steps(self) -> TimeSettings:
        ratio = self.end / self.step
        if not ratio <= MOST_STEPS:
            raise ValueError(f"time.end = {self.end} is {ratio:g} steps of time.step = {self.step}: at most 1e9")
        if not _is_whole(ratio):
            raise ValueError(
                f"time.end = {self.end} is not a whole number of time.step = {self.step}: "
                f"time.end = {end_after(ratio, self.step)} would be"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of steps from 0 to the end."""
        return round(self.end / self.step)


class Output(Section):
    """Cadences in steps; 0 switches an output off. The last step leaves a checkpoint and all that is switched on."""

    every: Cadence = 10
    """Steps between snapshots of density, potential and E."""
    particles_every: Cadence = 100
    """Steps between snapshots of positions, velocities and log f."""
    histogram_every: Cadence = 10
    """Steps between phase-space histograms and marginals.

    There is a histogram of 128 × 128 bins for each (x_i, v_i), and a marginal of 160 bins for each coordinate."""
    checkpoint_every: Cadence = 100
    """Steps between checkpoints. A checkpoint holds the complete state; the last two are kept."""
    diagnostics: Names = ()
    """`module:name` of diagnostics of your own, one or a list."""


class Run(Section):
    """Where and for how long this job runs."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: a GPU if every rank has one; `cpu`; `cuda`."""
    reproducible: bool = True
    """The same bits on any number of ranks and threads.

    Every sum is then over terms that are rounded to a fixed unit. This costs about a tenth of a step with native
    kernels, and a third in torch."""
    wall_time: Positive | None = None
    """Seconds after which the run stops with a checkpoint and exit code 75.

    The time counts from the start of the `kjko` process of rank 0, so it includes the drawing of the particles. In
    Python it counts from the call of `run` or `restart`."""
