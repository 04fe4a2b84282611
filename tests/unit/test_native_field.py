"""The control field and its Jacobian in one native pass, against torch in double precision."""

import copy
import math

import numpy as np
import pytest
import torch

from hpc_kjko import kernels
from hpc_kjko.inner.control import ControlField
from hpc_kjko.kernels.field import field, fused

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")

#: (periods, dx, dv)
SPACES = {
    "1D1V": ((1.0,), 1, 1),
    "1D2V": ((1.0,), 1, 2),
    "1D3V": ((1.0,), 1, 3),
    "2D2V unbounded": (None, 2, 2),
    "3D3V": ((1.0, 2.0, 3.0), 3, 3),
    "3D3V unbounded": (None, 3, 3),
}
#: Beside the usual ones, widths that fill no tile; and the widest.
HIDDEN = [(), (32,), (5,), (16, 16), (32, 32), (48, 48), (64, 64), (7, 30), (256, 3)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}


@pytest.fixture(autouse=True)
def native_kernels(monkeypatch):
    monkeypatch.setenv("KJKO_KERNELS", "native")


def control_of(space, hidden=(32, 32), activation="tanh", skip=True, dtype=torch.float64):
    periods, dx, dv = SPACES[space]
    control = ControlField(periods, dx, dv, hidden=hidden, activation=activation, seed=1, skip=skip)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return control.to(dtype)


def inputs_of(control, count):
    inputs = control.layers[0].in_features
    return 2 * torch.randn(
        count, inputs, generator=torch.Generator().manual_seed(3), dtype=control.layers[0].weight.dtype
    )


def evaluate(control, z):
    with torch.no_grad():
        assert fused(control.widths, z, control.layers[0].weight)
        return control.with_jacobian(z)


def twin(control, z):
    """By torch, which has it to itself under automatic differentiation."""
    return [part.detach() for part in copy.deepcopy(control).double().with_jacobian(z.double())]


def assert_agrees(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize("space", SPACES)
def test_against_double_precision(space, hidden, activation, dtype):
    for skip in (True, False):
        control = control_of(space, hidden, activation, skip, dtype)
        z = inputs_of(control, 333)
        assert_agrees(evaluate(control, z), twin(control, z), TOLERANCE[dtype])


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 2049])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_any_number_of_particles_and_nothing_but_them(count, dtype):
    """What was in the arrays before is overwritten, and what lies around them is not."""
    control = control_of("1D3V", dtype=dtype)
    z, poisoned = inputs_of(control, count), torch.full((12 * count + 24,), math.nan, dtype=dtype)
    u, jacobian = poisoned[6 : 6 + 3 * count].view(-1, 3), poisoned[12 + 3 * count :][: 9 * count].view(-1, 3, 3)
    weights = [layer.weight.detach() for layer in control.layers]
    biases = [layer.bias.detach() for layer in control.layers]
    kernels.require().evaluate_field(z, weights, biases, control.skip.detach(), tanh=True, u=u, jacobian=jacobian)
    assert poisoned.isnan().sum() == 24
    if count:
        assert_agrees((u, jacobian), twin(control, z), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_particle_has_the_same_bits_wherever_it_stands(dtype):
    control = control_of("3D3V", dtype=dtype)
    z = inputs_of(control, 5000)
    u, jacobian = evaluate(control, z)
    before = torch.get_num_threads()
    for threads, rows in ((1, slice(0, 1)), (1, slice(17, 4990)), (2, slice(1, 5000)), (3, slice(0, 5000))):
        torch.set_num_threads(threads)
        some, part = evaluate(control, z[rows])
        torch.set_num_threads(before)
        assert torch.equal(some, u[rows]) and torch.equal(part, jacobian[rows])
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(4))
    some, part = evaluate(control, z[order])
    assert torch.equal(some, u[order]) and torch.equal(part, jacobian[order])


def test_tanh_to_the_last_bits():
    """Against long doubles, from the smallest numbers to where it is 1; odd, and blind to no NaN."""
    identity = [(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))] * 2
    sizes = torch.logspace(-320, 3, 100001, dtype=torch.float64)
    x = torch.cat([sizes, torch.linspace(1e-3, 20, 100001, dtype=torch.float64)])
    u, derivative = (part.ravel().numpy() for part in field(x[:, None], identity, None, activation="tanh"))
    exact = np.tanh(x.numpy().astype(np.longdouble))
    assert (np.abs(u - exact) <= 5e-16 * exact).all()
    assert np.abs(derivative - (1 - exact**2)).max() < 1e-15
    negative, _ = field(-x[:, None], identity, None, activation="tanh")
    assert (negative.ravel().numpy() == -u).all()
    special = torch.tensor([[math.inf], [-math.inf], [math.nan]], dtype=torch.float64)
    u, _ = field(special, identity, None, activation="tanh")
    assert u[0] == 1 and u[1] == -1 and u[2].isnan()


def test_tanh_to_single_precision():
    """Of all pieces and beyond their end: 3.5e-7, near 0 of its value; odd to the bit, and blind to no NaN."""
    identity = [(torch.ones(1, 1), torch.zeros(1))] * 2
    x = torch.cat([torch.logspace(-37, 1.5, 200001), torch.linspace(0, 9, 400001)])
    u, derivative = (part.ravel().double() for part in field(x[:, None], identity, None, activation="tanh"))
    true = torch.tanh(x.double())
    assert (u - true).abs().max() < 3.5e-7
    small = (x > 0) & (x < 0.1)
    assert ((u - true) / true)[small].abs().max() < 5e-7
    assert (derivative - (1 - true**2)).abs().max() < 8e-7
    negative, _ = field(-x[:, None], identity, None, activation="tanh")
    assert torch.equal(negative.ravel().double(), -u)
    special = torch.tensor([[math.inf], [-math.inf], [math.nan], [3e38]])
    u, _ = field(special, identity, None, activation="tanh")
    assert abs(u[0] - 1) < 3.5e-7 and u[1] == -u[0] and u[2].isnan() and u[3] == u[0]


@pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
def test_parameters_that_are_not_numbers_are_seen(activation):
    for position in range(7):
        control = control_of("1D1V", activation=activation)
        with torch.no_grad():
            list(control.parameters())[position].view(-1)[0] = math.nan
        assert evaluate(control, inputs_of(control, 10))[0].isnan().all()


def test_particles_that_are_not_finite_spoil_no_others():
    control = control_of("1D2V")
    z = inputs_of(control, 100)
    u, jacobian = evaluate(control, z)
    z[50, 1] = math.nan
    spoilt, also = evaluate(control, z)
    others = torch.arange(100) != 50
    assert spoilt[50].isnan().all() and also[50].isnan().all()
    assert torch.equal(spoilt[others], u[others]) and torch.equal(also[others], jacobian[others])


def test_what_is_left_to_torch(monkeypatch):
    control, wide = control_of("1D1V"), control_of("1D1V", hidden=(257, 4))
    z = inputs_of(control, 10)
    assert not fused(control.widths, z, control.layers[0].weight)  # derivatives may be wanted
    with torch.no_grad():
        assert not fused(control.widths, z.float(), control.layers[0].weight)
        assert not fused(wide.widths, z, wide.layers[0].weight)
        wide.with_jacobian(z)
        monkeypatch.setenv("KJKO_KERNELS", "torch")
        assert not fused(control.widths, z, control.layers[0].weight)
    assert control.with_jacobian(z)[0].requires_grad


class TestArguments:
    """The module itself says what is wrong with its arguments."""

    def arguments(self):
        control = control_of("1D2V")
        layers, z = control.layers, inputs_of(control, 20)
        return dict(
            z=z,
            weights=[layer.weight.detach() for layer in layers],
            biases=[layer.bias.detach() for layer in layers],
            skip=control.skip.detach(),
            tanh=True,
            u=torch.empty(20, 2, dtype=z.dtype),
            jacobian=torch.empty(20, 2, 2, dtype=z.dtype),
        )

    CHANGES = {
        "another type": torch.Tensor.float,
        "another device": lambda tensor: tensor.to("meta"),
        "not contiguous": lambda tensor: tensor.repeat_interleave(2, dim=-1)[..., ::2],
    }

    @pytest.mark.parametrize("name", ["z", "skip", "u", "jacobian", "weights", "biases"])
    @pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
    def test_of_another_kind(self, name, change):
        arguments = self.arguments()
        one = arguments[name]
        arguments[name] = [one[0], change(one[1]), *one[2:]] if isinstance(one, list) else change(one)
        with pytest.raises(TypeError, match="incompatible function arguments"):
            kernels.require().evaluate_field(**arguments)

    @pytest.mark.parametrize(
        "name, rows, message",
        [
            ("z", 19, "not of the same particles"),
            ("u", 21, "not of the same particles"),
            ("jacobian", 19, "not of the same particles"),
            ("skip", 1, "skip does not fit"),
        ],
    )
    def test_that_do_not_fit(self, name, rows, message):
        arguments = self.arguments()
        arguments[name] = torch.zeros(rows, *arguments[name].shape[1:], dtype=torch.float64)
        with pytest.raises(ValueError, match=message):
            kernels.require().evaluate_field(**arguments)

    def test_layers_that_do_not_fit(self):
        for name in ("weights", "biases"):
            arguments = self.arguments()
            arguments[name][1] = arguments[name][1][:-1]
            with pytest.raises(ValueError, match="layers do not fit together"):
                kernels.require().evaluate_field(**arguments)
        arguments = self.arguments()
        arguments["weights"], arguments["biases"] = [], []
        with pytest.raises(ValueError, match="one to three layers"):
            kernels.require().evaluate_field(**arguments)
