"""Decoded structures and maps against the truth: what is known in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.errors import InputError
from pyrocryo.rotations import random_in_space

ADK = pc.molecules.AdenylateKinase(width=3.0)


@pytest.fixture(scope="module")
def particles():
    return pc.simulate.poses(ADK, 60, 0, snr=5.0, box=32, pixel_size=3.0)


class Told(nn.Module):
    """An encoder that knows the truth, by the number in the first pixel."""

    def build(self, latent, box, volume):
        self.spread = nn.Parameter(torch.zeros(latent))
        return self

    def forward(self, images, rotation, shift):
        z = images[..., 0, :2]
        return z, torch.diag_embed(self.spread.exp().expand_as(z))


def _written(particles):
    """The particles with their truth in the first two pixels."""
    images = np.array(particles.images)
    images[:, 0, :2] = particles.truth * particles.scale + particles.offset
    told = {"pixel_size": 3.0, "offset": particles.offset, "scale": particles.scale}
    return pc.Particles(images, **told, **particles.fields)


def _pair(volume, dim=2, pose=None):
    return pc.Pair(
        pc.priors.IsotropicNormal(dim), volume, 32, guide=Told(), rotate=False, noise=1.0,
        pose=pose or pc.poses.Known(),
    ).eval()  # fmt: skip


class Placed(pc.volumes.Atoms):
    """The true atoms, turned and moved as a whole, and moved by a fraction of the true motion."""

    def place(self, turn=None, move=None, share=1.0, error=None):
        self.turn = torch.eye(3) if turn is None else torch.as_tensor(turn, dtype=torch.float32)
        self.move = torch.zeros(3) if move is None else torch.as_tensor(move, dtype=torch.float32)
        self.share, self.error = share, 0.0 if error is None else torch.as_tensor(error).float()
        return self

    def centres(self, z):
        x = super().centres(self.share * z) * self.pixel_size + self.error
        return (x @ self.turn.T + self.move) / self.pixel_size


def _placed(**options):
    volume = Placed.known(ADK, pixel_size=3.0)
    volume.place(**options)
    return volume


def test_the_truth_scores_perfectly(particles):
    found = pc.diagnose.structures(_pair(_placed()), ADK, _written(particles))
    assert found.rmsd.shape == (1, 60)
    assert found.resolution.shape == (1, 20)
    assert found.rmsd.max() < 1e-3
    assert found.superposed.max() < 1e-3
    np.testing.assert_allclose(found.resolution, found.nyquist)
    assert found.nyquist == pytest.approx(6.0)
    np.testing.assert_allclose(found.spearman, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.explained, 1.0, atol=1e-5)
    np.testing.assert_allclose(found.explained_density, 1.0, atol=1e-5)
    assert not found.fitted
    scores = found.scores()
    assert set(scores) == {
        "rmsd", "rmsd_90", "rmsd_superposed", "rmsd_still", "fsc_half", "fsc_half_90",
        "fsc_half_still", "motion_explained", "motion_explained_density", "angle_spearman_1",
        "angle_spearman_2",
    }  # fmt: skip
    assert all(len(values) == 1 for values in scores.values())
    assert "nothing superposed" in found.sentence


def test_a_volume_that_does_not_move_scores_as_the_baseline(particles):
    seen = _written(particles)
    mean = seen.truth.mean(axis=0)
    still = _placed(share=0.0)
    at_mean = ADK.centres(torch.as_tensor(mean)) - ADK.centres(torch.zeros(2))
    still.error = at_mean.float()
    found = pc.diagnose.structures(_pair(still), ADK, seen)
    np.testing.assert_allclose(found.rmsd[0], found.still_rmsd, atol=1e-4)
    np.testing.assert_allclose(found.resolution[0], found.still_resolution, atol=1e-6)
    np.testing.assert_allclose(found.explained, 0.0, atol=1e-5)
    np.testing.assert_allclose(found.explained_density, 0.0, atol=0.02)
    # most of the molecule does not move either: these alone say little
    assert np.median(found.still_rmsd) < 2.0
    np.testing.assert_allclose(found.still_resolution, found.nyquist)
    # by hand
    truth = ADK.centres(torch.as_tensor(seen.truth[:1].astype(np.float64))).numpy()
    centre = ADK.centres(torch.as_tensor(mean.astype(np.float64))).numpy()
    by_hand = np.sqrt(np.square(truth - centre).sum(-1).mean())
    assert found.still_rmsd[0] == pytest.approx(by_hand, rel=1e-6)


def test_rmsd_is_what_was_added(particles):
    """A shift counts until structures are superposed; noise on every atom goes nearly through."""
    seen = _written(particles)
    found = pc.diagnose.structures(_pair(_placed(move=[3.0, 0, -4.0])), ADK, seen)
    np.testing.assert_allclose(found.rmsd, 5.0, atol=1e-3)
    assert found.superposed.max() < 1e-3
    error = np.random.default_rng(0).standard_normal((214, 3))
    found = pc.diagnose.structures(_pair(_placed(error=error)), ADK, seen)
    size = np.sqrt(np.square(error).sum(-1).mean())
    np.testing.assert_allclose(found.rmsd, size, rtol=1e-3)
    assert (found.superposed < found.rmsd).all()
    np.testing.assert_allclose(found.superposed, size, rtol=0.02)


def test_unknown_poses_get_one_frame(particles):
    seen = _written(particles).without("rotation")
    turn = random_in_space((), np.random.default_rng(3))
    volume = _placed(turn=turn, move=[5.0, -2.0, 8.0])
    pair = _pair(volume, pose=pc.poses.SO3())
    found = pc.diagnose.structures(pair, ADK, seen)
    assert found.fitted
    assert found.rmsd.shape == (1, 30)  # the half that is scored
    assert found.rmsd.max() < 1e-3
    np.testing.assert_allclose(found.resolution, found.nyquist)
    np.testing.assert_allclose(found.explained_density, 1.0, atol=1e-4)
    np.testing.assert_allclose(found.spearman, 1.0, atol=1e-6)
    assert "one frame fitted on the other half" in found.sentence
    # one frame for all does not hide that nothing moves
    still = _pair(_placed(turn=turn, share=0.0), pose=pc.poses.SO3())
    found = pc.diagnose.structures(still, ADK, seen)
    assert np.median(found.rmsd) > 0.8 * np.median(found.still_rmsd)
    # nothing to compare maps in without atoms
    grid = _pair(pc.volumes.Grid(3, hidden=(4,)), pose=pc.poses.SO3())
    found = pc.diagnose.structures(grid, ADK, seen)
    assert found.resolution is None
    assert found.scores() == {}
    assert "no frame to compare maps in" in found.sentence


def test_maps_alone(particles):
    """Volumes without atoms, or with others, are compared as maps."""
    seen = _written(particles)
    for volume in (
        pc.volumes.Grid(3, hidden=(4,)),
        pc.volumes.Atoms(pixel_size=3.0, dim=3, count=214),
        pc.volumes.Atoms(ADK.ca_open[:99], pixel_size=3.0),
    ):
        found = pc.diagnose.structures(_pair(volume), ADK, seen, maps=3)
        assert found.rmsd is None
        assert found.spearman is None
        assert found.resolution.shape == (1, 3)
        assert set(found.scores()) == {
            "fsc_half",
            "fsc_half_90",
            "fsc_half_still",
            "motion_explained_density",
        }


def test_frames_and_seeds():
    pairs = pc.simulate.time_resolved(ADK, n=40, seed=0, snr=5.0, box=16, pixel_size=6.0)
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Atoms.known(ADK, pixel_size=6.0), 16,
        guide=pc.guides.GaussNewton(), rotate=False,
    )  # fmt: skip
    fit = pc.fit(pair, pairs, steps=3, batch_size=8, seeds=2)
    found = pc.diagnose.structures(fit, ADK, pairs, most=10, maps=2)
    assert found.rmsd.shape == (2, 20)
    assert found.spearman.shape == (2, 2)
    # by hand
    some = pairs.spread(10)
    z = torch.stack(
        [trained.posterior_of(some.batch(np.arange(10))).mean for trained in fit.pairs]
    )
    truth, x = (ADK.centres(torch.as_tensor(a)) for a in (some.truth, z.detach()))
    by_hand = (x - truth).square().sum(-1).mean(-1).sqrt().flatten(1)
    np.testing.assert_allclose(found.rmsd, by_hand, rtol=1e-3, atol=1e-3)
    assert len(found.scores()["rmsd_still"]) == 2


def test_the_limit_stands_beside_what_was_found():
    noisy = _written(pc.simulate.poses(ADK, 60, 0, snr=0.5, box=32, pixel_size=3.0))
    found = pc.diagnose.structures(
        _pair(pc.volumes.Atoms.known(ADK, pixel_size=3.0)), ADK, noisy, limit=40
    )
    # an encoder that is told the truth beats the posterior of the images, here not by little
    assert (found.limit > 0.5).all()
    assert (found.limit < 0.98).all()
    np.testing.assert_allclose(found.share[0] * found.limit, 1.0, atol=1e-3)
    scores = found.scores()
    assert scores["angle_limit_1"] == [found.limit[0]]
    assert scores["angle_share_2"] == [found.share[0, 1]]
    assert "the exact posterior of the true molecule with 0." in found.sentence
    # another law of z has another limit: narrower, and less is left to tell apart
    narrow = torch.distributions.Normal(torch.zeros(2), 0.3)
    law = torch.distributions.Independent(narrow, 1)
    other = pc.diagnose.structures(
        _pair(pc.volumes.Atoms.known(ADK, pixel_size=3.0)), ADK, noisy, limit=40, law=law
    )
    assert not np.allclose(other.limit, found.limit)
    with pytest.raises(InputError, match="limit: expected 0 or at least 2 molecules, got 1"):
        pc.diagnose.structures(
            _pair(pc.volumes.Atoms.known(ADK, pixel_size=3.0)), ADK, noisy, limit=1
        )


def test_mistakes(particles):
    pair = _pair(_placed())
    for change, message in [
        ({"particles": particles.without("truth")}, "expected the truth of simulated"),
        ({"molecule": pc.molecules.Arms3D(3)}, "molecule: moves in 3 ways, the truth has 2"),
        ({"molecule": pc.molecules.TwoArms()}, "a volume and a molecule in space"),
        ({"maps": 0}, "maps: expected one or more"),
    ]:
        given = {"fit": pair, "molecule": ADK, "particles": particles} | change
        with pytest.raises(InputError, match=message):
            pc.diagnose.structures(**given)


def test_the_limit_is_of_the_true_poses():
    true = pc.simulate.poses(ADK, 30, 0, snr=0.5, box=32, pixel_size=3.0)
    wrong = pc.simulate.misplaced(true, degrees=6.5, angstroms=1.5, seed=1)
    volume = pc.volumes.Atoms.known(ADK, pixel_size=3.0)
    told = [
        pc.diagnose.structures(_pair(volume), ADK, _written(p), limit=20).limit
        for p in (true, wrong)
    ]
    np.testing.assert_array_equal(*told)
