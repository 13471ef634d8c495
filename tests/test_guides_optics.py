"""Guides that compare images with projections of the volume see those through the optics."""

import logging

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo import quaternions
from pyrocryo.poses import shift_of
from pyrocryo.rotations import angle_between
from pyrocryo.volumes.gaussians import SPEED

MOLECULE = pc.molecules.AdenylateKinase(width=3.0)
PRIOR = pc.priors.IsotropicNormal(2)
SMALL = {"views": 48, "angles": 24, "heads": 2}


def _made(n, ctf=True, **more):
    more = {"box": 32, "pixel_size": 2.5, "snr": 0.5} | more
    return pc.simulate.poses(MOLECULE, n, 0, ctf=ctf, **more)


def _bare(made):
    """Of which nobody knows the pose."""
    still = {"shift": 0 * made.shift, "true_shift": made.shift}
    return made.without("rotation").having(true_rotation=made.rotation, **still)


def _known(particles, guide=None, *, optics=True, margin=2, **more):
    """The molecule as it is, as bright as in the images."""
    pair = pc.Pair(
        more.pop("prior", PRIOR),
        pc.volumes.Atoms.known(MOLECULE, pixel_size=particles.pixel_size),
        particles.box,
        guide=guide or pc.guides.GaussNewton(2),
        optics=pc.optics.CTF(margin=margin) if optics else None,
        rotate=False,
        **more,
    ).eval()
    batch = particles.batch(np.arange(len(particles)))
    rotation, shift = (
        (batch.true_rotation, batch.true_shift / batch.pixel_size)
        if "true_rotation" in particles.fields
        else (batch.rotation, shift_of(batch))
    )
    with torch.no_grad():
        clean = pair.volume(batch.truth, rotation, shift)
        clean = pair.optics(clean, batch) if optics else clean
        brightness = (batch.images * clean).sum() / clean.square().sum()
        pair.volume.brightness.add_(brightness.log() / SPEED)
    return pair, batch


class _Flipped(pc.guides.GaussNewton):
    """As if there were no optics: what it sees are phase-flipped images."""

    def forward(self, images, rotation, shift):
        return super().forward(images, rotation, shift, None)


def test_gauss_newton_is_the_exact_posterior():
    particles = _made(40, snr=0.05)
    exact = torch.as_tensor(pc.simulate.information_limit(MOLECULE, particles, PRIOR))
    off, white = [], []
    for guide in (pc.guides.GaussNewton(6), _Flipped(6)):
        pair, batch = _known(particles, guide)
        with torch.no_grad():
            law = pair.posterior_of(batch)
        off.append((law.loc - exact).square().mean().sqrt())
        error = (batch.truth - law.loc).unsqueeze(-1)
        white.append(torch.linalg.solve_triangular(law.scale_tril, error, upper=False))
    assert off[0] < 0.15  # a posterior is .68 wide
    assert off[1] > 0.4
    variance = [float(w.square().mean()) for w in white]
    assert 0.7 < variance[0] < 1.3
    assert variance[1] > 2
    # and a guide within another is told as well
    frozen = pc.guides.Frozen(pc.guides.GaussNewton(6), below=1.0, components=[0])
    pair, batch = _known(particles.having(temperature=np.full(40, 300.0)), frozen)
    with torch.no_grad():
        assert (pair.posterior_of(batch).loc - exact).square().mean().sqrt() < 0.15


def test_refinement():
    """Poses off by 10° and shifts by 1.2 Å, and white errors of a variance of about 1."""
    particles = pc.simulate.misplaced(_made(100), degrees=6.5, angstroms=1.0)
    given = np.rad2deg(angle_between(particles.true_rotation, particles.rotation))
    pair, batch = _known(particles, pose=pc.poses.SO3(around=6.5, shift_sd=1.0))
    with torch.no_grad():
        law = pair.pose_of(batch)
        found = quaternions.matrix(law.mean).double().numpy()
        moved = law.shift(law.mean).mean.numpy()
        omega = 2 * law.tangent(quaternions.from_matrix(batch.true_rotation)).unsqueeze(-1)
        white = torch.linalg.solve_triangular(law.scale_tril, omega, upper=False)
    assert np.median(given) > 8
    assert np.median(np.rad2deg(angle_between(particles.true_rotation, found))) < 4
    assert np.median(np.linalg.norm(moved - particles.true_shift, axis=-1)) < 0.6
    assert 0.6 < float(white.square().median() / 0.455) < 1.6


def test_search():
    particles = _bare(_made(100, max_shift=1.0))
    pair, batch = _known(particles, pose=pc.poses.SO3(shift_sd=1.0))
    with torch.no_grad():
        law = pair.pose_of(batch)
        found = quaternions.matrix(law.mean).double().numpy()
        moved = law.shift(law.mean).mean.numpy()
    error = np.rad2deg(angle_between(particles.true_rotation, found))
    assert np.median(error) < 5
    assert (error < 20).mean() > 0.95
    assert np.median(np.linalg.norm(moved - particles.true_shift, axis=-1)) < 0.6


@pytest.mark.parametrize(("box", "margin"), [(32, 1), (32, 2), (25, 1)])
def test_scores_of_the_grid(box, margin):
    """Beside log-likelihoods of all orientations, as good as those without optics are."""
    off, spread = [], []
    for ctf in (True, False):
        particles = _bare(_made(4, ctf=ctf, box=box, max_shift=0.0))
        guide = pc.guides.Search(**SMALL)
        pair, batch = _known(
            particles, optics=ctf, margin=margin, pose=pc.poses.SO3(), pose_guide=guide
        )

        def optics(clean, pair=pair, batch=batch):
            return pair.optics(clean, batch)

        guide, still, exact = pair.pose_encoder, torch.zeros(4, 2), []
        with torch.no_grad():
            told = optics if ctf else None
            found = guide._scores(batch.images, still, torch.tensor(1.0), told).flatten(1)
            for pose in guide.grid.split(48):
                u, none = torch.zeros(len(pose), 1, 2), torch.zeros(len(pose), 1, 2)
                clean = pair.volume(u, quaternions.matrix(pose).unsqueeze(1), none)
                clean = optics(clean.expand(-1, 4, -1, -1)) if ctf else clean
                error = (batch.images - clean).square() - batch.images.square()
                exact.append(-0.5 * error.sum((-1, -2)))
            if ctf and margin == 1:
                views = pair.volume(
                    torch.zeros(48, 1, 2), quaternions.matrix(guide.view).unsqueeze(1),
                    torch.zeros(48, 1, 2),
                )  # fmt: skip
                seen = optics(views.expand(-1, 4, -1, -1)).square().sum((-1, -2))
                share = (seen / views.square().sum((-1, -2))).T
                passed = guide._passed(views.squeeze(1), batch.images, optics)
                torch.testing.assert_close(passed, share, rtol=0.03, atol=0.0)
        exact = torch.cat(exact).T
        spread.append(exact.std(1).mean())
        off.append((found - exact).std(1).mean() / spread[-1])
    assert spread[0] > spread[1]  # the CTF keeps the details, which say more
    assert off[0] < min(0.3, 1.1 * off[1])


@pytest.mark.parametrize("pose", [{"around": 6.5, "shift_sd": 1.0}, {"shift_sd": 1.0}, {}])
def test_frames_are_seen_through_their_own(pose):
    """The posterior of a frame is that of the same image alone."""
    made = pc.simulate.time_resolved(
        MOLECULE, 5, 0, frames=2, box=24, pixel_size=3.0, ctf=True, snr=0.5
    )
    moving = pc.simulate.misplaced(made, degrees=3.0, angstroms=0.5)
    guide = {} if "around" in pose else {"pose_guide": pc.guides.Search(**SMALL)}
    prior = pc.priors.LaplaceTransition(2, 2.0)
    pair, batch = _known(moving, prior=prior, pose=pc.poses.SO3(**pose), **guide)
    alone = batch._replace(
        **{
            name: getattr(batch, name).flatten(0, 1)
            for name in ("images", "rotation", "shift", "ctf")
        }
    )
    with torch.no_grad():
        both, each = pair.pose_of(batch).base_dist, pair.pose_of(alone)
        torch.testing.assert_close(both.mean.flatten(0, 1), each.mean)
        drawn = each.rsample((3,)) if "around" in pose else each.sample((3,))
        frames = drawn.unflatten(1, (5, 2))
        if "shift_sd" in pose:
            moved = each.shift(drawn).mean
            torch.testing.assert_close(both.shift(frames).mean.flatten(1, 2), moved)
        else:
            moved = alone.shift.expand(3, -1, -1)
        read = pair.posterior_of(batch, frames, moved.unflatten(1, (5, 2))).base_dist.loc
        torch.testing.assert_close(
            read.flatten(1, 2), pair.posterior_of(alone, drawn, moved).loc, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("around", [6.5, None])
def test_traced_and_alone_or_in_company(around, caplog):
    caplog.set_level(logging.INFO, "pyrocryo")
    made = _made(30, box=24, pixel_size=3.0)
    particles = made if around else _bare(made)
    guide = pc.guides.Search(24, angles=16, heads=2, iterations=1)
    pair, _ = _known(
        particles,
        pc.guides.GaussNewton(1),
        pose=pc.poses.SO3(around=around, shift_sd=1.0),
        pose_guide=pc.guides.Refine(1) if around else guide,
    )
    options = {"steps": 3, "batch_size": 6, "progress": False}
    python = pc.fit(pair, particles, seeds=2, capture=False, **options).history["loss"]
    kept = pc.fit(pair, particles, seeds=2, capture=True, together=2, **options)
    assert "2 seeds at once" in caplog.text
    np.testing.assert_allclose(kept.history["loss"], python, rtol=2e-3)
    if around:
        one = pc.fit(pair, particles, capture=True, **options).history["loss"]
        np.testing.assert_allclose(one, python[:1], rtol=1e-5)
    assert "not traced" not in caplog.text


def test_optics_are_given_to_who_has_a_default_for_them_too():
    class Compares(pc.guides.GaussNewton):
        def forward(self, images, rotation, shift, optics=None):
            assert optics is not None
            return super().forward(images, rotation, shift, optics)

    pair, batch = _known(_made(8), Compares(1))
    assert pair._shown(pair.encoder, batch)[0] is batch.images
    assert pair.posterior_of(batch).mean.shape == (8, 2)
