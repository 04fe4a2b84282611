"""Symplectic maps and their compositions."""

import math

import pytest
import torch

from hpc_kjko.push.integrators import MAPS, compose


def oscillate(stages, step, steps):
    """A harmonic oscillator under the stages without collisions, from (1, 0): the final (x, v)."""
    x, v = 1.0, 0.0
    for _ in range(steps):
        for stage in stages:
            if stage.action == "drift":
                x += stage.fraction * step * v
            elif stage.action == "kick":
                v -= stage.fraction * step * x
    return x, v


@pytest.mark.parametrize(
    ("name", "order", "expected"), [("euler", 1, 1), ("verlet", 1, 2), ("euler", 2, 2), ("verlet", 2, 2)]
)
def test_order_of_the_conservative_part(name, order, expected):
    """A Lie step has the map's order; Strang's half step and adjoint half step make any map second order."""
    stages = compose(MAPS[name], order)
    errors = []
    for steps in (40, 80, 160):
        x, v = oscillate(stages, 2.0 / steps, steps)
        errors.append(math.hypot(x - math.cos(2.0), v + math.sin(2.0)))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes == pytest.approx([expected] * 2, abs=0.1)


def test_a_composition_of_verlet_steps_is_of_fourth_order():
    errors = []
    for steps in (10, 20, 40):
        x, v = oscillate(MAPS["forest_ruth"].stages, 2.0 / steps, steps)
        errors.append(math.hypot(x - math.cos(2.0), v + math.sin(2.0)))
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert slopes == pytest.approx([4] * 2, abs=0.2)
    assert errors[-1] < 1e-5


@pytest.mark.parametrize("name", MAPS)
def test_the_adjoint_undoes_the_map_in_reverse(name):
    symplectic = MAPS[name]
    x, v = oscillate(symplectic.stages, 0.3, 1)
    back = symplectic.adjoint.scaled(-1.0).stages
    for stage in back:
        if stage.action == "drift":
            x += stage.fraction * 0.3 * v
        else:
            v -= stage.fraction * 0.3 * x
    assert (x, v) == pytest.approx((1.0, 0.0), abs=1e-15)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", MAPS)
def test_every_stage_adds_up_to_one_step(name, order):
    stages = compose(MAPS[name], order)
    for action in ("drift", "kick", "collide"):
        assert sum(s.fraction for s in stages if s.action == action) == pytest.approx(1.0, abs=1e-15)
    middle = [s.action for s in stages].index("collide")
    if order == 2:  # symmetric about the collision
        assert stages[:middle] == stages[middle + 1 :][::-1]
    else:
        assert middle == len(stages) - 1


def test_the_maps_are_symplectic():
    for symplectic in MAPS.values():

        def flow(z, stages=symplectic.stages):
            x, v = z[0], z[1]
            for stage in stages:
                if stage.action == "drift":
                    x = x + stage.fraction * 0.7 * v
                else:
                    v = v - stage.fraction * 0.7 * torch.sin(x)
            return torch.stack([x, v])

        jacobian = torch.func.jacrev(flow)(torch.tensor([0.4, 1.2], dtype=torch.float64))
        assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-14)
