"""What a run would need, before it is started: particles, memory, time and disk space, as lines of text."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpc_kjko.case.config import Case
from hpc_kjko.files.histograms import BINS, MARGINAL_BINS
from hpc_kjko.files.wavetheory import WaveTheory
from hpc_kjko.parallel.comm import Communicator
from hpc_kjko.parallel.limits import resident
from hpc_kjko.particles.state import Shard
from hpc_kjko.running.clock import Clock
from hpc_kjko.running.memory import amount, needs_of, parts_of, state_bytes
from hpc_kjko.running.simulation import Simulation
from hpc_kjko.terminal import duration

#: The largest number of particles of a rank for the time measurement. With more particles the time is scaled.
MEASURED = 2**17
#: Steps that are measured. The first one takes longer, because the network is still untrained.
STEPS = 2
#: Approximate number of columns of the time series.
COLUMNS = 35


def memory_of(case: Case, comm: Communicator) -> Iterator[str]:
    """Yield the particles, the memory that each part of a rank needs, and the memory that is free. Collective."""
    total, size = case.particles.count, comm.size
    yield f"particles: {total} in all; ranks: {size}, with {particles_on_each(case, size)} particles each"
    yield f"memory of a rank, about (this process holds {amount(resident())} before the run):"
    for part in parts_of(case, 0, size, comm.device):
        place = ", on the GPU" if part.on_gpu else ""
        grows = f"   ({part.key})" if part.key else ""
        yield f"    {amount(part.nbytes):>8}  {part.name}{place}{grows}"
    for need in needs_of(case, comm):
        ranks = "this rank" if need.ranks == 1 else f"its {need.ranks} ranks together"
        yield f"{need.limit.name}: {amount(need.limit.free)} free, {ranks} would take about {amount(need.nbytes)} more"


def particles_on_each(case: Case, size: int) -> str:
    """The number of particles on each rank, as text: "1024", or "1024 to 2048"."""
    counts = [species.count for species in case.species.values()] or [case.particles.count]
    shares = [sum(len(Shard.of(count, rank, size)) for count in counts) for rank in range(size)]
    return str(max(shares)) if min(shares) == max(shares) else f"{min(shares)} to {max(shares)}"


def wave_of(case: Case) -> Iterator[str]:
    """Yield lines on the linear theory of the wave of the case.

    If a lower mode of the box grows faster, a line names it. If the wave is damped, a line gives a wavelength that
    grows.
    """
    from hpc_kjko.running import wave_theory  # imported here because it loads modules of SciPy

    theory = wave_theory.theory_of(case)
    if theory is None:
        return
    yield f"wave: k = {theory.wavenumber:.4g} ω_p/v_th, a wavelength of {2 * math.pi / theory.wavenumber:.5g} v_th/ω_p"
    outcome, grows = theory.outcome, theory.rate is not None and theory.rate > 0
    if has_history := len(theory.time) > 0:
        outcome, grows = _outcome(theory.time, np.sqrt(theory.energy))
    words = "; ".join(part for part in (theory.relation, theory.missing) if part)
    yield f"    linear theory: {outcome} ({words})" if outcome else f"    no linear theory: {words}"
    if not outcome:
        return
    yield from _lower_mode(case, theory)
    if grows:
        return
    with contextlib.suppress(wave_theory.NoTheory):
        yield from _which_grows_most(case, theory) if has_history else _which_grows_fastest(case, theory)


def _lower_mode(case: Case, theory: WaveTheory) -> Iterator[str]:
    """Yield the longer wave of the same box that grows fastest, if it grows faster than the wave of the case."""
    from hpc_kjko.running.wave_theory import GROWN, SLOWEST, lower_modes

    def growth(one: WaveTheory) -> float:
        return float(np.sqrt(one.energy.max())) if len(one.time) else one.rate or 0.0

    least, grows = (GROWN, "more") if len(theory.time) else (SLOWEST, "faster")
    own = max(least, growth(theory))
    found = [(growth(one), mode) for mode, one in lower_modes(case) if len(one.time) == len(theory.time)]
    if not found or max(found)[0] <= own + SLOWEST:
        return
    largest, mode = max(found)
    how = f"up to {largest:.3g} times its initial amplitude" if len(theory.time) else f"γ = {largest:.4f}"
    yield f"    mode {mode} of this box grows {grows}: {how}"


def _which_grows_fastest(case: Case, theory: WaveTheory) -> Iterator[str]:
    """Yield the wave that grows fastest in the streams of a case without collisions."""
    from hpc_kjko.running.wave_theory import SLOWEST, fastest_growing

    if (found := fastest_growing(case)) is None:
        slowest, key = f"γ = {SLOWEST:g} ω_p", _speed_key(case)
        yield f"    no wave grows faster than {slowest} in these streams: increase {key} or use colder streams"
        return
    k, rate = found
    where = _length(case, theory, k)
    yield f"    in these streams a wave grows fastest with {where} (k = {k:.3g}): γ = {rate:.4f} without collisions"


def _which_grows_most(case: Case, theory: WaveTheory) -> Iterator[str]:
    """Yield the wave that grows most in the streams of a case, which a bath relaxes."""
    from hpc_kjko.running.wave_theory import GROWN, most_amplified

    if (found := most_amplified(case)) is None:
        yield f"    no wave grows by a factor of {GROWN:g} in these streams and this bath:"
        yield f"    increase {_speed_key(case)}, use colder streams or a smaller physics.collision_strength"
        return
    k, largest, time = found
    yield f"    in these streams and this bath a wave grows most with {_length(case, theory, k)} (k = {k:.3g}):"
    yield f"    up to {largest:.3g} times its initial amplitude, at t = {time:.3g}"


def _length(case: Case, theory: WaveTheory, k: float) -> str:
    """The length of the box in which the wave of a case has the wavenumber k, in words."""
    if case.problem.space_dims == 1 and case.problem.periods:
        return f"problem.length = {case.problem.periods[0] * theory.wavenumber / k:.4g}"
    return f"a wavelength of {2 * math.pi / k:.4g}"


def _outcome(times: np.ndarray, amplitude: np.ndarray) -> tuple[str, bool]:
    """Growth or damping of a wave with a history [n] in words, and whether it grows.

    The wave may oscillate, so its last amplitude is the largest one in the last part of the times.
    """
    from hpc_kjko.running.wave_theory import GROWN

    largest = float(amplitude.max())
    by, times_its = f"by t = {times[-1]:g}", "times its initial amplitude"
    if largest > GROWN:
        return f"grows up to {largest:.3g} {times_its} {by}", True
    late = times >= times[-1] - min(2 * math.pi, 0.25 * times[-1])  # a period of plasma oscillations
    last = float(amplitude[late].max())
    how = "is damped" if last < 1 else "changes only"
    return f"does not grow {by}: it {how} to {last:.2g} {times_its}", False


def _speed_key(case: Case) -> str:
    """The key of a case with the speed of its streams."""
    starts = {f"species.{name}": one.start for name, one in case.species.items()} or {"problem": case.problem}
    for where, start in starts.items():
        for key in ("beam_velocity", "bump_velocity"):
            if hasattr(start, key):
                return f"{where}.{key}"
    return "species.NAME.mean_velocity of one species"


def time_of(case: Case, comm: Communicator) -> Iterator[str]:
    """Yield the time of a step, measured in a few steps, and of the whole run. Collective.

    Raises:
        UserError, SolverFailure: the measured steps failed.
    """
    total, steps = case.particles.count, case.time.steps
    most = MEASURED * comm.size
    if total <= most:
        seconds, words = _measured(case, total, comm), "with the case itself"
    else:
        # the first measurement includes one-time work: the start of the device, tables of f0
        _measured(case, most // 4, comm)
        whole, quarter = _measured(case, most, comm), _measured(case, most // 4, comm)
        slope = (whole - quarter) / (most - most // 4)
        seconds = whole + np.where(slope > 0, slope, whole / most) * (total - most)
        words = f"with {most // 4} and {most} of its particles, and scaled to all"
    drawing, rehearsal, first, later = seconds
    outer = case.velocity_matching.outer_iterations if case.velocity_matching else 0
    before = rehearsal * steps * outer
    yield f"time, measured in {min(STEPS, steps)} step(s) {words}:"
    yield f"    {duration(drawing):>11}  to draw the particles"
    if before:
        yield f"    {duration(before):>11}  to match velocities before the first step"
    yield f"    {duration(first):>11}  for the first step"
    yield f"    {duration(later):>11}  for each of the others"
    whole_run = drawing + before + first + (steps - 1) * later
    yield f"    {duration(whole_run):>11}  for all {steps} steps to time.end = {case.time.end:g}, without writing files"


def files_of(case: Case) -> Iterator[str]:
    """Yield the sizes of the output files."""
    sizes = {name: (number, nbytes) for name, number, nbytes in _files(case) if number}
    yield "files, about:"
    for name, (number, nbytes) in sizes.items():
        each = f" ({number} of {amount(nbytes)})" if number > 1 else ""
        yield f"    {amount(number * nbytes):>8}  {name}{each}"
    yield f"    {amount(sum(number * nbytes for number, nbytes in sizes.values())):>8}  in all"


def _files(case: Case) -> Iterator[tuple[str, int, float]]:
    """Yield the kind of output, how often it is written, and the size of each in bytes."""
    dx, dv = case.problem.space_dims, case.problem.velocity_dims
    output, steps, count = case.output, case.time.steps, case.particles.count
    nodes = math.prod(case.grid.cells) if case.grid and case.physics.field != "external" else 0
    state = state_bytes(case)
    yield "time series", 1, 8.0 * COLUMNS * (steps + 1)
    yield "particles in snapshots", _times(output.particles_every, steps, last=True), count * (state + 8.0)
    if nodes:
        yield "fields in snapshots", _times(output.every, steps), nodes * 8.0 * (2 + dx)
    histograms = 8.0 * (dx * BINS**2 + (dx + dv) * MARGINAL_BINS)
    yield "histograms in snapshots", _times(output.histogram_every, steps), histograms
    carried = nodes * 8.0 * (dx * (case.physics.field == "ampere") + case.particles.control_variate)
    kept = min(2, max(1, _times(output.checkpoint_every, steps, last=True) - 1))  # no checkpoint is written at step 0
    yield "checkpoints that are kept", kept, float(count * state + carried)


def _times(every: int, steps: int, last: bool = False) -> int:
    """How often an output is due, from step 0 on, and at the last step if ``last`` is true."""
    if every == 0:
        return 0
    return steps // every + 1 + (last and steps % every > 0)


class _Nothing:
    """A recorder that writes nothing."""

    def record(self, simulation: Simulation, row: dict[str, float]) -> None:
        pass

    def checkpoint(self, simulation: Simulation) -> Path:
        return Path("not written")


def _measured(case: Case, count: int, comm: Communicator) -> np.ndarray:
    """Seconds to draw ``count`` particles, for a trial step of velocity matching, the first step, and a later step:
    [4]."""
    steps = min(STEPS, case.time.steps)
    changes: dict[str, Any] = {
        "particles": case.particles.model_copy(update={"count": count}),
        "time": case.time.model_copy(update={"end": steps * case.time.step}),
    }
    if case.species:
        part = count / case.particles.count
        changes["species"] = {
            name: species.model_copy(update={"count": max(1, round(part * species.count))})
            for name, species in case.species.items()
        }
    if case.velocity_matching:
        changes["velocity_matching"] = case.velocity_matching.model_copy(update={"outer_iterations": 1})
    began, rows = time.perf_counter(), list[dict[str, float]]()
    simulation = Simulation.start(case.model_copy(update=changes), comm)
    drawn, clock = time.perf_counter(), Clock()
    simulation.run(_Nothing(), on_step=rows.append, clock=clock)
    spent = clock.seconds()
    rehearsal, row = spent["start"] / steps, spent["diagnostics"] / (steps + 1)
    return np.array([drawn - began, rehearsal, row + rows[0]["seconds"], row + rows[-1]["seconds"]])
