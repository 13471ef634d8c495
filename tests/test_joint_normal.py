"""Laws of guides that are no normal of each image alone: over all frames, and bent."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

import pyrocryo as pc
from pyrocryo.guides.flow import Bent
from pyrocryo.joint_normal import JointNormal
from pyrocryo.rotated_normal import RotatedNormal, RotationLayer


def _turn():
    layer = RotationLayer(2)
    layer.angle.data += 0.1
    return layer().detach()


def _law(batch=(3,)):
    torch.manual_seed(1)
    scale = torch.tril(0.3 * torch.randn(*batch, 4, 4), -1)
    scale = scale + torch.diag_embed(0.2 + torch.rand(*batch, 4))
    return JointNormal(torch.randn(*batch, 2, 2), scale, _turn())


def test_density_moments_and_entropy_are_those_of_the_whole():
    q = _law()
    both = torch.block_diag(q.rotation, q.rotation)
    rows = both @ q.scale_tril
    plain = MultivariateNormal(q.mean.flatten(1), rows @ rows.mT)
    z = q.rsample((5,))
    torch.testing.assert_close(q.log_prob(z), plain.log_prob(z.flatten(2)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.entropy(), plain.entropy())
    torch.testing.assert_close(q.variance.flatten(1), plain.variance)
    between = plain.covariance_matrix[:, [0, 1], [2, 3]]
    torch.testing.assert_close(q.step_covariance[:, 0], between)
    many = q.rsample((50_000,))
    torch.testing.assert_close(many.mean(0), q.mean, rtol=0, atol=0.03)
    wide = q.expand((7, 3))
    assert wide.batch_shape == (7, 3)
    assert wide.log_prob(wide.rsample()).shape == (7, 3)


PRIORS = [
    pc.priors.LaplaceTransition(2, 2.0),
    pc.priors.GaussianTransition(2, 0.3),
    pc.priors.StudentTransition(2, 0.5),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
def test_kl_to_a_transition(prior):
    q = _law()
    z = q.rsample((100_000,))
    drawn = q.log_prob(z) - prior.log_prob(z)
    error = 4 * drawn.std(0) / math.sqrt(len(z))
    assert ((kl_divergence(q, prior) - drawn.mean(0)).abs() < error).all()


@pytest.mark.parametrize("prior", PRIORS, ids=lambda p: type(p).__name__)
def test_independent_frames_are_a_special_case(prior):
    loc, each = torch.randn(3, 2, 2), torch.linalg.cholesky(torch.eye(2) * 0.3 + 0.1)
    apart = RotatedNormal(loc, each.expand(3, 2, 2, 2), _turn()).to_event(1)
    together = JointNormal(loc, torch.block_diag(each, each), _turn())
    torch.testing.assert_close(kl_divergence(together, prior), kl_divergence(apart, prior))


def test_a_prior_without_the_closed_form_is_sampled():
    with pytest.raises(NotImplementedError):
        kl_divergence(_law(), pc.priors.SharedFactors(2, 0.5))


def test_joint_guide_is_exact_for_gaussian_frames():
    """What it says is the product of what each frame says and the prior that it has learned."""
    torch.manual_seed(2)

    class Says(torch.nn.Module):
        def build(self, latent, box, volume):
            return self

        def forward(self, images, rotation, shift):
            scale = torch.tensor([[0.5, 0.0], [0.2, 0.7]])
            return images[..., 0, :2], scale.expand(*images.shape[:-2], 2, 2)

    guide = pc.guides.Joint(Says(), frames=2).build(2, 8, pc.volumes.Grid())
    with torch.no_grad():
        guide.diagonal += 0.2 * torch.randn(4)
        guide.below += 0.3 * torch.randn(6)
    images = torch.randn(5, 2, 8, 8)
    with torch.no_grad():
        loc, scale = guide(images, torch.eye(3).expand(5, 2, 3, 3), torch.zeros(5, 2, 2))
    root = torch.diag(guide.diagonal.exp())
    root[guide._below[0], guide._below[1]] = guide.below
    message = torch.linalg.inv(torch.tensor([[0.25, 0.1], [0.1, 0.53]]))
    told = torch.block_diag(message, message)
    precision = told + root @ root.T
    mean = torch.linalg.solve(precision, told @ images[:, :, 0, :2].flatten(1).T).T
    torch.testing.assert_close(loc.flatten(1), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scale @ scale.mT, torch.linalg.inv(precision).expand(5, 4, 4))


def _bent(strength):
    torch.manual_seed(3)
    guide = pc.guides.Flow((8,), width=8, context=3).build(2, 8, pc.volumes.Grid())
    for layer in guide.couplings:
        layer.size.data += strength
    scale = torch.tensor([[0.5, 0.0], [0.2, 0.7]]).expand(4, 2, 2)
    return guide.law(torch.randn(4, 2), scale, torch.randn(4, 3), _turn())


def test_a_flow_starts_as_the_normal():
    law = _bent(0.0)
    z = law.rsample((6,))
    same = RotatedNormal(law.loc, law.scale_tril, law.rotation)
    torch.testing.assert_close(law.log_prob(z), same.log_prob(z), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(law.mean, same.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(law.variance, same.variance, rtol=1e-3, atol=1e-4)


def test_a_flow_is_normalised_and_has_the_moments_it_says():
    law = _bent(2.0)
    with torch.no_grad():
        axis = torch.linspace(-8, 8, 321)
        grid = torch.cartesian_prod(axis, axis).unsqueeze(1)
        mass = law.log_prob(grid).exp().sum(0) * 0.05**2
        torch.testing.assert_close(mass, torch.ones(4), rtol=0, atol=5e-3)
        z = law.rsample((40_000,))
        torch.testing.assert_close(z.mean(0), law.mean, rtol=0, atol=0.04)
        torch.testing.assert_close(z.var(0), law.variance, rtol=0.08, atol=0.02)
        white = torch.linalg.solve_triangular(
            law.scale_tril, ((z @ law.rotation) - law.loc).unsqueeze(-1), upper=False
        )
        assert float((white[..., 0] ** 3).mean(0).abs().max()) > 0.1  # skewed
    assert isinstance(law.expand((5, 4)), Bent)
    assert law.expand((5, 4)).rsample().shape == (5, 4, 2)


@pytest.mark.parametrize(
    "guide",
    [
        pc.guides.Joint(pc.guides.Amortised((16,)), frames=2),
        pc.guides.Flow((16,), width=8),
        pc.guides.Residual((4, 8), side=16),
    ],
    ids=lambda g: type(g).__name__,
)
def test_guides_fit_and_have_posteriors(guide):
    made = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=40, seed=0, box=16, pixel_size=6.0)
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(hidden=(8,)), box=16, guide=guide
    )
    options = {"steps": 8, "batch_size": 8, "progress": False}
    traced = pc.fit(pair, made, capture=True, **options)
    python = pc.fit(pair, made, capture=False, **options)
    np.testing.assert_allclose(traced.history["loss"], python.history["loss"], rtol=1e-3)
    assert traced.exact_kl is not isinstance(guide, pc.guides.Flow)
    z = pc.posterior(traced, made.test, draws=3, predictive=0)["posterior"]["z"]
    assert z.shape == (1, 3, len(made.test), 2, 2)


def test_guides_that_do_not_go():
    with pytest.raises(pc.InputError, match="frames: expected at least 2"):
        pc.guides.Joint(frames=1)
    with pytest.raises(pc.InputError, match="guide: Flow gives no normal"):
        pc.guides.Joint(pc.guides.Flow(), frames=2)
    with pytest.raises(pc.InputError, match="guide: Joint gives no normal"):
        pc.guides.Frozen(pc.guides.Joint(frames=2), below=200.0, components=[1])
    with pytest.raises(pc.InputError, match="couples latents, and there is only one"):
        pc.guides.Flow().build(1, 8, pc.volumes.Grid())
    with pytest.raises(pc.InputError, match="layers: expected at least 2"):
        pc.guides.Flow(layers=1)
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0, frames=3), pc.volumes.Grid(), box=16,
        guide=pc.guides.Joint(frames=3),
    )  # fmt: skip
    made = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=10, seed=0, box=16)
    with pytest.raises(pc.InputError, match="Joint was made for 3, the particles have 2"):
        pair.check(made)
