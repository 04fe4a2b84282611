"""The GPU's sums over pairs: their text on the CPU, against torch in double precision."""

import pytest
import torch
from test_native_pairs import EXPONENTS, TOLERANCE, assert_agrees, by_torch, couples, near_couples, species

from hpc_kjko import kernels
from hpc_kjko.kernels.cuda import pairs as cuda_pairs

pytestmark = pytest.mark.skipif(not kernels.available(), reason="installed without the native module")


def on_gpu(members, others, exponent, single_precision=True, backwards=False):
    met = None if others is members else others.arrays
    options = dict(mass=others.mass, exponent=exponent, single_precision=single_precision, backwards=backwards)
    return cuda_pairs.pair_sums(members.arrays, met, **options)


@pytest.mark.parametrize("single_precision", [True, False])
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("dims", [2, 3])
def test_against_double_precision(dims, exponent, single_precision):
    """In either order of the threads."""
    for members, others in couples(dims):
        found = on_gpu(members, others, exponent, single_precision)
        assert_agrees(found, by_torch(members, others, exponent), TOLERANCE[single_precision])
        again = on_gpu(members, others, exponent, single_precision, backwards=True)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_near_pairs_do_no_harm():
    for members, others in near_couples(3):
        assert_agrees(on_gpu(members, others, -3.0), by_torch(members, others, -3.0))


def test_no_particles_need_no_launch():
    nobody = species(3, (0, 0))
    velocity, growth = on_gpu(nobody, nobody, -3.0)
    assert velocity.shape == (0, 3) and growth.shape == (0,)
