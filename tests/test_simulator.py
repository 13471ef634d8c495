"""The true molecule as metrics intervene in it, on a pair that reads latents off the image."""

import math

import numpy as np
import pytest
import torch
from toys import written

import pyrocryo as pc


class Writer:
    """The molecule that `toys.written` particles show."""

    dim, spatial = 2, 2

    def render(self, z, rotation, shift, *, box, pixel_size):
        line = torch.cat([z, rotation[..., :2, 0]], dim=-1)
        image = torch.cat([line, line.new_zeros(*line.shape[:-1], box**2 - 4)], dim=-1)
        return image.unflatten(-1, (box, box))


def _turned(encode, degrees):
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return lambda factors: encode(factors) @ np.array([[c, -s], [s, c]])


@pytest.mark.parametrize("known", [True, False])
def test_codes_are_those_of_fresh_images(known):
    pair, particles = written(known=known)
    sampler, encode = pc.diagnose.simulator(pair, Writer(), particles)
    z = sampler(500, {1: np.full(500, 0.7)}, np.random.default_rng(0))
    assert (z[:, 1] == 0.7).all()
    assert z[:, 0].std() == pytest.approx(1, abs=0.1)
    codes = encode(z)
    assert codes.shape == (1, 500, 2)
    assert (codes[0] - z).std() == pytest.approx(0.1, rel=0.1)  # the noise of the images


def test_the_seed_decides_whatever_was_asked_before():
    pair, particles = written(known=True)
    sampler, encode = pc.diagnose.simulator(pair, Writer(), particles)
    z = sampler(50, {}, np.random.default_rng(0))
    first = encode(z)
    assert (encode(z[::-1])[:, ::-1] != first).any()  # other noise for another question
    np.testing.assert_array_equal(encode(z), first)
    other = pc.diagnose.simulator(pair, Writer(), particles, seed=1)[1]
    assert (other(z) != first).any()


def test_interventional_metrics_see_a_rotation():
    pair, particles = written(known=True)
    sampler, encode = pc.diagnose.simulator(pair, Writer(), particles)
    for metric, pool in ((pc.metrics.betavae, 500), (pc.metrics.factorvae, 40)):
        assert metric(sampler, encode, pool=pool)[0].value == pytest.approx(1)
        turned = metric(sampler, _turned(encode, 45), pool=pool)[0].value
        assert turned < 0.7


def test_pairs_in_time_are_shown_one_frame_at_a_time(pairs_in_time):
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    sampler, encode = pc.diagnose.simulator(pair, pc.molecules.TwoArms(), pairs_in_time)
    z = sampler(7, {}, np.random.default_rng(0))
    assert encode(z).shape == (1, 7, 2)


def test_particles_of_another_molecule_are_refused(pairs_in_time):
    class Exchanged:
        dim, spatial = 2, 2

        def render(self, z, *where, **size):
            return pc.molecules.TwoArms().render(z[..., [1, 0]], *where, **size)

    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    with pytest.raises(pc.InputError, match="of another molecule"):
        pc.diagnose.simulator(pair, Exchanged(), pairs_in_time)


def test_what_it_needs_is_named():
    pair, particles = written(known=True)
    with pytest.raises(pc.InputError, match="truth"):
        pc.diagnose.simulator(pair, Writer(), particles.without("truth"))
