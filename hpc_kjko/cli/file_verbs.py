"""The verbs of ``kjko`` that read files and print, or start other processes. Under mpirun only rank 0 runs them.

They start quickly: nothing here imports torch, MPI or the models of a case before a verb needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from hpc_kjko import casefile
from hpc_kjko.casefile import RunCase
from hpc_kjko.errors import DamagedFile, UserError
from hpc_kjko.files.output import list_snapshots
from hpc_kjko.files.runfolder import RunFolder
from hpc_kjko.files.series import read_series, read_series_and_units
from hpc_kjko.files.storage import damage, unfinished
from hpc_kjko.files.wavetheory import WaveTheory, read_theory
from hpc_kjko.parallel.launcher import promised_ranks
from hpc_kjko.post import rates, summary
from hpc_kjko.terminal import show_pairs, show_table, width, wrapped
from hpc_kjko.units import ELECTRON_RATE, ION_RATE, ISOTROPISATION_RATE, LIGHT_SPEED, SPECIES, Units

if TYPE_CHECKING:
    from hpc_kjko.post.sweep import Sweep

DONE, DIFFERENT, FAILED, STOPPED = 0, 1, 1, 75

#: Keys of a case that have a unit: the attribute of Units with its value, and the name of the unit.
_UNIT_OF = {
    "problem.length": ("length", "m"),
    "time.step": ("time", "s"),
    "time.end": ("time", "s"),
    "physics.magnetic_field": ("magnetic_field", "T"),
    "physics.drive.amplitude": ("electric_field", "V/m"),
    "physics.drive.frequency": ("frequency", "rad/s"),
}


def series(options: argparse.Namespace) -> int:
    """Show the time series of a run."""
    columns = _rows(_existing(options.folder))
    if options.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
        return DONE
    rows = [
        [name, *(f"{value:.7g}" for value in (values[0], values[-1], values.min(), values.max()))]
        for name, values in columns.items()
    ]
    show_table(["column", "first", "last", "smallest", "largest"], rows)
    return DONE


def plot(options: argparse.Namespace) -> int:
    """Draw the figures of a run, or figures that compare the runs of a sweep."""
    if not options.first <= options.last:
        raise UserError(f"--from {options.first:g} --to {options.last:g}: the first time must not be after the last")
    plotting, window = _plotting(), (options.first, options.last)
    if (options.folder / "sweep.json").exists():
        return _plot_sweep(options, plotting, window)
    folder = _existing(options.folder)
    _rows(folder)
    wanted = {"columns": options.column, "window": window, "file_format": options.format}
    wanted |= {"log": options.log, "places": options.at, "planes": options.plane, "movie": options.movie}
    wanted |= {"against": _existing(options.against) if options.against else None}
    for path in plotting.plot_run(folder, **wanted, out=options.out):
        print(path)
    return DONE


def _plot_sweep(options: argparse.Namespace, plotting: ModuleType, window: tuple[float, float]) -> int:
    """Draw figures that compare the runs of a sweep."""
    from hpc_kjko.post import overview

    for flag in ("log", "at", "plane", "movie", "against"):
        if getattr(options, flag):
            raise UserError(f"--{flag}: this option needs one run: give the folder of one run of this sweep")
    runs, unreadable = overview.runs_in([options.folder])
    for sentence in unreadable:
        print(f"kjko: {sentence}", file=sys.stderr)
    pictures = overview.pictures(runs, options.column, window)
    out = options.out or options.folder / "figures"
    for path in plotting.save_all(pictures, out, options.format, options.folder.resolve().name):
        print(path)
    return DONE


def inspect(options: argparse.Namespace) -> int:
    """Show the contents of a run folder."""
    folder = _existing(options.folder)
    status, damaged = folder.status(), []
    case: RunCase | None = None
    columns: dict[str, np.ndarray] = {}
    theory: WaveTheory | None = None
    try:
        case = RunCase(folder.case)
    except UserError as failure:
        damaged.append(str(failure))
    try:
        columns, theory = _rows(folder), read_theory(folder.series)
    except DamagedFile as failure:
        damaged.append(str(failure))
    files = [path for kind in (folder.checkpoints, folder.snapshots) for path in sorted(kind.glob("*.h5"))]
    damaged += [f"{path.relative_to(folder.path)}: {what}" for path in files if (what := damage(path))]
    rows: dict[str, str] = {
        "status": f"gone: {folder.what_now()}" if status["status"] == "gone" else status["status"],
        **({"damaged files": "\n".join(damaged)} if damaged else {}),
        **(_about_case(case) if case else {}),
        **(_about_series(columns, case, theory) if columns else {}),
        "snapshots": f"{len(list_snapshots(folder.snapshots))}",
        "checkpoints": ", ".join(sorted(path.name for path in folder.checkpoints.glob("step*.h5"))) or "none",
        **(summary.memory(status, case.particle_count) if case else {}),
        "incomplete files": ", ".join(
            str(path.relative_to(folder.path))
            for path in (*unfinished(folder.checkpoints), *unfinished(folder.snapshots))
        )
        or "none",
        **{
            name: str(status[name])
            for name in ("version", "git", "ranks", "threads", "device", "mpi", "date")
            if name in status
        },
    }
    show_pairs(rows, title=str(folder.path))
    if (summary.tally(columns) or {}).get("inconclusive") and columns["collision_free_energy_total_error"][-1] > 0:
        print("\n".join(wrapped(summary.INCONCLUSIVE, width())))
    for sentence in summary.remarks(status, columns):
        print("\n".join(wrapped(f"warning: {sentence}", width())))
    return DONE


def _about_case(case: RunCase) -> dict[str, str]:
    of = f" ({', '.join(case.species)})" if case.species else ""
    return {
        "case": f"{case.word('problem.kind')}, {case.dims}, {case.strength_words}, "
        f"{case.particle_count} particles{of}, {case.word('method.collision')}",
    }


def _about_series(columns: dict[str, np.ndarray], case: RunCase | None, theory: WaveTheory | None) -> dict[str, str]:
    """A summary of the time series of a run. ``case`` is None if the case cannot be read."""
    energy = summary.total_energy(columns)
    planned = f" of {case.number('time.end'):g} in steps of {case.number('time.step'):g}" if case else ""
    missing = summary.missing_steps(columns)
    return {
        "time": f"{columns['time'][-1]:g}{planned}",
        **({"rows missing in series.h5": f"steps {missing}"} if missing else {}),
        "seconds per step": f"{np.median(columns['seconds'][1:]):.3g}" if len(energy) > 1 else "-",
        "mass, largest change": f"{np.abs(columns['mass'] - columns['mass'][0]).max():.2e}",
        "energy, first and last": f"{energy[0]:.8g}, {energy[-1]:.8g}",
        **_balance(columns, energy),
        **_wave(columns, theory),
        **{
            f"{label}, first and last": f"{columns[name][0]:.8g}, {columns[name][-1]:.8g}"
            for label, name in (("free energy", "free_energy"), ("KL to equilibrium", "kl"))
            if name in columns
        },
        **_of_the_map(columns),
        **(_certificates(case, columns) if case else {}),
    }


def _wave(columns: dict[str, np.ndarray], theory: WaveTheory | None) -> dict[str, str]:
    """The measured rate of the wave and the theoretical one; empty without a field."""
    found = rates.measured(columns, theory)
    if found is None:
        return {}
    first, last = found.rate.window
    return {
        "rate of the wave, in ω_p": f"{found.text} (t = {first:.3g} to {last:.3g})",
        **({"frequency of the wave, in ω_p": found.frequency_text} if found.rate.frequency else {}),
        "theory of the wave": found.remark.removeprefix("Theory: ").removesuffix("."),
    }


def _of_the_map(columns: dict[str, np.ndarray]) -> dict[str, str]:
    """Numbers that show whether the map of the control field was invertible; empty if there is no control field."""
    if "min_eigenvalue" not in columns:
        return {}
    return {
        "steps split, fits repeated": f"{int((columns['substeps'] > 1).sum())}, {int(columns['retries'].sum())}",
        "smallest eigenvalue of I + h ∇v u": f"{columns['min_eigenvalue'].min():.4g}",
    }


def _balance(columns: dict[str, np.ndarray], energy: np.ndarray) -> dict[str, str]:
    """The part of the change of energy that collisions and the drive do not explain."""
    if "collision_energy_total" not in columns:
        return {}
    unexplained = energy - energy[0] - columns["collision_energy_total"] - columns.get("drive_energy", 0.0)
    by = "collisions or the drive" if "drive_energy" in columns else "collisions"
    return {f"energy change not from {by}": f"{np.abs(unexplained).max():.2e}"}


def _certificates(case: RunCase, columns: dict[str, np.ndarray]) -> dict[str, str]:
    """The numbers of certified, inconclusive and violated steps."""
    fall = summary.fall(columns)
    if fall is None:
        return {}
    return {
        f"steps in which {summary.certified_quantity(case)} fell": summary.tally_text(columns),
        "change in all collisions": f"{fall} (of particles that are held out of the fit)",
    }


def report(options: argparse.Namespace) -> int:
    """Write a page about one run, or a page that compares several runs: one self-contained HTML file."""
    from hpc_kjko.post import overview

    first = options.folder[0]
    if len(options.folder) == 1 and not overview.holds_runs(first):
        from hpc_kjko.post.report import write_report

        with _any_backend():
            print(write_report(_existing(first), options.out))
        return DONE
    if options.out is None and len(options.folder) > 1:
        raise UserError("several runs: give the name of the page with --out FILE.html")
    print(overview.write_overview(options.folder, options.out or first / overview.INDEX))
    return DONE


def compare(options: argparse.Namespace) -> int:
    """Compare a run with another run, the grid solver or a CSV file. The exit code is 1 beyond the tolerance."""
    from hpc_kjko.post import differences

    if options.out and options.out.suffix not in (".png", ".pdf", ".svg", ".html"):
        raise UserError(
            f"--out {options.out}: the name of a figure must end in .png, .pdf or .svg, and that of a page in .html"
        )
    if options.out and options.out.suffix != ".html":
        _plotting()
    folder = _existing(options.run)
    reference = differences.reference_of(folder, options.reference)
    if options.reference != differences.GRID and Path(options.reference).is_dir():
        _say_other_case(folder, RunFolder(Path(options.reference)))
    found = differences.differences(_rows(folder), reference, options.column)
    time = found[0].time
    title = f"{options.run} against {options.reference}, {len(time)} times from {time[0]:g} to {time[-1]:g}"
    numbers = ("relative L2", "largest difference", "at t", "last of A", "last of B")
    rows = []
    for one in found:
        last = (f"{values[-1]:.7g}" for values in (one.values, one.reference))
        rows.append([one.column, f"{one.relative_l2:.3g}", f"{one.largest:.3g}", f"{one.at:g}", *last])
    beyond = [
        number
        for number, one in enumerate(found)
        if options.tolerance is not None and not one.relative_l2 <= options.tolerance
    ]
    show_table(["column", *numbers], rows, title=title, marked=beyond)
    floors: dict[str, np.ndarray] = {}
    for path in (options.run, Path(options.reference)):
        if not (path / "case.toml").exists():
            continue
        status = RunFolder(path).status()
        if status["status"] != "finished":
            print(f"kjko: {path} is {status['status']}: its steps so far are compared", file=sys.stderr)
        columns = read_series(RunFolder(path).series)
        for name, floor in summary.noise_floors(status, columns).items():
            for one in (one for one in found if one.column == name):
                level = np.interp(one.time, columns["time"], floor)
                floors[name] = np.maximum(level, floors.get(name, level))
                times = int((np.minimum(one.values, one.reference) < summary.NOISY * level).sum())
                if times:
                    print(
                        f"kjko: {name} is mostly noise at {times} of {len(one.time)} times, so differences there are "
                        f"noise too: the noise floor of {path} is about {level.max():.2g}; use "
                        "particles.control_variate = true or more particles",
                        file=sys.stderr,
                    )
    if options.out:
        _, known = read_series_and_units(folder.series)
        labels = (options.run.resolve().name, Path(options.reference).name)
        picture = differences.picture(found, known, labels, floors, RunCase(folder.case))
        if options.out.suffix == ".html":
            from hpc_kjko.post import page

            page.write_comparison(found, picture, options.out)
        else:
            from hpc_kjko.post import draw

            draw.save(picture, options.out)
        print(options.out)
    if beyond:
        what = ", ".join(f"{found[number].column} by {found[number].relative_l2:.3g}" for number in beyond)
        print(f"kjko: beyond the tolerance of {options.tolerance:g} in relative L2: {what}", file=sys.stderr)
        return DIFFERENT
    return DONE


def _say_other_case(first: RunFolder, second: RunFolder) -> None:
    """Print the keys of the cases, and the user's own code, in which two runs differ. Seeds and output do not count."""
    aside = {("particles", "seed")}
    with contextlib.suppress(UserError):  # a damaged case is not needed here
        keys = casefile.differing(casefile.read(first.case), casefile.read(second.case))
        named = [f"{s}.{key}" for s, key in keys if s not in ("output", "run") and (s, key) not in aside]
        ours, theirs = (
            {str(path.relative_to(run.code)): path for path in sorted(run.code.rglob("*.py"))}
            for run in (first, second)
        )
        changed = {str(path.relative_to(second.code)) for path in first.changed_code(theirs)}
        named += [f"code/{name}" for name in sorted(changed | (ours.keys() ^ theirs.keys()))]
        if named:
            print(f"kjko: the runs differ in {', '.join(named)}", file=sys.stderr)


def cases(options: argparse.Namespace) -> int:
    """List the keys of a case and the built-in choices, from a page that scripts/reference.py made from the models."""
    page = resources.files("hpc_kjko.post").joinpath("templates/cases.txt").read_text(encoding="utf-8")
    for line in page.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        for part in wrapped(line.strip(), width() - len(indent)) or [""]:
            print(f"{indent}{part}".rstrip())
    return DONE


def units(options: argparse.Namespace) -> int:
    """Convert density, temperature and Coulomb logarithm of a plasma to normalised units, and back."""
    case = RunCase(options.case) if options.case else None
    plasma, log_lambda, whose = _plasma(options, case)
    strength = plasma.collision_strength(log_lambda)
    kind = "electrons" if plasma.is_of_electrons else f"mass {plasma.mass:g} m_e, charge {plasma.charge:g} e"
    one = {
        "density n": f"{plasma.density:.6g} 1/m³",
        "temperature T": f"{plasma.temperature:.6g} eV",
        "frequency ω_p": f"{plasma.frequency:.6g} rad/s",
        "time 1/ω_p": f"{plasma.time:.6g} s",
        "length λ_D": f"{plasma.length:.6g} m",
        "velocity v_th": f"{plasma.velocity:.6g} m/s ({plasma.velocity / LIGHT_SPEED:.2g} c)",
        "potential T/q": f"{plasma.potential:.6g} V",
        "electric field T/(q λ_D)": f"{plasma.electric_field:.6g} V/m",
        "magnetic field m ω_p/q": f"{plasma.magnetic_field:.6g} T",
    }
    show_table(["1 in the code", "in SI units"], list(one.items()), title=f"The reference species: {kind}\n")
    print()
    show_pairs(
        {
            "N_D = n λ_D³": f"{plasma.debye_number:.6g} particles in a cube of the Debye length",
            "lnΛ": f"{log_lambda:.6g}, {whose}",
            "C = lnΛ/(8π N_D)": f"{strength:.6g} ω_p",
        },
        title="Coulomb collisions\n",
    )
    basic = ("electrons by ions, ν_e", ELECTRON_RATE) if plasma.is_of_electrons else ("like ions, ν_i", ION_RATE)
    rates = [basic, ("isotropisation, ν_T", ISOTROPISATION_RATE)]
    rows = [
        [name, *(f"{number:.4g}" for number in (rate, rate * plasma.frequency, 1 / rate, plasma.time / rate))]
        for name, rate in ((name, factor * strength) for name, factor in rates)
    ]
    print()
    show_table(["rates, as in the NRL", "in ω_p", "in 1/s", "time in 1/ω_p", "time in s"], rows)
    rows = [
        [name, f"{charge / plasma.charge:.6g}", f"{mass / plasma.mass:.8g}"] for name, (charge, mass) in SPECIES.items()
    ]
    print()
    show_table(["species", "species.NAME.charge", "species.NAME.mass"], rows)
    print(f'\nKeys of a case\n\nphysics.collision_operator = "landau"\nphysics.collision_strength = {strength:.7g}')
    if options.magnetic_field:
        print(f"physics.magnetic_field = [0.0, 0.0, {options.magnetic_field / plasma.magnetic_field:.7g}]")
    if options.length:
        print(f"problem.length = {options.length / plasma.length:.7g}")
    if options.time:
        print(f"time.end = {options.time / plasma.time:.7g}")
    if case:
        print()
        show_table(["key", "in the case", "in SI units"], list(_in_si(case, plasma)), title=f"{case.path}\n")
    return DONE


def _plasma(options: argparse.Namespace, case: RunCase | None) -> tuple[Units, float, str]:
    """The plasma of the options, or else that of a case: its units, its lnΛ, and the source of lnΛ in words."""
    given = {name: getattr(options, name) for name in ("density", "temperature", "log_lambda")}
    whole = given["density"] and given["temperature"]  # the options describe a plasma other than that of the case
    if case and options.collision_strength is None and not whole:
        of_case = {name: _numbers(case, f"physics.landau.{name}") for name in given}
        if all(of_case.values()):
            given = {name: of_case[name][0] if value is None else value for name, value in given.items()}
    density, temperature, log_lambda = given.values()
    if temperature is None or (density is None) == (options.collision_strength is None):
        raise UserError(
            "kjko units needs --temperature in eV and either --density in 1/m³ or --collision-strength (see 'kjko "
            "units --help')"
        )
    if density is None:
        strength = options.collision_strength
        plasma = Units.of_collision_strength(strength, temperature, log_lambda, options.mass, options.charge)
    else:
        plasma = Units(density, temperature, options.mass, options.charge)
    if log_lambda is not None:
        return plasma, log_lambda, "as given"
    kind = "electron-electron" if plasma.is_of_electrons else "ion-ion"
    return plasma, plasma.log_lambda, f"of the NRL Plasma Formulary ({kind})"


def _in_si(case: RunCase, plasma: Units) -> Iterator[list[str]]:
    """Rows of a table: each key of the case with a unit, its value in the case, and its value in SI units."""
    keys = {key: (getattr(plasma, name), unit) for key, (name, unit) in _UNIT_OF.items()}
    for name in case.species:
        keys[f"species.{name}.density"] = (plasma.density, "1/m³")
        keys[f"species.{name}.temperature"] = (plasma.temperature, "eV")
    for key, (one, unit) in keys.items():
        if numbers := _numbers(case, key):
            here, there = (", ".join(f"{number * by:.6g}" for number in numbers) for by in (1, one))
            yield [key, here, f"{there} {unit}"]


def _numbers(case: RunCase, key: str) -> list[float]:
    """The numbers of a key of a case; empty if the case does not have the key."""
    value = case.value(key, [])
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or abs(number) > sys.float_info.max:
            raise UserError(f"{case.path}: {key} must be a number, or a list of numbers")
    return numbers


def watch(options: argparse.Namespace) -> int:
    """Follow a running job in the terminal by reading its files. It ends with the run or at Ctrl-C."""
    from hpc_kjko.post import watch

    watch.watch(options.folder, once=options.once, interval=options.interval)
    return DONE


def sweep(options: argparse.Namespace) -> int:
    """Run a case for all combinations of some values, or write a SLURM job array for that, and print a table."""
    from hpc_kjko.post.sweep import Sweep

    if promised_ranks() > 1:
        raise UserError("kjko sweep starts the ranks itself: call it without mpirun, with --ranks")
    if options.table:
        _show_sweep(Sweep.read(options.case), {})
        return DONE
    if not options.grid or options.out is None:
        raise UserError(
            "kjko sweep: needs --grid section.key=v1,v2 and --out DIR, or --table after the folder of a sweep"
        )
    swept = Sweep.plan(options.case, options.grid, options.out, options.set)
    if options.slurm:
        swept.require_free(options.slurm)
        swept.write()
        swept.write_slurm_script(options.slurm, options.ranks)
        print(
            f"{len(swept.points)} runs. Submit them from the folder that contains jobs/. Paths in the script are "
            "relative to this folder:"
        )
        print(f"    sbatch {options.slurm}")
        print(f"    kjko sweep {options.out} --table     # shows the results so far")
        return DONE
    from hpc_kjko.post import overview

    swept.write()
    outcomes = swept.run(options.ranks)
    _show_sweep(swept, outcomes)
    if overview.holds_runs(swept.folder):
        print(overview.write_overview([swept.folder], swept.folder / overview.INDEX))
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    if failed:
        print(f"kjko: {len(failed)} of {len(swept.points)} runs failed: {' '.join(failed)}", file=sys.stderr)
        return FAILED
    if list(outcomes.values()).count("finished") < len(swept.points):
        print("kjko: stopped before the end of the sweep: the same command continues it", file=sys.stderr)
        return STOPPED
    return DONE


def _show_sweep(swept: Sweep, outcomes: dict[str, str]) -> None:
    """Print the table of a sweep without empty columns, and write the complete table as CSV."""
    rows = swept.table(outcomes)
    keys = [key for key in swept.points[0].settings if len({row[key] for row in rows}) > 1]
    verdicts = list(summary.VERDICTS.values())
    quantities = ("energy", "field_energy", "potential_energy", "free_energy", "kl", "seconds")
    numbers = [name for name in quantities if any(row[name] for row in rows)]
    certified = any(row[verdicts[0]] is not None for row in rows)
    headings = [key.partition(".")[2] for key in keys] + ["status", *numbers] + ["certificates"] * certified
    lines = []
    for row in rows:
        cells = [row[key] for key in keys] + [row["status"]]
        cells += ["-" if row[name] is None else f"{row[name]:.4g}" for name in numbers]
        cells += ["/".join("-" if row[name] is None else str(row[name]) for name in verdicts)] * certified
        lines.append(cells)
    title = str(swept.folder)
    if certified:
        title += f" (certificates: {' / '.join(verdicts)})"
    show_table([heading.replace("_", "\n") for heading in headings], lines, title=title, labels=max(1, len(keys)))
    print(swept.write_table(rows))


def _rows(folder: RunFolder) -> dict[str, np.ndarray]:
    """The time series of a run folder, with at least one row."""
    columns = read_series(folder.series)
    if not len(columns["step"]):
        raise UserError(f"{folder.series}: has no rows yet: wait for the first step of the run")
    return columns


def _existing(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.status()
    return folder


def _plotting() -> ModuleType:
    """Import the module that draws figures."""
    with _any_backend():
        try:
            from hpc_kjko.post import plotting
        except ImportError:
            raise UserError("figures need matplotlib: pip install 'hpc_kjko[plot]'") from None
    return plotting


@contextlib.contextmanager
def _any_backend() -> Iterator[None]:
    """Import matplotlib inside this block without the backend that MPLBACKEND names.

    Figures in files do not need that backend, and it may not be installed here. Afterwards matplotlib gets the backend,
    for a notebook that called this.
    """
    is_new, named = "matplotlib" not in sys.modules, os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named and is_new and "matplotlib" in sys.modules:
        import matplotlib

        with contextlib.suppress(ValueError):  # the backend does not exist
            matplotlib.rcParams["backend"] = named
