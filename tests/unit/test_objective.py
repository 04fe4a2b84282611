"""The JKO functional and its minimiser."""

import math

import pytest
import torch
from conftest import Part

from hpc_kjko.inner.control import ControlField
from hpc_kjko.inner.objective import CONTINUE_BELOW, JKOObjective, continued_log, linear_part, tracked_log_det
from hpc_kjko.operators import Bath

KAPPA, TEMPERATURE, STEP = 0.8, 1.3, 0.4


def test_the_continued_logarithm_is_smooth_concave_and_finite():
    d = torch.tensor([CONTINUE_BELOW - 1e-6, CONTINUE_BELOW + 1e-6], dtype=torch.float64, requires_grad=True)
    value = continued_log(d)
    (slope,) = torch.autograd.grad(value.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    for jump, size in ((value, 1), (slope, 10), (curvature, 100)):
        assert abs(float((jump[1] - jump[0]).detach())) < 1e-4 * size  # C²
    assert torch.allclose(continued_log(torch.tensor([0.5, 2.0])), torch.tensor([0.5, 2.0]).log())
    line = continued_log(torch.linspace(-20, 2, 500, dtype=torch.float64))
    assert torch.isfinite(line).all() and (line.diff() > 0).all() and (line.diff().diff() < 0).all()


def correlated_gaussian(dims, count=2000, seed=3):
    """Unbounded (x, v) from a Gaussian in which everything is correlated: [n, dims], [n, dims]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(2 * dims, dtype=torch.float64)
    mixing += 0.3 * torch.randn(2 * dims, 2 * dims, dtype=torch.float64, generator=generator)
    z = torch.randn(count, 2 * dims, dtype=torch.float64, generator=generator) @ mixing.T + 0.5
    return z[:, :dims], z[:, dims:]


def rows_of(z, control, rows=slice(None)):
    """Inputs, velocities and equal shares of some of the particles."""
    return z[rows], z[rows, -control.velocity_dims :], torch.full_like(z[rows, 0], 1 / len(z))


def minimise_output_layer(control, z, logdet):
    """Newton's method on the output layer, hidden layers fixed; returns the norm of the gradient that is left.

    (All layers at once would have no minimum: with finitely many particles a network can sharpen its features without
    end. Choosing where to stop is the inner solver's business, not this condition's.)
    """
    objective = Part(JKOObjective(control, operator=Bath(KAPPA, TEMPERATURE), logdet=logdet))
    layer = control.layers[-1]
    shapes = [layer.weight.shape, layer.bias.shape]

    def value(flat):
        weight, bias = flat.split([shape.numel() for shape in shapes])
        names = [f"objective.control.layers.{len(control.layers) - 1}.{name}" for name in ("weight", "bias")]
        parameters = dict(zip(names, (weight.reshape(shapes[0]), bias), strict=True))
        return torch.func.functional_call(objective, parameters, (STEP, *rows_of(z, control), None, None))

    flat = torch.zeros(sum(shape.numel() for shape in shapes), dtype=torch.float64)
    for _ in range(60):
        gradient = torch.func.grad(value)(flat)
        curvature = torch.func.hessian(value)(flat)
        newton, length = torch.linalg.solve(curvature, gradient), 1.0
        while length > 1e-4 and value(flat - length * newton) > value(flat):
            length *= 0.5
        flat = flat - length * newton
        if gradient.norm() < 1e-12:
            break
    with torch.no_grad():
        layer.weight.copy_(flat[: layer.weight.numel()].reshape(layer.weight.shape))
        layer.bias.copy_(flat[layer.weight.numel() :])
    return float(torch.func.grad(value)(flat).detach().norm())


def gaussian_score(samples, points):
    """∇v log of the Gaussian with the samples' mean and covariance, at points; both [n, 2 dims]."""
    covariance = torch.cov(samples.T, correction=0)
    return -((points - samples.mean(0)) @ torch.linalg.inv(covariance))[:, samples.shape[1] // 2 :]


@pytest.mark.parametrize("logdet", ["linear", "exact"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_affine_minimiser_satisfies_the_stationarity_condition(dims, logdet):
    """Eq. (28): u = −κ (v^{n+1} + T s), s the score of f̃ at ṽ (linear ℓ) or of f^{n+1} at v^{n+1} (exact).

    An affine field sees only means and covariances, so for particles the condition holds at every particle with the
    score of the Gaussian that has the particles' own moments.
    """
    x, v = correlated_gaussian(dims)
    control = ControlField(None, dims, dims, hidden=(), dtype=torch.float64)
    z = control.features(x, v)
    assert minimise_output_layer(control, z, logdet) < 1e-11
    with torch.no_grad():
        u = control(z)
        moved = v + STEP * u
        after = torch.cat([x, moved], dim=1)
        score = gaussian_score(z, z) if logdet == "linear" else gaussian_score(after, after)
        assert torch.allclose(u, -KAPPA * (moved + TEMPERATURE * score), atol=1e-9)
        assert u.abs().max() > 0.1


@pytest.mark.parametrize("logdet", ["linear", "exact"])
def test_the_tanh_minimiser_satisfies_the_stationarity_condition(logdet):
    """The weak form of (28), tested with the last hidden layer's features g (one for each output weight):

    E[(u/κ + v^{n+1})_k g_m] = T E[∂_{v_k} g_m] for the linear ℓ, and = T E[Σ_j B_jk ∂_{v_j} g_m] with
    B = (I + h ∇v u)⁻¹, for the exact one; ∂g by autograd.
    """
    x, v = correlated_gaussian(2, count=3000)
    control = ControlField(None, 2, 2, hidden=(10, 10), dtype=torch.float64)
    z = control.features(x, v)
    assert minimise_output_layer(control, z, logdet) < 1e-11

    def features(v_row, x_row):
        row = torch.cat([x_row, v_row])
        for layer in control.layers[:-1]:
            row = torch.tanh(layer(row))
        return row

    gradients = torch.vmap(torch.func.jacrev(features))(v, x)  # [n, m, j]
    g = torch.vmap(features)(v, x)
    with torch.no_grad():
        u, jacobian = control.with_jacobian(z)
        moved = v + STEP * u
        inverse = (
            torch.linalg.inv(linear_part(jacobian, STEP)) if logdet == "exact" else torch.eye(2).expand(len(v), 2, 2)
        )
        left = torch.einsum("nk,nm->km", u / KAPPA + moved, g) / len(v)
        right = TEMPERATURE * torch.einsum("njk,nmj->km", inverse.to(g), gradients) / len(v)
        assert (left - right).norm() < 1e-10 * left.norm()


def test_a_converged_step_decreases_the_free_energy_by_at_least_its_cost():
    """F^{n+1} + h/(2κ) mean|u|² ≤ F̃: exact log det, first order, on the fitted particles (METHOD of the paper, 3.1)."""
    x, v = correlated_gaussian(2)
    control = ControlField(None, 2, 2, hidden=(8, 8), dtype=torch.float64)
    z = control.features(x, v)
    minimise_output_layer(control, z, "exact")
    with torch.no_grad():
        u, jacobian = control.with_jacobian(z)
        moved = v + STEP * u
        entropy_change = -tracked_log_det(jacobian, STEP, "exact").mean()
        change = 0.5 * (moved**2).sum(1).mean() - 0.5 * (v**2).sum(1).mean() + TEMPERATURE * entropy_change
        cost = STEP / (2 * KAPPA) * (u**2).sum(1).mean()
    assert float(change + cost) < 0 and float(cost) > 1e-3


def test_chunks_add_up_and_an_empty_shard_adds_nothing():
    x, v = correlated_gaussian(1)
    control = ControlField(None, 1, 1, hidden=(8, 8), dtype=torch.float64)
    torch.nn.init.normal_(control.layers[-1].weight)
    objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet="exact")
    z = control.features(x, v)
    pieces = sum(objective(0.1, *rows_of(z, control, slice(i, i + 300))) for i in range(0, len(z), 300))
    assert float(pieces.detach()) == pytest.approx(float(objective(0.1, *rows_of(z, control)).detach()), rel=1e-13)
    assert float(pieces.detach()) != 0
    nothing = objective(0.1, *rows_of(z, control, slice(0, 0)))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in control.parameters())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_tracked_determinant_is_that_of_the_map(dims):
    x, v = correlated_gaussian(dims, count=50)
    control = ControlField(None, dims, dims, hidden=(8, 8), dtype=torch.float64)
    torch.nn.init.normal_(control.layers[-1].weight, std=0.3)
    with torch.no_grad():
        _, jacobian = control.with_jacobian(control.features(x, v))

        def step_map(v_row, x_row):
            return v_row + 0.1 * control(control.features(x_row[None], v_row[None]))[0]

        exact = torch.linalg.slogdet(torch.vmap(torch.func.jacrev(step_map))(v, x))[1]
        assert torch.allclose(tracked_log_det(jacobian, 0.1, "exact"), exact, atol=1e-12)
        linear = tracked_log_det(jacobian, 0.1, "linear")
    assert 0 < float((linear - exact).abs().max()) < math.inf


def test_the_objective_is_the_papers_functional_less_its_value_without_control():
    """Eq. (18) written out with autograd's divergence, for the linear log det."""
    x, v = correlated_gaussian(2, count=200)
    control = ControlField(None, 2, 2, hidden=(8, 8), dtype=torch.float64)
    torch.nn.init.normal_(control.layers[-1].weight, std=0.3)
    objective = JKOObjective(control, operator=Bath(KAPPA, TEMPERATURE), logdet="linear")

    def field(v_row, x_row):
        return control(control.features(x_row[None], v_row[None]))[0]

    u = torch.vmap(field)(v, x)
    divergence = torch.vmap(torch.func.jacrev(field))(v, x).diagonal(dim1=1, dim2=2).sum(1)
    functional = STEP / (2 * KAPPA) * (u**2).sum(1) + 0.5 * ((v + STEP * u) ** 2).sum(1)
    functional = functional - TEMPERATURE * STEP * divergence - 0.5 * (v**2).sum(1)
    assert torch.allclose(objective(STEP, *rows_of(control.features(x, v), control)), functional.mean(), rtol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_leaky_relu_gradients_of_hidden_layers_are_not_those_of_the_functional(activation):
    """Autograd sees a piecewise constant s' and drops what its jumps contribute to the gradient of the divergence.

    Central differences over 20 000 particles tell: with tanh all layers agree, with leaky_relu only the output layer.
    """
    count, width = 20_000, 1e-2
    generator = torch.Generator().manual_seed(1)
    control = ControlField(None, 1, 1, hidden=(6, 6), activation=activation, dtype=torch.float64)
    with torch.no_grad():
        control.layers[-1].weight.normal_(0, 0.5, generator=generator)
    objective = JKOObjective(control, operator=Bath(1.0, 1.0), logdet="linear", together=count)
    z = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    share = torch.full((count,), 1 / count, dtype=torch.float64)
    objective(0.1, z, z[:, 1:], share).backward()
    for number, layer in enumerate(control.layers):
        for parameter in layer.parameters():
            flat, differences = parameter.data.view(-1), []
            for k in range(len(flat)):
                flat[k] += width
                above = objective(0.1, z, z[:, 1:], share).item()
                flat[k] -= 2 * width
                differences.append((above - objective(0.1, z, z[:, 1:], share).item()) / (2 * width))
                flat[k] += width
            wanted = torch.tensor(differences, dtype=torch.float64)
            error = float((parameter.grad.view(-1) - wanted).norm() / wanted.norm())
            if activation == "leaky_relu" and number < 2:
                assert error > 0.1
            else:
                assert error < 1e-3
