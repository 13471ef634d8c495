"""Rotations in space and shifts, improved together with the conformation."""

import numpy as np
import pytest
import torch
from pyro import poutine
from test_semi_amortised import _fit

import pyrocryo as pc
from pyrocryo import quaternions, unit_vectors
from pyrocryo.charts import Space, chart_of
from pyrocryo.diagnose.joint import answers
from pyrocryo.diagnose.weighted import log_weights, sampled
from pyrocryo.directions import PlanarNormal
from pyrocryo.natural_gradient import Normal
from pyrocryo.poses import shift_given
from pyrocryo.rotation_laws import RotationMixture, RotationNormal

BOX, AROUND, PIXEL = 16, 5.0, 6.0
MOLECULE = pc.molecules.Arms3D(1, radius=36.0)


def _pair(pose, pose_guide=None, prior=None):
    return pc.Pair(
        prior or pc.priors.IsotropicNormal(1), pc.volumes.Atoms.known(MOLECULE, pixel_size=PIXEL),
        BOX, pose=pose, guide=pc.guides.GaussNewton(), pose_guide=pose_guide, noise=1.0,
        rotate=False,
    ).eval()  # fmt: skip


def _particles(frames=None, n=24):
    options = {"seed": 0, "snr": 1.0, "box": BOX, "pixel_size": PIXEL}
    if frames is None:
        made = pc.simulate.poses(MOLECULE, n=n, **options)
    else:
        made = pc.simulate.time_resolved(MOLECULE, n, frames=frames, **options)
    return pc.simulate.misplaced(made, degrees=AROUND, angstroms=2.0, seed=0)


@pytest.fixture(scope="module")
def near():
    """Poses known to 5° and 2 Å."""
    return _pair(pc.poses.SO3(around=AROUND, shift_sd=2.0)), _particles()


def _normal(n, turn=0.3):
    torch.manual_seed(2)
    rows = torch.randn(n, 5, 5, dtype=torch.double) * torch.tensor([0.2] * 3 + [1.0] * 2)
    scale = torch.linalg.cholesky(rows @ rows.mT + 0.01 * torch.eye(5, dtype=torch.double))
    loc = torch.randn(n, 1, 5, dtype=torch.double) * turn
    centre = quaternions.unit(torch.randn(n, 1, 4, dtype=torch.double))
    return Normal(loc, scale, centre)


def test_numbers_of_a_pose_are_those_of_the_normal_of_rotations():
    q, chart = _normal(7), Space(shifts=True)
    law = RotationNormal(q.centre[:, 0], q.scale[:, :3, :3])
    direction = law.sample((9,))
    shift = torch.randn(9, 7, 2, dtype=torch.double)
    theta = chart.read(q.centre[:, 0], direction, shift)
    again, moved = chart.placed(q.centre[:, 0], theta)
    torch.testing.assert_close(unit_vectors.one_side(again, direction), direction)
    assert torch.equal(moved, shift)
    zero = torch.zeros(3, dtype=torch.double)
    normal = torch.distributions.MultivariateNormal(zero, scale_tril=q.scale[:, :3, :3])

    class Batch:
        images = torch.zeros(7, 4, 4)

    class Same:
        def prior(self, batch):
            return law

    found = chart.log_prior(Same(), Batch, theta, direction, None)  # of the law itself
    torch.testing.assert_close(found, normal.log_prob(theta[..., :3]))


def test_a_normal_moved_to_its_mean_is_the_same_to_first_order():
    """The change of coordinates by automatic differentiation."""
    q, chart = _normal(5), Space(shifts=True)
    new = chart.moved(q)
    assert torch.equal(new.loc[..., :3], torch.zeros_like(new.loc[..., :3]))
    assert torch.equal(new.loc[..., 3:], q.loc[..., 3:])
    for i in range(5):

        def change(theta, i=i):
            return chart.read(new.centre[i, 0], *chart.placed(q.centre[i, 0], theta))

        at = q.loc[i, 0]
        torch.testing.assert_close(change(at)[:3], torch.zeros(3, dtype=torch.double))
        slope = torch.autograd.functional.jacobian(change, at)
        rows = slope @ q.scale[i]
        torch.testing.assert_close(new.scale[i] @ new.scale[i].mT, rows @ rows.mT)


def test_poses_shifts_and_conformations_are_those_of_importance_sampling(near):
    pair, particles = near
    some = particles.take(np.array([0, 5, 6, 7]))
    found = sampled(pair, some, 16000, seed=1)  # the guide's, as it is
    weight = torch.as_tensor(log_weights(found))
    share = torch.softmax(weight, 0).unsqueeze(-1)
    assert (1 / share.square().sum(0)).min() > 1500  # so that they can be a reference
    better = pc.refined(_fit(pair)).pairs[0]
    batch = some.batch(np.arange(4))
    torch.manual_seed(0)
    told = answers(better, batch, 8000)
    centre = better.pose_of(batch).mean
    off, ratio = [], []
    for name in ("z", "pose", "shift"):
        exact, ours = torch.as_tensor(found[name]), told[name]
        if name == "pose":
            torch.testing.assert_close(ours.norm(dim=-1), torch.ones(8000, 4))
            exact, ours = (unit_vectors.angles(centre, part) for part in (exact, ours))
        mean = (share * exact).sum(0)
        sd = (share * (exact - mean).square()).sum(0).sqrt()
        off.append((ours.mean(0) - mean) / sd)
        ratio.append(ours.std(0) / sd)
    off, ratio = torch.cat(off, dim=-1), torch.cat(ratio, dim=-1)
    assert off.abs().max() < 0.12
    assert (ratio - 1).abs().max() < 0.1


def test_every_elbo_rises_and_densities_are_what_draws_say(near):
    pair, particles = near
    before = pc.diagnose.importance(pair, particles, draws=1000, most=16)
    after = pc.diagnose.importance(pc.refined(_fit(pair)), particles, draws=1000, most=16, seed=1)
    assert (after.elbo - before.elbo).min() > -0.02
    assert after.elbo.mean() > before.elbo.mean() + 0.02
    assert after.gap[0] < 0.5 * before.gap[0]
    # weights of two guides estimate one evidence
    assert abs((after.iwae - before.iwae).mean()) < 0.1


def test_rotations_alone():
    """Shifts that are known stay as they are."""
    particles = _particles(n=8)
    particles = particles.having(shift=particles.true_shift)
    pair = _pair(pc.poses.SO3(around=AROUND))
    before = pc.diagnose.importance(pair, particles, draws=200)
    after = pc.diagnose.importance(pc.refined(_fit(pair)), particles, draws=200)
    assert type(pc.refined(_fit(pair)).pairs[0].pose_of(particles.batch([0]))) is RotationNormal
    assert (after.elbo - before.elbo).min() > -0.05
    assert after.gap[0] < 0.5 * before.gap[0]


def test_the_answer_is_kept_for_a_batch(near, monkeypatch):
    """Draws of pose and shift cost no images; the law of z at a pose is exact conditioning."""
    pair, particles = near
    better = pc.refined(_fit(pair), steps=2).pairs[0]
    batch = particles.batch(np.arange(5))
    law = better.pose_of(batch)
    count = []
    seen = better.seen
    monkeypatch.setattr(better, "seen", lambda *given: count.append(1) or seen(*given))
    with torch.no_grad():
        pose = law.sample((6,))
        shift = shift_given(law, pose).sample()
        z = better.posterior_of(batch, pose, shift)
    assert not count
    assert z.batch_shape == (6, 5)
    assert shift.shape == (6, 5, 2)
    assert torch.equal(better.posterior_of(batch).mean, better.posterior_of(batch, law.mean).mean)
    turned = z.mean.std(0)
    assert turned.min() > 0
    assert better.posterior_of(particles.batch(np.arange(3))).batch_shape == (3,)


def test_frames_are_improved_each_alone():
    """As images of their own, where the prior does not tie them."""
    particles = _particles(frames=2, n=6)
    pair = _pair(pc.poses.SO3(around=AROUND, shift_sd=2.0))
    batch = particles.batch(np.arange(6))
    flat = batch._replace(
        **{n: getattr(batch, n).flatten(0, 1) for n in ("images", "rotation", "shift")}
    )
    better = pc.refined(_fit(pair)).pairs[0]
    pose, z = better.pose_of(batch), better.posterior_of(batch)
    assert pose.event_shape == (2, 4)
    assert z.event_shape == (2, 1)
    each, one = better.pose_of(flat), better.posterior_of(flat)
    torch.testing.assert_close(pose.mean.flatten(0, 1), each.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(z.mean.flatten(0, 1), one.mean, rtol=0, atol=1e-2)
    post = pc.posterior(pc.refined(_fit(pair)), particles, draws=3, predictive=0)["posterior"]
    assert post["pose"].shape == (1, 3, 6, 2, 4)
    assert post["shift"].shape == (1, 3, 6, 2, 2)


@pytest.mark.parametrize("shift_sd", [None, 2.0])
def test_several_rotations_are_weighed_by_their_elbos(shift_sd):
    particles = _particles(n=8)
    if shift_sd is None:  # those that were true
        particles = particles.having(shift=particles.true_shift)
    pose = pc.poses.SO3(shift_sd=shift_sd)
    pair = _pair(pose, pc.guides.Search(48, angles=24, heads=2, iterations=3))
    batch = particles.batch(np.arange(8))
    better = pc.refined(_fit(pair)).pairs[0]
    law = better.pose_of(batch)
    assert isinstance(law, RotationMixture)
    assert law.batch_shape == (8,)
    before = pc.diagnose.importance(pair, particles, draws=200)
    after = pc.diagnose.importance(pc.refined(_fit(pair)), particles, draws=200)
    assert after.elbo.mean() > before.elbo.mean()
    assert after.gap[0] < before.gap[0]
    with torch.no_grad():
        trace = poutine.trace(better.guide).get_trace(batch)
        trace.compute_log_prob()
    assert all(trace.nodes[n]["log_prob"].isfinite().all() for n in ("pose", "z"))


def test_laws_without_peaks_stay_as_they_are():
    assert chart_of(pc.poses.SO3(), pc.directions.UniformDirection(4)) is None
    assert chart_of(pc.poses.InPlane(), PlanarNormal(torch.ones(3, 2))).numbers == 1
    q = RotationNormal(torch.tensor([1.0, 0, 0, 0]), torch.eye(3))
    assert chart_of(pc.poses.SO3(), q).numbers == 3
    assert chart_of(pc.poses.SO3(shift_sd=1.0), q) is None  # which does not know the shift
