"""Laws on S³: normalised, sampled as they say, blind to signs, exact where they are sharp."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from pyro.distributions import ProjectedNormal
from scipy.spatial.transform import Rotation
from torch.distributions import kl_divergence

from pyrocryo import quaternions, rotations
from pyrocryo.directions import UniformDirection
from pyrocryo.rotation_laws import (
    RotationFisher,
    RotationMixture,
    RotationNormal,
    _log_bessel_difference,
)

AREA = 2 * math.pi**2
SHAPE = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.7, -0.2], [0.1, -0.2, 0.5]]).double()


def _unit(*shape, seed=0):
    q = torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return q / q.norm(dim=-1, keepdim=True)


def _normal(sd, seed=0):
    return RotationNormal(_unit(seed=seed), torch.linalg.cholesky(sd**2 * SHAPE))


def _laws():
    mixed = RotationNormal(_unit(3, seed=4), 0.4 * torch.eye(3).double())
    return {
        "normal, wide": _normal(1.2),
        "normal": _normal(0.4),
        "Fisher, wide": RotationFisher(_unit(seed=1), torch.tensor(1.5).double()),
        "Fisher": RotationFisher(_unit(seed=1), torch.tensor(0.4).double()),
        "mixture": RotationMixture(torch.tensor([0.0, 1.0, -1.0]).double(), mixed),
    }


@pytest.mark.parametrize("name", _laws())
def test_normalised_over_the_whole_sphere(name):
    law = _laws()[name]
    p = law.log_prob(_unit(400_000, seed=7)).exp() * AREA
    assert abs(float(p.mean()) - 1) < 5 * float(p.std()) / len(p) ** 0.5
    assert float(p.std()) / len(p) ** 0.5 < 0.02


@pytest.mark.parametrize("name", _laws())
def test_draws_follow_the_density(name):
    """Integrals over draws are the integrals over the density, of odd functions too."""
    law = _laws()[name]
    torch.manual_seed(0)
    drawn, everywhere = law.sample((100_000,)), _unit(400_000, seed=8)
    weight = law.log_prob(everywhere).exp() * AREA
    for n, probe in enumerate(_unit(6, seed=9)):
        for f in (lambda q, p=probe: q @ p, lambda q, p=probe: (q @ p) ** 2,
                  lambda q, p=probe: ((q @ p) ** 2 > 0.6).double()):  # fmt: skip
            a, b = f(drawn), f(everywhere) * weight
            error = math.hypot(a.std() / len(a) ** 0.5, b.std() / len(b) ** 0.5)
            assert abs(float(a.mean() - b.mean())) < 4.5 * error + 1e-6, n


@pytest.mark.parametrize("sd", [3.0, 0.5, 0.01])
def test_angles_of_a_fisher_law(sd):
    centre = _unit(seed=2)
    law = RotationFisher(centre, torch.tensor(sd).double())
    torch.manual_seed(1)
    half = torch.acos((law.sample((4000,)) @ centre).abs().clamp_max(1)).numpy()
    if sd < 0.1:  # acos is of no use there
        half = law.sample((4000,))
        half = (half * torch.sign(half @ centre)[:, None] - centre).norm(dim=-1).numpy()
    grid = np.linspace(0, min(math.pi / 2, 10 * sd), 20_001)
    density = np.sin(grid) ** 2 * np.exp(-2 * np.sin(grid) ** 2 / sd**2)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    assert scipy.stats.kstest(half, lambda x: np.interp(x, grid, mass / mass[-1])).pvalue > 1e-3


@pytest.mark.parametrize("name", _laws())
def test_signs_do_not_matter(name):
    law = _laws()[name]
    q = law.sample((50,))
    torch.testing.assert_close(law.log_prob(q), law.log_prob(-q))
    torch.manual_seed(0)
    signs = (law.sample((4000,)) * law.mean).sum(-1).sign()
    assert abs(float(signs.mean())) < 0.1
    if name != "mixture":
        rest = (law.scale_tril,) if hasattr(law, "scale_tril") else (law.sd,)
        torch.testing.assert_close(type(law)(-law.centre, *rest).log_prob(q), law.log_prob(q))


@pytest.mark.parametrize("sd", [1.2, 0.5, 0.1, 0.004])
@pytest.mark.parametrize("prior", ["uniform", "Fisher"])
def test_kl_against_monte_carlo(sd, prior):
    q = _normal(sd)
    if prior == "uniform":
        p = UniformDirection(4, like=q.centre)
    else:
        off = torch.nn.functional.normalize(q.centre + 0.7 * sd * _unit(seed=3), dim=0)
        p = RotationFisher(off, torch.tensor(1.3 * sd).double())
    torch.manual_seed(0)
    drawn = q.rsample((100_000,))
    terms = q.log_prob(drawn) - p.log_prob(drawn)
    exact = float(kl_divergence(q, p))
    assert abs(exact - float(terms.mean())) < 4.5 * float(terms.std()) / len(terms) ** 0.5
    single = RotationNormal(q.centre.float(), q.scale_tril.float())
    there = (
        UniformDirection(4)
        if prior == "uniform"
        else RotationFisher(p.centre.float(), p.sd.float())
    )
    assert float(kl_divergence(single, there)) == pytest.approx(exact, abs=2e-4)


def test_a_fisher_law_of_several_widths():
    sd = torch.tensor([0.01, 0.1, 1.0])
    law = RotationFisher(_unit(3).float(), sd)
    torch.manual_seed(0)
    many = law.sample((3000,))
    for k in range(3):
        alone = RotationFisher(law.centre[k], sd[k]).sample((3000,))
        a, b = (1 - (q @ law.centre[k]).square().double() for q in (many[:, k], alone))
        assert float(a.mean()) == pytest.approx(float(b.mean()), rel=0.1)


def test_kl_survives_plates_and_events():
    q = RotationNormal(_unit(5), 0.1 * torch.eye(3).double()).expand((2, 5))
    kl = kl_divergence(q, UniformDirection(4, like=q.centre).expand((2, 5)))
    assert kl.shape == (2, 5)
    p = RotationFisher(_unit(5), torch.tensor(0.2).double()).expand((2, 5))
    assert kl_divergence(q, p).shape == (2, 5)
    assert kl_divergence(q.to_event(1), p.to_event(1)).shape == (2,)
    mixture = RotationMixture(torch.zeros(2, 5).double(), q).expand((3, 2))
    assert mixture.rsample().shape == (3, 2, 4)
    assert mixture.log_prob(mixture.rsample((7,))).shape == (7, 3, 2)


def test_gradients_are_those_of_finite_differences():
    centre, other = _unit(seed=1), _unit(seed=2)
    scale = torch.linalg.cholesky(0.3**2 * SHAPE)

    def reach(v, log_scale):  # noqa: E306
        turned = quaternions.product(quaternions.exponential(v), centre)
        q = RotationNormal(turned, scale * log_scale.exp())
        p = RotationFisher(other, torch.tensor(0.8).double())
        return kl_divergence(q, p) + q.log_prob(other) + p.log_prob(turned)

    start = (torch.zeros(3).double().requires_grad_(), torch.zeros(()).double().requires_grad_())
    assert torch.autograd.gradcheck(reach, start)
    centre, scale = centre.requires_grad_(), scale.requires_grad_()
    law = RotationNormal(centre, scale)
    torch.manual_seed(0)
    gradients = torch.autograd.grad((law.rsample((100,)) @ other).square().sum(), [centre, scale])
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("sd", [2e-5, 2e-3, 0.17])
def test_single_precision_holds_where_poses_are_known_well(sd):
    """Pyro's projected normal, of the same width, is off by a nat and more."""
    torch.manual_seed(0)
    q = RotationNormal(_unit(1000).float(), sd * torch.eye(3))
    drawn = q.sample()
    for law in (q, RotationFisher(q.centre, torch.tensor(sd))):
        exact = type(law)(
            law.centre.double(),
            law.scale_tril.double() if law is q else law.sd.double(),
        ).log_prob(drawn.double())
        assert (law.log_prob(drawn) - exact).abs().max() < 5e-4 * max(1, 1e-3 / sd)
    if sd == 2e-5:
        c = q.centre * (2 / sd)
        near = drawn * (drawn * q.centre).sum(-1, keepdim=True).sign()
        exact = ProjectedNormal(c.double(), validate_args=False).log_prob(near.double())
        assert (ProjectedNormal(c, validate_args=False).log_prob(near) - exact).abs().max() > 1


def test_normaliser_of_the_fisher_law():
    x = np.logspace(-3, 6, 200)
    y = x[x < 1e3]
    exact = np.log(scipy.special.ive(0, y) - scipy.special.ive(1, y))
    found = _log_bessel_difference(torch.as_tensor(y))
    np.testing.assert_allclose(found, exact, atol=1e-6)
    single = _log_bessel_difference(torch.as_tensor(x, dtype=torch.float32)).double()
    np.testing.assert_allclose(single, _log_bessel_difference(torch.as_tensor(x)), atol=2e-5)


def test_conventions_are_those_of_scipy():
    v = np.random.default_rng(0).normal(size=(200, 3))
    v *= (np.linspace(1e-9, np.pi - 1e-9, 200) / np.linalg.norm(v, axis=-1))[:, None]
    theirs = Rotation.from_rotvec(v)
    q = theirs.as_quat()[:, [3, 0, 1, 2]]
    q *= np.where(q[:, :1] < 0, -1, 1)
    m = theirs.as_matrix()
    np.testing.assert_allclose(rotations.matrix_from_quaternion(-3 * q), m, atol=1e-12)
    np.testing.assert_allclose(rotations.quaternion_from_matrix(m), q, atol=1e-12)
    np.testing.assert_allclose(rotations.matrix_from_vector(v), m, atol=1e-12)
    np.testing.assert_allclose(rotations.vector_from_matrix(m), v, atol=1e-9)
    np.testing.assert_allclose(
        rotations.angle_between(m[::-1], m), (theirs * theirs[::-1].inv()).magnitude(), atol=1e-12
    )
    t = torch.as_tensor
    np.testing.assert_allclose(quaternions.matrix(t(q)), m, atol=1e-12)
    back = quaternions.from_matrix(t(m)).numpy()
    np.testing.assert_allclose(np.abs((back * q).sum(-1)), 1, atol=1e-12)
    np.testing.assert_allclose(quaternions.matrix(quaternions.exponential(t(v))), m, atol=1e-12)
    both = quaternions.product(t(q), t(q[::-1].copy()))
    np.testing.assert_allclose(quaternions.matrix(both), m @ m[::-1], atol=1e-12)
    one = quaternions.product(t(q), quaternions.conjugate(t(q)))
    np.testing.assert_allclose(one, np.eye(4)[0][None].repeat(200, 0), atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, math.pi - 1e-9, math.pi])
def test_angles_are_exact_at_both_ends(angle):
    a = rotations.matrix_from_vector(np.array([0.3, -1.0, 2.0]))
    axis = np.array([2.0, 1.0, -2.0]) / 3
    b = rotations.matrix_from_vector(angle * axis) @ a
    assert float(rotations.angle_between(a, b)) == pytest.approx(
        angle, abs=1e-12 + 1e-4 * angle * (angle < 1)
    )  # noqa: E501
