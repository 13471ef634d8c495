"""The map of particles in known poses: the right way round, in place, of all they show."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import backproject


class Rigid(pc.molecules.AdenylateKinase):
    """Adenylate kinase that does not move."""

    def centres(self, z):
        return super().centres(0 * z)


def _true(molecule, box, z=(0.0, 0.0)):
    volume = pc.volumes.Atoms.known(molecule, pixel_size=3.0).build(2, box)
    with torch.no_grad():
        return volume.density(torch.tensor(z)).numpy()


def _correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("ctf", [False, True])
@pytest.mark.parametrize("box", [32, 33])
def test_clean_images_give_the_map(box, ctf):
    particles = pc.simulate.poses(Rigid(), n=1500, box=box, snr=1e6, ctf=ctf)
    found, true = backproject(particles), _true(Rigid(), box)
    assert _correlation(found.map, true) > 0.999
    # moved by a voxel or seen in a mirror, it is another
    assert _correlation(np.roll(found.map, 1, axis=2), true) < 0.97
    assert _correlation(found.map[::-1], true) < 0.85
    curve = pc.metrics.fsc(found.map, true)
    assert curve[1 : box // 4].min() > 0.995
    assert curve[1 : 3 * box // 8].min() > 0.9
    if not ctf:  # no contrast is lost: the map's projections are the images
        seen = particles.raw(np.arange(50))
        batch = particles.batch(np.arange(50))
        maps = torch.as_tensor(found.map).expand(50, -1, -1, -1)
        shown = pc.imaging.slice_projection(maps, batch.rotation, batch.shift / 3.0, box=box)
        assert np.linalg.norm(shown.numpy() - seen) < 0.03 * np.linalg.norm(seen)


@pytest.mark.parametrize("ctf", [False, True])
def test_noisy_images_are_filtered_by_their_halves(ctf):
    particles = pc.simulate.poses(Rigid(), n=2000, snr=0.1, ctf=ctf)
    found, true = backproject(particles), _true(Rigid(), 32)
    curve = pc.metrics.fsc(found.map, true)
    assert pc.metrics.resolution(curve, 3.0) <= 12.0
    plain = backproject(particles, snr=1e6)
    assert _correlation(found.map, true) > 0.98
    assert _correlation(found.map, true) > _correlation(plain.map, true) + 0.05
    assert found.resolution == pytest.approx(pc.metrics.resolution(curve, 3.0), abs=4)
    # the halves share no molecule: beyond the signal they do not agree
    assert abs(found.fsc[13:].mean()) < 0.1
    np.testing.assert_allclose(found.fsc, pc.metrics.fsc(*found.halves))
    assert _correlation(plain.map, found.halves.mean(0)) > 0.98


def test_weights_pick_conformations():
    """The ends of a latent, each nearer to its own map than to the other's."""
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=3000, snr=0.5, seed=1)
    lid = particles.truth[:, 1]
    maps = [backproject(particles, weights=w).map for w in (lid < -1, lid > 1)]
    ends = [_true(molecule, 32, (0.0, end)) for end in (-1.5, 1.5)]
    across = np.array([[_correlation(a, b) for b in ends] for a in maps])
    assert (np.diag(across) > 0.97).all()
    assert (np.diag(across) > across[[0, 1], [1, 0]] + 0.03).all()
    # a weight of 0 is a particle that is not there, and scale does not matter to the halves
    some = particles.take(np.flatnonzero(lid > 1))
    np.testing.assert_allclose(backproject(some).map, maps[1], atol=1e-5)
    np.testing.assert_allclose(
        backproject(some, weights=np.full(len(some), 3.0)).map, maps[1], atol=1e-4
    )


def test_frames_count_as_particles():
    particles = pc.simulate.time_resolved(Rigid(), n=300, snr=10.0)
    assert _correlation(backproject(particles).map, _true(Rigid(), 32)) > 0.99


def test_wrong_input_is_named():
    flat = pc.simulate.poses(pc.molecules.TwoArms(), n=8)
    good = pc.simulate.poses(Rigid(), n=8, box=16)
    for particles, options, message in (
        (flat, {}, "rotation: all particles are seen along one direction"),
        (good.without("rotation"), {}, "rotation: a map is made from"),
        (good, {"weights": np.ones(3)}, "weights: expected 8 numbers from 0 on"),
        (good, {"weights": -np.ones(8)}, "weights: expected 8 numbers from 0 on"),
        (good, {"weights": np.eye(8)[0]}, "weights: 1 particles have any"),
        (good, {"snr": 0.0}, "snr: expected a positive"),
        (good, {"oversampling": 0}, "oversampling: expected at least 1"),
    ):
        with pytest.raises(pc.InputError, match=message):
            backproject(particles, **options)
