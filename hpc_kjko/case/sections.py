"""The sections of a case file other than [problem], [species] and [method]: their keys, defaults and checks."""

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

#: The largest number of steps of a run.
MOST_STEPS = 10**9


class DriveSettings(Section):
    """A driven wave, `E₀ cos(k·x − ωt)`. Its field is parallel to k."""

    amplitude: float
    """E₀, the amplitude of the driven wave, in m v_th ω_p/q."""
    mode: Mode = (1,)
    """Periods of the driven wave in the box: one number for a wave along x_1, or one per space dimension."""
    frequency: float
    """ω, the frequency of the driven wave, in ω_p."""
    rise: NonNegative = 0.0
    """Time over which the drive rises at the start, and falls before its end, in 1/ω_p.

    It rises and falls as sin²."""
    until: Positive | None = None
    """Time at which the drive ends, in 1/ω_p. By default it does not end."""

    @model_validator(mode="after")
    def _consistent(self) -> DriveSettings:
        if not any(self.mode):
            raise ValueError("physics.drive.mode is zero: give the driven wave at least one period in the box")
        if self.until is not None and self.until < 2 * self.rise:
            raise ValueError(
                f"physics.drive.until = {self.until} leaves no time to rise and fall: it must be at least twice "
                f"physics.drive.rise = {self.rise}"
            )
        return self


def _drive(value: Any) -> Any:
    """A table of a driven wave, or "module:name" of the user's own field."""
    if not isinstance(value, dict | str | DriveSettings):
        raise PydanticCustomError("drive", 'should be a table, [physics.drive], or "module:name" of a function E(x, t)')
    return validate(DriveSettings, value, "physics.drive") if isinstance(value, dict) else value


class LandauSettings(Section):
    """Coulomb collisions: their strength, their velocity dependence, and which particles collide."""

    exponent: Annotated[float, Field(ge=-3, le=1)] = -3.0
    """γ of `A(z) = |z|^γ (|z|² I − z zᵀ)`: −3 for Coulomb collisions, 0 for Maxwell molecules.

    From −3 to 1."""
    block: Annotated[Whole, Field(ge=2, le=65536)] = 512
    """Size of a collision block: about how many particles of each species in a cell collide with each other.

    The cost per particle grows in proportion to this number. The noise in the velocity of a particle decreases with its
    square root. From 2 to 65536."""
    pairs: dict[str, NonNegative] | None = None
    """With `[species]`: C for single pairs of species, instead of `collision_strength` q_a² q_b².

    For example `pairs = {electrons-ions = 0.02}`. A value of 0 switches off the collisions of a pair. All other pairs
    use `collision_strength`."""
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
                f"physics.landau.exponent = {self.exponent} is not for Coulomb collisions: log_lambda, density and "
                "temperature give C only for -3; use physics.collision_strength instead"
            )
        return self


def _three(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) != 3:
        raise PydanticCustomError("three", "should be three numbers, [B_1, B_2, B_3]")
    return value


class Physics(Section):
    """Collisions and the force on the particles."""

    collision_operator: OperatorName = "bath"
    """What particles collide with: `bath`, `dougherty` or `landau`. With `[species]` only `landau` is allowed here.

    `bath`: friction towards v = 0 and diffusion with the temperature T.

    `dougherty`: collisions of like particles, towards their own local mean velocity and temperature.

    `landau`: Coulomb collisions. With `[species]` they act between all species."""
    collision_strength: NonNegative = 0.01
    """`κ = ν/ω_p`, the collision frequency in units of the plasma frequency. Velocities relax in the time 1/κ. 0
    switches collisions off. With `landau` it is C, the factor of the operator for unit charges.

    The keys `log_lambda`, `density` and `temperature` of `[physics.landau]` can give C instead."""
    landau: LandauSettings = LandauSettings()
    """The table `[physics.landau]`, with the keys of Coulomb collisions."""
    temperature: Positive = 1.0
    """T of the bath.

    With `dougherty` it is only the temperature of the start. It applies to velocity directions without another given
    distribution, which start Maxwellian at T."""
    field: Literal["poisson", "ampere", "external"]
    """The force on the particles: `poisson`, `ampere` or `external`.

    Default: `external` for the problems `gaussian`, `confined` and `periodic`, else `poisson`.

    `poisson`: the particles' own field, from Poisson's equation.

    `ampere`: the particles' own field. Their current advances it in time by Ampère's law.

    `external`: the force of the problem's potential. `plasma` without a potential has no force, so its particles stream
    freely."""
    initial_field: Literal["poisson", "zero"] = "poisson"
    """E at t = 0 with `ampere`: `poisson`, which satisfies Gauss's law, or `zero`."""

    magnetic_field: Annotated[Vector, AfterValidator(_three)] = (0.0, 0.0, 0.0)
    """B, uniform and constant, in m ω_p/q. Particles gyrate with the frequency `(q/m) |B|`. It needs two or three
    velocity dimensions.

    With two velocity dimensions only the last component may be non-zero. In a case without species the charge of a
    particle is +1. In a field B along x_3, a positive charge turns from x_1 towards −x_2."""

    drive: Annotated[DriveSettings | str | None, BeforeValidator(_drive)] = None
    """A driven electric field: the table of a wave, or `module:name` of a function E(x, t) of your own.

    The function takes positions x [n, dx] and a time, and returns E [n, dx], in torch. Each call has only a part of the
    particles. With `forest_ruth` the time may be negative, down to −0.4 h."""

    @model_validator(mode="after")
    def _consistent(self) -> Physics:
        if self.initial_field != "poisson" and self.field != "ampere":
            raise ValueError(
                f'physics.initial_field = "{self.initial_field}" needs physics.field = "ampere": '
                "with other fields E follows from the particles"
            )
        return self


class ParticleSettings(Section):
    """The particles: their number, how they are drawn, and how they are stored."""

    count: Count = 100_000
    """Number of particles of all ranks together. A power of two is best for a quiet start."""
    start: Literal["quiet", "random", "grid"] = "quiet"
    """How particles are drawn: `quiet`, `random` or `grid`.

    `quiet`: scrambled Sobol points, which have less noise than random points.

    `random`: independent random numbers (Philox generator).

    `grid`: the paper's start. The number of particles in each cell of `[grid]` follows the density. Inside a cell their
    positions are random and uniform."""
    weights: Literal["equal", "density"] = "equal"
    """Weights of the particles: `equal` or `density`.

    `density`: positions are uniform in the box, and the weight of a particle is proportional to the density there."""
    control_variate: bool = False
    """Use the known equilibrium to reduce the noise of the density and of the collision step's objective."""
    seed: Annotated[Whole, Field(ge=0, lt=2**63)] = 0
    """Seed of the random numbers for the start and for the network."""
    precision: Literal["float32", "float64"] = "float64"
    """Number format of the particles' state. `float32` needs half the memory."""

    @model_validator(mode="after")
    def _consistent(self) -> ParticleSettings:
        if self.start == "grid" and self.weights == "density":
            raise ValueError(
                'particles.weights = "density" places particles uniformly, but particles.start = "grid" places them by '
                'the density: use particles.start = "random" or "quiet" with it'
            )
        return self


class GridSettings(Section):
    """The mesh for the self-consistent field, for the moments of the Dougherty operator, and for Coulomb collisions."""

    cells: Annotated[Counts, Field(min_length=1)]
    """Cells of the mesh: one number, or one per space dimension. Each is at least 4.

    Default: 128 in one space dimension, else 32."""
    shape_order: OneOrTwo = 1
    """Shape function of a particle: 1 is cloud-in-cell, 2 is triangular-shaped cloud."""
    solver: Literal["root", "replicated", "distributed"] = "root"
    """Which ranks solve for the field: `root`, `replicated` or `distributed`.

    `root`: rank 0 solves and broadcasts.

    `replicated`: every rank solves.

    `distributed`: every rank transforms a part of the mesh. It needs `poisson` in two or three dimensions."""


def _is_whole(ratio: float) -> bool:
    """Whether ``time.end`` is a whole number of steps, up to rounding errors."""
    return ratio >= 0.5 and abs(ratio - round(ratio)) <= 1e-6


def end_after(steps: float, step: float) -> str:
    """The shortest decimal number that is a valid ``time.end`` for the nearest whole number of steps, for messages."""
    number = int(min(max(1, round(steps)), MOST_STEPS - 1, LARGEST / step))
    texts = (f"{number * step:.{digits}g}" for digits in range(6, 18))
    ratios = ((text, float(text) / step) for text in texts)
    return next(text for text, ratio in ratios if ratio <= MOST_STEPS and _is_whole(ratio) and round(ratio) == number)


class TimeSettings(Section):
    """The time step, the end time, and the symplectic map of the push (the conservative part)."""

    step: Positive = 0.1
    """Time step h, in 1/ω_p."""
    end: Positive = 50.0
    """The end time, in 1/ω_p. It must be a whole number of steps."""
    integrator: MapName = "verlet"
    """Symplectic map of the push: `euler` (order 1), `verlet` (2) or `forest_ruth` (4).

    `forest_ruth` needs three field solves per step."""
    energy_conserving: bool = False
    """Only with `ampere`: conserve kinetic + field energy to round-off (without collisions).

    E then changes in the kicks, together with the velocities. The round-off is that of `particles.precision`."""

    @model_validator(mode="after")
    def _whole_number_of_steps(self) -> TimeSettings:
        ratio = self.end / self.step
        if not ratio <= MOST_STEPS:
            raise ValueError(f"time.end = {self.end} is {ratio:g} steps of time.step = {self.step}: at most 1e9")
        if not _is_whole(ratio):
            raise ValueError(
                f"time.end = {self.end} is not a whole number of time.step = {self.step}: "
                f"use time.end = {end_after(ratio, self.step)}"
            )
        return self

    @property
    def steps(self) -> int:
        """Number of steps from t = 0 to ``time.end``."""
        return round(self.end / self.step)


class Output(Section):
    """Numbers of steps between outputs; 0 switches an output off. After the last step all outputs in use are
    written."""

    every: Cadence = 10
    """Steps between snapshots of density, potential and E."""
    particles_every: Cadence = 100
    """Steps between snapshots of positions, velocities and log f."""
    histogram_every: Cadence = 10
    """Steps between phase-space histograms and marginals.

    There is a histogram of 128 × 128 bins for each (x_i, v_i), and a marginal of 160 bins for each coordinate."""
    checkpoint_every: Cadence = 100
    """Steps between checkpoints. A checkpoint holds the complete state. The last two are kept."""
    diagnostics: Names = ()
    """Your own diagnostics: `module:name` of one, or a list."""


class Run(Section):
    """The device, reproducibility and time limit of the job."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`, `cpu` or `cuda`. `auto` uses a GPU if every rank has one."""
    reproducible: bool = True
    """Give exactly the same numbers, bit for bit, on any number of ranks and threads.

    For this, the terms of every sum are rounded to a fixed unit. This makes a step about 10 % slower with native
    kernels, and a third slower without them."""
    wall_time: Positive | None = None
    """Wall-clock time in seconds after which the run stops with a checkpoint and exit code 75.

    The time begins when the `kjko` process of rank 0 starts, so it includes drawing the particles. In Python it begins
    with the call of `run` or `restart`."""
