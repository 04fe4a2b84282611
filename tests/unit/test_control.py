"""The control field's closed forms are its derivatives."""

import pytest
import torch

from hpc_kjko.inner.control import ControlField, determinant, smallest_eigenvalue

DIMS = [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]


def control_and_inputs(
    space_dims, velocity_dims, hidden=(16, 24), activation="tanh", periodic=True, count=7, skip=False
):
    generator = torch.Generator().manual_seed(5)
    periods = (2.0, 3.0, 4.0)[:space_dims] if periodic else None
    control = ControlField(
        periods, space_dims, velocity_dims, hidden=hidden, activation=activation, dtype=torch.float64, skip=skip
    )
    torch.nn.init.normal_(control.layers[-1].weight, generator=generator)
    torch.nn.init.normal_(control.layers[-1].bias, generator=generator)
    if control.skip is not None:
        torch.nn.init.normal_(control.skip, generator=generator)
    x = 2 * torch.rand(count, space_dims, dtype=torch.float64, generator=generator)
    v = torch.randn(count, velocity_dims, dtype=torch.float64, generator=generator)
    return control, x, v


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("hidden", [(), (8,), (16, 24)], ids=str)
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_divergence_and_jacobian_are_those_of_autograd(dims, skip, periodic, hidden, activation):
    control, x, v = control_and_inputs(*dims, hidden=hidden, activation=activation, periodic=periodic, skip=skip)
    field = lambda x_row, v_row: control(control.features(x_row[None], v_row[None]))[0]  # noqa: E731
    exact = torch.vmap(torch.func.jacrev(field, argnums=1))(x, v)
    z = control.features(x, v)
    u, jacobian = control.with_jacobian(z)
    u_again, divergence = control.with_divergence(z)
    scale = float(exact.detach().abs().max())
    assert torch.allclose(jacobian, exact, rtol=0, atol=1e-12 * scale)
    assert torch.allclose(divergence, exact.diagonal(dim1=1, dim2=2).sum(1), rtol=0, atol=1e-12 * scale)
    assert torch.equal(u, control(z)) and torch.equal(u_again, u)

    # Linear in its coefficients, with or without tangents of one's own.
    tangents = torch.zeros(len(z), v.shape[1], z.shape[1], dtype=z.dtype)
    tangents[:, range(v.shape[1]), range(z.shape[1] - v.shape[1], z.shape[1])] = 1.0
    for given in (None, tangents):
        g, derivative = control.basis(z, given)
        assert torch.allclose(g @ control.coefficients.T, u, rtol=0, atol=1e-12 * scale)
        product = torch.einsum("njm,km->nkj", derivative, control.coefficients)
        assert torch.allclose(product, exact, rtol=0, atol=1e-12 * scale)
    doubled = 2 * control.coefficients
    control.coefficients = doubled
    assert torch.equal(control.coefficients, doubled) and torch.allclose(control(z), 2 * u, rtol=1e-12)


def test_the_field_is_periodic_where_the_box_is_and_zero_before_training():
    control, x, v = control_and_inputs(2, 3)
    shifted = x + torch.tensor([2.0, -3.0])
    assert torch.allclose(control(control.features(x, v)), control(control.features(shifted, v)), atol=1e-13)
    fresh = ControlField((2.0,), 1, 1)
    z = fresh.features(torch.rand(4, 1), torch.randn(4, 1))
    assert torch.equal(fresh(z), torch.zeros(4, 1))


def test_the_start_is_the_same_in_both_precisions_and_seeded():
    weights = [
        ControlField(None, 1, 1, seed=s, dtype=d).layers[0].weight
        for s, d in [(1, torch.float32), (1, torch.float64), (2, torch.float32)]
    ]
    assert torch.equal(weights[0], weights[1].float())
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_determinant_and_smallest_eigenvalue_against_lapack(dims):
    matrix = torch.randn(200, dims, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix[0] = torch.eye(dims)  # a triple eigenvalue
    matrix[1] = -2 * torch.eye(dims)
    assert torch.allclose(determinant(matrix), torch.linalg.det(matrix), rtol=1e-12, atol=1e-13)
    symmetric = 0.5 * (matrix + matrix.transpose(1, 2))
    assert torch.allclose(smallest_eigenvalue(matrix), torch.linalg.eigvalsh(symmetric)[:, 0], rtol=0, atol=1e-12)
