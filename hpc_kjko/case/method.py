"""[method]: the collision step and its inner solver. Some defaults depend on other keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError

from hpc_kjko import usercode
from hpc_kjko.operators import OPERATORS
from hpc_kjko.schema import Cadence, Count, Counts, OneOrTwo, Positive, Section, among, whole_number

#: With fewer particles than this, the default learning rate of varpro is smaller: it is then proportional to the square
#: root of their number. Otherwise the hidden layers would fit the particles' noise and overfit more with each step.
ENOUGH_PARTICLES = 32768
#: The built-in collision methods.
COLLISIONS = ("jko", "score_matching", "velocity_matching", "pair_sum", "binary", "langevin", "none")
#: Defaults of [method] that depend on the solver. With an exact output layer a few hidden steps are enough.
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
    """The collision step and its inner solver.

    :func:`with_defaults` sets the defaults that depend on other keys.
    """

    collision: str = "jko"
    """The collision step: `jko`, `score_matching`, `velocity_matching`, `pair_sum`, `binary`, `langevin`, `none`, or
    `module:name`.

    Default: `jko`; with `physics.collision_operator = "landau"` it is `pair_sum`.

    `jko`: the implicit variational step. With `landau` it allows steps of any length.

    `pair_sum`, `binary`: for `landau` only. `pair_sum` sums over pairs of particles. `binary` collides random pairs by
    Monte Carlo and does not carry log f.

    `score_matching`: learns the score ∇v log f and makes an explicit step.

    `velocity_matching`: trains one field for all times before the first step. It needs `physics.field = "external"`.

    `langevin`: random kicks. It does not carry log f.

    `none`: no collisions.

    `module:name`: a collision method of your own."""
    form: Literal["split", "nonsplit", "nonsplit_naive"] = "split"
    """The state of which the control field u is a function: `split`, `nonsplit` or `nonsplit_naive`.

    `split`: u is a function of the pushed state.

    `nonsplit`: u is a function of the state before the push, and log f uses the true Jacobian. With `score_matching`
    this is score-based transport.

    `nonsplit_naive`: the same, but log f uses ∇v u alone.

    The last two need `time.integrator = "euler"`."""
    order: OneOrTwo = 1
    """Order in time of the whole step (push and collisions): 1 or 2.

    Default: 2 for `jko` and `pair_sum`, else 1. The default is also 1 with `logdet = "linear"`, with a `form` other
    than `split`, without collisions, and for `jko` with `landau`.

    1: push, then collide, as in the paper.

    2: half a push, a collision step by the midpoint rule, and the adjoint half push.

    Use 1 where κh is above 1, because the midpoint rule overshoots there. For `jko` with `landau`, 2 is more
    accurate up to C h = 1."""
    logdet: Literal["exact", "linear"] = "exact"
    """The log-determinant in the collision step: `exact`, `log det(I + h ∇v u)`, or `linear`, `h ∇v·u`.

    `linear` is the paper's choice. It is of first order only."""
    solver: SolverName = "adam"
    """How the inner problem is solved: `regression`, `varpro` or `adam`.

    Default: `regression` for `jko` and `pair_sum`, else `adam`. If `form`, `logdet`, `activation` or `hidden = []` do
    not allow `regression`, the default is `varpro`.

    `regression`: fits a density to the log f of the particles, and takes the control field from it (`jko` and
    `pair_sum` only).

    `varpro`: Adam trains the hidden layers, and a linear solve gives the output layer (`jko` only). Held-out particles
    choose the ridge parameter of this linear solve.

    `adam`: Adam trains all layers, as in the paper."""
    iterations: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)] = 50
    """Iterations of Adam per step. With `adam` and `"auto"` they continue while the fit of held-out particles improves.

    `regression`: each iteration uses a batch of about 2048 particles. The iterations stop when the fit differs from
    log f of a batch by at most 0.002 (root mean square).

    `varpro`: after every 10 iterations the fit is tested on held-out particles, and the best one is kept. 2 to 10
    iterations are enough if f changes slowly. 0 keeps the features fixed after the first step.

    `adam`: the iterate with the lowest objective is kept. `"auto"` makes at most 200 iterations, and at most
    `first_iterations` in the first step."""
    first_iterations: Cadence = 500
    """Iterations of Adam in the first step.

    `regression` and `adam` begin with random features, `varpro` begins with the affine field. `varpro` stops when the
    fit of held-out particles no longer improves, and keeps the last fit."""
    learning_rate: Positive = 5e-3
    """Learning rate of Adam.

    `varpro`: with N < 32768 particles the default is 0.01 √(N/32768). The learning rate of the output layer is a fifth
    of this rate."""
    relaxation: Annotated[float, Field(ge=0)] = 2.0
    """With `regression`: log f relaxes to the fitted density at this rate times `collision_strength`.

    Relaxation damps errors of log f that do not affect the control field. These are structures too fine for the
    network, and moments that differ from those of the sample. With 0, log f is exactly that of the particle map, to
    round-off."""
    held_out: bool = False
    """Keep a quarter of the particles out of the fit. Half of them choose settings, half certify steps.

    The first eighth of all particles is moved but not fitted. It chooses the ridge parameter and the number of
    iterations. The second eighth takes part in no fit and no choice. It certifies each step. `regression` has nothing
    to choose, so it also fits the first eighth. There, the second eighth takes part only in the averages that tie the
    fit to the sample."""
    hidden: Counts = (32, 32)
    """Widths of at most two hidden layers; `[]` is the affine field."""
    skip: bool = False
    """Add a linear term in v to the network (and in x in unbounded space).

    `regression` always has this term."""
    activation: Literal["tanh", "leaky_relu"] = "tanh"
    """Activation of the network: `tanh` or `leaky_relu` (slope 0.01)."""
    precision: Literal["float32", "float64"] = "float32"
    """Number format of the inner solver.

    With `regression` and `jko` the field that moves the particles has this format, too, except with `landau`. Other
    fields have `particles.precision`."""
    chunk: Count = 16384
    """Number of particles that are moved at a time.

    On a GPU it is 64 times this number. With `regression` it is at most 8192, and at most 2048 without native kernels.
    Chunks are whole row blocks of 1024 particles."""

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
                f'method.collision = "pair_sum" needs method.solver = "regression", not "{self.solver}": it takes the '
                "score from the density that is fitted to log f"
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
                'method.first_iterations = 0 trains nothing in the first step: method.solver = "adam" needs at least 1'
            )
        if self.first_iterations == 0 and self.iterations != 0:
            raise ValueError(
                "method.first_iterations = 0 leaves the features random in all steps: set method.iterations = 0 too"
            )
        if self.solver == "adam" and self.iterations == 0:
            raise ValueError('method.iterations = 0 trains nothing: with method.solver = "adam" use at least 1')
        if self.iterations == "auto" and not self.held_out:
            raise ValueError('method.iterations = "auto" needs method.held_out = true: held-out particles choose them')
        if self.order == 2 and self.logdet == "linear":
            raise ValueError('method.order = 2 needs method.logdet = "exact": "linear" is only of first order')
        if self.order == 2 and self.collision in ("score_matching", "velocity_matching"):
            raise ValueError(f'method.order = 2: method.collision = "{self.collision}" is explicit, of order 1')
        if self.form != "split" and (self.collision not in ("jko", "score_matching") or self.order == 2):
            raise ValueError(
                f'method.form = "{self.form}" needs method.collision = "jko" or "score_matching", and method.order = 1'
            )
        return self


class VelocityMatching(Section):
    """The fixed-point iteration of the collision method `velocity_matching`."""

    outer_iterations: Count = 20
    """Passes through the whole run, each with the field of the pass before."""
    iterations: Count = 40
    """Iterations of Adam after each pass, over the states at all times."""
    learning_rate: Positive = 1e-2
    """Learning rate of Adam."""


def with_defaults(table: dict[str, Any], without_collisions: bool, particles: int, operator: str) -> dict[str, Any]:
    """[method] with the defaults that depend on other keys.

    By default the JKO step is of second order and is fitted to the carried log f. It is of first order, as in the
    paper, if another key requires it: the linear log det, or a form other than split. Without collisions order 2 would
    only divide the push into two. With Landau's operator the JKO step serves for long steps. There the midpoint rule
    overshoots, so the default order is 1.
    """
    stiff = OPERATORS[operator].sums_pairs and table.get("collision") == "jko"
    table = {"collision": "pair_sum" if OPERATORS[operator].sums_pairs else "jko", **table}
    is_jko = table["collision"] in ("jko", "pair_sum")
    papers = table.get("logdet") == "linear" or table.get("form", "split") != "split"
    smooth = table.get("activation", "tanh") == "tanh" and table.get("hidden", True)
    # sums over pairs have no other solver: a key that does not allow regression must be named in the error
    fits = OPERATORS[operator].sums_pairs or (smooth and not papers)
    solver = table.get("solver", ("regression" if fits else "varpro") if is_jko else "adam")
    order = 2 if is_jko and not (papers or without_collisions or stiff) else 1
    defaults = SOLVER_DEFAULTS.get(solver, {}) if isinstance(solver, str) else {}
    if solver == "varpro":
        few = min(1.0, math.sqrt(particles / ENOUGH_PARTICLES))
        defaults = defaults | {"learning_rate": float(f"{few * defaults['learning_rate']:.2g}")}
    return {"solver": solver, "order": order, **defaults, **table}
