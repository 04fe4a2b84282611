"""What collisions give a wave, against what the Fokker–Planck operator gives it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hpc_kjko.case.config import from_table
from hpc_kjko.collisions import JKOCollision
from hpc_kjko.collisions.base import CollisionReport
from hpc_kjko.collisions.witness import WaveExchange, WaveWitness
from hpc_kjko.operators import Bath
from hpc_kjko.running.remarks import WAVE_OFF, Pieces, fit_remarks, wave_remarks
from hpc_kjko.running.simulation import Simulation


def beams(start="quiet", count=8192, amplitude=0.15, **problem):
    return from_table(
        {
            "problem": {
                **{"kind": "two_stream", "length": 12.566, "beam_velocity": 2.0, "thermal_speed": 0.5},
                **{"amplitude": amplitude, **problem},
            },
            "physics": {"collision_strength": 0.3},
            "particles": {"count": count, "start": start},
            "grid": {"cells": 32},
            "time": {"step": 0.1, "end": 1.0},
            "method": {"hidden": [32, 32], "first_iterations": 150},
        }
    )


@pytest.mark.parametrize("dims", [1, 3])
def test_the_exact_field_gives_the_wave_nothing_too_much(dims, alone):
    """Within four standard errors of independent particles; pure drag is off by the heat that it leaves out."""
    case = beams(start="random", count=40000, amplitude=0.4, velocity_dims=dims)
    particles = Simulation.start(case, alone).state.particles
    x, v = particles.x, particles.v.detach().requires_grad_()
    score = torch.autograd.grad(case.problem.log_density(x, v, 1.0).sum(), v)[0]
    k = tuple(float(part) for part in case.problem.wave_vector)
    witness, v = WaveWitness(k, Bath(0.3, 1.0)), v.detach()
    excess = witness.terms(x, v, -0.3 * (v + score))[:, :4]
    assert ((excess.mean(0) / excess.std(0)).abs() * 200 < 4).all()
    excess = witness.terms(x, v, -0.3 * v)[:, :4]
    assert float((excess.mean(0) / excess.std(0).clamp(min=1e-3)).abs().max()) * 200 > 10


def test_a_wave_that_goes_wrong_in_certified_steps_is_seen(alone, monkeypatch):
    """A force of 0.05 cos kx beside the collisions' own: far too small for the certificate."""
    errors, field = [], JKOCollision.field
    for force in (0.0, 0.05):

        def pushed(self, particles, *arguments, force=force):
            found, k = field(self, particles, *arguments), float(beams().problem.wave_vector[0])

            def with_force(rows):
                u, *others = found(rows)
                return u + force * torch.cos(k * particles.x[rows]), *others

            return with_force

        monkeypatch.setattr(JKOCollision, "field", pushed)
        simulation = Simulation.start(beams(), alone)
        for _ in range(6):
            simulation.state = simulation.advance()
            simulation.step_index += 1
            assert simulation.state.collision.certificate == 1
        errors.append(simulation.state.collision.wave_error)
    assert errors[0] < WAVE_OFF / 2 and errors[1] > 5 * WAVE_OFF
    remark = lambda error: wave_remarks({"time": torch.tensor([0.0, 0.6]).numpy(), "wave_error": error})  # noqa: E731
    assert remark(torch.tensor([0.0, errors[0]]).numpy()) == []
    assert "do not trust the field energy" in remark(torch.tensor([0.0, errors[1]]).numpy())[0]


@pytest.mark.parametrize(("keys", "told"), [({}, True), ({"start": "random"}, False), ({"dougherty": True}, False)])
def test_the_column_is_there_where_it_can_tell(keys, told, alone):
    """Not where noise alone would add up to more, nor with an operator that gives a wave nothing."""
    dougherty, table = keys.pop("dougherty", False), beams(**keys).table()
    operator = {"collision_operator": "dougherty"} if dougherty else {}
    case = from_table({**table, "physics": {"collision_strength": 0.3, **operator}})
    simulation = Simulation.start(case, alone)
    assert ("wave_error" in simulation._row(simulation.state, 0, 0.0)) == told


def test_noise_does_not_add_up_once_the_wave_has_gone():
    """Its moments no longer stand out: what collisions give them is noise, and is left out."""
    witness = WaveWitness((0.5,), Bath(0.3, 1.0))
    standing = np.array([1e-3] * 4 + [0.2] * 4 + [1.0] * 4)
    sunk = np.array([1e-3] * 4 + [0.01] * 4 + [1.0] * 4)
    seen, gone = (witness.exchange(terms, 0.1, 1e4) for terms in (standing, sunk))
    assert seen.excess == pytest.approx((1e-4,) * 4) and seen.error == pytest.approx(1e-4 / 0.2)
    assert gone.excess == (0, 0, 0, 0) and gone.error == 0


def test_a_fit_that_misses_log_f_is_told():
    """All the time, or by a single step that is far off; not by one that is off a little."""

    def remarks(*residuals):
        time = 0.1 * np.arange(len(residuals))
        columns = {"time": time, "retries": np.zeros(len(time)), "substeps": np.ones(len(time))}
        return fit_remarks({**columns, "log_f_residual": np.array(residuals)})

    assert remarks(0.0) == remarks(0.0, *[0.01] * 10, 0.05, *[0.01] * 10) == remarks(0.0, 0.08, *[0.01] * 20) == []
    assert "from t = 1 on" in remarks(0.0, *[0.04] * 20)[0] and "from t = 0.2 on" in remarks(0.0, 0.04, 0.04)[0]
    (late,) = remarks(0.0, *[0.01] * 15, 0.2)
    assert "up to 0.051 (root mean square over particles and steps so far)" in late and "from t = 1.6 on" in late
    (later,) = remarks(0.0, *[0.001] * 300, *[0.08] * 10)  # long right, then wrong: the mean so far hides it
    assert "up to 0.08 (root mean square over particles and ten steps)" in later and "from t = 30.6 on" in later
    assert fit_remarks({}) == []


def test_steps_in_many_pieces_are_told_by_the_run_and_by_its_readers():
    """Once, where the mean of ten in a row is large; a single one is not enough."""
    substeps = np.array([0.0, *[1] * 20, 64, *[1] * 20, *[64] * 20])
    time = 0.1 * np.arange(len(substeps))
    columns = {"time": time, "substeps": substeps, "retries": 0 * time, "log_f_residual": 0 * time}
    (told,) = fit_remarks(columns)
    assert "into many pieces from t = 4.3 on" in told
    pieces = Pieces()
    said = [pieces({"time": t, "substeps": number}) for t, number in zip(time, substeps, strict=True)]
    assert [sentence for sentence in said if sentence] == [told]


def test_steps_without_the_fitted_density_are_told_if_they_are_many():
    columns = {"time": 0.1 * np.arange(101), "log_f_residual": np.full(101, 0.005), "retries": np.zeros(101)}
    columns["substeps"] = np.ones(101)
    columns["retries"][1:6] = 1
    assert fit_remarks(columns) == []
    columns["retries"][6:8] = 3
    (told,) = fit_remarks(columns)
    assert "in 7 of 100 steps the fitted density could not be used" in told


def test_errors_add_up_and_survive_a_checkpoint():
    one, other = WaveExchange((0.2, -0.2, 0.1, 0.0), (2.0, 0.0)), WaveExchange((0.1, 0.1, 0.3, 0.0), (1.0, 0.0))
    total = other.following(one.following(WaveExchange()))
    assert total.excess == pytest.approx((0.3, -0.1, 0.4, 0.0)) and total.largest == (2.0, 0.0)
    assert total.error == pytest.approx(0.25) and WaveExchange().error == 0  # what never stood out does not count
    report = CollisionReport(0, 1, 0, 0, 1, wave=other).following(CollisionReport(0, 1, 0, 0, 1, wave_total=one))
    again = CollisionReport.loaded(json.loads(json.dumps(dataclasses.asdict(report))))
    assert again.wave_error == report.wave_error == pytest.approx(0.25)
    assert again.following(again).wave_total.excess == pytest.approx((0.4, 0.0, 0.7, 0.0))
