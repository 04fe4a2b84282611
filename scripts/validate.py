#!/usr/bin/env python
"""Full-size validation against independent solutions. Prints the results.

    python scripts/validate.py [NAME…] [--ranks N] [--out DIR] [--record]

e1 … e6: the paper's examples; e7: 3D3V; e8: rates with and without collisions; long: three methods to t = 200; floor:
noise of the field energy with the control variate; two_stream, growth, landau: the full-size two-stream case and
collisionless rates of jobs/; seeds, order, stiff, equilibrium: few particles, orders in the step, strong collisions,
10⁴ steps; dougherty: collisions that conserve momentum and energy; ions, buneman: waves and instability of two species;
magnetic: waves across a magnetic field; driven: a driven wave; coulomb_rates, coulomb_relaxation, bkw, coulomb_keeps,
coulomb_waves, coulomb_plasma: Coulomb collisions (exact rates and solutions, conservation, damping of a wave, beams);
drawn: random cases, chosen by --seed.
Missing runs are made in DIR/NAME, and are shared with paper_figures.py. The exit code is 1 if a target is missed. The
tests contain small versions. With --record the results replace their rows in docs/validation.json; then
`python scripts/reference.py` updates the page docs/validation.md.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import records
from accuracy import equilibrium, order, seeds, stiff
from coulomb import bkw, coulomb_keeps, coulomb_plasma, coulomb_rates, coulomb_relaxation, coulomb_waves
from dougherty import dougherty
from drawn import drawn
from experiments import (
    FLOOR_COUNTS,
    FLOOR_ENDS,
    FLOOR_METHODS,
    STEPS,
    Experiments,
    marginal_distance,
    relative_l2,
    slope,
    transverse_temperatures,
)
from plasma import buneman, driven, ions, magnetic
from rates import e8, growth, landau
from records import record

from hpc_kjko.files.output import read_snapshot


def e1(runs: Experiments) -> bool:
    """Root of the time-averaged drift error as a function of h: slope 1 ± 0.15 for the paper's scheme."""
    passed = True
    labels = {"": "JKO, order 1", "score_": "score matching", "second_": "JKO, order 2"}
    for dims in ("1d", "3d"):
        print(f"e1 {dims}: h = {', '.join(map(str, STEPS))}; then the fitted slope")
        for kind, label in labels.items():
            series = [runs.series(f"e1_{dims}_{kind}{step}") for step in STEPS]
            errors = {
                "root of mean drift error": [np.sqrt(s["drift_error"][1:].mean()) for s in series],
                "mean, largest error": [s["mean_error"].max() for s in series],
                "covariance, largest error": [s["covariance_error"].max() for s in series],
            }
            for name, values in errors.items():
                fitted = slope(STEPS, np.array(values))
                print(f"  {label:15s} {name:26s} {' '.join(f'{v:.5f}' for v in values)}   slope {fitted:.2f}")
                if kind == "" and name.startswith("root"):
                    row = (f"Example 1, {dims}, paper's scheme", "order of the drift error in h", "1 ± 0.15")
                    passed &= record(*row, f"{fitted:.2f}", abs(fitted - 1) <= 0.15)
        for name in (f"e1_{dims}_{suffix}" for suffix in ("0.1", "score_0.1", "tanh", "tanh_score")):
            series = runs.series(name)
            at = [round(t / 0.1) for t in (0.5, 1, 2, 4)]
            roots = np.sqrt(series["drift_error"][at])
            print(f"  {name:18s} root of drift error at t = 0.5, 1, 2, 4: {' '.join(f'{root:.4f}' for root in roots)}")
    return passed


def relaxation(runs: Experiments, name: str, marginals: bool, allowed_kl: float = 0.03) -> bool:
    """KL divergence per dimension close to that of the grid solver at all times; marginals within 0.03 at the end."""
    series, case = runs.series(name), runs.case(name)
    dims, end = case.problem.space_dims, case.time.end
    reference = runs.reference(name, (end,))
    kl = series["kl"] / dims
    wanted = np.interp(series["time"], reference.times, reference.relative_entropy)
    error = np.abs(kl - wanted)
    at = [round(t / case.time.step) for t in (0, 0.5, 1, 2, 3, 4, 5)]
    print(f"{name}: {case.particles.count} particles, {series['seconds'].sum():.0f} s")
    print(f"  KL per dimension at t = 0, 0.5, 1, 2, 3, 4, 5: {' '.join(f'{kl[i]:.4f}' for i in at)}")
    print(f"  grid solver                                  : {' '.join(f'{wanted[i]:.4f}' for i in at)}")
    print(f"  largest error {error.max():.4f} at t = {series['time'][error.argmax()]:g}")
    snapshot = read_snapshot(runs.folder(name) / "snapshots", case.time.steps)
    density = reference.snapshots[0]
    spacing_x, spacing_v = reference.x[1] - reference.x[0], reference.v[1] - reference.v[0]
    distances = []
    for marginal in snapshot.marginals:
        of_x = marginal.kind == "x"
        wanted_marginal = density.sum(axis=1) * spacing_v if of_x else density.sum(axis=0) * spacing_x
        points = reference.x if of_x else reference.v
        share = marginal.values / case.problem.mass
        distances.append(marginal_distance(share, marginal.range, wanted_marginal, points))
    names = [f"{marginal.kind}_{marginal.axis + 1}" for marginal in snapshot.marginals]
    print("  L1 error of marginals at the end: ", end="")
    print(", ".join(f"{label} {distance:.4f}" for label, distance in zip(names, distances, strict=True)))
    quantity = "KL per dimension against the grid, largest error"
    passed = record(name, quantity, f"≤ {allowed_kl:g}", f"{error.max():.5f}", error.max() <= allowed_kl)
    if marginals:
        row = (name, "L¹ of the marginals at the end, largest", "≤ 0.03", f"{max(distances):.3f}")
        passed &= record(*row, max(distances) <= 0.03)
    return passed


def e2(runs: Experiments) -> bool:
    """Example 2 with the default and the paper's scheme. The target applies to the default."""
    passed = relaxation(runs, "e2", marginals=True, allowed_kl=0.0004)
    relaxation(runs, "e2_paper", marginals=True)
    return passed


def e3(runs: Experiments) -> bool:
    """Example 3, both potentials: KL at the end; the exact value is 0, within 0.0005."""
    passed = [relaxation(runs, name, marginals=True) for name in ("e3_cosine", "e3_ratchet")]
    for name in ("e3_cosine", "e3_ratchet"):
        last = float(runs.series(name)["kl"][-1])
        quantity = "KL at the end; the exact value is 0"
        passed.append(record(name, quantity, "≤ 0.0005", f"{last:.5f}", abs(last) <= 0.0005))
    return all(passed)


def e4(runs: Experiments) -> bool:
    """Example 4: KL is three times that of one dimension."""
    return relaxation(runs, "e4", marginals=False, allowed_kl=0.0012)


def e5(runs: Experiments) -> bool:
    """Field energy within 10 % (relative L², t ≤ 40) at weak collisions, and entropy within 1 %."""
    passed = True
    for name in ("e5_weak", "e5_weak_leaky", "e5_strong", "e5_strong_leaky"):
        series, reference = runs.series(name), runs.reference(name)
        wanted = {
            key: np.interp(series["time"], reference.times, getattr(reference, key))
            for key in ("field_energy", "kinetic_energy", "entropy")
        }
        field = relative_l2(series["field_energy"], wanted["field_energy"])
        entropy = np.abs(series["entropy"] / wanted["entropy"] - 1).max()
        kinetic = np.abs(series["kinetic_energy"] / wanted["kinetic_energy"] - 1).max()
        at = [round(t / 0.1) for t in (5, 10, 20, 30, 40)]
        print(f"{name}: field energy, relative L2 {field:.4f}; largest error of entropy {entropy:.5f}, ", end="")
        print(f"kinetic energy {kinetic:.5f}; {series['seconds'].sum():.0f} s")
        for label, values in (("run ", series["field_energy"]), ("grid", wanted["field_energy"])):
            print(f"  {label} at t = 5, 10, 20, 30, 40: {' '.join(f'{values[i]:.4g}' for i in at)}")
        if name == "e5_weak":
            passed &= record(
                name, "field energy against the grid, relative L²", "≤ 10 %", f"{field:.1%}", field <= 0.10
            )
            passed &= record(name, "entropy, largest relative error", "≤ 1 %", f"{entropy:.3%}", entropy <= 0.01)
    return bool(passed)


def e6(runs: Experiments) -> bool:
    """The field energy equals that of 1D1V, and the transverse temperatures are within 1 % of that of the bath."""
    passed = True
    for name in ("e6", "e6_leaky"):
        series, plain, reference = runs.series(name), runs.series("e5_weak"), runs.reference("e5_weak")
        grid = np.interp(series["time"], reference.times, reference.field_energy)
        against_grid = relative_l2(series["field_energy"], grid)
        against_plain = relative_l2(series["field_energy"], plain["field_energy"])
        worst = np.abs(transverse_temperatures(runs, name) / runs.case(name).physics.temperature - 1).max()
        print(
            f"{name}: field energy, relative L2 {against_grid:.4f} against the grid, {against_plain:.4f} against 1D1V; "
            f"transverse temperature within {worst:.4f}; {series['seconds'].sum():.0f} s"
        )
        if name == "e6":
            row = (name, "field energy against the grid, relative L²", "≤ 10 %", f"{against_grid:.1%}")
            passed &= record(*row, against_grid <= 0.10)
            row = (name, "transverse temperatures, largest error", "≤ 1 %", f"{worst:.2%}")
            passed &= record(*row, worst <= 0.01)
    return bool(passed)


def long(runs: Experiments) -> bool:
    """Three methods for the two-stream case with weak collisions to t = 200: a table without a target."""
    reference = runs.reference("long_jko")
    print("long: at t = 50, 100, 200: kinetic energy, field energy, entropy, KL to equilibrium; substeps; seconds")
    for name in ("long_jko", "long_score_matching", "long_langevin", "grid"):
        if name == "grid":
            series = {key: getattr(reference, key) for key in ("kinetic_energy", "field_energy", "entropy")}
            series |= {"kl": reference.relative_entropy / reference.mass, "time": reference.times}
        else:
            series = runs.series(name)
        for time in (50, 100, 200):
            at = np.abs(series["time"] - time).argmin()
            values = [series[key][at] if key in series else np.nan for key in
                      ("kinetic_energy", "field_energy", "entropy", "kl")]  # fmt: skip
            late = series["time"] > 150
            print(f"  {name:20s} t = {time:3d}: {' '.join(f'{value:11.5g}' for value in values)}", end="")
            print(f"   mean field energy for t > 150: {series['field_energy'][late].mean():.3g}")
        if name != "grid":
            print(f"  {name:20s} {series['seconds'].sum():.0f} s, steps split: {int((series['substeps'] > 1).sum())}")
    return True


def floor(runs: Experiments) -> bool:
    """Field energy in the last quarter of E5 with the control variate: at least 30 times below that of Langevin.

    It must also decrease with the number of particles."""
    passed = True
    for strength in FLOOR_ENDS:
        before = np.inf
        for count in FLOOR_COUNTS:
            late = {}
            for method in FLOOR_METHODS:
                series = runs.series(f"floor_{strength}_{count}_{method}")
                quarter = series["field_energy"][-(len(series["time"]) // 4) :]
                late[method] = quarter.mean()
                print(
                    f"floor: kappa {strength:g}, N {count}, {method:10s} {quarter.mean():.2e} ± {quarter.std():.1e}, "
                    f"{series['seconds'].sum():.0f} s",
                    *(
                        f"{name} {series[name][-1]:.3g}"
                        for name in ("control_variate_beta", "weight_variance")
                        if name in series
                    ),
                )
            lower = late["langevin"] / late["controlled"]
            quantity = "late field energy of a Langevin run, divided by that with the control variate"
            row = (f"κ = {strength:g}, {count} particles", quantity)
            passed &= record(*row, "≥ 30", f"{lower:.0f}", lower >= 30)
            if not late["controlled"] < before:
                print("floor: the field energy with the control variate does not fall with more particles")
                passed = False
            before = late["controlled"]
    return bool(passed)


def two_stream(runs: Experiments) -> bool:
    """Field energy of the full-size case, within 10 % of the grid solver at t = 10, 15, 20, 25."""
    series, reference = runs.series("two_stream_full"), runs.reference("two_stream_full")
    at = {
        name: np.interp(series["time"], reference.times, getattr(reference, name))
        for name in ("field_energy", "kinetic_energy", "entropy")
    }
    print("two_stream:  t   field energy    grid solver    error   kinetic   entropy  (relative errors)")
    passed = True
    for time in (5, 10, 15, 20, 25, 30, 40, 50):
        i = round(time / 0.1)
        error = {name: series[name][i] / values[i] - 1 for name, values in at.items()}
        passed &= time not in (10, 15, 20, 25) or abs(error["field_energy"]) <= 0.10
        print(
            f"{time:4d} {series['field_energy'][i]:14.6g} {at['field_energy'][i]:14.6g} "
            f"{error['field_energy']:8.2%} {error['kinetic_energy']:9.3%} {error['entropy']:9.3%}"
        )
    for end in (25.0, 50.0):
        early = series["time"] <= end
        norm = relative_l2(series["field_energy"][early], at["field_energy"][early])
        print(f"relative L2 of the field energy over [0, {end:g}]: {norm:.4f}")
    record("two_stream_full", "field energy to t = 50, relative L²", "≤ 10 %", f"{norm:.1%}", norm <= 0.10)
    return bool(passed)


def e7(runs: Experiments) -> bool:
    """3D3V: field energy of the wave per volume, within 10 % (relative L²) of 1D1V, along x_1 and obliquely.

    Each is relative to its start, because a mesh with few cells per wavelength weakens the wave. All other modes stay
    noise.
    """
    passed = True
    for name in ("e7", "e7_oblique"):
        series, case, reference = runs.series(name), runs.case(name), runs.reference(name)
        wave, others = series["wave_energy"], series["field_energy"] - series["wave_energy"]
        wanted = np.interp(series["time"], reference.times, reference.field_energy)
        error = relative_l2(wave / wave[0], wanted / wanted[0])
        row = (f"{name}, 3D3V", "wave energy against the grid in 1D1V, relative L²", "≤ 10 %", f"{error:.1%}")
        passed &= record(*row, error <= 0.1)
        length, mass = 2 * np.pi * case.problem.mode[0] / case.problem.wavenumber, case.problem.mass
        print(
            f"{name}: {case.particles.count} particles, {case.grid.cells} cells, {series['seconds'].sum():.0f} s for "
            f"{case.time.steps} steps; wave energy, relative L2 {error:.4f}, at t = 0 "
            f"{wave[0] / mass / (wanted[0] / length):.4f} of the grid solver's; all other modes, per volume, at the "
            f"start and the end {others[0] / mass:.2e}, {others[-1] / mass:.2e}"
        )
        at = range(0, case.time.steps + 1, case.time.steps // 5)
        for label, values in (("run ", wave / mass), ("grid", wanted / length)):
            print(
                f"  {label} per volume at t = {series['time'][at[1]]:g}, …: {' '.join(f'{values[i]:.4g}' for i in at)}"
            )
    return passed


VALIDATIONS: dict[str, Callable[[Experiments], bool]] = {
    "e1": e1,
    "e2": e2,
    "e3": e3,
    "e4": e4,
    "e5": e5,
    "e6": e6,
    "e7": e7,
    "e8": e8,
    "long": long,
    "floor": floor,
    "two_stream": two_stream,
    "growth": growth,
    "landau": landau,
    "seeds": seeds,
    "order": order,
    "stiff": stiff,
    "equilibrium": equilibrium,
    "dougherty": dougherty,
    "ions": ions,
    "buneman": buneman,
    "magnetic": magnetic,
    "driven": driven,
    "coulomb_rates": coulomb_rates,
    "coulomb_relaxation": coulomb_relaxation,
    "bkw": bkw,
    "coulomb_keeps": coulomb_keeps,
    "coulomb_waves": coulomb_waves,
    "coulomb_plasma": coulomb_plasma,
    "drawn": drawn,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(VALIDATIONS), default=[])
    parser.add_argument("--seed", type=int, default=1, help="seed of the random cases (default 1)")
    parser.add_argument("--ranks", type=int, default=2, help="number of ranks of new runs (default 2)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/paper/runs"), help="folder of the run folders; finished runs are reused"
    )
    parser.add_argument("--record", action="store_true", help="write the results into docs/validation.json")
    options = parser.parse_args()
    unknown = set(options.names) - VALIDATIONS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(VALIDATIONS)}")
    if options.record and (why := records.refusal(options.names or VALIDATIONS)):
        parser.error(f"--record: {why}")
    runs = Experiments(options.out, options.ranks)
    validations = {**VALIDATIONS, "drawn": functools.partial(drawn, seed=options.seed)}
    results, rows = {}, []
    for name in options.names or validations:
        records.measured.clear()
        results[name] = validations[name](runs)
        rows += [(name, row) for row in records.measured]
    if options.record:
        records.write(rows)
    for name, passed in results.items():
        print(f"{name}: {'within its target' if passed else 'MISSES its target'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
