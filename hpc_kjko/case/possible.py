"""Checks of the sections together: a method or a start that does not work with the problem is refused."""

from __future__ import annotations

import math

from hpc_kjko import usercode
from hpc_kjko.case.model import Sections
from hpc_kjko.case.sections import GridSettings
from hpc_kjko.errors import UserError
from hpc_kjko.operators import OPERATORS
from hpc_kjko.problems import CustomProblem, PeriodicProblem, PeriodicWave, UserStart
from hpc_kjko.schema import one_or_each

#: The smallest number of particles to which a density may be fitted.
FEWEST = 16


def require_possible(case: Sections) -> None:
    """Refuse a method or a start that does not work with the problem.

    Raises:
        UserError: the message names the key and a value that works.
    """
    physics, method, particles = case.physics, case.method, case.particles
    if method.collision == "velocity_matching" and physics.field != "external":
        raise UserError(
            f'method.collision = "velocity_matching" does not work with physics.field = "{physics.field}", because it '
            'must know the force before the run: use physics.field = "external", or method.collision = "jko"'
        )
    if method.form != "split" and case.time.integrator != "euler":
        raise UserError(
            f'method.form = "{method.form}" is for symplectic Euler: set time.integrator = "euler", '
            f'not "{case.time.integrator}"'
        )
    if any(physics.magnetic_field):
        dims = case.problem.velocity_dims
        if dims < 2 or (dims == 2 and any(physics.magnetic_field[:2])):
            other = "a field along x_3" if dims == 2 else "2 with a field along x_3"
            raise UserError(
                f"physics.magnetic_field = {list(physics.magnetic_field)} gives particles a velocity along an axis "
                f"that is missing with problem.velocity_dims = {dims}: use 3, or {other}"
            )
        if method.form != "split":
            raise UserError(f'physics.magnetic_field needs method.form = "split", not "{method.form}"')
    _require_possible_drive(case)
    if case.problem.walls:
        needs = None
        if physics.field == "ampere":
            needs = 'physics.field = "poisson" or "external", not "ampere"'
        elif case.grid and case.grid.solver == "distributed":
            needs = 'grid.solver = "root" or "replicated", not "distributed"'
        elif any(physics.magnetic_field):
            needs = "no physics.magnetic_field"
        elif particles.control_variate:
            needs = "particles.control_variate = false"
        elif method.form != "split":
            needs = f'method.form = "split", not "{method.form}"'
        elif isinstance(case.problem, UserStart) and case.problem.starts_from_user_code:
            needs = "one of the built-in starts"
        elif any(operator != "bath" for operator in case.collision_operators):
            needs = 'collision_operator = "bath"'
        if needs:
            raise UserError(f"problem.boundary with walls needs {needs}")
    if isinstance(case.problem, CustomProblem) and physics.field != "external":
        raise UserError(
            f'physics.field = "{physics.field}" does not use problem.potential: use physics.field = "external", or '
            'problem.kind = "plasma"'
        )
    if case.grid and case.grid.solver == "distributed" and (physics.field != "poisson" or case.problem.space_dims == 1):
        raise UserError(
            f'grid.solver = "distributed" is for physics.field = "poisson" in two or three dimensions, not for '
            f'"{physics.field}" in {case.problem.space_dims}: use grid.solver = "root" or "replicated"'
        )
    if case.time.energy_conserving and physics.field != "ampere":
        raise UserError(
            f'time.energy_conserving = true does not work with physics.field = "{physics.field}": use physics.field = '
            '"ampere", where E can change in the kick'
        )
    for key, value, special in (("start", particles.start, "grid"), ("weights", particles.weights, "density")):
        if value != special:
            continue
        if case.problem.periods is None:
            raise UserError(
                f'particles.{key} = "{value}" needs a periodic box, and problem.kind = "{case.problem.kind}" is '
                "unbounded: leave it out"
            )
        for start in [species.start for species in case.species.values()] or [case.problem]:
            own_start = isinstance(start, UserStart) and start.starts_from_user_code
            if own_start or not isinstance(start, PeriodicProblem):
                raise UserError(
                    f'particles.{key} = "{value}" is not possible with this start, which does not draw space and '
                    "velocity separately: leave it out"
                )
    _require_possible_pairs(case)
    operator = OPERATORS[physics.collision_operator]
    for name in case.collision_operators:
        if OPERATORS[name].frame == "bath":
            continue
        needs = None
        if case.problem.periods is None:
            needs = f'a periodic box, and problem.kind = "{case.problem.kind}" is unbounded: use "bath"'
        elif method.form != "split":
            needs = f'method.form = "split", not "{method.form}"'
        if needs:
            raise UserError(f'{"" if case.species else "physics."}collision_operator = "{name}" needs {needs}')
    if particles.control_variate:
        needs = None
        if operator.frame != "bath":
            needs = 'physics.collision_operator = "bath": its Maxwellian is the known part of f'
        elif physics.field == "external":
            needs = 'a self-consistent field, physics.field = "poisson" or "ampere"'
        elif method.collision in ("langevin", "binary", "none"):
            needs = f'collisions that track log f, such as method.collision = "jko", not "{method.collision}"'
        elif physics.collision_strength == 0:
            needs = "a bath to relax to, physics.collision_strength > 0"
        elif case.time.energy_conserving:
            needs = "time.energy_conserving = false: the weights change with v, and with them the energy of the field"
        if needs:
            raise UserError(f"particles.control_variate = true needs {needs}")
    if particles.start == "grid" and case.grid is None:
        raise UserError('particles.start = "grid" places particles in the cells of a mesh: add [grid]')


def _require_possible_pairs(case: Sections) -> None:
    """Refuse sums over pairs of particles if the method or the dimensions do not allow them."""
    method, name = case.method.collision, case.physics.collision_operator
    for species, one in case.species.items():
        if OPERATORS[one.collision_operator].sums_pairs:
            raise UserError(
                f'species.{species}.collision_operator = "{one.collision_operator}" acts between all species: use '
                f'physics.collision_operator = "{one.collision_operator}" instead'
            )
    if not OPERATORS[name].sums_pairs:
        if method in ("pair_sum", "binary"):
            raise UserError(
                f'method.collision = "{method}" is for physics.collision_operator = "landau", not "{name}": use "jko"'
            )
        return
    if method not in ("jko", "pair_sum", "binary", "none"):
        raise UserError(
            f'physics.collision_operator = "{name}" is a sum over pairs: use method.collision = "pair_sum", "jko" or '
            f'"binary", not "{method}"'
        )
    if method == "jko" and case.method.solver != "regression":
        raise UserError(
            f'method.collision = "jko" with physics.collision_operator = "{name}" needs method.solver = "regression", '
            f'not "{case.method.solver}": its step uses the density that is fitted to log f'
        )
    if method in ("jko", "pair_sum"):
        counts = {f"species.{species}.count": one.count for species, one in case.species.items()}
        for key, count in (counts or {"particles.count": case.particles.count}).items():
            if count < FEWEST:
                raise UserError(
                    f'{key} = {count}: with physics.collision_operator = "{name}" a density is fitted to the particles '
                    f"of each species, which needs {FEWEST} particles or more"
                )
    if case.physics.landau.pairs and not case.species:
        raise UserError("physics.landau.pairs is for several species: add them, as in [species.electrons]")
    if method == "none":
        return
    if method == "binary" and case.particles.weights != "equal":
        raise UserError(
            'method.collision = "binary" exchanges momentum between particles of the same mass: use '
            'particles.weights = "equal", or method.collision = "pair_sum"'
        )
    if method == "binary" and case.species:
        weights = {one: species.density / species.count for one, species in case.species.items()}
        (first, lowest), (last, highest) = (pick(weights.items(), key=lambda one: one[1]) for pick in (min, max))
        if highest > lowest * (1 + 1e-12):
            raise UserError(
                'method.collision = "binary" exchanges momentum between particles of the same weight, and '
                f"density/count is {lowest:.3g} of {first} and {highest:.3g} of {last}: choose species.NAME.count in "
                'proportion to the densities, or method.collision = "pair_sum"'
            )
    if case.problem.velocity_dims < 2:
        raise UserError(
            f'physics.collision_operator = "{name}" needs problem.velocity_dims = 2 or 3: in one dimension the pairs '
            "of particles that collide have no velocity to exchange"
        )


def _require_possible_drive(case: Sections) -> None:
    """Refuse a driven field that does not work with the box or the method."""
    drive, method = case.physics.drive, case.method
    if drive is None:
        return
    if method.form != "split" or method.collision == "velocity_matching":
        key, other = ("form", "split") if method.form != "split" else ("collision", "jko")
        raise UserError(
            f'physics.drive changes with time and does not work with method.{key} = "{getattr(method, key)}": '
            f'use "{other}"'
        )
    if isinstance(drive, str):
        if not usercode.is_reference(drive):
            raise UserError(
                f'physics.drive = "{drive}": give a table, [physics.drive], or "module:name" of a function E(x, t)'
            )
    elif case.problem.periods is None:
        raise UserError(f'[physics.drive] needs a periodic box, and problem.kind = "{case.problem.kind}" is unbounded')
    elif len(drive.mode) > case.problem.space_dims:
        raise UserError(
            f"physics.drive.mode has {len(drive.mode)} numbers for problem.space_dims = {case.problem.space_dims}: "
            f"{one_or_each(case.problem.space_dims, 'space')}"
        )


def fitting_grid(case: Sections) -> GridSettings | None:
    """The grid with the number of cells in every dimension, after a check that it suits the problem and the field."""
    problem, grid = case.problem, case.grid
    if problem.periods is None:
        if case.physics.field != "external":
            raise UserError(
                f'physics.field = "{case.physics.field}" needs a periodic box, and problem.kind = "{problem.kind}" is '
                'unbounded: use physics.field = "external"'
            )
        if grid is not None:
            raise UserError(f'[grid] needs a periodic box, and problem.kind = "{problem.kind}" is unbounded: remove it')
    if grid is None:
        return None
    if len(grid.cells) not in (1, problem.space_dims):
        raise UserError(
            f"grid.cells = {list(grid.cells)} does not fit problem.space_dims = {problem.space_dims}: "
            f"{one_or_each(problem.space_dims, 'space')}"
        )
    cells = grid.cells * problem.space_dims if len(grid.cells) == 1 else grid.cells
    # the kernels number the nodes with 32 bits, and have up to three ghost nodes along every axis
    if min(cells) < 4 or math.prod(number + 3 for number in cells) >= 2**31:
        raise UserError(
            f"grid.cells = {list(cells)}: at least 4 in every direction, and fewer than 2^31 in all, counted with "
            "three more in every direction"
        )
    starts = {f"species.{name}": species.start for name, species in case.species.items()} or {"problem": problem}
    for where, start in starts.items():
        if not isinstance(start, PeriodicWave):
            continue
        walls = start.walls.axes if start.walls else (False,) * start.space_dims
        for axis, (mode, number, wall) in enumerate(zip(start.mode, cells, walls, strict=False)):
            periods = abs(mode) / (2 if wall else 1)
            if 2 * periods >= number:
                raise UserError(
                    f"{where}.mode = {list(start.mode)} has {periods:g} periods along x_{axis + 1}, but grid.cells = "
                    f"{list(cells)} resolves at most {(number - 1) // 2}: use more cells, or a longer wave"
                )
    return grid.model_copy(update={"cells": cells})
