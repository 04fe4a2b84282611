"""The runs for the paper's figures and for the validations, and their references.

paper_figures.py and validate.py share these runs. Every run is a case of jobs/ with some changed keys. ``quick`` is a
small size for tests.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import curve_fit

from hpc_kjko.case import config
from hpc_kjko.files.output import list_snapshots, read_snapshot
from hpc_kjko.files.series import read_series
from hpc_kjko.post import compare
from hpc_kjko.post.rates import maxima
from hpc_kjko.problems.beams import PerturbedBeams
from hpc_kjko.reference.grid_1d1v import GridSolution

JOBS = Path(__file__).resolve().parent.parent / "jobs"

#: Steps h of the convergence study of Example 1.
STEPS = (0.2, 0.1, 0.05, 0.025, 0.0125)
QUICK_STEPS = (0.2, 0.1)

SCORE_MATCHING = ("method.collision=score_matching",)
LANGEVIN = ("method.collision=langevin",)
LEAKY = ("method.activation=leaky_relu",)
SECOND_ORDER = ("method.order=2", "method.logdet=exact", "time.integrator=verlet")
PAPER_SCHEME = (
    *("method.solver=adam", "method.order=1", "method.logdet=linear"),
    *("method.iterations=50", "method.first_iterations=300"),
)
COLLISIONAL_LANDAU = (
    *("physics.collision_strength=0.1", "problem.amplitude=0.1", "particles.count=65536", "time.end=8.0"),
    "particles.control_variate=true",
)
#: Seeds over which rates are averaged, because the noise of one seed is several percent of a rate.
RATE_SEEDS = range(4)
FINE_GROWTH = (
    "physics.collision_strength=0.0",
    "problem.amplitude=1e-4",
    "particles.count=1048576",
    "time.end=36.0",
)
GROWTH = ("problem.amplitude=2e-3", "particles.count=131072", "time.end=24.0", "grid.shape_order=2", "grid.cells=64")
#: The wave of Example 7 along (1, 1, 0), with the same wavelength.
OBLIQUE = ("problem.mode=[1,1]", "problem.length=[44.4288294,44.4288294,31.4159265]")
#: Example 2 with few particles: largest allowed error of the KL from the carried log f, for each of the COUNTS.
STARTS, COUNTS, SEEDS = ("quiet", "random"), {2048: 0.02, 8192: 0.01, 65536: 0.004}, range(5)
#: Self-convergence. The random features of all runs are not trained.
SELF_CONVERGENCE_STEPS = (0.2, 0.1, 0.05, 0.025)
FROZEN = (
    *("method.solver=varpro", "method.hidden=[16,16]", "method.iterations=0", "method.first_iterations=0"),
    *("method.held_out=false", "method.precision=float64", "particles.count=65536", "output.every=1"),
)
FROZEN_PLASMA = ("problem.amplitude=0.05", "grid.shape_order=2", "time.end=8.0")
#: Orders and collision strengths with κh = 1, 10, 100. The midpoint step stops at the last one, with a message.
STIFF = ((1, 10.0), (1, 100.0), (1, 1000.0), (2, 10.0), (2, 100.0))
STIFF_PLASMA = ("time.step=0.1", "time.end=5.0", "particles.count=16384", "output.every=1")
#: Ten thousand steps from a start without beams. It is the equilibrium with a small wave.
EQUILIBRIUM = (
    *("problem.beam_velocity=0.0", "problem.amplitude=0.01", "physics.collision_strength=1.0", "time.step=0.1"),
    *("time.end=1000.0", "particles.count=4096"),
)
#: Collisions within a species: a wave that they damp, temperatures that they equalise, and ten thousand steps.
DOUGHERTY = ("physics.collision_operator=dougherty",)
OPERATORS = ("physics.collision_strength=0.002", "particles.count=65536", "time.end=50.0")
DOUGHERTY_RUNS = {
    "dougherty_two_stream": ("dougherty_two_stream", ()),
    "dougherty_poisson": ("dougherty_two_stream", ("physics.field=poisson", "time.energy_conserving=false")),
    "operators_bath": ("dougherty_two_stream", ("physics.collision_operator=bath", *OPERATORS)),
    "operators_dougherty": ("dougherty_two_stream", OPERATORS),
    "dougherty_landau": (
        "landau_damping",
        (
            *(*DOUGHERTY, "physics.collision_strength=0.1", "problem.amplitude=0.1", "particles.count=131072"),
            *("time.end=10.0", "grid.shape_order=2"),
        ),
    ),
    "dougherty_isotropy": (
        "landau_damping",
        (
            *(*DOUGHERTY, "physics.collision_strength=0.5", "physics.field=external", "problem.amplitude=0.0"),
            *("problem.thermal_speed=1.6", "problem.velocity_dims=3", "particles.count=65536", "time.step=0.1"),
            *("time.end=3.0", "output.histogram_every=1"),
        ),
    ),
    "dougherty_long": (
        "dougherty_two_stream",
        (*("physics.collision_strength=0.1", "particles.count=8192", "grid.cells=16", "time.end=1000.0"),),
    ),
}
#: Buneman's instability with the ion mass of hydrogen, and its own fastest growing wave, which starts in the ions.
HYDROGEN = (
    *("species.ions.mass=1836.0", "problem.length=22.439947525641379", "time.end=90.0"),
    *("species.electrons.amplitude=0.0", "species.ions.amplitude=5e-4"),
)
#: Test particles that start at the velocity of a strong wave. They are so light that their own field is negligible.
BOUNCE = (
    *("species.electrons.charge=-2e-6", "species.electrons.mass=1e-6", "species.electrons.temperature=1e-10"),
    *("species.electrons.mean_velocity=1.0", "species.electrons.count=4096", "physics.drive.amplitude=0.25"),
    *("physics.drive.frequency=0.5", "time.end=60.0", "output.every=0", "output.particles_every=4"),
)
DRIVEN_ENERGY = (
    *("species.electrons.temperature=1.0", "physics.field=ampere", "time.energy_conserving=true"),
    *("physics.drive.amplitude=0.2", "physics.drive.rise=5.0", "physics.drive.until=30.0", "time.end=40.0"),
    "output.every=0",
)
COLD = ("problem.thermal_speed=0.02", "physics.temperature=4e-4", "particles.count=16384", "time.end=200.0")
#: Several species, a magnetic field, a driven wave.
PLASMA_RUNS = {
    "ions": ("ion_acoustic", ()),
    "buneman": ("buneman", ()),
    "buneman_hydrogen": ("buneman", HYDROGEN),
    "upper_hybrid": ("bernstein", (*COLD, "physics.magnetic_field=[0.0,0.0,0.8]")),
    "bernstein": ("bernstein", ()),
    "bernstein_noise": ("bernstein", ("problem.amplitude=0.0", "particles.start=random", "time.end=100.0")),
    "driven_wave": ("driven_wave", ("species.electrons.temperature=1e-4",)),  # too cold for its mesh to resolve
    "driven_bounce": ("driven_wave", BOUNCE),
    "driven_energy": ("driven_wave", DRIVEN_ENERGY),
}
#: Strengths of Coulomb collisions that damp a wave, and the wave, in two velocity dimensions.
COULOMB_STRENGTHS = (0.01, 0.05, 0.1, 0.2, 0.4)
COULOMB_WAVE = (
    *("problem.velocity_dims=2", "physics.collision_operator=landau", "physics.landau.exponent=-2.0"),
    *("particles.count=65536", "time.end=12.0", "output.histogram_every=0", "grid.cells=[64]"),
    "problem.amplitude=0.03",
)
#: The same with Coulomb's γ in three velocity dimensions; with three space dimensions; beams; a bi-Maxwellian plasma.
COULOMB_3V = (
    *("problem.velocity_dims=3", "physics.collision_operator=landau", "physics.collision_strength=0.1"),
    *("time.end=12.0", "output.histogram_every=0", "grid.cells=[64]", "problem.amplitude=0.03"),
)
COULOMB_3D = (
    *("problem.space_dims=3", f"problem.length={[4 * math.pi] * 3}", "problem.mode=[1]"),
    *("grid.cells=[32, 4, 4]", "particles.count=262144"),
)
COULOMB_BEAMS = (
    *("problem.velocity_dims=2", "physics.collision_operator=landau", "physics.landau.exponent=-2.0"),
    *("problem.amplitude=0.01", "grid.cells=[64]", "grid.shape_order=2", "output.every=1", "output.histogram_every=0"),
)
COULOMB_WARM = (
    *("problem.kind=bi_maxwellian", "problem.temperatures=[2.0, 0.5, 0.5]", f"problem.length={4 * math.pi}"),
    *COULOMB_3V,
)
COULOMB_RUNS = {
    **{
        f"coulomb_wave_3v_{seed}": ("landau_damping", (*COULOMB_3V, "particles.count=65536", f"particles.seed={seed}"))
        for seed in range(3)
    },
    "coulomb_wave_3d": ("landau_damping", (*COULOMB_3V, *COULOMB_3D)),
    **{
        f"coulomb_{name}_{count}": (job, (*changes, f"particles.count={count}"))
        for name, job, changes in (
            ("beams", "e5_two_stream_weak", COULOMB_BEAMS),
            ("warm_wave", "landau_damping", COULOMB_WARM),
        )
        for count in (65536, 262144)
    },
    "coulomb": ("coulomb", ()),
    "coulomb_full": ("coulomb", ("physics.landau.block=65536", "time.step=0.025")),
    "two_temperatures": ("two_temperatures", ()),
    "coulomb_keeps": (
        "coulomb",
        ("particles.count=2048", "time.end=500.0", "output.every=1", "output.histogram_every=0"),
    ),
    "coulomb_maxwellian": (
        "coulomb",
        (
            *("problem.temperatures=[1.0,1.0,1.0]", "particles.count=4096", "time.end=50.0", "output.every=1"),
            "output.histogram_every=0",
        ),
    ),
    **{
        f"coulomb_wave_{strength}_{seed}{name}": (
            "landau_damping",
            (*COULOMB_WAVE, f"physics.collision_strength={strength}", f"particles.seed={seed}", *changes),
        )
        for strength, seed, (name, changes) in itertools.product(
            COULOMB_STRENGTHS, range(3), (("", ()), ("_binary", ("method.collision=binary",)))
        )
    },
}
QUICK_GAUSSIAN = (
    *("particles.count=1024", "method.iterations=12", "method.first_iterations=80"),
    *("method.learning_rate=0.05", "time.end=1.0"),
)
#: With more iterations or fewer particles the linear functional of a network in 6D has no minimum.
PAPER_NETWORK = ("method.iterations=20", "method.first_iterations=200", "particles.count=16384")
QUICK_TANH = ("particles.count=1024", "method.iterations=5", "method.first_iterations=30", "time.end=1.0")
QUICK_NETWORK = ("time.step=0.1", "output.histogram_every=10", "method.hidden=[16,16]", "method.first_iterations=40")
QUICK_PERIODIC = (
    *(*QUICK_NETWORK, "time.step=0.2", "output.histogram_every=5", "particles.count=1024", "method.iterations=2"),
)
QUICK_PLASMA = (
    *("particles.count=1024", "problem.amplitude=0.02", "grid.cells=[32]", "time.step=0.4", "method.hidden=[16,16]"),
    *("method.iterations=1", "method.first_iterations=40", "output.histogram_every=25"),
)
QUICK_WAVE = (
    *("particles.count=65536", "grid.cells=[12,12,8]", "grid.shape_order=2", "problem.amplitude=0.1", "time.step=0.2"),
    *("time.end=3.0", "physics.collision_strength=0.05", "method.hidden=[16,16]"),
    *("method.iterations=6", "method.first_iterations=30", "output.histogram_every=0"),
)
QUICK_STRONG = (*QUICK_PLASMA, "method.iterations=10", "particles.count=2048")
#: Noise floor of the field energy: the time when it is reached by collision strength, numbers of particles, methods.
FLOOR_ENDS = {1.0: 40.0, 0.1: 60.0}
FLOOR_COUNTS = (16384, 65536)
FLOOR_VARPRO = ("method.solver=varpro", "method.iterations=10")
FLOOR_METHODS = {
    "langevin": LANGEVIN,
    "varpro": FLOOR_VARPRO,
    "controlled": (*FLOOR_VARPRO, "particles.control_variate=true"),
}
#: Changes for the quick size, by job, or by run if a run needs other changes than its job.
QUICK = {
    "e1_gaussian_1d": QUICK_GAUSSIAN,
    "e1_gaussian_3d": QUICK_GAUSSIAN,
    "e1_3d_tanh": QUICK_TANH,
    "e1_3d_tanh_score": QUICK_TANH,
    "e2_confined": (*QUICK_NETWORK, "particles.count=2048", "method.iterations=5"),
    "e2_paper": ("particles.count=1024", "method.iterations=3", "method.first_iterations=40"),
    "e3_periodic_cosine": QUICK_PERIODIC,
    "e3_periodic_ratchet": QUICK_PERIODIC,
    "e4_confined_3d": (*QUICK_NETWORK, "particles.count=2048", "method.hidden=[32,32]", "method.iterations=20"),
    "e5_two_stream_weak": ("particles.count=1024", "method.iterations=1", "method.first_iterations=40"),
    "e5_weak": (*QUICK_PLASMA, "particles.count=4096"),
    "e5_weak_leaky": QUICK_PLASMA,
    "e5_two_stream_strong": QUICK_STRONG,
    "e6_two_stream_1d3v": QUICK_PLASMA,
    "e7_two_stream_3d3v": QUICK_WAVE,
    "two_stream_long": ("particles.count=1024", "method.iterations=1", "time.end=40.0"),
}


@dataclass(frozen=True)
class Run:
    """A case of jobs/, and its changes."""

    job: str
    changes: tuple[str, ...] = ()


def _runs() -> dict[str, Run]:
    runs = {
        "e2": Run("e2_confined"),
        "e2_paper": Run("e2_confined", (*PAPER_SCHEME, "method.hidden=[16,16]", "method.learning_rate=1e-2")),
        "e3_cosine": Run("e3_periodic_cosine"),
        "e3_ratchet": Run("e3_periodic_ratchet"),
        "e4": Run("e4_confined_3d"),
        "e5_weak": Run("e5_two_stream_weak"),
        "e5_weak_leaky": Run("e5_two_stream_weak", LEAKY),
        "e5_strong": Run("e5_two_stream_strong"),
        "e5_strong_leaky": Run("e5_two_stream_strong", LEAKY),
        "e6": Run("e6_two_stream_1d3v"),
        "e6_leaky": Run("e6_two_stream_1d3v", LEAKY),
        "e7": Run("e7_two_stream_3d3v"),
        "e7_oblique": Run("e7_two_stream_3d3v", OBLIQUE),
        "e8_landau": Run("landau_damping"),
        **{
            f"e8_landau_collisional_{seed}": Run("landau_damping", (*COLLISIONAL_LANDAU, f"particles.seed={seed}"))
            for seed in RATE_SEEDS
        },
        **{
            f"e8_growth_collisional_{seed}": Run("e5_two_stream_weak", (*GROWTH, f"particles.seed={seed}"))
            for seed in RATE_SEEDS
        },
        "two_stream_full": Run("two_stream_full"),
        "growth": Run("two_stream_full", FINE_GROWTH),
        "long_jko": Run("two_stream_long"),
        "long_score_matching": Run("two_stream_long", (*SCORE_MATCHING, "method.iterations=10")),
        "long_langevin": Run("two_stream_long", LANGEVIN),
    }
    for start, count, seed in itertools.product(STARTS, COUNTS, SEEDS):
        changes = (f"particles.start={start}", f"particles.count={count}", f"particles.seed={seed}")
        runs[f"seeds_{start}_{count}_{seed}"] = Run("e2_confined", changes)
    for order, step in itertools.product((1, 2), SELF_CONVERGENCE_STEPS):
        changes = (*FROZEN, f"method.order={order}", f"time.step={step}")
        runs[f"order_e2_{order}_{step}"] = Run("e2_confined", (*changes, "time.end=2.0"))
        runs[f"order_e5_{order}_{step}"] = Run("e5_two_stream_weak", (*changes, *FROZEN_PLASMA))
    for order, strength in STIFF:
        changes = (f"method.order={order}", f"physics.collision_strength={strength}")
        runs[f"stiff_{order}_{strength}"] = Run("e5_two_stream_strong", (*changes, *STIFF_PLASMA))
    runs |= {name: Run(*run) for name, run in (DOUGHERTY_RUNS | PLASMA_RUNS | COULOMB_RUNS).items()}
    runs["equilibrium"] = Run("e5_two_stream_strong", EQUILIBRIUM)
    for dims in ("1d", "3d"):
        for step in STEPS:
            at = (f"time.step={step}",)
            runs[f"e1_{dims}_{step}"] = Run(f"e1_gaussian_{dims}", at)
            runs[f"e1_{dims}_second_{step}"] = Run(f"e1_gaussian_{dims}", at + SECOND_ORDER)
            runs[f"e1_{dims}_score_{step}"] = Run(f"e1_gaussian_{dims}", at + SCORE_MATCHING)
        widths = {"1d": "[16,16]", "3d": "[32,32]"}[dims]
        network = (f"method.hidden={widths}", *PAPER_NETWORK)
        runs[f"e1_{dims}_tanh"] = Run(f"e1_gaussian_{dims}", network)
        runs[f"e1_{dims}_tanh_score"] = Run(f"e1_gaussian_{dims}", network + SCORE_MATCHING)
    for strength, end in FLOOR_ENDS.items():
        for count in FLOOR_COUNTS:
            for method, changes in FLOOR_METHODS.items():
                sizes = (f"physics.collision_strength={strength}", f"time.end={end}", f"particles.count={count}")
                runs[f"floor_{strength}_{count}_{method}"] = Run("e5_two_stream_strong", (*sizes, *changes))
    return runs


#: All runs, by the names of their folders.
RUNS = _runs()


class Experiments:
    """Runs on demand: finished run folders in ``out`` are used, all others are run.

    Args:
        out: the folder of the run folders.
        ranks: number of ranks for new runs.
        quick: use the small sizes for tests.
    """

    def __init__(self, out: Path, ranks: int = 1, quick: bool = False):
        self.out, self.ranks, self.quick = out, ranks, quick

    def folder(self, name: str) -> Path:
        """The run folder of one of :data:`RUNS`. The run is made if it does not exist."""
        folder, run = self.out / name, RUNS[name]
        status = folder / "run.json"
        if status.exists() and json.loads(status.read_text())["status"] == "finished":
            return folder
        changes = self.changes(name)
        settings = [part for change in changes for part in ("--set", change)]
        launcher = [str(Path(sysconfig.get_path("scripts")) / "mpirun"), "-n", str(self.ranks)]
        line = [*(launcher if self.ranks > 1 else []), sys.executable, "-m", "hpc_kjko", "run"]
        print(f"running {name}: {run.job} {' '.join(changes)}", file=sys.stderr, flush=True)
        subprocess.run(
            [*line, str(JOBS / f"{run.job}.toml"), "--out", str(folder), "--force", *settings],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return folder

    def changes(self, name: str) -> tuple[str, ...]:
        """The changes of the job for a run, including those of the quick size."""
        run = RUNS[name]
        return run.changes + (QUICK.get(name, QUICK.get(run.job, ())) if self.quick else ())

    def case(self, name: str) -> config.Case:
        """The resolved case of a run."""
        return config.load(self.folder(name) / "case.toml")

    def series(self, name: str) -> dict[str, np.ndarray]:
        """The time series of a run."""
        return read_series(self.folder(name) / "series.h5")

    def reference(self, name: str, snapshot_times: tuple[float, ...] = ()) -> GridSolution:
        """The grid solution for the problem of a run, or for its 1D1V counterpart if it has more dimensions."""
        return grid_solution(self.case(name), snapshot_times, quick=self.quick)


def grid_solution(case: config.Case, snapshot_times: tuple[float, ...] = (), quick: bool = False) -> GridSolution:
    """An independent solution of the 1D1V problem of a case, by the grid solver of ``hpc_kjko.reference``.

    For a problem in more dimensions that is separable (Example 4) or decouples (Example 6) it is the solution of the
    first coordinate. The KL divergence of Example 4 is ``space_dims`` times that of its first coordinate.
    """
    table = {name: part for name, part in case.table().items() if name in ("problem", "physics", "grid", "time")}
    return _solve(json.dumps(table), tuple(snapshot_times), quick)


@functools.cache
def _solve(case_json: str, snapshot_times: tuple[float, ...], quick: bool) -> GridSolution:
    case = config.from_table(json.loads(case_json))
    table = {**case.table(), "problem": _first_coordinate(case)}
    table.pop("grid", None)  # the reference chooses another mesh
    one_dimensional = config.from_table(table)
    quick_size = {"cells": (64, 256), "substeps": 1} if quick else {}
    return compare.grid_solution(one_dimensional, snapshot_times=snapshot_times, **quick_size)


def _first_coordinate(case: config.Case) -> dict:
    problem = case.problem.model_dump(mode="json")
    first = {name: value[0] if isinstance(value, list) else value for name, value in problem.items()}
    if isinstance(case.problem, PerturbedBeams):  # the coordinate along the wave
        first["length"] = 2 * math.pi * first["mode"] / case.problem.wavenumber
    return {**first, "space_dims": 1, "velocity_dims": 1}


def marginal_distance(values: np.ndarray, limits: tuple[float, float], reference: np.ndarray, at: np.ndarray) -> float:
    """L¹ distance of the histogram of a marginal from a reference density. Both have the total mass 1.

    Args:
        values: density in equal bins between ``limits``.
        limits: the two ends of the histogram.
        reference: density at the points ``at``. It is averaged over the bins.
        at: equally spaced points of a finer grid.
    """
    edges = np.linspace(*limits, len(values) + 1)
    width, spacing = edges[1] - edges[0], at[1] - at[0]
    ends = np.concatenate([[at[0] - 0.5 * spacing], at + 0.5 * spacing])
    cumulative = np.concatenate([[0.0], np.cumsum(reference) * spacing])
    wanted = np.diff(np.interp(edges, ends, cumulative)) / width
    return float(np.abs(values - wanted).sum() * width)


def transverse_temperatures(runs: Experiments, name: str) -> np.ndarray:
    """Variances of v_2 and v_3 in every snapshot, from marginals of 160 bins (Sheppard's correction): [snapshots,
    2]."""
    folder, found = runs.folder(name) / "snapshots", []
    for step in list_snapshots(folder):
        variances = []
        for marginal in (m for m in read_snapshot(folder, step).marginals if m.kind == "v" and m.axis > 0):
            low, high = marginal.range
            width = (high - low) / len(marginal.values)
            v = low + width * (np.arange(len(marginal.values)) + 0.5)
            p = marginal.values / marginal.values.sum()
            variances.append((p * v**2).sum() - (p * v).sum() ** 2 - width**2 / 12)
        if variances:
            found.append(variances)
    return np.array(found)


def relative_l2(found: np.ndarray, wanted: np.ndarray) -> float:
    """‖found − wanted‖ / ‖wanted‖."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def slope(steps: tuple[float, ...], errors: np.ndarray) -> float:
    """Least-squares slope of log error against log step."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def damped_wave(time: np.ndarray, amplitude: np.ndarray, latest: float) -> tuple[float, float]:
    """Rate γ and frequency ω of a noisy signal |A e^{γt} cos(ωt + φ)|, by least squares for 1.5 < t < latest."""
    fitted = (time > 1.5) & (time < latest)

    def wave(t: np.ndarray, height: float, rate: float, frequency: float, phase: float) -> np.ndarray:
        return np.abs(height * np.exp(rate * t) * np.cos(frequency * t + phase))

    found = []
    for phase in (-0.8, -0.4, 0.0, 0.4, 0.8):
        guess = (amplitude[0], -0.2, 1.4, phase)
        parameters, _ = curve_fit(wave, time[fitted], amplitude[fitted], p0=guess, maxfev=20_000)
        residual = np.sum((wave(time[fitted], *parameters) - amplitude[fitted]) ** 2)
        found.append((residual, float(parameters[1]), abs(float(parameters[2]))))
    return min(found)[1:]


def peaks_rate(time: np.ndarray, amplitude: np.ndarray, latest: float = math.inf) -> tuple[float, float]:
    """Rate γ and frequency ω of a signal |e^{γt} cos(ωt + …)|, from parabolas through the logarithms at its maxima."""
    when, height = maxima(time, np.log(amplitude))
    when, height = when[when < latest][1:], height[when < latest][1:]
    return float(np.polyfit(when, height, 1)[0]), float(np.pi / np.diff(when).mean())
