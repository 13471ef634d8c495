"""Refined guides cover the truth as often as they say, where the decoder is the molecule."""

import calibrated
import numpy as np
import pytest
import torch

import pyrocryo as pc


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
