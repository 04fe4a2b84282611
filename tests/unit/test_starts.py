"""The starts of a plasma: their densities, what is drawn from them, and what is said of their keys."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from hpc_kjko.case.config import from_table
from hpc_kjko.errors import UserError
from hpc_kjko.particles.state import Shard, draw
from hpc_kjko.problems import KINDS
from hpc_kjko.schema import validate

TEMPERATURE = 1.3
OWN_KEYS = {
    "maxwellian": {},
    "beams": {"beam_velocity": 1.5, "thermal_speed": 0.6},
    "bump_on_tail": {"bump_density": 0.2, "bump_velocity": 2.5, "bump_thermal_speed": 0.5},
    "bi_maxwellian": {"temperatures": [1.7, 0.6, 1.1]},
    "kappa": {"kappa_index": 4.0},
}
#: Variance of v along and across the wave; of the bi-Maxwellian along the axes.
VARIANCES = {
    "maxwellian": (1.3, 1.3, 1.3),
    "beams": (0.36 + 2.25, 1.3, 1.3),
    "bump_on_tail": (0.8 * 1.3 + 0.2 * 0.25 + 0.8 * 0.2 * 6.25, 1.3, 1.3),
    "bi_maxwellian": (1.7, 0.6, 1.1),
    "kappa": (1.3, 1.3, 1.3),
}
SHIFT, MEAN_OF_BUMP = np.array([0.4, -0.3, 0.2]), 0.5
DIMS = [(1, 1), (1, 2), (1, 3), (3, 3)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def problem_of(kind, **keys):
    return validate(KINDS[kind], {"kind": kind, **keys}, "problem")


def start_of(kind, space_dims=1, velocity_dims=1, **keys):
    """A start with a strong wave, in 3D an oblique one, and a mean velocity in all directions."""
    own = {key: value[:velocity_dims] if key == "temperatures" else value for key, value in OWN_KEYS[kind].items()}
    table = {"space_dims": space_dims, "velocity_dims": velocity_dims, "amplitude": 0.5}
    table |= {"length": [4.0, 5.0, 6.0][:space_dims], "mode": [1, -1, 2][:space_dims]}
    return problem_of(kind, **{**table, "mean_velocity": SHIFT[:velocity_dims].tolist(), **own, **keys})


def sampled(problem, count, temperature=TEMPERATURE):
    options = dict(start="quiet", seed=1, temperature=temperature, dtype=torch.float64, device=torch.device("cpu"))
    return draw(problem, Shard.of(count, 0, 1), **options)


def frame(problem):
    """Orthonormal directions [dv, dv], one a row: the wave's, then those across; the axes for a bi-Maxwellian."""
    axes = np.eye(problem.velocity_dims)
    if problem.kind == "bi_maxwellian":
        return axes
    along = np.append(problem.wave_vector, np.zeros(problem.velocity_dims - problem.space_dims))
    directions = np.linalg.qr(np.column_stack([along, axes]))[0].T
    return directions * np.sign(directions[0] @ along)


def of_each_start(dims=DIMS):
    """Parametrised over kinds and dimensions."""
    return pytest.mark.parametrize(("kind", "dims"), [(kind, d) for kind in OWN_KEYS for d in dims], ids=str)


# -- densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OWN_KEYS)
def test_the_density_integrates_to_the_mass(kind):
    problem = start_of(kind)

    def density(v, x):
        at = torch.tensor([[x], [v]], dtype=torch.float64)
        return math.exp(problem.log_density(at[:1], at[1:], TEMPERATURE))

    places = 4.0 * np.arange(4) / 4  # enough for a cosine
    over_v = [integrate.quad(density, -math.inf, math.inf, args=(x,), epsabs=1e-10)[0] for x in places]
    assert np.mean(over_v) * 4.0 == pytest.approx(problem.mass, rel=1e-8)
    assert over_v == pytest.approx(1 + 0.5 * np.cos(2 * math.pi * places / 4.0), rel=1e-8)


@of_each_start()
def test_log_f_is_the_density_that_the_particles_sample(kind, dims):
    """E[q / f0] over a sample of f0 / mass is 1 / mass for any density q: here Gaussians in v, within f0."""
    problem = start_of(kind, *dims)
    particles = sampled(problem, 2**16)
    x, v = particles.x, particles.v
    in_x = torch.prod(2 * torch.sin(math.pi * x / torch.tensor(problem.periods)) ** 2, dim=1) / problem.mass
    directions = torch.from_numpy(frame(problem))
    widths = torch.from_numpy(np.sqrt(VARIANCES[kind][: dims[1]])) * 0.5
    for away in (-1.2, 0.0, 1.2):  # along the first direction, in units of its deviation
        w = (v - v.mean(0)) @ directions.T
        w[:, 0] -= 2 * away * widths[0]
        log_q = -0.5 * ((w / widths) ** 2).sum(1) - torch.log(widths * math.sqrt(2 * math.pi)).sum()
        ratio = in_x * torch.exp(log_q - particles.log_f)
        assert problem.mass * ratio.mean().item() == pytest.approx(1.0, abs=0.03)


@of_each_start()
def test_the_score_is_the_gradient_of_log_f(kind, dims):
    problem, generator = start_of(kind, *dims), torch.Generator().manual_seed(0)
    x = torch.tensor(problem.periods) * torch.rand(50, dims[0], dtype=torch.float64, generator=generator)
    v = (3 * torch.randn(50, dims[1], dtype=torch.float64, generator=generator)).requires_grad_()
    (score,) = torch.autograd.grad(problem.log_density(x, v, TEMPERATURE).sum(), v)
    for axis in range(dims[1]):
        step = torch.zeros(dims[1], dtype=torch.float64)
        step[axis] = 1e-5
        ahead, behind = (problem.log_density(x, v.detach() + way * step, TEMPERATURE) for way in (1, -1))
        assert (ahead - behind) / 2e-5 == pytest.approx(score[:, axis], rel=1e-6, abs=1e-7)


@of_each_start()
def test_the_density_in_space_is_a_wave_of_the_amplitude(kind, dims):
    problem = start_of(kind, *dims)
    x = np.random.default_rng(0).random((1000, dims[0])) * problem.periods
    phase = x @ (2 * math.pi * np.array([1, -1, 2])[: dims[0]] / problem.periods)
    log_f = problem.log_density(torch.from_numpy(x), torch.ones(1000, dims[1], dtype=torch.float64), TEMPERATURE)
    assert np.ptp(log_f.numpy() - np.log(1 + 0.5 * np.cos(phase))) < 1e-12
    assert problem.spatial_density(x) == pytest.approx(1 + 0.5 * np.cos(phase), rel=1e-12)
    drawn = sampled(problem, 2**14).x.numpy()
    assert (drawn >= 0).all() and (drawn < problem.periods).all()
    wave = np.exp(1j * (drawn @ problem.wave_vector)).mean()
    assert (2 * wave.real, wave.imag) == pytest.approx((0.5, 0.0), abs=2e-3)


@of_each_start()
def test_moments_of_the_sample(kind, dims):
    problem, directions = start_of(kind, *dims), frame(start_of(kind, *dims))
    v = sampled(problem, 2**16).v.numpy()
    mean = SHIFT[: dims[1]] + (MEAN_OF_BUMP * directions[0] if kind == "bump_on_tail" else 0.0)
    assert v.mean(0) == pytest.approx(mean, abs=4e-3)
    covariance = directions @ np.atleast_2d(np.cov(v.T)) @ directions.T
    variances = np.array(VARIANCES[kind][: dims[1]])
    assert covariance == pytest.approx(np.diag(variances), abs=0.02)
    assert problem.variances(TEMPERATURE) == pytest.approx(variances, rel=1e-12)


def test_the_shift_is_along_x_1_unless_it_has_a_number_for_each_direction():
    for kind in OWN_KEYS:
        still, moving = (start_of(kind, 1, 3, mean_velocity=shift) for shift in (0.0, 0.7))
        assert sampled(moving, 100).v.numpy() - sampled(still, 100).v.numpy() == pytest.approx(
            np.broadcast_to([0.7, 0.0, 0.0], (100, 3)), abs=1e-12
        )
        x, v = torch.rand(20, 1).double(), torch.randn(20, 3).double()
        shifted = moving.log_density(x, v + torch.tensor([0.7, 0.0, 0.0], dtype=torch.float64), TEMPERATURE)
        assert torch.allclose(shifted, still.log_density(x, v, TEMPERATURE), rtol=0, atol=1e-12)


def test_a_sample_of_streams_is_as_even_as_its_points():
    """Random numbers would be off by 0.02, and so would those that choose the stream apart from the velocity."""
    v = sampled(start_of("bump_on_tail", mean_velocity=0.0), 2**12).v
    assert v.mean().item() == pytest.approx(MEAN_OF_BUMP, abs=2e-3)
    assert v.var().item() == pytest.approx(VARIANCES["bump_on_tail"][0], abs=1e-2)


@of_each_start(dims=[(1, 3)])
def test_the_outermost_points_have_a_density(kind, dims):
    problem = start_of(kind, *dims)
    low, high = 2.0**-64, 1 - 2.0**-53
    points = np.array([[0.5, low, low, low], [0.5, high, high, high], [low, 0.5, low, high]])
    x, v = (torch.from_numpy(drawn) for drawn in problem.sample(points, TEMPERATURE))
    assert torch.isfinite(v).all() and torch.isfinite(problem.log_density(x, v, TEMPERATURE)).all()


# -- each kind -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", DIMS)
def test_beams_are_those_of_two_stream(dims):
    keys = {"space_dims": dims[0], "velocity_dims": dims[1], "beam_velocity": 1.5, "thermal_speed": 0.6}
    keys |= {"amplitude": 0.2, "length": 5.0, "mode": [1, 1, 2][: dims[0]]}
    ours, known = (sampled(problem_of(kind, **keys), 3000) for kind in ("beams", "two_stream"))
    assert torch.equal(ours.x, known.x) and torch.equal(ours.v, known.v)
    assert torch.allclose(ours.log_f, known.log_f, rtol=0, atol=1e-12)


def test_a_maxwellian_is_at_the_baths_temperature():
    problem = start_of("maxwellian", 1, 3, amplitude=0.0, mean_velocity=0.0)
    x, v = torch.rand(20, 1).double(), torch.randn(20, 3).double()
    equilibrium = problem.equilibrium(TEMPERATURE)
    assert problem.log_density(x, v, TEMPERATURE) == pytest.approx(equilibrium.log_density(x, v), abs=1e-12)


def test_the_bump_is_where_its_keys_say():
    """Far out the density is that of one of the two alone."""
    problem = problem_of("bump_on_tail", bump_density=0.25, bump_velocity=12.0, bump_thermal_speed=0.5, amplitude=0.0)
    at = torch.tensor([[0.0], [12.5]]).double()
    bulk, bump = problem.log_density(torch.zeros(2, 1).double(), at, TEMPERATURE).exp()
    assert bulk.item() == pytest.approx(0.75 / math.sqrt(2 * math.pi * TEMPERATURE), rel=1e-12)
    assert bump.item() == pytest.approx(0.25 * math.exp(-0.5) / math.sqrt(2 * math.pi * 0.25), rel=1e-12)
    v = sampled(problem, 2**12).v
    assert (v > 8.0).double().mean().item() == pytest.approx(0.25, abs=3e-4)


def test_a_bi_maxwellian_is_not_turned_into_the_direction_of_the_wave():
    keys = {"space_dims": 2, "velocity_dims": 2, "temperatures": [4.0, 0.25]}
    log_f = [
        problem_of("bi_maxwellian", **keys, mode=mode).log_density(
            torch.zeros(1, 2).double(), torch.tensor([[2.0, 0.5]]).double(), TEMPERATURE
        )
        for mode in ([1], [1, 1])
    ]
    wanted = math.log(1.01) - 1.0 - math.log(2 * math.pi)  # √(4 · 0.25) = 1
    assert log_f == pytest.approx([wanted, wanted], abs=1e-12)
    assert problem_of("bi_maxwellian", velocity_dims=3).temperatures == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("dims", [(1, 1), (1, 3)])
def test_a_kappa_distribution_has_its_tails(dims):
    """Its kurtosis is 3 (ν − 2)/(ν − 4), ν = 2κ − 1, in each direction."""
    v = sampled(start_of("kappa", *dims, kappa_index=6.0, mean_velocity=0.0), 2**17).v
    kurtosis = (v**4).mean(0) / (v**2).mean(0) ** 2
    assert kurtosis.numpy() == pytest.approx(3 * 9 / 7, rel=0.02)


def test_a_kappa_distribution_is_the_same_in_any_number_of_dimensions():
    """Its marginal is that of fewer dimensions, and it knows no direction."""
    three, one = start_of("kappa", 1, 3, mean_velocity=0.0), start_of("kappa", 1, 1, mean_velocity=0.0)
    x = torch.ones(1, 1, dtype=torch.float64)

    def ring(radius, v):
        at = torch.tensor([[v, radius, 0.0]], dtype=torch.float64)
        return 2 * math.pi * radius * math.exp(three.log_density(x, at, TEMPERATURE))

    for v in (0.0, 1.0, 7.0):
        wanted = math.exp(one.log_density(x, torch.tensor([[v]]).double(), TEMPERATURE))
        assert integrate.quad(ring, 0, math.inf, args=(v,), epsabs=0)[0] == pytest.approx(wanted, rel=1e-7)
    turned = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    v = 3 * torch.randn(20, 3, dtype=torch.float64)
    densities = [three.log_density(x.expand(20, 1), at, TEMPERATURE) for at in (v, v @ turned)]
    assert torch.allclose(*densities, atol=1e-12)


def test_a_large_kappa_is_a_maxwellian():
    kappa, maxwellian = start_of("kappa", 1, 3, kappa_index=1e6), start_of("maxwellian", 1, 3)
    ours, known = sampled(kappa, 1000), sampled(maxwellian, 1000)
    assert torch.allclose(ours.v, known.v, atol=1e-4)
    assert torch.allclose(kappa.log_density(known.x, known.v, TEMPERATURE), known.log_f, atol=1e-4)


# -- what the rest of the code asks ----------------------------------------------------------------------------------


@of_each_start()
def test_windows_hold_the_start_and_the_equilibrium(kind, dims):
    problem = start_of(kind, *dims, mean_velocity=(10 * SHIFT[: dims[1]]).tolist())
    v = sampled(problem, 2**15, temperature=1.0).v
    for axis, (low, high) in enumerate(problem.window[1]):
        assert ((v[:, axis] > low) & (v[:, axis] < high)).double().mean() >= 1 - 2e-4
        assert problem.equilibrium(1.0).marginal("v", axis, np.array([low, high]))[0] > 1 - 1e-5
    assert problem.window[0] == tuple((0.0, length) for length in problem.periods)


@pytest.mark.parametrize("kind", OWN_KEYS)
def test_a_start_without_a_wave_is_homogeneous_and_comes_to_rest(kind):
    assert problem_of(kind, amplitude=0.0).is_homogeneous and not problem_of(kind).is_homogeneous
    problem = start_of(kind, 1, 2)
    x, v = torch.rand(20, 1).double(), torch.randn(20, 2).double()
    maxwellian = -0.5 * (v**2).sum(1) / TEMPERATURE - math.log(2 * math.pi * TEMPERATURE)
    assert torch.allclose(problem.equilibrium(TEMPERATURE).log_density(x, v), maxwellian, atol=1e-12)
    case = from_table({"problem": {"kind": kind}})
    assert case.physics.field == "poisson" and case.problem.periods == pytest.approx([4 * math.pi])
    assert case.problem.amplitude == 0.01 and from_table(case.table()) == case


def test_the_coldest_part_is_known():
    coldest = {
        "maxwellian": math.sqrt(TEMPERATURE),
        "beams": 0.6,
        "bump_on_tail": 0.5,
        "bi_maxwellian": math.sqrt(0.6),
        "kappa": math.sqrt(5 * TEMPERATURE / (7 + 2)),
    }
    for kind, wanted in coldest.items():
        assert start_of(kind, 1, 2).coldest(TEMPERATURE) == pytest.approx(wanted, rel=1e-12), kind
    # of a kappa distribution: where a Gaussian has the same curvature of log f
    v = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    problem, x = start_of("kappa", 1, 2, mean_velocity=0.0), torch.zeros(1, 1, dtype=torch.float64)
    curvature = torch.autograd.functional.hessian(lambda v: problem.log_density(x, v, TEMPERATURE).sum(), v)
    assert curvature.reshape(2, 2).numpy() == pytest.approx(-np.eye(2) / coldest["kappa"] ** 2, rel=1e-12)


def test_the_first_direction_is_the_marginal():
    """Quadrature over v_2 of a start in 1D2V; those that are independent say mean and variance of v_2."""
    x, others = torch.tensor([[1.0]], dtype=torch.float64), {}
    for kind in OWN_KEYS:
        problem = start_of(kind, 1, 2)
        first = problem.first_direction()
        assert (first.space_dims, first.velocity_dims) == (1, 1)

        def density(v_2, problem=problem):
            at = torch.tensor([[0.9, v_2]], dtype=torch.float64)
            return math.exp(problem.log_density(x, at, TEMPERATURE))

        wanted = math.exp(first.log_density(x, torch.tensor([[0.9]]).double(), TEMPERATURE))
        assert integrate.quad(density, -math.inf, math.inf, epsabs=0)[0] == pytest.approx(wanted, rel=1e-6), kind
        others[kind] = problem.other_directions(TEMPERATURE)
    thermal = [(-0.3, TEMPERATURE)]
    assert others == {"maxwellian": thermal, "beams": thermal, "bump_on_tail": thermal} | {
        "bi_maxwellian": [(-0.3, 0.6)],
        "kappa": None,
    }


@pytest.mark.parametrize(
    ("table", "advice"),
    [
        (
            {"kind": "maxwellian", "velocity_dims": 3, "mean_velocity": [0.1, 0.2]},
            "problem.mean_velocity has 2 entries: give one number, or one for each of the 3",
        ),
        ({"kind": "maxwellian", "mean_velocity": []}, "problem.mean_velocity has 0 entries: give one number"),
        ({"kind": "kappa", "mean_velocity": "fast"}, "problem.mean_velocity = 'fast'"),
        (
            {"kind": "bi_maxwellian", "velocity_dims": 2, "temperatures": [1.0]},
            "problem.temperatures has 1 entries: give 2, one for each velocity dimension",
        ),
        ({"kind": "bi_maxwellian", "temperatures": [1.0, 2.0]}, "problem.temperatures has 2 entries"),
        ({"kind": "bi_maxwellian", "temperatures": [-1.0]}, "problem.temperatures[0] = -1.0: it should be greater"),
        ({"kind": "kappa", "kappa_index": 1.5}, "problem.kappa_index = 1.5: it should be greater than 1.5"),
        ({"kind": "bump_on_tail", "bump_density": 1.0}, "problem.bump_density = 1.0: it should be less than 1"),
        ({"kind": "bump_on_tail", "bump_density": 0.0}, "problem.bump_density = 0.0: it should be greater than 0"),
        ({"kind": "bump_on_tail", "bump_thermal_speed": 0.0}, "problem.bump_thermal_speed = 0.0"),
        ({"kind": "beams", "beam_velocity": -1.0}, "problem.beam_velocity = -1.0"),
        ({"kind": "beams", "amplitude": 1.0}, "problem.amplitude = 1.0: it should be less than 1"),
        ({"kind": "maxwellian", "thermal_speed": 2.0}, "thermal_speed is not a key of problem.kind"),
        ({"kind": "maxwellian", "mode": [1, 1]}, "problem.mode has 2 numbers for problem.space_dims = 1"),
        ({"kind": "kapa"}, "problem.kind = 'kapa' is not known"),
    ],
)
def test_a_mistake_in_the_keys_is_one_sentence(table, advice):
    with pytest.raises(UserError) as caught:
        from_table({"problem": table})
    assert advice in str(caught.value) and len(str(caught.value).splitlines()) == 1
