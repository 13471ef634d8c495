"""Reference values of agreement across runs; test_identify.py has the readings."""

import pickle
from dataclasses import asdict

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.identify import consistency
from pyrocryo.identify.consistency import MOST_PAIRS, _pairs, aligned_rhat

RNG = np.random.default_rng(5)
UNIFORM = RNG.uniform(-1, 1, (4000, 2))


def turn(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s], [s, c]])


def posteriors(rng, z, n=100, sd=0.1, shift=0.0):
    return z + sd * shift + sd * rng.standard_normal((n, *z.shape))


def test_order_sign_and_scale_are_free():
    found = consistency([UNIFORM, -3 * UNIFORM[:, ::-1], UNIFORM * [2, -1]])
    assert found.permutation == pytest.approx(1)
    assert found.affine == pytest.approx(1)
    assert found.agree
    assert (found.compared, found.possible) == (6, 6)


def test_turned_runs():
    """Permutation R² of standardised latents is 2 |corr| - 1: .693 for 0, 45 and 60°."""
    found = consistency([UNIFORM, UNIFORM @ turn(45), UNIFORM @ turn(60)])
    assert 2 * found.permutation - 1 == pytest.approx(0.693, abs=0.01)
    assert found.affine == pytest.approx(1)
    assert found.worst_turn_deg == pytest.approx(45, abs=2)
    assert found.sentence == "the seeds agree up to a rotation of the axes"


def test_cubes():
    """corr(x, x³) of a uniform x is √21 / 5; its square is what a line explains."""
    found = consistency([UNIFORM, UNIFORM**3])
    assert found.permutation == pytest.approx(np.sqrt(21) / 5, abs=0.01)
    assert found.affine == pytest.approx(21 / 25, abs=0.02)
    assert found.nonlinear > 0.98
    assert found.axiswise > 0.98
    assert found.agree
    assert "warp" in found.sentence


def test_independent_runs():
    found = consistency([UNIFORM, RNG.uniform(-1, 1, UNIFORM.shape)])
    assert found.permutation < 0.05
    assert abs(found.affine) < 0.01
    assert "different things" in found.sentence


def test_means_alone_have_no_rhat():
    found = consistency([UNIFORM, UNIFORM])
    assert found.rhat is found.rhat_share is found.rhat_affine is found.rhat_affine_share is None
    few = consistency(list(posteriors(RNG, UNIFORM[None].repeat(2, 0), n=4).swapaxes(0, 1)))
    assert few.rhat is None


def test_rhat_is_arvizs():
    import arviz as az

    from pyrocryo.identify.consistency import _rhat

    chains = RNG.standard_normal((3, 40, 5)) + 0.2 * RNG.standard_normal((3, 1, 5))
    expected = [float(az.rhat(chains[..., i], method="identity")) for i in range(5)]
    np.testing.assert_allclose(_rhat(chains[..., None])[:, 0], expected, rtol=1e-6)


def test_same_posteriors_have_an_rhat_of_one(rng):
    z = rng.standard_normal((400, 3))
    runs = [
        posteriors(rng, z),
        -posteriors(rng, z)[..., [2, 0, 1]],
        7 + 3 * posteriors(rng, z)[..., [1, 0, 2]],
    ]
    found = consistency(runs)
    assert found.rhat == pytest.approx(1, abs=0.01)
    assert found.rhat_affine == pytest.approx(1, abs=0.01)
    assert found.rhat_share < 0.05
    assert found.agree
    assert found.permutation == pytest.approx(1, abs=0.01)


def test_posteriors_apart_by_their_own_width_are_told(rng):
    """Two chains a apart, in sd: R-hat² = 1 + a²/2."""
    z = rng.standard_normal((400, 2))
    a = rng.choice([-1, 1], z.shape)
    found = consistency([posteriors(rng, z, n=400), posteriors(rng, z, n=400, shift=a)])
    assert found.rhat == pytest.approx(np.sqrt(1.5), abs=0.02)
    assert found.rhat_share > 0.95
    assert found.agree  # on the axes


def test_rotated_posteriors_agree_after_an_affine_map(rng):
    z = rng.standard_normal((400, 2))
    found = consistency([posteriors(rng, z), posteriors(rng, z) @ turn(30)])
    assert found.rhat > 1.5
    assert found.rhat_affine == pytest.approx(1, abs=0.01)
    assert found.rhat_share > 0.8
    assert found.rhat_affine_share < 0.1


def test_rhat_by_particle_and_latent(rng):
    z = rng.standard_normal((100, 2))
    off = np.zeros_like(z)
    off[:, 1] = 3 * rng.choice([-1, 1], 100)
    same, affine = aligned_rhat([posteriors(rng, z), posteriors(rng, z, shift=off)])
    assert same.shape == affine.shape == (50, 2)
    assert np.median(same[:, 0]) < 1.05 < np.median(same[:, 1])


def test_a_dead_latent_does_not_break_rhat(rng):
    z = rng.standard_normal((100, 2))
    dead = posteriors(rng, z)
    dead[..., 1] = 0
    found = consistency([posteriors(rng, z), dead])
    assert np.isfinite(found.rhat)
    assert not found.agree


def test_many_seeds_are_compared_in_part(rng, monkeypatch):
    for count in (25, 50, 240):
        pairs = _pairs(count, 0)
        assert len(set(pairs)) == len(pairs) <= MOST_PAIRS
        assert len(np.unique(np.bincount(np.ravel(pairs)))) == 1  # each in equally many
        assert all((n, m) in set(pairs) for m, n in pairs)
    monkeypatch.setitem(_pairs.__globals__, "MOST_PAIRS", 25)
    z = rng.standard_normal((60, 2))
    found = consistency([z + 0.01 * rng.standard_normal(z.shape) for _ in range(6)])
    assert (found.compared, found.possible) == (24, 30)
    assert found.agree
    assert found.sentence.endswith("(24 of 30 ordered pairs of seeds compared)")


def test_other_programs_runs(tmp_path, rng):
    """cryoDRGN's z.pkl, read without running it."""
    z = rng.standard_normal((200, 2)).astype(np.float32)
    for n, run in enumerate((z, z[:, ::-1])):
        (tmp_path / f"z.{n}.pkl").write_bytes(pickle.dumps(np.ascontiguousarray(run)))
    runs = [pc.io.cryodrgn.read_pickle(tmp_path / f"z.{n}.pkl") for n in range(2)]
    assert consistency(runs).permutation == pytest.approx(1)


def test_a_posterior_as_it_comes(rng):
    """The chains of `post["posterior"]["z"]`, and what a JSON file can hold."""
    z = rng.standard_normal((50, 2))
    chains = np.stack([posteriors(rng, z, n=20) for _ in range(3)])
    found = asdict(consistency(list(chains)))
    assert all(isinstance(v, (float, int, bool, str)) for v in found.values())


def test_numbers_that_are_none_are_refused():
    broken = UNIFORM.copy()
    broken[3, 1] = np.nan
    with pytest.raises(pc.InputError, match="latents: expected finite numbers"):
        consistency([UNIFORM, broken])
