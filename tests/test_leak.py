"""z against poses and columns: p-values that are right, and leaks of known size found."""

import numpy as np
import pytest
from scipy.stats import f_oneway, kstest
from sklearn.linear_model import LinearRegression

from pyrocryo import rotations
from pyrocryo.diagnose.dependence import (
    by_features,
    by_groups,
    by_neighbours,
    dependence,
    orthonormal,
)
from pyrocryo.diagnose.dimensions import dimensions
from pyrocryo.diagnose.leak import against, in_plane_features, leak, psi, view_features
from pyrocryo.errors import InputError


def _poses(n, seed):
    return rotations.random_in_space((n,), np.random.default_rng(seed))


def _planted(rotation, kind, share, *, latents=4, seed=0):
    """Latents whose first holds a function of the pose with this share of its variance."""
    z = np.random.default_rng(seed).standard_normal((len(rotation), latents))
    f = rotation[:, 2] @ [0.6, 0.48, 0.64] if kind == "view" else np.cos(psi(rotation) + 0.7)
    z[:, 0] = np.sqrt(1 - share) * z[:, 0] + np.sqrt(share) * (f - f.mean()) / f.std()
    return z


def test_p_values_are_uniform_under_independence():
    found = []
    for seed in range(100, 180):
        rng = np.random.default_rng(seed)
        rotation = rotations.random_in_space((120,), rng)
        # heavy tails, mixed: permutations do not mind
        z = rng.standard_t(3, size=(120, 2)) @ rng.standard_normal((2, 2))
        tests = leak(z, rotation, permutations=59, seed=seed).tests
        column = against(z, rng.standard_normal(120), what="x", permutations=59, seed=seed)
        found.append([*(test.p for test in tests), column.p])
    alarms = np.mean(np.array(found) <= 0.05, axis=0)
    assert ((alarms >= 0.01) & (alarms <= 0.12)).all(), alarms
    spread = np.random.default_rng(0).random((80, 4)) / 60  # p is a multiple of 1 / 60
    assert all(kstest(p, "uniform").pvalue > 1e-3 for p in (np.array(found) - spread).T)


def test_of_any_of_the_latents_too():
    explain, _ = by_features(view_features(_poses(200, 0)))
    least = []
    for seed in range(80):
        z = np.random.default_rng(seed).standard_normal((200, 5))
        least.append(dependence(z, explain, what="x", permutations=39).p_each.min())
    assert 0.01 <= np.mean(np.array(least) <= 0.05) <= 0.12


def test_a_dependence_on_the_view_is_not_one_on_the_turn():
    alarms = 0
    for seed in range(40):
        rotation = _poses(300, seed)
        z = _planted(rotation, "view", 0.6, latents=2, seed=seed)
        alarms += leak(z, rotation, permutations=59, seed=seed).tests[1].p <= 0.05
    assert alarms <= 5


@pytest.mark.parametrize("leaking", [False, True])
def test_a_view_that_tells_of_the_turn_neither_feigns_nor_hides_a_leak(leaking):
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        angles = rotations.euler_from_matrix(rotations.random_in_space((1000,), rng))
        angles[:, 2] = angles[:, 0] + 30 * rng.standard_normal(1000)  # turns follow views
        rotation = rotations.matrix_from_euler(angles)
        z = 0.3 * rng.standard_normal((1000, 2))
        z[:, 0] += 5 * rotation[:, 2, 2] + 3 * rotation[:, 2, 0]
        z[:, 0] += 0.3 * leaking * np.cos(psi(rotation))
        found.append(leak(z, rotation, permutations=59, seed=seed).tests[1].p <= 0.05)
    assert sum(found) == 10 if leaking else sum(found) <= 2


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("kind", ["view", "turn"])
def test_planted_leaks_are_found_and_measured(kind, share):
    rotation = _poses(2000, 1)
    found = leak(_planted(rotation, kind, share, seed=2), rotation, permutations=99)
    view, turn, near = found.tests
    guilty, other = (view, turn) if kind == "view" else (turn, view)
    assert guilty.share[0] == pytest.approx(share, abs=0.03)  # its sd over seeds is .015 at .5
    assert guilty.strongest == pytest.approx(share, abs=0.03)
    assert guilty.total == pytest.approx(share / 4, abs=0.01)
    assert guilty.p <= 0.05 < other.p
    if share > 0.05:
        assert guilty.p == 0.01
        assert guilty.p_each[0] == 0.01
        assert (guilty.p_each[1:] > 0.05).all()
        assert near.p == 0.01
        # neighbours are not all that near
        assert near.share[0] == pytest.approx(share, abs=0.08)
        assert found.verdict == "depends"
        assert "of z1" in found.sentence


@pytest.mark.parametrize(("kind", "test"), [("view", 0), ("turn", 1)])
def test_what_is_said_to_be_noticed_is(kind, test):
    said, seen = [], []
    for seed in range(12):
        rotation, options = _poses(600, seed), {"permutations": 59, "seed": seed}
        none = leak(_planted(rotation, kind, 0, seed=900 + seed), rotation, **options)
        said.append(none.tests[test].noticed)
        planted = _planted(rotation, kind, said[-1], seed=seed)
        seen.append(leak(planted, rotation, **options).verdict != "none seen")
    assert sum(seen) >= 7  # of 12: less has a chance of .02 if it is 8 of 10
    assert max(said) < 0.12  # and it says something


def test_faint_leaks_of_all_latents_add_up():
    rotation = _poses(2000, 3)
    z = np.random.default_rng(4).standard_normal((2000, 6))
    z += np.sqrt(3 * 0.012) * rotation[:, 2, [0, 1, 2, 0, 1, 2]]
    assert leak(z, rotation, permutations=99).tests[0].p == 0.01


def test_neighbours_see_what_smooth_functions_do_not():
    rotation = _poses(4000, 5)
    z = np.random.default_rng(6).standard_normal((4000, 2))
    z[:, 0] += np.sign(np.sin(9 * rotation[:, 2, 2]))
    flat = rotation.copy()
    flat[:, :2] = 0  # seen by direction alone
    explain, _ = by_neighbours(flat[:, 2])
    near = dependence(z, explain, what="the view", permutations=39)
    smooth, _ = by_features(view_features(rotation))
    regressed = dependence(z, smooth, what="the view", permutations=39)
    assert near.share[0] > 0.4 > 0.15 > regressed.share[0]


def test_poses_in_the_plane_have_no_direction_of_view():
    rng = np.random.default_rng(7)
    angle = rng.uniform(-np.pi, np.pi, 600)
    z = rng.standard_normal((600, 2))
    z[:, 1] += np.cos(3 * angle)
    found = leak(z, rotations.in_plane(angle), permutations=59)
    assert [test.how for test in found.tests] == ["in-plane waves", "nearest neighbours in pose"]
    assert found.tests[0].p == pytest.approx(1 / 60)
    assert found.tests[0].share[1] == pytest.approx(1 / 3, abs=0.07)
    assert found.tests[0].features == 8


def test_does_not_depend_on_frames_and_units():
    rotation, z = _poses(800, 8), _planted(_poses(800, 8), "view", 0.2)
    turn = rotations.random_in_space((), np.random.default_rng(9))
    plain = leak(z, rotation, permutations=59).tests
    molecule = leak(z, rotation @ turn, permutations=59).tests
    np.testing.assert_allclose(molecule[0].raw, plain[0].raw, rtol=1e-9)
    np.testing.assert_allclose(molecule[2].raw, plain[2].raw, rtol=1e-9)
    image = leak(z, rotations.in_plane(np.array(0.8)) @ rotation, permutations=59).tests
    for a, b in zip(image, plain, strict=True):
        np.testing.assert_allclose(a.raw, b.raw, rtol=1e-9)
        assert a.p == b.p
    scaled = leak(z * [1, 2, 3, 0.5] + 4, rotation, permutations=59).tests
    for a, b in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(a.raw, b.raw, rtol=1e-9)
        assert a.p == b.p


def test_features_span_what_they_should():
    rotation = _poses(2000, 10)
    assert orthonormal(view_features(rotation)).shape[1] == 24  # harmonics of degree 1 to 4
    assert orthonormal(in_plane_features(rotation)).shape[1] == 26 + 8  # 2 * 3 + 4 * 5, waves
    features = in_plane_features(rotation[0] * np.ones((360, 1, 1)))
    turned = in_plane_features(rotations.in_plane(np.deg2rad(np.arange(360.0))) @ rotation[0])
    assert np.abs(features).max() > 0.1
    np.testing.assert_allclose(turned.mean(axis=0), 0, atol=1e-12)
    relion = np.deg2rad(rotations.euler_from_matrix(rotation)[:, 2])
    assert abs(np.exp(1j * (psi(rotation) + relion)).mean()) == pytest.approx(1)


def test_what_explains_against_references():
    rng = np.random.default_rng(11)
    x, z = rng.standard_normal((300, 4)), rng.standard_normal((300, 2))
    z[:, 0] += x[:, 1]
    scaled = (z - z.mean(0)) / z.std(0)
    c = by_features(x)[0](scaled)
    for k in range(2):
        expected = LinearRegression().fit(x, z[:, k]).score(x, z[:, k])
        assert c[k, k] == pytest.approx(expected)
    labels = rng.integers(0, 7, 300)
    c = by_groups(labels)[0](scaled)
    f = f_oneway(*(z[labels == g, 0] for g in range(7))).statistic
    assert c[0, 0] == pytest.approx(f * 6 / (f * 6 + 293))
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1)[:, :10]
    expected = (scaled * scaled[near].mean(axis=1)).mean(axis=0)
    np.testing.assert_allclose(np.diag(by_neighbours(x)[0](scaled)), expected)


def test_neighbours_of_equal_points_are_not_themselves():
    z = np.random.default_rng(12).standard_normal((400, 1))
    points = np.repeat(np.arange(4.0), 100)[:, None]
    assert abs(by_neighbours(points)[0](z)[0, 0]) < 0.2  # 1 / 10 more if each were its own


def test_columns():
    rng = np.random.default_rng(13)
    z = rng.standard_normal((1500, 3))
    group, defocus = rng.integers(0, 40, 1500), rng.uniform(1e4, 2e4, 1500)
    z[:, 2] += 0.5 * rng.standard_normal(40)[group]
    z[:, 0] += 0.4 * ((defocus - 1.5e4) / 3e3) ** 2
    names = np.array([f"mic{g}" for g in group])
    seen = against(z, names, what="micrograph", permutations=99)
    assert seen.p == 0.01
    assert seen.p_each[2] == 0.01
    assert seen.features == 39
    assert seen.how == "means of 40 groups"
    bent = against(z, defocus, what="defocus", permutations=99)
    assert bent.p == 0.01
    assert bent.p_each[0] == 0.01
    assert "z depends on defocus" in bent.sentence
    assert "of z1" in bent.sentence
    few = against(z, group % 2, what="optics group", permutations=99)
    assert few.how == "means of 2 groups"


def test_of_many_particles_some_are_compared():
    rotation = _poses(30_000, 14)
    found = leak(
        _planted(rotation, "turn", 0.2, latents=2), rotation, permutations=59, most=2000, seed=3
    )
    assert [test.particles for test in found.tests] == [2000, 2000, 2000]
    assert found.particles == 30_000
    assert "(of 30000 particles 2000 drawn at random were compared)" in found.sentence
    assert found.tests[1].p == pytest.approx(1 / 60)


def test_collapsed_latents_are_left_out():
    rotation = _poses(400, 15)
    z = np.random.default_rng(16).standard_normal((400, 3)) * [1, 1e-3, 1]
    z[:, 1] += 1e-3 * rotation[:, 2, 0]
    found = leak(z, rotation, permutations=59)
    assert found.latents == (0, 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda z, r: (z[:-1], r), "one for each row"),
        (lambda z, r: (z[:40], r[:40]), "50 particles or more, got 40"),
        (lambda z, r: (z[:1], r[:1]), "got 1"),
        (lambda z, r: (np.where(np.arange(200)[:, None] == 7, np.nan, z), r), "in row 7"),
        (lambda z, r: (z, np.where(np.arange(200)[:, None, None] == 7, np.nan, r)), "row 7"),
        (lambda z, r: (z, 2 * r), "not a rotation"),
        (lambda z, r: (0 * z, r), "no latent varies"),
        (lambda z, r: (z, r[:1] * np.ones((200, 1, 1))), "the same pose"),
        (lambda z, r: (z.astype(str), r), "expected numbers"),
    ],
)
def test_mistakes(change, told):
    z, rotation = np.random.default_rng(17).standard_normal((200, 2)), _poses(200, 17)
    with pytest.raises(InputError, match=told):
        leak(*change(z, rotation), permutations=59)


def test_mistakes_with_columns():
    z = np.random.default_rng(18).standard_normal((200, 2))
    for values, told in (
        (np.ones(200), "the same for all"),
        (np.arange(200).astype(str), "label of its own"),
        (np.full(200, np.nan), "finite"),
        (np.arange(199.0), "one a particle"),
    ):
        with pytest.raises(InputError, match=told):
            against(z, values, what="x", permutations=19)
    with pytest.raises(InputError, match="59 or more"):
        leak(z, _poses(200, 18), permutations=39)
    with pytest.raises(InputError, match="19 or more"):
        against(z, np.arange(200.0), what="x", permutations=3)


def test_dimensions():
    rng = np.random.default_rng(19)
    z = rng.standard_normal((20_000, 3)) * [np.sqrt(0.75), np.sqrt(0.75), 0.01]
    sd = np.tile([0.5, 0.5, 1.0], (20_000, 1))
    seen = dimensions(z, sd)
    assert seen.active.tolist() == [True, True, False]
    np.testing.assert_allclose(seen.known, [0.75, 0.75, 0], atol=0.01)
    np.testing.assert_allclose(seen.aggregate, 1, atol=0.02)
    np.testing.assert_allclose(seen.kl, [np.log(2), np.log(2), 0], atol=0.02)
    assert seen.effective == pytest.approx(2, abs=0.01)
    assert "2 of 3 latents vary (collapsed: z3)" in seen.sentence
    assert "fill as they should" in seen.sentence
    assert "not those of the particles" in dimensions(5 * z, sd).sentence
    bare = dimensions(1e-4 * z)
    assert bare.kl is None
    assert bare.active.tolist() == [True, True, False]
    for bad in (z[:1], np.full((5, 2), np.nan), z[:, 0]):
        with pytest.raises(InputError, match="z:"):
            dimensions(bad)
    with pytest.raises(InputError, match="sd:"):
        dimensions(z, sd[:-1])
