"""[method]: the collision step, and how its inner problem is solved. Its defaults depend on its other keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from hpc_kjko import usercode
from hpc_kjko.operators import OPERATORS
from hpc_kjko.schema import Cadence, Count, Counts, OneOrTwo, Positive, Section, among, whole_number

#: From so many particles on varpro's learning rate is its default. Fewer are overfitted at that rate, step by step, by
#: hidden layers that follow their noise: it falls as the noise rises, with the square root of their number.
ENOUGH_PARTICLES = 32768
#: The collision methods that need no code of the user's.
COLLISIONS = ("jko", "score_matching", "velocity_matching", "pair_sum", "binary", "langevin", "none")
#: Defaults of [method] that depend on the solver: few hidden steps suffice where the output layer is exact.
SOLVER_DEFAULTS: dict[str, dict[str, Any]] = {
    "varpro": {"iterations": 30, "first_iterations": 100, "learning_rate": 1e-2, "skip": True, "held_out": True},
    "regression": {
        "iterations": 30,
        "first_iterations": 300,
        "learning_rate": 5e-3,
        "skip": False,
        "held_out": True,
        "hidden": (64, 64),
    },
    "adam": {"iterations": 50, "first_iterations": 500, "learning_rate": 5e-3, "skip": False, "held_out": False},
}

if TYPE_CHECKING:
    SolverName = str
else:
    SolverName = among(SOLVER_DEFAULTS)


def _count_or_auto(value: Any) -> Any:
    number = whole_number(value)
    if number == "auto" or (type(number) is int and 0 <= number <= 10**12):
        return number
    raise PydanticCustomError("count_or_auto", 'should be a whole number from 0 to 1e12, or "auto"')


class Method(Section):
    """The collision step and how its inner problem is solved.

    Defaults that depend on other keys: see :func:`with_defaults`.
    """

    collision: str = "jko"
    """The collision step: `jko`, `score_matching`, `velocity_matching`, `pair_sum`, `binary`, `langevin`, `none`, or
    `module:name`.

    Default: `jko`; with `physics.collision_operator = "landau"` it is `pair_sum`.

    `jko`: the implicit variational step. With `landau` it is for steps of any length.

    `pair_sum`, `binary`: with `landau` only. `pair_sum` sums over pairs of particles. `binary` collides random pairs by
    Monte Carlo and does not keep log f.

    `score_matching`: learns the score ∇v log f and makes an explicit step.

    `velocity_matching`: trains one field for all times before the first step. It needs an external field.

    `langevin`: random kicks. It does not keep log f.

    `none`: no collisions.

    `module:name`: a collision method of your own."""
    form: Literal["split", "nonsplit", "nonsplit_naive"] = "split"
    """Which state the control field is fitted to: `split`, `nonsplit` or `nonsplit_naive`.

    `split`: u is a function of the pushed state.

    `nonsplit`: u is a function of the state before the push, and log f uses the true Jacobian. With `score_matching`
    this is score-based transport.

    `nonsplit_naive`: the same, but log f uses ∇v u alone.

    The last two need `time.integrator = "euler"`."""
    order: OneOrTwo = 1
    """Order in time of push and collisions together: 1 or 2.

    Default: 2 for `jko` and `pair_sum`, else 1. The default is also 1 with the linear determinant, with a form that is
    not split, without collisions, and for `jko` with `landau`.

    1: push, then collide, as in the paper.

    2: half a push, a collision by the midpoint rule, the adjoint half push.

    Use 1 where κh is above 1, because the midpoint rule overshoots there. For `jko` with `landau`, 2 is more
    accurate up to C h = 1."""
    logdet: Literal["exact", "linear"] = "exact"
    """The determinant of the collision step: `exact`, `log det(I + h ∇v u)`, or `linear`, `h ∇v·u`.

    `linear` is the paper's choice. It is of first order only."""
    solver: SolverName = "adam"
    """How the inner problem is solved: `regression`, `varpro` or `adam`.

    Default: `regression` for `jko` and `pair_sum`, else `adam`. Where `form`, `logdet`, `activation` or `hidden = []`
    rules `regression` out, the default is `varpro`.

    `regression`: from a density that is fitted to the log f of the particles (`jko` and `pair_sum` only).

    `varpro`: Adam trains the hidden layers, and a linear solve gives the output layer (`jko` only). Held-out particles
    choose its ridge.

    `adam`: Adam trains all layers, as in the paper."""
    iterations: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)] = 50
    """Iterations of Adam per step. With `adam`, `"auto"` continues as long as the fit of held-out particles improves.

    `regression`: each iteration uses a batch of about 2048 particles. The iterations end once the fit differs from
    log f of a batch by no more than 0.002 (root mean square).

    `varpro`: after every 10 iterations the fit is tested on held-out particles, and the best one is kept. 2 to 10
    iterations are enough where f changes slowly. 0 freezes the features after the first step.

    `adam`: the iterate with the lowest objective is kept. `"auto"` takes at most 200, and in the first step
    `first_iterations`."""
    first_iterations: Cadence = 500
    """Iterations of Adam in the first step.

    `regression` and `adam` begin from random features. `varpro` begins from the affine field. It ends when the fit of
    held-out particles no longer improves, and keeps the last fit."""
    learning_rate: Positive = 5e-3
    """Learning rate of Adam.

    `varpro`: with N < 32768 particles the default is 0.01 √(N/32768). The output layer has a fifth of the rate."""
    relaxation: Annotated[float, Field(ge=0)] = 2.0
    """With `regression`: log f relaxes to the fitted density at this rate times `collision_strength`.

    Relaxation damps errors of log f that do not affect the control field: structure that is too fine for the network,
    and moments that differ from those of the sample. With 0, log f is exactly that of the map, to round-off."""
    held_out: bool = False
    """Keep a quarter of the particles out of the fit: half of them choose settings of the fit, half certify each step.

    An eighth of all particles is moved but not fitted. It chooses the ridge and the iterations. Another eighth takes
    part in no fit or choice. It certifies. `regression` has nothing to choose, so it fits the first eighth too. Its
    second eighth takes part only in the averages that tie the fit to the sample."""
    hidden: Counts = (32, 32)
    """Widths of at most two hidden layers; `[]` is the affine field."""
    skip: bool = False
    """Add to the network a linear term in v (and in x in unbounded space).

    `regression` always has one."""
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    """Activation of the network: `tanh` or `leaky_relu` (slope 0.01)."""
    precision: Literal["float32", "float64"] = "float32"
    """Number format of the inner solve.

    `regression` moves the particles along a field in this format; the other solvers in `particles.precision`."""
    chunk: Count = 16384
    """Particles moved at a time.

    On a GPU it is 64 times as many. With `regression` it is at most 8192, and 2048 in torch. Chunks are whole blocks of
    1024 particles."""

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.collision not in COLLISIONS and not usercode.is_reference(self.collision):
            known = ", ".join(f'"{name}"' for name in COLLISIONS)
            raise ValueError(
                f'method.collision = "{self.collision}" is not known: it may be {known}, or "module:name" of your own '
                "code"
            )
        if len(self.hidden) > 2:
            raise ValueError(
                f"method.hidden has {len(self.hidden)} layers: give at most two widths, such as [32, 32] "
                "(the divergence is in closed form for those; [] is the affine field)"
            )
        if self.solver != "adam" and self.collision not in ("jko", "pair_sum", "none"):
            raise ValueError(
                f'method.solver = "{self.solver}" is for "jko" and "pair_sum", not for "{self.collision}": use "adam"'
            )
        if self.collision == "pair_sum" and self.solver != "regression":
            raise ValueError(
                f'method.collision = "pair_sum" needs method.solver = "regression", not "{self.solver}": its score is '
                "that of the density that is fitted to log f"
            )
        if self.solver != "adam" and self.iterations == "auto":
            raise ValueError(f'method.iterations = "auto" is for method.solver = "adam": give {self.solver} a number')
        if self.solver == "regression":
            for key, wanted in (("form", "split"), ("logdet", "exact"), ("activation", "tanh")):
                if getattr(self, key) != wanted:
                    raise ValueError(
                        f'method.solver = "regression" needs method.{key} = "{wanted}", not "{getattr(self, key)}"'
                    )
            if not self.hidden:
                raise ValueError(
                    'method.solver = "regression" needs a hidden layer: give method.hidden one or two widths'
                )
        if self.first_iterations == 0 and self.solver == "adam":
            raise ValueError(
                'method.first_iterations = 0 trains nothing in the first step: give method.solver = "adam" at least 1'
            )
        if self.first_iterations == 0 and self.iterations != 0:
            raise ValueError(
                "method.first_iterations = 0 leaves the features random in all steps: set method.iterations = 0 too"
            )
        if self.solver == "adam" and self.iterations == 0:
            raise ValueError('method.iterations = 0 trains nothing: give method.solver = "adam" at least 1')
        if self.iterations == "auto" and not self.held_out:
            raise ValueError('method.iterations = "auto" needs method.held_out = true: held-out particles choose them')
        if self.order == 2 and self.logdet == "linear":
            raise ValueError('method.order = 2 needs method.logdet = "exact": with the linear one it is first order')
        if self.order == 2 and self.collision in ("score_matching", "velocity_matching"):
            raise ValueError(f'method.order = 2: method.collision = "{self.collision}" is explicit, of order 1')
        if self.form != "split" and (self.collision not in ("jko", "score_matching") or self.order == 2):
            raise ValueError(
                f'method.form = "{self.form}" needs method.collision = "jko" or "score_matching", and method.order = 1'
            )
        return self


class VelocityMatching(Section):
    """The fixed-point iteration of ``method.collision = "velocity_matching"``."""

    outer_iterations: Count = 20
    """Passes through the whole run with the field found so far."""
    iterations: Count = 40
    """Iterations of Adam after each pass, on the states of all times."""
    learning_rate: Positive = 1e-2
    """Learning rate of Adam."""


def with_defaults(table: dict[str, Any], without_collisions: bool, particles: int, operator: str) -> dict[str, Any]:
    """[method] with the defaults that depend on others of its keys.

    The JKO step is of second order and fitted to the carried log f, except where another key asks for the paper's first
    order: the linear log det, or a form that is not split. Without collisions order 2 would only push twice a step.
    Where it stands for sums over pairs it is for long steps, in which the midpoint rule overshoots: it has order 1.
    """
    stiff = OPERATORS[operator].sums_pairs and table.get("collision") == "jko"
    table = {"collision": "pair_sum" if OPERATORS[operator].sums_pairs else "jko", **table}
    is_jko = table["collision"] in ("jko", "pair_sum")
    papers = table.get("logdet") == "linear" or table.get("form", "split") != "split"
    smooth = table.get("activation", "tanh") == "tanh" and table.get("hidden", True)
    # sums over pairs have no other, so that a key that rules it out is named
    fits = OPERATORS[operator].sums_pairs or (smooth and not papers)
    solver = table.get("solver", ("regression" if fits else "varpro") if is_jko else "adam")
    order = 2 if is_jko and not (papers or without_collisions or stiff) else 1
    defaults = SOLVER_DEFAULTS.get(solver, {}) if isinstance(solver, str) else {}
    if solver == "varpro":
        few = min(1.0, math.sqrt(particles / ENOUGH_PARTICLES))
        defaults = defaults | {"learning_rate": float(f"{few * defaults['learning_rate']:.2g}")}
    return {"solver": solver, "order": order, **defaults, **table}
