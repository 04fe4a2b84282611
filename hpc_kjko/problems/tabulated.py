"""A start from a function f0(x, v) alone: its normaliser, and the drawing of positions and velocities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # its parts are loaded when they are first used
import torch

from hpc_kjko.errors import UserError
from hpc_kjko.problems.quasirandom import Sobol

#: Nodes of a table along each of its axes, by the number of axes.
_NODES = {1: 16384, 2: 2048, 3: 224}
#: Number of points at which f0 is evaluated at a time.
_CHUNK = 1 << 17
#: The extent of f0 is found from this many nodes along an axis, at this many places of the other coordinates.
_SCAN, _PLACES = 2048, 64
#: An axis ends where f0 is below the first fraction of its maximum. In figures it ends where f0 is below the second
#: one.
_NEGLIGIBLE, _INVISIBLE = 1e-13, 1e-5
#: f0 is searched for within these distances of 0, because a beam may be far from the rest, with nothing in between.
_REACHES = (8.0, 32.0, 128.0)
#: Whether f0 is a product is tested where it is above this fraction of its maximum.
_FAINT = 1e-8
#: The largest coordinate that an unbounded axis may reach.
_FARTHEST = 1e4
#: Largest root mean square of the relative error between the nodes.
_ROUGH = 0.01
#: Single precision may cause this relative difference between both ends of a period.
_ROUND_OFF = 3e-7

_SAMPLER = "give an object with sample(points, temperature) and log_density(x, v, temperature) in its place"

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: Nodes around each of n points, as indices along some axes, and the weights of these nodes in the interpolation.
_Corners = list[tuple[tuple[np.ndarray, ...], np.ndarray]]


class TabulatedDensity:
    """The density f0(x, v), known up to a factor, as an initial density with ``sample`` and ``log_density``.

    f0 is tabulated on a mesh. Particles are drawn exactly from the multilinear interpolant of the table. The first axis
    is drawn from its marginal, each further one from its conditional density, each by inversion of its cumulative. So
    evenly spread uniform points stay evenly spread. If f0 is a product of functions of different axes, each factor has
    its own table. A table has at most three axes. log f0 is the logarithm of the function itself, minus the logarithm
    of its integral.

    Args:
        function: f0(x, v) for x [n, dx], v [n, dv]: [n], not negative.
        periods: box lengths [dx], or None in unbounded space.
        space_dims: dx; velocity_dims: dv.
        mass: ∫f0 after normalisation.
        given: the key that holds the function, and its value, for messages.

    Attributes:
        reach: largest speed that figures should show: f0 is below 1e-5 of its maximum for any larger |v_j|.

    Raises:
        UserError: f0 is negative or not finite somewhere, or zero everywhere; it does not fall off, or is not periodic;
            or it varies too fast, or in too many dimensions together, for a table.
    """

    def __init__(
        self,
        function: Function,
        periods: tuple[float, ...] | None,
        space_dims: int,
        velocity_dims: int,
        mass: float,
        given: str,
    ):
        self._function, self._space_dims, self._given = function, space_dims, given
        self._names = [f"x_{j + 1}" for j in range(space_dims)] + [f"v_{j + 1}" for j in range(velocity_dims)]
        self._periods = periods
        boxes = self._extent()
        self._require_periodic()
        self.reach = max(max(-low, high) for low, high in self._visible[space_dims:])
        base = self._typical
        largest = float(self._values(base[None])[0])
        self._tables = []
        log_integral = math.log(largest)
        for axes in self._factors():
            if len(axes) > max(_NODES):
                names = ", ".join(self._names[j] for j in axes)
                raise UserError(
                    f"{given}: f0 is no product in {names}, and a table of {len(axes)} axes is too large: {_SAMPLER}"
                )
            grid = [np.linspace(*boxes[j], _NODES[len(axes)]) for j in axes]
            table = _Table(tuple(axes), grid, self._on_mesh(axes, grid, base) / largest)
            if not table.integral > 0:
                raise UserError(f"{given}: f0 is too narrow to be resolved: widen it, or {_SAMPLER}")
            log_integral += math.log(table.integral)
            self._tables.append(table)
        self._log_scale = math.log(mass) - log_integral
        self._require_resolved(largest)

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Uniform points [n, dx + dv] as x [n, dx], v [n, dv] of density f0 / mass."""
        z = np.empty_like(points)
        for table in self._tables:
            z[:, table.axes] = table.draw(points[:, table.axes])
        return z[:, : self._space_dims], z[:, self._space_dims :]

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        """log f0 [n], normalised."""
        return torch.log(self._checked(self._function(x, v), len(v))) + self._log_scale

    # -- f0 itself -----------------------------------------------------------------------------------------------

    def _values(self, z: np.ndarray) -> np.ndarray:
        """f0 at phase-space points [n, dx + dv]: [n], finite and not negative."""
        values = np.empty(len(z))
        for start in range(0, len(z), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(z[start : start + _CHUNK]))
            x, v = part[:, : self._space_dims], part[:, self._space_dims :]
            with torch.no_grad():
                found = self._checked(self._function(x, v), len(part)).double().cpu().numpy()
            for what, wrong, right in (
                ("not finite", ~np.isfinite(found), "a density is a finite number everywhere"),
                ("negative", found < 0, "a density is at least 0 everywhere"),
            ):
                if wrong.any():
                    raise UserError(f"{self._given}: f0 is {what} at {self._place(part[wrong][0].tolist())}: {right}")
            values[start : start + _CHUNK] = found
        return values

    def _place(self, coordinates: Sequence[float]) -> str:
        return ", ".join(f"{name} = {value:.6g}" for name, value in zip(self._names, coordinates, strict=True))

    def _checked(self, value: object, count: int) -> torch.Tensor:
        if not (isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == (count,)):
            got = "None" if value is None else f"a {type(value).__name__}"
            if isinstance(value, torch.Tensor):
                got = f"a tensor {list(value.shape)} of {value.dtype}"
            raise UserError(
                f"{self._given}: f0(x, v) must return a floating-point tensor [n] for x [n, {self._space_dims}] and "
                f"v [n, {len(self._names) - self._space_dims}], for n = {count} it returned {got}"
            )
        return value

    def _on_mesh(self, axes: Sequence[int], grid: list[np.ndarray], base: np.ndarray) -> np.ndarray:
        """f0 at the nodes of a mesh over some of the axes. The other coordinates are those of ``base``."""
        shape = tuple(map(len, grid))
        values = np.empty(math.prod(shape))
        for start in range(0, values.size, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, values.size))
            z = np.repeat(base[None], len(rows), axis=0)
            for j, nodes, index in zip(axes, grid, np.unravel_index(rows, shape), strict=True):
                z[:, j] = nodes[index]
            values[rows] = self._values(z)
        return values.reshape(shape)

    # -- where it lives ------------------------------------------------------------------------------------------

    def _extent(self) -> list[tuple[float, float]]:
        """(low, high) of each axis, beyond which f0 is negligible."""
        periodic = [(0.0, length) for length in self._periods or ()]
        unbounded = len(self._names) - len(periodic)
        self._best = np.empty((0, len(self._names)))
        looked = [periodic + [(-reach, reach)] * unbounded for reach in _REACHES]
        boxes = looked[0]
        for number, ends in enumerate(zip(*map(self._scanned, looked), strict=True)):
            if seen := [end for end in ends if end is not None]:
                boxes[number] = (min(low for low, _ in seen), max(high for _, high in seen))
        for _ in range(40):
            wider = [end or box for end, box in zip(self._scanned(boxes), boxes, strict=True)]
            settled = all(abs(a - c) + abs(b - d) < 0.1 * (b - a) for (a, b), (c, d) in zip(boxes, wider, strict=True))
            boxes = wider
            if settled:
                break
        if not self._values(self._typical[None])[0] > 0:
            raise UserError(
                f"{self._given}: f0 is zero wherever it was looked for, up to |v_j| = {_REACHES[-1]:g}: "
                "give a density that is positive there"
            )
        self._boxes = boxes
        return boxes

    def _scanned(self, boxes: list[tuple[float, float]]) -> list[tuple[float, float] | None]:
        """For some boxes, the new ends (low, high) of each axis: around the visible part of f0, and wider if f0 does
        not end inside.

        None for an axis where f0 is not visible. Also stores the places where f0 is largest, as far as known, and its
        visible extent.
        """
        periodic = len(self._periods or ())
        low, high = np.array(boxes).T
        scattered = low + (high - low) * Sobol(len(boxes), seed=0).points(0, 16 * _SCAN)
        values = self._values(scattered)
        self._visible = list(boxes)
        # through the points with the largest f0 so far, and of these: narrow beams fill little of the box
        self._best = np.concatenate([self._best, scattered[np.argsort(values)[-_PLACES:]]])
        self._best = self._best[np.argsort(self._values(self._best))[-_PLACES:]]
        self._typical = self._best[-1]
        others = np.concatenate([self._best, scattered[np.argsort(values)[-_PLACES:]]])
        wider: list[tuple[float, float] | None] = [*boxes[:periodic], *[None] * (len(boxes) - periodic)]
        for j in range(periodic, len(boxes)):
            nodes = np.linspace(*boxes[j], _SCAN)
            z = np.repeat(others, _SCAN, axis=0)
            z[:, j] = np.tile(nodes, len(others))
            lines = self._values(z)
            profile = lines.reshape(len(others), _SCAN).max(0)
            if not profile.max() > 0:
                continue
            both = np.stack([self._typical, z[lines.argmax()]])
            self._typical = both[self._values(both).argmax()]
            seen = nodes[profile > _INVISIBLE * profile.max()]
            self._visible[j] = (float(seen[0]), float(seen[-1]))
            kept = np.flatnonzero(profile > _NEGLIGIBLE * profile.max())
            first, last = kept[0] - 2, kept[-1] + 2
            width = boxes[j][1] - boxes[j][0]
            start = boxes[j][0] - 0.5 * width if first < 0 else float(nodes[first])
            end = boxes[j][1] + 0.5 * width if last >= _SCAN else float(nodes[last])
            wider[j] = (start, end)
            if max(-start, end) > _FARTHEST:
                raise UserError(
                    f"{self._given}: f0 does not fall off along {self._names[j]}: it must be negligible where "
                    f"|{self._names[j]}| is {_FARTHEST:g} or more"
                )
        return wider

    def _require_periodic(self) -> None:
        """Compare f0 at both ends of each period, on lines through its largest values and through other places.

        A steep f0 also changes between neighbouring places on a line. Only a difference larger than that is an error.
        """
        if not self._periods:
            return
        likely = self._likely()
        for j, length in enumerate(self._periods):
            lines = np.repeat(likely[:, None], _SCAN + 1, axis=1)
            lines[:, :, j] = np.linspace(0.0, length, _SCAN + 1)
            values = self._values(lines.reshape(-1, len(self._names))).reshape(lines.shape[:2])
            jump, steps = np.abs(values[:, -1] - values[:, 0]), np.abs(np.diff(values, axis=1)).max(1)
            excess = (jump - steps) / np.maximum(values.max(1), 1e-300)
            if excess.max() > _ROUND_OFF:
                line = np.where(excess > _ROUND_OFF, values.max(1), 0.0).argmax()
                place = [f"{name} = {z:.4g}" for name, z in zip(self._names, lines[line, 0], strict=True)]
                raise UserError(
                    f"{self._given}: f0 is not periodic along {self._names[j]}, which runs from 0 to problem.length = "
                    f"{length:.8g}: at {', '.join(place[:j] + place[j + 1 :])} it is {values[line, 0]:.6g} at one end "
                    f"and {values[line, -1]:.6g} at the other: make them the same, or change problem.length"
                )

    def _likely(self) -> np.ndarray:
        """Places [n, dx + dv]: those where f0 is largest, as far as known, and as many others where it is not
        negligible.
        """
        low, high = np.array(self._boxes).T
        cloud = low + (high - low) * Sobol(len(self._names), seed=3).points(0, _SCAN)
        values = self._values(cloud)
        return np.concatenate([self._best, cloud[values > _FAINT * values.max()][:_PLACES]])

    def _factors(self) -> list[list[int]]:
        """The axes in groups, such that f0 is a product of one function of each group.

        f0 is such a product if every mixed second difference of log f0 between axes of different groups vanishes.
        """
        dims = len(self._names)
        low, high = np.array(self._boxes).T
        points = Sobol(dims, seed=1).points(0, 16 * _SCAN)
        cloud = low + (high - low) * points
        values = self._values(cloud)
        # also where f0 is small: a beam of few particles may depend on x where the core does not
        likely = cloud[values > _FAINT * values.max()][: 64 * _PLACES]
        likely = np.concatenate([cloud[np.argsort(values)[-4 * _PLACES :]], likely[: len(likely) // 2 * 2]])
        first, second = likely[::2], likely[1::2]
        group = list(range(dims))
        for i, j in itertools.combinations(range(dims), 2):
            corners = []
            for a, b in ((first, first), (second, second), (first, second), (second, first)):
                z = first.copy()
                z[:, i], z[:, j] = a[:, i], b[:, j]
                corners.append(self._values(z))
            known = np.min(corners, axis=0) > 0
            logs = np.log(np.array(corners)[:, known])
            mixed = logs[0] + logs[1] - logs[2] - logs[3]
            if not known.all() or (np.abs(mixed) > 1e-9 * (1 + np.abs(logs).max(0))).any():
                group = [group[i] if other == group[j] else other for other in group]
        return [[j for j in range(dims) if group[j] == label] for label in sorted(set(group))]

    def _require_resolved(self, largest: float) -> None:
        """Compare f0 with the tables between their nodes, at drawn particles."""
        z = np.concatenate(self.sample(Sobol(len(self._names), seed=2).points(0, 4096), 1.0), axis=1)
        drawn = math.prod((table(z[:, table.axes]) for table in self._tables), start=largest)
        error = self._values(z) / drawn - 1
        rough = float(np.sqrt((error**2).mean()))
        if rough > _ROUGH:
            raise UserError(
                f"{self._given}: f0 varies too fast for a table ({rough:.1%} off between nodes): {_SAMPLER}"
            )


class _Table:
    """A multilinear function between its values at the nodes of a mesh.

    Args:
        axes: indices of its coordinates in phase space.
        grid: nodes per axis, evenly spaced.
        values: at the nodes.
    """

    def __init__(self, axes: tuple[int, ...], grid: list[np.ndarray], values: np.ndarray):
        self.axes, self._grid, self._values = axes, grid, values
        # marginals over the last axes: of the first axis, then of the first two axes, …, then the table itself
        self._marginals = [values]
        for nodes in grid[:0:-1]:
            self._marginals.insert(0, scipy.integrate.trapezoid(self._marginals[0], nodes, axis=-1))
        self._cumulatives = [
            scipy.integrate.cumulative_trapezoid(marginal, axis=-1, initial=0) for marginal in self._marginals
        ]
        #: The integral of the function over the mesh.
        self.integral = float(scipy.integrate.trapezoid(self._marginals[0], grid[0]))

    def draw(self, points: np.ndarray) -> np.ndarray:
        """Uniform points [n, k] as places [n, k] whose density is the function, normalised."""
        places = np.empty_like(points)
        corners: _Corners = [((), np.ones(len(points)))]
        for axis, (nodes, marginal, cumulative) in enumerate(
            zip(self._grid, self._marginals, self._cumulatives, strict=True)
        ):

            def blended(table: np.ndarray, index: np.ndarray, corners: _Corners = corners) -> np.ndarray:
                """A table at nodes of this axis, interpolated between the nodes of the axes before it."""
                return np.sum([share * table[(*corner, index)] for corner, share in corners], axis=0)

            last = np.full(len(points), len(nodes) - 1)
            target = points[:, axis] * blended(cumulative, last)
            below, above = np.zeros(len(points), dtype=np.int64), last
            while (above - below > 1).any():
                middle = (below + above) // 2
                left = blended(cumulative, middle) <= target
                below, above = np.where(left, middle, below), np.where(left, above, middle)
            rest = target - blended(cumulative, below)
            start, end = blended(marginal, below), blended(marginal, below + 1)
            # start s + (end − start) s²/2 = rest, in the form without cancellation
            root = np.sqrt(np.maximum(start**2 + 2 * (end - start) * rest, 0.0))
            within = np.clip(2 * rest / np.maximum(start + root, 1e-300), 0.0, 1.0)
            places[:, axis] = nodes[below] + within * (nodes[1] - nodes[0])
            corners = [
                ((*corner, index), share * part)
                for corner, share in corners
                for index, part in ((below, 1 - within), (below + 1, within))
            ]
        return places

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The function at places [n, k] on the mesh: [n]."""
        scaled = [(places[:, j] - nodes[0]) / (nodes[1] - nodes[0]) for j, nodes in enumerate(self._grid)]
        below = [np.clip(s.astype(np.int64), 0, len(nodes) - 2) for s, nodes in zip(scaled, self._grid, strict=True)]
        total = np.zeros(len(places))
        for sides in itertools.product((0, 1), repeat=len(self._grid)):
            share = np.ones(len(places))
            for side, s, b in zip(sides, scaled, below, strict=True):
                share = share * (s - b if side else 1 - (s - b))
            total += share * self._values[tuple(b + side for b, side in zip(below, sides, strict=True))]
        return total
