"""The problems: what they start from, the densities known exactly, and what happens to the user's own code."""

import itertools
import math
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import integrate

from hpc_kjko import usercode
from hpc_kjko.case.config import from_table, load
from hpc_kjko.errors import UserError
from hpc_kjko.files.histograms import bins_of_density
from hpc_kjko.particles.state import Shard, draw
from hpc_kjko.problems import KINDS, GaussianDensity, UserStart
from hpc_kjko.problems.density import equilibrium_of
from hpc_kjko.running import columns
from hpc_kjko.schema import validate

EXAMPLE_1_3D = {
    "kind": "gaussian",
    "space_dims": 3,
    "stiffness": [[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 1.5]],
    "mean": [1.0, -0.5, 0.3, 0.2, 0.0, -0.4],
    "covariance": (0.4 * np.eye(6) + 0.1 * np.ones((6, 6))).tolist(),
}
CASES = {
    "confined": {"kind": "confined"},
    "confined_3d": {"kind": "confined", "space_dims": 3, "mean_x": [1.0, 0.5, -1.0], "std_v": [0.5, 0.7, 1.2]},
    "harmonic": {"kind": "confined", "potential": "harmonic", "mean_v": 0.5},
    "periodic": {"kind": "periodic"},
    "periodic_2d3v": {"kind": "periodic", "space_dims": 2, "velocity_dims": 3, "length": [1.0, 2.0], "mode": 2},
    "gaussian_3d": EXAMPLE_1_3D,
}
#: Modules of the user's: each test that imports one needs a name of its own.
NAMES = (f"mine_{number}" for number in itertools.count())


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def problem_of(**table):
    problem = validate(KINDS[table["kind"]], table, "problem")
    if isinstance(problem, UserStart):
        problem = problem.checked()
    return problem


def column(values):
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1)


def scalar_potential(problem):
    return lambda x: float(problem.potential(column([x])))


def equilibrium_in(potential, box, temperature, periodic=False):
    return equilibrium_of(potential, box, temperature, len(box), 1.0, periodic=periodic)


def sampled(problem, count):
    options = dict(start="quiet", seed=1, temperature=1.3, dtype=torch.float64, device=torch.device("cpu"))
    return draw(problem, Shard.of(count, 0, 1), **options)


@pytest.mark.parametrize("name", ["confined", "harmonic", "periodic"])
def test_the_initial_density_integrates_to_the_mass(name):
    problem = problem_of(**CASES[name])
    (low, high), (bottom, top) = problem.window[0][0], (-12, 12)
    low, high = (low, high) if problem.periods else (-12, 12)
    x, v = (a + (b - a) * (np.arange(400) + 0.5) / 400 for a, b in ((low, high), (bottom, top)))
    mesh = [column(axis.ravel()) for axis in np.meshgrid(x, v, indexing="ij")]
    total = problem.log_density(*mesh, 1.3).exp().sum() * (high - low) * (top - bottom) / 400**2
    assert total.item() == pytest.approx(problem.mass, rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_log_f_is_the_density_that_the_particles_sample(name):
    """E[φ / f] over particles of density f / mass is ∫φ / mass, for any test function φ: here a narrow Gaussian."""
    problem = problem_of(**CASES[name])
    particles = sampled(problem, 2**16)
    x, v = particles.x, particles.v
    if problem.periods:
        assert (x >= 0).all() and (x < torch.tensor(problem.periods)).all()
        assert problem.spatial_density(x.numpy()) == pytest.approx(
            1 + 0.5 * np.cos(problem.wavenumber * x[:, 0].numpy())
        )
    # Positions in a box are tested by a function that vanishes at its ends.
    log_test = torch.zeros(len(x), dtype=torch.float64)
    for z in [*x.T, *v.T] if not problem.periods else v.T:
        centre, width = z.median(), 0.6 * z.std()
        log_test += -0.5 * ((z - centre) / width) ** 2 - torch.log(width * math.sqrt(2 * math.pi))
    test = log_test.exp()
    for z, length in zip(x.T, problem.periods or (), strict=False):
        test = test * 2 * torch.sin(math.pi * z / length) ** 2 / length
    ratio = test * torch.exp(-particles.log_f)
    assert problem.mass * ratio.mean().item() == pytest.approx(1.0, abs=0.03)


def test_moments_of_the_starts():
    particles = sampled(problem_of(**CASES["confined_3d"]), 2**14)
    assert particles.x.mean(0).numpy() == pytest.approx([1.0, 0.5, -1.0], abs=1e-3)
    assert particles.x.std(0).numpy() == pytest.approx([0.6] * 3, rel=1e-2)
    assert particles.v.std(0).numpy() == pytest.approx([0.5, 0.7, 1.2], rel=1e-2)
    particles = sampled(problem_of(**CASES["periodic_2d3v"]), 2**14)
    assert particles.v.var(0).numpy() == pytest.approx([1.5**2 + 1, 1.3, 1.3], rel=1e-2)
    assert 2 * torch.cos(4 * math.pi * particles.x[:, 0]).mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize(
    "table",
    [
        {"kind": "confined"},
        {"kind": "confined", "potential": "harmonic"},
        {"kind": "periodic", "potential": "cosine", "length": 2.5},
        {"kind": "periodic", "potential": "ratchet"},
    ],
)
def test_the_equilibriums_normaliser_and_marginals(table, temperature):
    problem = problem_of(**table)
    phi = scalar_potential(problem)
    low, high = (0.0, problem.periods[0]) if problem.periods else (-10.0, 10.0)

    def integral(a, b):
        inside = [p for p in (-0.9, 0.0, 0.9) if a < p < b] or None
        return integrate.quad(
            lambda x: math.exp(-phi(x) / temperature), a, b, epsabs=0, epsrel=1e-11, limit=400, points=inside
        )[0]

    equilibrium = problem.equilibrium(temperature)
    assert equilibrium.log_integral == pytest.approx(math.log(integral(low, high)), abs=1e-8)
    assert equilibrium.mass == problem.mass

    edges = np.linspace(*problem.window[0][0], 161)
    marginal = equilibrium.marginal("x", 0, edges)
    wanted = {j: integral(edges[j], edges[j + 1]) / integral(low, high) for j in range(0, 160, 7)}
    assert marginal[list(wanted)] == pytest.approx(list(wanted.values()), abs=1e-8)
    assert marginal.sum() == pytest.approx(1.0, abs=1e-6 if not problem.periods else 1e-12)
    outside = equilibrium.marginal("x", 0, np.array([low - 50.0, low - 40.0, high + 40.0, high + 50.0]))
    assert outside == pytest.approx([0, 1, 0], abs=1e-12)
    velocities = equilibrium.marginal("v", 0, np.sqrt(temperature) * np.array([-1.0, 0.0, 1.0, 30.0]))
    assert velocities == pytest.approx([0.34134475, 0.34134475, 0.15865525], abs=1e-8)

    # The density itself integrates to the mass.
    at = problem.periods[0] / 3 if problem.periods else 0.4
    log_f = equilibrium.log_density(column([at]), column([0.0])).item()
    wanted_log = math.log(problem.mass / integral(low, high)) - phi(at) / temperature
    assert log_f == pytest.approx(wanted_log - 0.5 * math.log(2 * math.pi * temperature), abs=1e-8)


def test_a_row_compares_the_marginals_with_those_of_the_known_density_at_its_time(monkeypatch):
    """The equilibrium's are found once. An exact solution moves, so its marginals are found again in each row."""
    problem = problem_of(kind="confined", potential="harmonic", mean_v=0.5)
    equilibrium, found = problem.equilibrium(1.0), []
    moving = [GaussianDensity(np.array([mean, 0.0]), np.eye(2)) for mean in (0.0, 1.0)]
    monkeypatch.setattr(columns, "bins_of_density", lambda *given: found.append(given[1]) or bins_of_density(*given))
    for known, times in ((lambda time: equilibrium, 1), (lambda time: moving[int(time)], 2)):
        found.clear()
        errors = columns.MarginalErrors(problem, known)
        for time in (0.0, 1.0):
            state = SimpleNamespace(time=time, particles=SimpleNamespace(shard=SimpleNamespace(total=4)))
            parts = 4 * np.concatenate(bins_of_density(problem, known(time)))
            assert errors.finish(parts, state) == (0.0, 0.0)
        assert len(found) == times


@pytest.mark.parametrize("kind", ["confined", "periodic"])
def test_a_separable_equilibrium_is_the_product_of_its_dimensions(kind):
    one, two, three = (problem_of(kind=kind, space_dims=dims).equilibrium(1.0) for dims in (1, 2, 3))
    assert two.log_integral == pytest.approx(2 * one.log_integral, abs=1e-6)
    assert three.log_integral == pytest.approx(3 * one.log_integral, abs=1e-6)
    edges = np.linspace(*problem_of(kind=kind).window[0][0], 161)
    for axis in range(3):
        assert np.abs(three.marginal("x", axis, edges) - one.marginal("x", 0, edges)).max() < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_the_equilibrium_is_stationary(name):
    """v·∇x f − ∇φ·∇v f = 0, and the collisions' drift v + T ∇v log f = 0."""
    problem, temperature = problem_of(**CASES[name]), 0.8
    equilibrium = problem.equilibrium(temperature)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, problem.space_dims, dtype=torch.float64, generator=generator).requires_grad_()
    v = torch.randn(50, problem.velocity_dims, dtype=torch.float64, generator=generator).requires_grad_()
    in_x, in_v = torch.autograd.grad(equilibrium.log_density(x, v).sum(), (x, v))
    (force,) = torch.autograd.grad(-problem.potential(x).sum(), x)
    moving = slice(0, problem.space_dims)
    transport = (v[:, moving] * in_x).sum(1) + (force * in_v[:, moving]).sum(1)
    assert transport.abs().max() < 1e-10
    assert torch.allclose(in_v, equilibrium.score_v(x, v), atol=1e-12)
    assert (v + temperature * in_v).abs().max() < 1e-12


@pytest.mark.parametrize("table", [{"kind": "gaussian"}, EXAMPLE_1_3D], ids=["1d", "3d"])
def test_the_exact_gaussian_goes_from_the_start_to_the_equilibrium(table):
    problem = problem_of(**table)
    d = problem.space_dims
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, d, dtype=torch.float64, generator=generator)
    v = torch.randn(50, d, dtype=torch.float64, generator=generator).requires_grad_()
    start, end = problem.exact(0.0, 0.7, 1.3), problem.exact(100.0, 0.7, 1.3)
    equilibrium = problem.equilibrium(1.3)
    assert torch.allclose(start.log_density(x, v), problem.log_density(x, v, 1.3), atol=1e-12)
    assert torch.allclose(end.log_density(x, v), equilibrium.log_density(x, v), atol=1e-8)
    assert isinstance(equilibrium, GaussianDensity) and equilibrium.mean.shape == (2 * d,)

    halfway = problem.exact(1.0, 0.7, 1.3)
    (score,) = torch.autograd.grad(halfway.log_density(x, v).sum(), v)
    assert torch.allclose(halfway.score_v(x, v), score, atol=1e-12)
    edges = np.linspace(-9.0, 9.0, 161)
    for kind, axis in itertools.product("xv", range(d)):
        coordinate = axis if kind == "x" else d + axis
        mean, variance = halfway.mean[coordinate], halfway.covariance[coordinate, coordinate]
        marginal, centres = halfway.marginal(kind, axis, edges), 0.5 * (edges[1:] + edges[:-1])
        assert marginal.sum() == pytest.approx(1.0, abs=1e-6)
        density = np.exp(-0.5 * (centres - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        assert marginal / np.diff(edges) == pytest.approx(density, abs=3e-3)


def test_the_quadrature_agrees_with_the_exact_equilibrium_of_a_tilted_valley():
    gaussian = problem_of(**EXAMPLE_1_3D)
    exact = gaussian.equilibrium(0.6)
    found = equilibrium_in(gaussian.potential, ((-2.0, 2.0),) * 3, 0.6)
    x, v = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    assert torch.allclose(found.log_density(x, v), exact.log_density(x, v), atol=1e-6)
    edges = np.linspace(-4.0, 4.0, 161)
    for kind, axis in itertools.product("xv", range(3)):
        assert np.abs(found.marginal(kind, axis, edges) - exact.marginal(kind, axis, edges)).max() < 1e-6


@pytest.mark.parametrize(
    ("centre", "width"), [(0.0, 1.0), (30.0, 1.0), (-3.0, 1e-3), (0.0, 40.0)], ids=["near", "far", "narrow", "wide"]
)
def test_the_density_is_found_wherever_it_is(centre, width):
    found = equilibrium_in(lambda x: 0.5 * (((x - centre) / width) ** 2).sum(1), ((-5.0, 5.0),), 1.0)
    assert found.log_integral == pytest.approx(math.log(width * math.sqrt(2 * math.pi)), abs=1e-8)


def test_a_second_well_behind_a_hill_is_found():
    found = equilibrium_in(lambda x: ((x[:, 0] / 8) ** 2 - 1) ** 2 * 200 - 30 * (x[:, 0] > 0), ((-9.0, 1.0),), 1.0)
    right = found.marginal("x", 0, np.array([4.0, 12.0]))
    assert right == pytest.approx([1.0], abs=1e-9)


def test_no_equilibrium_where_the_potential_does_not_confine():
    for potential in (
        lambda x: torch.zeros_like(x[:, 0]),
        lambda x: x.sum(1),
        lambda x: -0.5 * (x**2).sum(1),
        lambda x: torch.cos(x).sum(1),
        lambda x: 0.5 * x[:, 0] ** 2,
        lambda x: torch.full_like(x[:, 0], math.nan),
        lambda x: torch.full_like(x[:, 0], -math.inf),
    ):
        assert equilibrium_in(potential, ((-5.0, 5.0),) * 2, 1.0) is None
    # A constant force in a periodic box keeps pushing round and round.
    assert equilibrium_in(lambda x: x[:, 0], ((0.0, 1.0),) * 2, 1.0, periodic=True) is None
    assert equilibrium_in(lambda x: (x[:, 0] - 0.5).abs(), ((0.0, 1.0),) * 2, 1.0, periodic=True) is not None


def test_a_plasma_comes_to_rest_as_a_homogeneous_maxwellian():
    for table in ({"kind": "two_stream", "velocity_dims": 3}, {"kind": "landau_damping"}):
        problem = problem_of(**table)
        length, equilibrium = problem.periods[0], problem.equilibrium(1.3)
        x, v = length * torch.rand(100, 1, dtype=torch.float64), torch.randn(100, problem.velocity_dims).double()
        maxwellian = -0.5 * (v**2).sum(1) / 1.3 - 0.5 * problem.velocity_dims * math.log(2 * math.pi * 1.3)
        assert torch.allclose(equilibrium.log_density(x, v), maxwellian, atol=1e-12)
        assert equilibrium.marginal("x", 0, np.linspace(0, length, 5)) == pytest.approx([0.25] * 4)
        assert problem.exact(1.0, 1.0, 1.0) is None


def test_the_perturbed_profile_is_the_initial_densitys():
    for kind in ("two_stream", "landau_damping", "periodic"):
        problem = problem_of(kind=kind)
        x = np.random.default_rng(0).random((1000, 1)) * problem.periods[0]
        log_f = problem.log_density(torch.from_numpy(x), torch.zeros(1000, 1, dtype=torch.float64), 1.0).numpy()
        assert np.ptp(log_f - np.log(problem.spatial_density(x))) < 1e-12


GOOD = """
    import numpy as np
    import torch
    from scipy.special import ndtri

    def phi(x):
        return 0.5 * (x**2).sum(1) + 0.3 * torch.cos(torch.pi * x).sum(1)

    def flat(x):
        return torch.zeros(len(x))

    class Ring:
        def sample(self, points, temperature):
            return 2 * points[:, :1] - 0.5, ndtri(points[:, 1:])

        def log_density(self, x, v, temperature):
            return -0.5 * (v**2).sum(1) - 0.5 * v.shape[1] * np.log(2 * np.pi)

    start = Ring()
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write a module of the user's into the current folder: its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(text, name=None):
        name = name or next(NAMES)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return name

    return write


def test_a_potential_and_a_start_of_the_users_own(mine, tmp_path):
    module = mine(GOOD)
    ours = problem_of(kind="confined", potential=f"{module}:phi")
    x = torch.linspace(-2, 2, 7, dtype=torch.float64).reshape(-1, 1)
    named = problem_of(kind="confined")
    assert torch.equal(ours.potential(x), named.potential(x))
    assert ours.equilibrium(1.0).log_integral == pytest.approx(named.equilibrium(1.0).log_integral, abs=1e-12)

    problem = problem_of(
        kind="periodic", potential=f"{module}:flat", initial_density=f"{module}:start", velocity_dims=3
    )
    particles = sampled(problem, 2**10)
    assert (particles.x >= 0).all() and (particles.x < 1).all() and particles.v.shape == (1024, 3)
    assert torch.allclose(particles.log_f, problem.log_density(particles.x, particles.v, 1.3))
    assert problem.equilibrium(2.0).log_integral == pytest.approx(0.0, abs=1e-12)
    for separately in ({"start": "grid"}, {"weights": "density"}):
        with pytest.raises(UserError, match="does not draw space and velocity separately"):
            from_table({"problem": problem.model_dump(), "particles": separately})

    # A rank without particles asks for none.
    nothing = torch.zeros(0, 1, dtype=torch.float64)
    velocities = torch.zeros(0, 3, dtype=torch.float64).requires_grad_()
    assert problem.potential(nothing).shape == (0,)
    assert [array.shape for array in problem.sample(np.empty((0, 4)), 1.0)] == [(0, 1), (0, 3)]
    assert problem.log_density(nothing, velocities, 1.0).requires_grad

    case = from_table({"problem": {"kind": "confined", "potential": f"{module}:phi"}})
    path = tmp_path / "case.toml"
    path.write_text(case.toml())
    assert f'potential = "{module}:phi"' in case.toml() and load(path) == case

    # Files of a run are read where the module is out of reach.
    path.write_text(case.toml().replace(f"{module}:phi", "elsewhere:phi"))
    assert load(path, of_a_run=True).problem.potential_name == "elsewhere:phi"
    with pytest.raises(UserError, match="there is no module elsewhere"):
        load(path)


@pytest.mark.parametrize(
    ("body", "advice"),
    [
        (
            "def phi(x):\n    return 0.5 * x**2",
            "must return a tensor [n] for x [n, 1], but for n = 4 it returned [4, 1]",
        ),
        ("def phi(x):\n    return (x**2).squeeze()", "for n = 1 it returned []"),
        ("def phi(x):\n    return (x**2).sum()", "for n = 4 it returned []"),
        ("def phi(x):\n    return 1.0", "it returned a float"),
        ("def phi(x):\n    return (x.sum(1) > 0)", "it returned a Tensor of torch.bool"),
        ("def phi(x):\n    return (x.detach() ** 2).sum(1)", "gradient"),
        (
            "import torch\nw = torch.ones(1, requires_grad=True)\ndef phi(x):\n    return w * x.detach()[:, 0]",
            "gradient",
        ),
        ("def phi(x):\n    return x.numpy()[:, 0]", "it mixes torch tensors with numpy"),
        ("def phi(x):\n    raise KeyError('no\\nsuch')", "it raised KeyError: 'no\\nsuch'"),
        ("def phi():\n    return 0", "it raised TypeError"),
        ("phi = 3", "it raised TypeError"),
        ("def psi(x):\n    return x[:, 0]", "has no phi"),
        ("1 / 0", "failed: ZeroDivisionError: division by zero, in line 1 of "),
        ("def phi(x) return", "failed: SyntaxError"),
        ("raise SystemExit(3)", "failed: SystemExit: 3, in line 1 of "),
        ("import no_such_module_here", "failed: ModuleNotFoundError: No module named 'no_such_module_here', in"),
    ],
)
@pytest.mark.parametrize("kind", ["confined", "periodic"])
def test_a_potential_that_does_not_do_is_one_sentence(mine, kind, body, advice):
    module = mine(body)
    with pytest.raises(UserError) as caught:
        problem_of(kind=kind, potential=f"{module}:phi")
    message = str(caught.value)
    assert message.startswith(f'problem.potential = "{module}:phi": ') and advice in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("sample", "log_density", "advice"),
    [
        ("return points[:, 0], points[:, 1:]", "return -v[:, 0] ** 2", "it returned [4] and [4, 1]"),
        ("return points", "return -v[:, 0] ** 2", "x [n, 1] and v [n, 1], but it returned a ndarray of float64"),
        ("return 'x', 'v'", "return -v[:, 0] ** 2", "it returned a str and a str"),
        ("raise OSError('gone')", "return -v[:, 0] ** 2", "it raised OSError: gone"),
        (
            "return points[:, :1], points[:, 1:]",
            "return -v ** 2",
            "log_density must return a tensor [n], but for n = 4",
        ),
        ("return points[:, :1], points[:, 1:]", "return x[:, 0]", "cannot be differentiated in v"),
        ("return points[:, :1], points[:, 1:]", "return None", "it returned a NoneType"),
    ],
)
def test_a_start_that_does_not_do_is_one_sentence(mine, sample, log_density, advice):
    module = mine(
        f"""
        class Start:
            def sample(self, points, temperature):
                {sample}
            def log_density(self, x, v, temperature):
                {log_density}
        start = Start()
        half = object()
        """
    )
    for name, expected in (("start", advice), ("half", "it has no sample")):
        with pytest.raises(UserError) as caught:
            problem_of(kind="confined", initial_density=f"{module}:{name}")
        message = str(caught.value)
        assert message.startswith(f'problem.initial_density = "{module}:{name}": ') and expected in message
        assert len(message.splitlines()) == 1


def test_what_is_not_finite_at_the_probes_is_left_to_the_particles(mine):
    module = mine("def phi(x):\n    return (x[:, 0] / 0).log()")
    assert problem_of(kind="confined", potential=f"{module}:phi").equilibrium(1.0) is None


def test_code_that_fails_later_is_named_too(mine):
    module = mine(
        """
        import torch
        def phi(x):
            if (x.abs() > 100).any():
                raise ValueError("too far")
            return x[:3, 0].sum() * torch.ones(4 if len(x) > 9 else len(x))
        """
    )
    problem = problem_of(kind="confined", potential=f"{module}:phi")
    with pytest.raises(UserError, match="problem.potential.*it raised ValueError: too far"):
        problem.potential(column([1000.0]))
    with pytest.raises(UserError, match=r"problem.potential.*for n = 10 it returned \[4\]"):
        problem.potential(column(np.zeros(10)))


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        (
            {"kind": "confined", "potential": "bumpyy"},
            'problem.potential = "bumpyy": it may be "bumpy", "harmonic", or',
        ),
        ({"kind": "periodic", "initial_density": "beam"}, 'problem.initial_density = "beam": it may be "beams", or'),
        ({"kind": "confined", "potential": "a b:phi"}, 'problem.potential = "a b:phi": write code of your own as'),
        ({"kind": "confined", "potential": ":phi"}, 'as "module:name"'),
        (
            {"kind": "confined", "potential": "nowhere_at_all:phi"},
            "neither on the Python path nor in the current folder",
        ),
        ({"kind": "confined", "potential": "numpy.nowhere:phi"}, "no module numpy.nowhere, neither"),
        ({"kind": "confined", "potential": 3}, "problem.potential = 3"),
        ({"kind": "confined", "potential_name": "bumpy"}, "did you mean potential?"),
        ({"kind": "confined", "velocity_dims": 2}, "must equal problem.space_dims = 1"),
        ({"kind": "confined", "std_x": [0.6, 0.7]}, "problem.std_x has 2 entries"),
        ({"kind": "confined", "mean_v": []}, "problem.mean_v has 0 entries"),
        ({"kind": "confined", "std_v": 0.0}, "at least 0.000001"),
        ({"kind": "periodic", "space_dims": 2, "velocity_dims": 1}, "every space direction needs its velocity"),
        ({"kind": "periodic", "length": [1.0, 2.0]}, "problem.length has 2 entries"),
        ({"kind": "periodic", "beam_velocity": -1.0}, "at least 0"),
    ],
)
def test_a_mistake_in_the_keys_is_one_sentence(table, advice):
    with pytest.raises(UserError) as caught:
        problem_of(**table)
    assert advice in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_periodic_problem_keeps_its_potential():
    with pytest.raises(UserError, match="does not use problem.potential"):
        from_table({"problem": {"kind": "periodic", "space_dims": 2}, "physics": {"field": "poisson"}})
    assert from_table({"problem": {"kind": "periodic"}}).physics.field == "external"


def test_an_installed_module_comes_before_the_current_folder(mine):
    mine("pi = 3", name="math")
    assert usercode.load("math:pi", "problem.potential") == math.pi


def test_the_windows_hold_start_and_equilibrium():
    for name in ("confined", "confined_3d", "periodic"):
        problem = problem_of(**CASES[name])
        particles = sampled(problem, 2**12)
        for values, ranges in zip((particles.x, particles.v), problem.window, strict=True):
            for axis, (low, high) in enumerate(ranges):
                assert ((values[:, axis] >= low) & (values[:, axis] < high)).double().mean() > 0.999
        equilibrium = problem.equilibrium(1.0)
        for kind, ranges in zip("xv", problem.window, strict=True):
            for axis, ends in enumerate(ranges):
                assert equilibrium.marginal(kind, axis, np.array(ends))[0] > 0.999
