"""Linear ICA of latents: the hinges come apart where it can tell them, and it says where not."""

import json
import pickle

import numpy as np
import pytest
import torch
from toys import Written

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.errors import InputError
from pyrocryo.identify.negentropy import gaussian_p, negentropy

SEEDS = range(5)
LAWS = {
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "bimodal": lambda rng, n: np.sign(rng.random(n) - 0.5) + 0.5 * rng.standard_normal(n),
    "gaussian": lambda rng, n: rng.standard_normal(n),
}


def _angles(laws, n, seed):
    rng = np.random.default_rng(seed)
    s = np.stack([LAWS[law](rng, n) for law in laws], axis=1)
    return s / s.std(axis=0)


def _rigid_bodies(angles, seed, degrees=8.0, noise=0.1):
    """Translations (Å) and rotation vectors (10 mrad) of NMP and LID, `(N, 12)`, to first order.

    A body that turns by θ about an axis `a` through `p` has the rotation vector θ a and moves
    its centre `c` by θ a × (c - p). Parameters are then mixed, as if bodies had been segmented or
    refined otherwise.
    """
    rng = np.random.default_rng(seed)
    adk = pc.molecules.AdenylateKinase()
    turn = np.deg2rad(degrees) * angles
    parts = []
    for k in range(2):
        centre = adk.ca_open[adk.domain == k + 1].mean(axis=0)
        moved = np.cross(adk.axis[k], centre - adk.pivot[k])
        parts += [turn[:, k, None] * moved, 100 * turn[:, k, None] * adk.axis[k]]
    x = np.concatenate(parts, axis=1) @ rng.standard_normal((12, 12))
    return x + noise * rng.standard_normal(x.shape)


@pytest.mark.parametrize(
    "laws", [("uniform", "laplace"), ("bimodal", "laplace"), ("uniform", "uniform")]
)
def test_hinges_come_out_of_rigid_body_parameters(laws):
    for seed in SEEDS:
        angles = _angles(laws, 4000, seed)
        ica = pc.identify.linear_ica(_rigid_bodies(angles, seed), components=2, seed=seed)
        assert pc.metrics.mcc(angles, ica.sources).value >= 0.98
        assert ica.separated == (True, True)
        assert ica.gaussian == ()
        assert ica.subspaces == ((0,), (1,))
        assert "All are told apart" in ica.sentence
        # principal components alone do not
        turned = pc.identify.linear_ica(_rigid_bodies(angles, seed), components=2, method="pca")
        assert not any(turned.separated)
        assert ica.negentropy.sum() > turned.negentropy.sum()


def test_noise_comes_out_last():
    angles = _angles(("uniform", "laplace"), 2000, 0)
    x = _rigid_bodies(angles, 0)[:, :6]
    ica = pc.identify.linear_ica(x)
    assert ica.sources.shape == (2000, 6)
    assert pc.metrics.mcc(angles, ica.sources[:, :2]).value >= 0.98
    assert ica.separated == (True, True) + (False,) * 4
    assert ica.gaussian == tuple(range(2, 6))
    assert pc.identify.linear_ica(x, components=0.5).sources.shape[1] == 1


def test_it_says_that_gaussian_hinges_cannot_be_told_apart():
    for seed in SEEDS:
        angles = _angles(("gaussian", "gaussian"), 4000, seed)
        ica = pc.identify.linear_ica(_rigid_bodies(angles, seed), components=2, seed=seed)
        assert ica.gaussian == (0, 1)
        assert ica.separated == (False, False)
        assert "cannot separate them" in ica.sentence


def test_one_gaussian_hinge_is_told_from_one_that_is_not():
    for seed in SEEDS:
        angles = _angles(("gaussian", "laplace"), 4000, seed)
        ica = pc.identify.linear_ica(_rigid_bodies(angles, seed), components=2, seed=seed)
        assert pc.metrics.mcc(angles, ica.sources).value >= 0.98
        assert ica.gaussian == (1,)
        assert ica.separated == (True, True)


def test_two_gaussians_among_others_are_named():
    for seed in SEEDS:
        s = _angles(("laplace", "gaussian", "uniform", "gaussian"), 2500, seed)
        z = s @ np.random.default_rng(seed).standard_normal((4, 4))
        ica = pc.identify.linear_ica(z, components=4, seed=seed)
        assert ica.gaussian == (2, 3)
        assert ica.separated == (True, True, False, False)
        assert "cannot separate components 3, 4" in ica.sentence
        assert pc.metrics.mcc(s[:, [0, 2]], ica.sources[:, :2]).value >= 0.98


@pytest.mark.parametrize(
    ("law", "nats"),
    [
        ("uniform", 0.5 * np.log(2 * np.pi * np.e / 12)),
        ("laplace", 0.5 * np.log(np.pi / np.e)),
        ("gaussian", 0.0),
    ],
)
def test_negentropy_of_laws_known_in_closed_form(law, nats):
    off = []
    for seed in range(20):
        x = _angles([law], 10_000, seed)
        j, se = negentropy(x, seed=seed)
        off.append((j[0] - nats) / se[0])
        again, _ = negentropy(-7.0 * x + 3.0, seed=seed)
        np.testing.assert_allclose(again, j, atol=1e-9)
    off = np.array(off)
    assert np.abs(off[:5]).max() < 3
    # neither biased nor with an error that is far off
    assert abs(off.mean()) < 0.8
    assert 0.6 < np.sqrt(np.square(off).mean()) < 1.5


def test_the_test_of_a_gaussian_has_its_level():
    rng = np.random.default_rng(0)
    p = gaussian_p(rng.standard_normal((500, 2000)))
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.02)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.05)
    assert gaussian_p(rng.laplace(size=(500, 50))).max() < 0.01


def test_two_rings_are_two_subspaces():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0, 2 * np.pi, (2500, 2))
        radius = 1 + 0.1 * rng.standard_normal((2500, 2))
        rings = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        z = rings @ rng.standard_normal((4, 6))
        for asked in (None, 2)[: 1 + (seed == 0)]:
            ica = pc.identify.linear_ica(z, components=4, subspaces=asked, seed=seed)
            assert sorted(map(len, ica.subspaces)) == [2, 2]
            assert not any(ica.separated)
            assert "together they are one subspace" in ica.sentence
            # a ring is spanned by the components of one group: all of its variance, or none
            for ring in ([0, 2], [1, 3]):
                r = np.corrcoef(rings[:, ring].T, ica.sources.T)[:2, 2:]
                told = [np.square(r[:, list(group)]).sum() / 2 for group in ica.subspaces]
                assert max(told) > 0.98
                assert min(told) < 0.02


def test_the_parts_fit_together():
    s = _angles(("laplace", "uniform"), 2000, 0)
    z = 5 + s @ np.random.default_rng(1).standard_normal((2, 3))
    ica = pc.identify.linear_ica(z)
    assert ica.sources.shape == (2000, 2)
    assert ica.explained.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.cov(ica.sources.T, ddof=0), np.eye(2), atol=1e-8)
    np.testing.assert_allclose(ica.mean + ica.sources @ ica.mixing.T, z, atol=1e-8)
    np.testing.assert_allclose(ica.transform(z), ica.sources, atol=1e-8)
    assert (np.diff(ica.negentropy) <= 0).all()
    again = pc.identify.linear_ica(z)
    np.testing.assert_array_equal(again.sources, ica.sources)
    # in other units or axes, the components are the same
    other = pc.identify.linear_ica(z @ np.random.default_rng(2).standard_normal((3, 3)))
    r = np.corrcoef(ica.sources.T, other.sources.T)[:2, 2:]
    np.testing.assert_allclose(np.abs(r), np.eye(2), atol=0.02)
    one = pc.identify.linear_ica(z, components=1)
    assert one.explained[0] == pytest.approx(ica.explained[0])
    assert "nothing to separate" in one.sentence


def test_frames_of_a_molecule_count_once():
    fooled = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        z = np.repeat(rng.standard_normal((300, 2)), 8, axis=0)
        z += 0.2 * rng.standard_normal(z.shape)
        assert pc.identify.linear_ica(z, frames=8, seed=seed).gaussian == (0, 1)
        if not fooled:
            fooled += pc.identify.linear_ica(z, seed=seed).gaussian != (0, 1)
    assert fooled > 0  # if they are taken for particles of their own


def test_bins_and_paths():
    s = _angles(("laplace", "uniform"), 1000, 0)
    ica = pc.identify.linear_ica(s @ np.array([[1.0, 0.2], [0.3, 1.0]]), components=2)
    first, *_, last = bins = ica.bins(0)
    assert [len(rows) for rows in bins] == [100] * 10
    assert ica.sources[first, 0].max() < ica.sources[last, 0].min()
    np.testing.assert_array_equal(np.sort(np.concatenate(bins)), np.arange(1000))
    wide = ica.bins(1, count=4, edges=(-1.0, 1.0))
    np.testing.assert_array_equal(wide[0], np.flatnonzero(ica.sources[:, 1] < -0.5))
    assert sum(map(len, wide)) == 1000
    path = ica.path(0, count=5)
    along = ica.transform(path)
    np.testing.assert_allclose(along[:, 1], 0, atol=1e-8)
    means = [ica.sources[rows, 0].mean() for rows in ica.bins(0, count=5)]
    np.testing.assert_allclose(along[:, 0], means, atol=1e-8)


GOOD = _angles(("laplace", "uniform"), 400, 0)


@pytest.mark.parametrize(
    ("latents", "options", "message"),
    [
        (np.where(np.arange(800).reshape(400, 2) == 5, np.nan, GOOD), {}, "finite.* in row 2"),
        (GOOD[:150], {}, "expected 200 particles or more for 2 columns, got 150"),
        (GOOD * [1, 0] + [0, 4], {}, r"got \[1\] constant"),
        (GOOD[:, 0], {}, r"expected numbers \(N, K\)"),
        (GOOD, {"components": 3}, "components: expected 1 to 2"),
        (GOOD @ np.ones((2, 2)), {"components": 2}, "components: expected 1 to 1"),
        (GOOD, {"components": 1.5}, "components: expected a count or a share"),
        (GOOD, {"method": "tsne"}, "method: expected"),
        (GOOD, {"subspaces": 5}, "subspaces: expected 1 to 2"),
        (GOOD, {"frames": 3}, "frames: 400 rows"),
    ],
)
def test_bad_input(latents, options, message):
    with pytest.raises(InputError, match=message):
        pc.identify.linear_ica(latents, **options)


def test_bad_bins():
    ica = pc.identify.linear_ica(GOOD)
    for call, message in [
        (lambda: ica.bins(2), "component: expected 0 to 1"),
        (lambda: ica.bins(0, count=1), "count: expected 2"),
        (lambda: ica.bins(0, edges=(1, 0)), "edges: expected two rising"),
        (lambda: ica.path(0, edges=(-99, 99)), "edges: no particle is in bin 1 of 10"),
        (lambda: ica.transform(GOOD[:, :1]), "latents: expected"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


class Lines(Written):
    """Maps that say which conformation they are of."""

    def __init__(self, dim=2):
        super().__init__()
        self.dim = dim

    def density(self, z):
        shape = (8,) * self.dim
        return z[..., :1].sum(-1)[(...,) + (None,) * self.dim].expand(*z.shape[:-1], *shape)


def _pair(dim):
    pair = pc.Pair(pc.priors.IsotropicNormal(2), Written(), 8, noise=0.1, rotate=False)
    pair.volume = Lines(dim)
    return pair.eval()


def test_components_as_maps(tmp_path):
    ica = pc.identify.linear_ica(GOOD, components=2)
    with pytest.raises(InputError, match="pixel_size"):
        pc.io.write_components(tmp_path / "no", _pair(3), ica)
    assert not (tmp_path / "no").exists()
    files = pc.io.write_components(tmp_path / "3d", _pair(3), ica, pixel_size=1.5)
    assert [f.name for f in files[:2]] == ["ic1_01_first.mrc", "ic1_02.mrc"]
    assert files[9].name == "ic1_10_last.mrc"
    assert files[10].name == "ic1.cxc"
    assert len(files) == 22
    for n, z in enumerate(ica.path(0)):
        array, voxel = pc.io.read_map(files[n])
        assert array.shape == (8, 8, 8)
        assert voxel == pytest.approx(1.5)
        np.testing.assert_allclose(array, z[0], rtol=1e-5)
    rows = np.loadtxt(tmp_path / "3d" / "ic2_last.txt", dtype=int)
    np.testing.assert_array_equal(rows, ica.bins(1)[-1])
    told = json.loads((tmp_path / "3d" / "ica.json").read_text())
    assert told["sentence"] == ica.sentence
    np.testing.assert_allclose(told["negentropy"], ica.negentropy)
    flat = pc.io.write_components(tmp_path / "2d", _pair(2), ica, pixel_size=1.5, count=4)
    names = ["ic1_01_first.mrc", "ic1_04_last.mrc", "ic1.mrcs"]
    assert [f.name for f in flat[:3]] == names
    assert pc.io.mrc.read_header(flat[2]).shape == (4, 8, 8)
    three = pc.identify.linear_ica(np.random.default_rng(0).laplace(size=(400, 3)))
    with pytest.raises(InputError, match="one of the 2 latents of the pair, got one of 3"):
        pc.io.write_components(tmp_path / "x", _pair(2), three, pixel_size=1.0)


def test_of_arrays_from_the_shell(tmp_path, capsys):
    z = GOOD.astype(np.float32)
    np.save(tmp_path / "z.npy", z)
    (tmp_path / "z.1.pkl").write_bytes(pickle.dumps(z))
    assert main(["ica", str(tmp_path / "z.npy")]) == 0
    told = pc.identify.linear_ica(z).sentence
    assert told in capsys.readouterr().out
    out = tmp_path / "out"
    line = ["ica", str(tmp_path / "z.1.pkl"), "--components", "2", "--bins", "5"]
    assert main([*line, "--out", str(out)]) == 0
    assert len(np.loadtxt(out / "ic1_first.txt")) == 80
    assert np.load(out / "sources.npy").shape == (400, 2)
    capsys.readouterr()
    assert main([*line[:2], "--components", "7", "--out", str(tmp_path / "none")]) == 2
    assert "components: expected 1 to 2" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert main([*line, "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err
    words = ["--structure", str(tmp_path / "a.pdb"), "--out", str(tmp_path / "none")]
    assert main([*line, *words]) == 2
    assert "structure: names the atoms that a run decodes" in capsys.readouterr().err


MODEL = """
from dataclasses import dataclass
import pyrocryo as pc

@dataclass
class Config:
    '''Options.'''
    latents: int = 2
    '''Size of z.'''

def training(config):
    return {"steps": 3, "batch_size": 32}

def particles(config):
    seen = pc.simulate.poses(pc.molecules.TwoArms(), 2400, 0, snr=2.5, box=16, pixel_size=6.0)
    return seen.without("truth")

def pair(config, particles):
    return pc.Pair(
        pc.priors.IsotropicNormal(config.latents), pc.volumes.Grid(), particles.box,
        guide=pc.guides.Amortised((8,)),
    )
"""


def test_of_a_run_from_the_shell(tmp_path, capsys):
    (tmp_path / "small.py").write_text(MODEL)
    run, out = tmp_path / "run", tmp_path / "out"
    fit = ["fit", str(tmp_path / "small.py"), "--out", str(run), "--draws", "4", "--seeds", "2"]
    assert main(fit) == 0
    capsys.readouterr()
    assert main(["ica", str(run), "--components", "2", "--out", str(out)]) == 0
    assert "seed 1" in capsys.readouterr().out
    for seed in (0, 1):
        assert (out / f"seed{seed}" / "ic2_10_last.mrc").exists()
    opened, particles = pc.io.load_fit(run)
    told = json.loads((out / "seed1" / "ica.json").read_text())
    expected = opened.pairs[1].density(torch.tensor(told["path"][0][0])).numpy()
    array, voxel = pc.io.read_map(out / "seed1" / "ic1_01_first.mrc")
    np.testing.assert_allclose(array, expected, atol=1e-5)
    assert voxel == pytest.approx(96 / array.shape[-1])
    rows = np.loadtxt(out / "seed0" / "ic1_first.txt", dtype=int)
    assert rows.max() < len(particles)
