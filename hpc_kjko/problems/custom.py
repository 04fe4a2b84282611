"""The user's own Python for the initial density, for the potential, or for the whole problem."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from hpc_kjko import usercode
from hpc_kjko.errors import UserError
from hpc_kjko.problems.base import Problem
from hpc_kjko.problems.density import Equilibrium, equilibrium_of
from hpc_kjko.problems.tabulated import TabulatedDensity
from hpc_kjko.schema import validate

#: How many points the user's code is tested on. A single point is one of the tests, because ``squeeze`` would remove
#: its axis.
_COUNTS = (4, 1)


class UserStart(Problem):
    """A problem whose initial density may be "module:name" of the user's own code, which is one of:

    * a function f0(x, v): x [n, dx], v [n, dv] to the density [n] up to a constant factor, in torch operations. It is
      normalised and drawn from by :class:`~hpc_kjko.problems.tabulated.TabulatedDensity`;
    * an object with sample(points, temperature), as :meth:`Problem.sample`, and log_density(x, v, temperature), as
      :meth:`Problem.log_density`: ∫f0 must be the mass.

    ``config`` calls :meth:`checked` for a case that is to be run.
    """

    #: The initial densities that need no user code.
    named_densities: ClassVar[tuple[str, ...]] = ()

    initial_density: str

    @property
    def starts_from_user_code(self) -> bool:
        """Whether the initial density is the user's."""
        return self.initial_density not in self.named_densities

    @abstractmethod
    def own_sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`sample` of the named initial density."""

    @abstractmethod
    def own_log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        """:meth:`log_density` of the named initial density."""

    def sample(self, points: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        if not self.starts_from_user_code:
            return self.own_sample(points, temperature)
        dx, dv = self.space_dims, self.velocity_dims
        if len(points) == 0:
            return np.empty((0, dx)), np.empty((0, dv))
        drawn = usercode.call(self.user_density.sample, points, temperature, given=self._density_given)
        x, v = _drawn(drawn, len(points), self, self._density_given)
        if self.periods:
            x = np.mod(x, self.periods)
            x = np.where(x >= self.periods, 0.0, x)  # -1e-20 modulo the length rounds up to the length itself
        return x, v

    def log_density(self, x: torch.Tensor, v: torch.Tensor, temperature: float) -> torch.Tensor:
        if not self.starts_from_user_code:
            return self.own_log_density(x, v, temperature)
        if len(v) == 0:
            return v.sum(1)
        value = usercode.call(self.user_density.log_density, x, v, temperature, given=self._density_given)
        return _one_per_row(value, len(v), f"{self._density_given}: log_density must return a tensor [n]")

    @functools.cached_property
    def user_density(self) -> Any:
        """The user's initial density, as an object with ``sample`` and ``log_density``.

        Raises:
            UserError: it cannot be loaded, or it is neither such an object nor a function that is a density.
        """
        found = usercode.load(self.initial_density, "problem.initial_density")
        missing = [name for name in ("sample", "log_density") if not callable(getattr(found, name, None))]
        if not missing:
            return found
        if len(missing) == 1 or not callable(found) or isinstance(found, type):
            lacks = f"it has no {' and no '.join(missing)}"
            raise UserError(
                f"{self._density_given}: it must be a function f0(x, v), or an object with methods "
                f"sample(points, temperature) and log_density(x, v, temperature), {lacks}"
            )
        if other := usercode.other_signature(found, 2):
            raise UserError(
                f"{self._density_given}: it must be a function f0(x, v) of positions x [n, {self.space_dims}] and "
                f"velocities v [n, {self.velocity_dims}], but its arguments are {other}"
            )

        def density(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            value: torch.Tensor = usercode.call(found, x, v, given=self._density_given)
            return value

        mass = self.mass / self.mean_density
        return TabulatedDensity(density, self.periods, self.space_dims, self.velocity_dims, mass, self._density_given)

    def checked(self) -> UserStart:
        """The problem after the user's code was called on a few points. Keys that follow from this code are filled in.

        Values that are not finite elsewhere are found later, at the particles.

        Raises:
            UserError: a name is not known, or the user's code cannot be loaded, raises an error, returns a value of the
                wrong shape, or cannot be differentiated.
        """
        self._require_known("initial_density", self.initial_density, self.named_densities)
        if self.starts_from_user_code:
            for count in _COUNTS:
                _check_start(self, count, self._density_given)
        return self

    def _require_known(self, key: str, value: str, names: tuple[str, ...]) -> None:
        if value not in names and not usercode.is_reference(value):
            known = "".join(f'"{name}", ' for name in names)
            raise UserError(f'{self._given(key, value)}: it may be {known}or "module:name" of your own code')

    @property
    def _density_given(self) -> str:
        return self._given("initial_density", self.initial_density)

    @staticmethod
    def _given(key: str, value: str) -> str:
        return f'problem.{key} = "{value}"'


class CustomProblem(UserStart):
    """A problem with named potentials. Like the initial density, the potential may be "module:name" instead.

    Such a potential is a function phi(x): x [n, dx] to φ [n] in torch operations. Its gradient is automatic.
    """

    default_field: ClassVar[Literal["poisson", "external"]] = "external"
    #: The potentials that need no user code.
    named_potentials: ClassVar[tuple[str, ...]]

    # The key is ``potential`` in a case file. In Python this name belongs to the function.
    potential_name: str = Field(alias="potential")

    @model_serializer(mode="wrap")
    def _keys_as_in_a_case(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"potential" if key == "potential_name" else key: value for key, value in handler(self).items()}

    @abstractmethod
    def own_potential(self, x: torch.Tensor) -> torch.Tensor:
        """The named potential at x [n, dx]: [n]."""

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        if self.potential_name in self.named_potentials:
            return self.own_potential(x)
        if len(x) == 0:  # a rank without particles: the user's code need not handle empty arrays
            return torch.zeros_like(x[:, 0])
        given = self._given("potential", self.potential_name)
        value = usercode.call(usercode.load(self.potential_name, "problem.potential"), x, given=given)
        return _one_per_row(value, len(x), f"{given}: it must return a tensor [n] for x [n, {self.space_dims}]")

    def equilibrium(self, temperature: float) -> Equilibrium | None:
        """As of any problem. Also None if the user's potential cannot be called far from the particles."""
        try:
            return equilibrium_of(
                self.potential,
                self.window[0],
                temperature,
                self.velocity_dims,
                self.mass,
                periodic=self.periods is not None,
            )
        except UserError:
            return None

    def checked(self) -> UserStart:
        self._require_known("potential", self.potential_name, self.named_potentials)
        if self.potential_name not in self.named_potentials:
            for count in _COUNTS:
                self._check_potential(count)
        return super().checked()

    def _check_potential(self, count: int) -> None:
        low, high = np.array(self.window[0]).T
        x = torch.from_numpy(low + (high - low) * _scattered(count, self.space_dims)).requires_grad_()
        with torch.enable_grad():
            value = self.potential(x)
        # A constant has no gradient and needs none.
        if not _differentiable(value, x) and (value.requires_grad or (value != value[0]).any()):
            given = self._given("potential", self.potential_name)
            raise UserError(f"{given}: autograd finds no gradient: compute it from x by torch operations only")


def is_users_own(problem: Problem) -> bool:
    """Whether the initial density of a problem is user code."""
    return usercode.is_reference(problem.kind) or (isinstance(problem, UserStart) and problem.starts_from_user_code)


def own_problem(reference: str, table: dict[str, Any]) -> Problem:
    """A problem of the user's own class, from its table in a case.

    Raises:
        UserError: the class cannot be loaded, is no problem class, or lacks a method that a problem needs; or a key is
            wrong.
    """
    given = f'problem.kind = "{reference}"'
    kind = usercode.load(reference, "problem.kind")
    if not (isinstance(kind, type) and issubclass(kind, Problem)):
        raise UserError(f"{given}: it must be a subclass of hpc_kjko.problems.Problem, but it is {_described(kind)}")
    missing = {*kind.__abstractmethods__, *([] if hasattr(kind, "default_field") else ["default_field"])}
    if missing:
        raise UserError(f"{given}: it has no {', '.join(sorted(missing))}")
    return validate(kind, table, "problem")


def check_own_problem(problem: Problem) -> None:
    """Call a problem of the user's own class on a few points.

    Raises:
        UserError: it raises an error, returns a value of the wrong shape, or cannot be differentiated.
    """
    given = f'problem.kind = "{problem.kind}"'
    for count in _COUNTS:
        x, _ = _check_start(problem, count, given)
        value = usercode.call(problem.potential, x, given=given)
        _one_per_row(value, count, f"{given}: potential must return a tensor [n] for x [n, {problem.space_dims}]")


def _check_start(problem: Problem, count: int, given: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and velocities drawn from the initial density, after checks of its shape and values."""
    points = _scattered(count, problem.space_dims + problem.velocity_dims)
    drawn = _drawn(usercode.call(problem.sample, points, 1.0, given=given), count, problem, given)
    x, v = (torch.from_numpy(array) for array in drawn)
    v.requires_grad_()
    with torch.enable_grad():
        value = usercode.call(problem.log_density, x, v, 1.0, given=given)
    _one_per_row(value, count, f"{given}: log_density must return a tensor [n]")
    if not _differentiable(value, v):
        raise UserError(
            f"{given}: it cannot be differentiated in v: compute it from v by torch operations only, such as torch.exp"
        )
    return x, v.detach()


def _drawn(drawn: Any, count: int, problem: Problem, given: str) -> tuple[np.ndarray, np.ndarray]:
    """The result of the user's ``sample``, after a check of its shape and values."""
    dx, dv = problem.space_dims, problem.velocity_dims
    wanted = f"{given}: sample must return arrays x [n, {dx}] and v [n, {dv}]"
    if not (isinstance(drawn, tuple | list) and len(drawn) == 2):
        raise UserError(f"{wanted}, but it returned {_described(drawn)}")
    try:
        x, v = (np.array(array, dtype=np.float64) for array in drawn)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{wanted}, but it returned {' and '.join(map(_described, drawn))}") from None
    if x.shape != (count, dx) or v.shape != (count, dv):
        raise UserError(f"{wanted}, but for n = {count} it returned {list(x.shape)} and {list(v.shape)}")
    if not (np.isfinite(x).all() and np.isfinite(v).all()):
        raise UserError(f"{given}: sample returned positions or velocities that are not finite")
    return x, v


def _scattered(count: int, dims: int) -> np.ndarray:
    """Points [count, dims] of the unit cube, with no two equal coordinates."""
    return np.modf(0.6180339887 * np.arange(1, count * dims + 1).reshape(count, dims))[0]


def _differentiable(value: torch.Tensor, argument: torch.Tensor) -> bool:
    if not value.requires_grad:
        return False
    try:
        with torch.enable_grad():
            return torch.autograd.grad(value.sum(), argument, allow_unused=True)[0] is not None
    except RuntimeError:  # such as an in-place change of a tensor that the gradient needs
        return False


def _one_per_row(value: Any, count: int, wanted: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise UserError(f"{wanted}, but it returned {_described(value)}")
    if value.shape != (count,):
        raise UserError(f"{wanted}, but for n = {count} it returned {list(value.shape)}")
    return value


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__} of {value.dtype}"
    return f"a {type(value).__name__}"
