"""Explicit symplectic maps and their composition with the collision step.

A map is a list of drifts (x ← x + c h v) and kicks (v ← v + c h a(x)). Both compositions of the paper's section 3.2
(arXiv:2603.23901) follow from the same list:

* Lie:    Φ_h, then collide h                                  (first order, the paper's scheme)
* Strang: Φ_{h/2}, collide h, then the adjoint map Φ*_{h/2}    (second order if the collision step is)

E. Hairer, C. Lubich, G. Wanner, *Geometric Numerical Integration*, doi:10.1007/3-540-30666-8, sections VI.3, II.5.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: Columns of the time series with the seconds of each kind of stage.
PHASES = ("seconds_push", "seconds_collide")


@dataclass(frozen=True)
class Stage:
    """One stage of a step: drift, kick or collision, and over which fraction of the step h."""

    action: Literal["drift", "kick", "collide"]
    fraction: float

    @property
    def phase(self) -> str:
        """The entry of PHASES to which its seconds belong."""
        return PHASES[self.action == "collide"]


@dataclass(frozen=True)
class SymplecticMap:
    """An explicit symplectic map as its drifts and kicks, with the order of its error in h."""

    order: int
    stages: tuple[Stage, ...]

    @property
    def adjoint(self) -> SymplecticMap:
        """The inverse of the map run backwards in time: the same stages in reverse order."""
        return SymplecticMap(self.order, self.stages[::-1])

    def scaled(self, factor: float) -> SymplecticMap:
        """The same map over ``factor`` times the step."""
        return SymplecticMap(self.order, tuple(Stage(s.action, s.fraction * factor) for s in self.stages))


#: Symplectic Euler (paper's eq. 25): drift, then kick at the new position. First order.
SYMPLECTIC_EULER = SymplecticMap(1, (Stage("drift", 1.0), Stage("kick", 1.0)))
#: Störmer-Verlet (paper's eq. 26) as kick-drift-kick. The field of the last kick is that of the first kick of the next
#: step, so there is one field solve per step.
STOERMER_VERLET = SymplecticMap(2, (Stage("kick", 0.5), Stage("drift", 1.0), Stage("kick", 0.5)))


def composition(symplectic: SymplecticMap, fractions: Sequence[float], order: int) -> SymplecticMap:
    """The map over each of the ``fractions`` of the step in turn. Neighbouring stages of the same kind are merged.

    Args:
        order: that of the result.
    """
    stages: list[Stage] = []
    for stage in itertools.chain.from_iterable(symplectic.scaled(fraction).stages for fraction in fractions):
        if stages and stages[-1].action == stage.action:
            stage = Stage(stage.action, stages.pop().fraction + stage.fraction)
        stages.append(stage)
    return SymplecticMap(order, tuple(stages))


_OUTER = 1 / (2 - 2 ** (1 / 3))
#: Fourth order from three Störmer-Verlet steps, the middle one backwards: E. Forest, R. D. Ruth,
#: doi:10.1016/0167-2789(90)90019-L; H. Yoshida, doi:10.1016/0375-9601(90)90092-3. Three field solves per step.
FOREST_RUTH = composition(STOERMER_VERLET, (_OUTER, 1 - 2 * _OUTER, _OUTER), order=4)

MAPS = {"euler": SYMPLECTIC_EULER, "verlet": STOERMER_VERLET, "forest_ruth": FOREST_RUTH}


def compose(symplectic: SymplecticMap, order: Literal[1, 2]) -> tuple[Stage, ...]:
    """The stages of one step of the given order: Lie (1) or Strang (2), for any explicit symplectic map."""
    collide = (Stage("collide", 1.0),)
    if order == 1:
        return symplectic.stages + collide
    half = symplectic.scaled(0.5)
    return half.stages + collide + half.adjoint.stages
