"""NUTS where poses are rotations in space, held against importance sampling."""

from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

import pyrocryo as pc
from pyrocryo import quaternions
from pyrocryo.whitened import Whitened

BOX, AROUND, PIXEL = 16, 5.0, 6.0


@pytest.fixture(scope="module")
def tumbling():
    """A body with an arm in space, decoded as it is; poses and shifts are known roughly."""
    molecule = pc.molecules.Arms3D(1, radius=36.0)
    made = pc.simulate.poses(molecule, n=24, seed=0, snr=1.0, box=BOX, pixel_size=PIXEL)
    particles = pc.simulate.misplaced(made, degrees=AROUND, angstroms=2.0, seed=0)

    def pair(pose, pose_guide):
        return pc.Pair(
            pc.priors.IsotropicNormal(1), pc.volumes.Atoms.known(molecule, pixel_size=PIXEL), BOX,
            pose=pose, guide=pc.guides.GaussNewton(), pose_guide=pose_guide, noise=1.0,
            rotate=False,
        ).eval()  # fmt: skip

    return pair, particles


def _centre(post):
    """The rotation that turns are counted from, `(n, 4)`, from the first draw."""
    pose, turn = (torch.as_tensor(post[name].values[0, 0]) for name in ("pose", "turn"))
    return quaternions.product(quaternions.conjugate(quaternions.exponential(turn)), pose)


def _weighed(pair, batch, draws):
    """Draws of the guide and the logarithms of their weights, `(draws, n)`."""
    with torch.no_grad(), pyro.plate("draw", draws, dim=-2):
        guide = poutine.trace(pair.guide).get_trace(batch)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(batch)
    model.compute_log_prob()
    guide.compute_log_prob()
    sites = ("pose", "shift", "z")
    weight = sum(model.nodes[name]["log_prob"] for name in (*sites, "x"))
    weight = weight - sum(guide.nodes[name]["log_prob"] for name in sites)
    return {name: guide.nodes[name]["value"] for name in sites}, weight.double()


def test_draws_of_rotations_lie_on_the_side_of_their_mean():
    """Whatever the sign and place of the first; wide ones, of which it may be the farthest."""

    def guide(_):
        with pyro.plate("particles", 24, dim=-1):
            pyro.sample("pose", pyro.distributions.ProjectedNormal(torch.tensor([2.0, 0, 0, 0])))

    torch.manual_seed(0)
    white = Whitened(SimpleNamespace(guide=guide), None, 200)
    poses, centre = white.told["pose"], white.centre
    assert ((poses * centre).sum(-1) >= 0).all()
    torch.testing.assert_close(centre.norm(dim=-1), torch.ones(centre.shape[:-1]))
    # of all unit vectors, the one with the largest mean square of its products with the draws
    others = torch.nn.functional.normalize(centre + 0.05 * torch.randn(100, *centre.shape), dim=-1)

    def near(q):
        return (poses * q.unsqueeze(-3)).sum(-1).square().mean(-2)

    assert (near(others) <= near(centre) + 1e-6).all()


def test_rotations_shifts_and_conformations_are_those_of_importance_sampling(tumbling):
    make, particles = tumbling
    pair = make(pc.poses.SO3(around=AROUND, shift_sd=2.0), pc.guides.Refine(3))
    index = [0, 5, 6, 7]
    found = pc.nuts(pair, particles, index=index, chains=2, draws=30, warmup=20)
    assert found.names == ("z1", "pose_x", "pose_y", "pose_z", "shift_x", "shift_y")
    assert found.diverging == 0
    assert np.median(found.r_hat) < 1.1
    post = found.draws["posterior"]
    assert post["turn"].dims == ("chain", "draw", "particle", "turn_axis")
    np.testing.assert_allclose(np.linalg.norm(post["pose"], axis=-1), 1.0, rtol=1e-5)
    torch.manual_seed(1)
    told, weight = _weighed(pair, pair.moved(particles.batch(np.array(index))), 8000)
    share = torch.softmax(weight, 0).unsqueeze(-1)
    assert (1 / share.square().sum(0)).min() > 800  # so that they can be a reference
    away = quaternions.conjugate(_centre(post)).to(told["pose"]).expand_as(told["pose"])
    told["turn"] = quaternions.logarithm(quaternions.product(told["pose"], away))
    off, ratio = [], []
    for name in ("z", "turn", "shift"):
        mean = (share * told[name]).sum(0)
        sd = (share * (told[name] - mean).square()).sum(0).sqrt()
        draws = torch.as_tensor(post[name].values).flatten(0, 1)
        off.append((draws.mean(0) - mean) / sd)
        ratio.append(draws.std(0) / sd)
    off, ratio = torch.cat(off, dim=-1), torch.cat(ratio, dim=-1)
    assert off.square().mean().sqrt() < 0.25
    assert off.abs().max() < 0.7
    assert (ratio - 1).square().mean().sqrt() < 0.2


def test_rotations_that_nobody_knows(tumbling):
    """From a search; draws in one hemisphere of each other, whatever sign the guide gives."""
    make, particles = tumbling
    pair = make(pc.poses.SO3(), pc.guides.Search(48, angles=24, heads=1, iterations=3))
    found = pc.nuts(pair, particles, index=[0], chains=2, draws=20, warmup=5)
    assert found.names == ("z1", "pose_x", "pose_y", "pose_z")
    assert np.abs(found.draws["posterior"]["turn"].values).max() < 1.5
    assert np.median(np.abs(found.off)) < 0.5
    assert 0.5 < np.median(found.ratio) < 2.0
    assert found.unmixed == (0,)  # 40 draws are not enough to tell
    assert found.flagged == ()
    assert not found.passed
    assert found.sentence.startswith("Nothing is known; of 0 chains disagree")
