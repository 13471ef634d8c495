"""Turns of domains, and linear ICA of them: hinges come out where their laws allow it."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.errors import InputError
from pyrocryo.molecules.domains import superposition
from pyrocryo.rotations import matrix_from_vector, random_in_space

ADK = pc.molecules.AdenylateKinase()
SEEDS = range(5)
LAWS = {
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "bimodal": lambda rng, n: np.sign(rng.random(n) - 0.5) + 0.5 * rng.standard_normal(n),
    "gaussian": lambda rng, n: rng.standard_normal(n),
}


def _conformations(law, n, seed):
    rng = np.random.default_rng(seed)
    z = np.stack([LAWS[law](rng, n) for _ in range(2)], axis=1)
    z /= z.std(axis=0)
    return z, ADK.centres(torch.as_tensor(z)).numpy()


def test_many_superpositions_are_each_by_itself():
    rng = np.random.default_rng(0)
    points, turns = rng.standard_normal((5, 7, 3)), random_in_space((5,), rng)
    shift = rng.standard_normal((5, 3))
    there = points @ np.swapaxes(turns, -1, -2) + shift[:, None]
    turn, move = superposition(points, there)
    np.testing.assert_allclose(turn, turns, atol=1e-12)
    np.testing.assert_allclose(move, shift, atol=1e-12)
    for i in range(5):
        one, by = superposition(points[i], there[i])
        np.testing.assert_allclose(one, turn[i], atol=1e-12)
        np.testing.assert_allclose(by, move[i], atol=1e-12)
    # a mirror image is not turned inside out
    turn, _ = superposition(points * [1, 1, -1], points)
    np.testing.assert_allclose(np.linalg.det(turn), 1)


def test_hinges_of_adenylate_kinase_come_back():
    z, x = _conformations("gaussian", 50, 0)
    found = pc.molecules.domain_angles(x, ADK.ca_open, ADK.domain)
    assert found.domains == (1, 2)
    true = ADK.closure(torch.as_tensor(z)).numpy() * ADK.angle
    np.testing.assert_allclose(found.angle, np.abs(true), atol=1e-8)
    axes, angles = found.hinges()
    # closing turns are positive on average here, as those of the molecule
    np.testing.assert_allclose(axes, ADK.axis, atol=1e-7)
    np.testing.assert_allclose(angles, true, atol=1e-8)
    for k in range(2):
        centre = ADK.ca_open[ADK.domain == k + 1].mean(axis=0)
        turn = matrix_from_vector(true[:, k, None] * ADK.axis[k])
        moved = (turn - np.eye(3)) @ (centre - ADK.pivot[k])
        np.testing.assert_allclose(found.shift[:, k], moved, atol=1e-8)


def test_where_the_whole_molecule_is_does_not_matter():
    _, x = _conformations("uniform", 20, 1)
    rng = np.random.default_rng(1)
    away = x @ np.swapaxes(random_in_space((20,), rng), -1, -2) + 30 * rng.random((20, 1, 3))
    here, there = (pc.molecules.domain_angles(a, ADK.ca_open, ADK.domain) for a in (x, away))
    for a, b in zip(here[:3], there[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)
    # in the frame of the LID, it is the CORE that turns, by as much
    other = pc.molecules.domain_angles(x, ADK.ca_open, ADK.domain, frame=2)
    assert other.domains == (0, 1)
    np.testing.assert_allclose(other.angle[:, 0], here.angle[:, 1], atol=1e-8)


def test_one_conformation_and_any_batch():
    _, x = _conformations("uniform", 6, 0)
    many = pc.molecules.domain_angles(x.reshape(2, 3, -1, 3), ADK.ca_open, ADK.domain)
    assert many.shift.shape == (2, 3, 2, 3)
    one = pc.molecules.domain_angles(x[0], ADK.ca_open, ADK.domain)
    np.testing.assert_allclose(one.angle, many.angle[0, 0], atol=1e-12)
    assert one.hinges()[1].shape == (2,)
    still = pc.molecules.domain_angles(ADK.ca_open, ADK.ca_open, ADK.domain)
    np.testing.assert_allclose(still.angle, 0, atol=1e-7)
    assert np.isfinite(still.axis).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": ADK.ca_open[:9]}, r"positions: expected \(..., 214, 3\)"),
        ({"reference": ADK.ca_open[:, :2]}, r"reference: expected \(A, 3\)"),
        ({"segmentation": ADK.domain[:9]}, "segmentation: expected 214 integers"),
        ({"segmentation": ADK.domain + 0.5}, "segmentation: expected 214 integers"),
        ({"segmentation": 0 * ADK.domain}, "two domains or more"),
        ({"segmentation": np.arange(214) // 212}, "domain 1 has 2 atoms, which lie on a line"),
        ({"frame": 7}, r"frame: expected one of \[0, 1, 2\], got 7"),
        ({"positions": ADK.ca_open * np.nan}, "finite"),
    ],
)
def test_bad_input(change, message):
    given = {"positions": ADK.ca_open, "reference": ADK.ca_open, "segmentation": ADK.domain}
    with pytest.raises(InputError, match=message):
        pc.molecules.domain_angles(**(given | change))


def _rigid_bodies(law, seed, n=5000, noise=0.5, mixed=False):
    """True conformations, and rotation vectors (0.1 rad) and shifts (Å) of NMP and LID, `(N, 12)`.

    Of structures whose every Cα is off by ``noise`` Å, as if they had been refined one by one;
    mixed, as if bodies had been parametrised otherwise.
    """
    z, x = _conformations(law, n, seed)
    rng = np.random.default_rng(seed + 100)
    x += noise * rng.standard_normal(x.shape)
    found = pc.molecules.domain_angles(x, ADK.ca_open, ADK.domain)
    vectors = 10 * found.angle[..., None] * found.axis
    six = np.concatenate([vectors, found.shift], axis=-1).reshape(n, 12)
    return z, six @ rng.standard_normal((12, 12)) if mixed else six


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("law", ["uniform", "laplace", "bimodal"])
def test_linear_ica_finds_the_hinges_of_true_conformations(law, mixed):
    before = []
    for seed in SEEDS:
        z, six = _rigid_bodies(law, seed, mixed=mixed)
        ica = pc.identify.linear_ica(six, components=2, seed=seed)
        assert pc.metrics.mcc(z, ica.sources).value >= 0.98
        assert ica.separated == (True, True)
        pca = pc.identify.linear_ica(six, components=2, method="pca", seed=seed)
        before.append(pc.metrics.mcc(z, pca.sources).value)
    # of two bodies on axes of their own, the larger and the smaller motion are components
    # already; that is no longer so in other parameters
    assert np.mean(before) < 0.95 if mixed else min(before) > 0.98


@pytest.mark.parametrize("turns", [False, True])
def test_linear_ica_says_that_gaussian_hinges_stay_mixed(turns):
    """Of all parameters, and of turns alone, mixed at random.

    Turns are linear in the angles of hinges. Shifts bend: mixtures of those of Gaussian hinges
    are not quite Gaussian, and linear ICA may then take the bend for a component.
    """
    for seed in SEEDS:
        _, six = _rigid_bodies("gaussian", seed)
        if turns:
            rng = np.random.default_rng(seed)
            alone = six.reshape(-1, 2, 6)[..., :3].reshape(-1, 6)
            six = alone @ rng.standard_normal((6, 6))
        ica = pc.identify.linear_ica(six, components=2, seed=seed)
        assert ica.gaussian == (0, 1)
        assert ica.separated == (False, False)
        assert "cannot separate them" in ica.sentence
