"""Refined guides cover the truth as often as they say, where the decoder is the molecule."""

import calibrated
import numpy as np
import pytest
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.directions import PlanarNormal


@pytest.fixture(scope="module")
def untrained():
    """Two arms, the molecule as decoder in its true brightness; nothing is learned."""
    some = calibrated.particles("arms", 320, 0)
    pair = calibrated.pair("arms", guide=pc.guides.GaussNewton()).eval()
    batch = some.batch(np.arange(len(some)))
    with torch.no_grad():
        clean = pair.seen(batch.truth, batch)
        brighter = (clean * batch.images).sum() / clean.square().sum()
        pair.volume.brightness.fill_(brighter.log() / 5)
    return pc.Fit([pair], (0,), {}, None, 0.0, True, None, {}), some


def test_truths_are_covered_as_said(untrained):
    fit, some = untrained
    held = calibrated.of_truth(pc.refined(fit), some)  # standard errors of .028 and .017
    assert (np.abs(held - [0.5, 0.9]) < [0.08, 0.05]).all()
    assert calibrated.of_truth(fit, some)[:, 1].max() < 0.87  # three Gauss-Newton steps from 0


def test_khat_counts_where_weights_differ(untrained):
    """Swinging arms leave tails behind the best normal, which weigh next to nothing."""
    fit, some = untrained
    found = pc.diagnose.importance(pc.refined(fit), some, draws=60, most=40)
    assert (found.khat > 0.7).mean() > 0.2
    assert np.median(found.ess) > 0.99
    assert found.khat_share[0] < 0.05
    assert found.passed
    assert found.doubtful.mean() < 0.1
    steps = pc.diagnose.importance(fit, some, draws=60, most=40)
    assert not steps.khat_passed
    assert steps.doubtful.mean() > 0.3  # the other half is right


class Misled(nn.Module):
    """Poses that are off by far, and sure of it; another amount for each particle."""

    def __init__(self, directions):
        super().__init__()
        self.register_buffer("directions", directions)

    def build(self, box):
        return self

    def forward(self, images, shift):
        return PlanarNormal(30.0 * self.directions)


def test_a_pose_guide_in_a_wrong_peak_is_not_believed(untrained):
    brightness = untrained[0].pairs[0].volume.brightness.detach()
    some = untrained[1].take(np.arange(16))
    true = torch.as_tensor(some.rotation[:, :2, 0], dtype=torch.float32)
    angle = torch.linspace(-2.5, 2.5, 16)  # rad
    c, s = angle.cos(), angle.sin()
    wrong = torch.stack([c * true[:, 0] - s * true[:, 1], s * true[:, 0] + c * true[:, 1]], -1)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        untrained[0].pairs[0].volume,
        some.box,
        pose=pc.poses.InPlane(),
        guide=pc.guides.GaussNewton(),
        pose_guide=Misled(wrong),
        rotate=False,
    ).eval()
    pair.volume.brightness.data.copy_(brightness)
    better = pc.refined(pc.Fit([pair], (0,), {}, None, 0.0, True, None, {})).pairs[0]
    with torch.no_grad():
        batch = some.batch(np.arange(16))
        found = better.pose_of(batch).mean
    assert ((found * true).sum(-1) > np.cos(0.4)).float().mean() > 0.85  # 23°
    assert ((wrong * true).sum(-1) > np.cos(0.4)).float().mean() < 0.2
