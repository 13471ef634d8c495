"""A focus mask: what is outside does not move, and does not take up z."""

import json

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.draws import moments
from pyrocryo.volumes.focus import focus_mask, mask_at

BOX, PIXEL = 20, 4.8


def _half(side, dim):
    """1 where x > 0, and a soft edge of two voxels."""
    x = (np.arange(side) - side // 2) / side * BOX
    return np.broadcast_to(np.clip(x / 2 + 0.5, 0, 1), (side,) * dim).astype(np.float32)


def _moving(volume):
    """The volume built, with weights that make every part of it move."""
    built = volume.build(2, BOX)
    torch.manual_seed(0)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


@pytest.mark.parametrize(("dim", "projector"), [(2, "real"), (3, "real"), (3, "fourier")])
def test_a_grid_stays_still_outside(dim, projector):
    free = _moving(pc.volumes.Grid(dim, hidden=(8,), projector=projector))
    held = _moving(pc.volumes.Grid(dim, hidden=(8,), projector=projector, focus=_half(BOX, dim)))
    z = torch.tensor([[0.0, 0.0], [1.0, -2.0], [-1.5, 0.5]])
    with torch.no_grad():
        a, b = free.density(z), held.density(z)
        assert torch.allclose(b[0], a[0], atol=1e-5)  # the consensus is what it was
        torch.testing.assert_close(held.density(z[1]), b[1])  # without leading axes
        if projector == "fourier":  # what is band-limited rings
            maps = [held.network(one).view((BOX,) * dim) for one in (z[1], torch.zeros(2))]
            mask = torch.as_tensor(_half(BOX, dim))
            blended = mask * maps[0] + (1 - mask) * maps[1]
            torch.testing.assert_close(b[1], pc.imaging.band_limited(blended[None], box=BOX)[0])
            return
        inside = (a[1:] - a[:1])[..., BOX // 2 + 2 :], (b[1:] - b[:1])[..., BOX // 2 + 2 :]
        outside = (b[1:] - b[:1])[..., 2 : BOX // 2 - 1]
        torch.testing.assert_close(*inside)
        assert outside.abs().max() == 0 < (b[1] - b[0]).abs().max()
        rotation, shift = torch.eye(3).expand(3, 3, 3), torch.zeros(3, 2)
        seen = held(z, rotation, shift)
        change = (seen[1:] - seen[:1]).abs().mean(dim=(0, 1))
    assert change[2 : BOX // 2 - 1].max() < 0.2 * change[BOX // 2 + 2 : -1].min()
    held.focus_on(None)
    torch.testing.assert_close(held.density(z), a)


@pytest.mark.parametrize("kind", ["atoms", "deformation"])
def test_gaussians_stay_where_they_are_outside(kind):
    places = np.random.default_rng(0).uniform(-30, 30, (40, 3))
    volume = (
        pc.volumes.Atoms(places, pixel_size=PIXEL, free=True)
        if kind == "atoms"
        else pc.volumes.Deformation(places, pixel_size=PIXEL, points=6)
    )
    built = _moving(volume)
    z = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    with torch.no_grad():
        free = built.structure(z)
        built.focus_on(_half(3 * BOX, 3))  # any number of voxels will do
        held = built.structure(z)
        weight = built.mask.squeeze(-1)
        torch.testing.assert_close(held[0], free[0])
        expected = weight[:, None] * (free[1] - free[0])
        torch.testing.assert_close(held[1] - held[0], expected, atol=1e-4, rtol=1e-4)
        start = built.start[:, 0]
        assert (weight[start < -1.2] == 0).all()
        assert (weight[start > 1.2] == 1).all()
        assert ((weight > 0) & (weight < 1)).any()
        images = built(z, torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2))
        again = pc.imaging.splat(
            built.places(z)[..., :2], *built._shape(), box=BOX, pixel_size=1.0
        )
        torch.testing.assert_close(images, again + built.background, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("side", [20, 21, 40, 15])
def test_a_mask_is_where_it_was_whatever_its_voxels(side):
    r = (np.arange(40) - 20) * (BOX / 40)
    z, y, x = np.meshgrid(r, r, r, indexing="ij")
    ball = np.clip(6 - np.sqrt((x - 2) ** 2 + (y + 1) ** 2 + z**2), 0, 1)
    found = focus_mask(ball, side=side, dim=3)
    s = (np.arange(side) - side // 2) * (BOX / side)
    z, y, x = np.meshgrid(s, s, s, indexing="ij")
    expected = np.clip(6 - np.sqrt((x - 2) ** 2 + (y + 1) ** 2 + z**2), 0, 1)
    assert np.abs(found.numpy() - expected).max() < 0.2  # linear between voxels, near the edge
    assert np.abs(found.numpy() - expected).mean() < 0.01
    points = torch.tensor([[2.0, -1.0, 0.0], [9.4, -1.0, 0.0], [2.0, -8.4, 0.0]])
    assert mask_at(found, points, box=BOX).tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((8, 8)), "a cube"),
        (np.ones((8, 8, 9)), "a cube"),
        (np.full((8, 8, 8), 2.0), "from 0 to 1"),
        (np.full((8, 8, 8), np.nan), "from 0 to 1"),
        (np.zeros((8, 8, 8)), "empty"),
        (np.ones((8, 8, 8)), "whole box"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    with pytest.raises(pc.InputError, match=f"focus: .*{message}"):
        pc.volumes.Grid(3, focus=mask).build(2, 8)


def _arm(k):
    """Where arm k of two swings, soft: `(BOX, BOX)`."""
    z = torch.zeros(25, 2, dtype=torch.float64)
    z[:, k] = torch.linspace(-3, 3, 25)
    upright = torch.eye(3, dtype=torch.float64).expand(25, 3, 3)
    still = torch.zeros(25, 2, dtype=torch.float64)
    images = pc.molecules.TwoArms().render(z, upright, still, box=BOX, pixel_size=PIXEL)
    return (5 * images.std(0) / images.std(0).max()).clamp_max(1).numpy()


def test_what_moves_outside_takes_up_no_z():
    particles = pc.simulate.poses(
        pc.molecules.TwoArms(), n=1500, seed=0, box=BOX, pixel_size=PIXEL, snr=2.0
    )
    found = {}
    for focused, mask in ((None, None), (1, _arm(1))):
        pair = pc.Pair(
            prior=pc.priors.IsotropicNormal(1),
            volume=pc.volumes.Grid(2, hidden=(32,), focus=mask),
            box=BOX,
        )
        fit = pc.fit(
            pair,
            particles,
            steps=400,
            batch_size=64,
            lr=5e-3,
            seeds=2 - (mask is None),
            progress=False,
        )
        z = [moments(fit, particles.test, chain=n)[0] for n in range(len(fit.seeds))]
        truth = particles.test.truth
        found[focused] = [[abs(np.corrcoef(one[:, 0], arm)[0, 1]) for arm in truth.T] for one in z]
    for _, shorter in found[None]:  # z is of the arm that changes more pixels, or of both
        assert shorter < 0.5
    for longer, shorter in found[1]:
        assert shorter > 0.93
        assert longer < 0.15


def test_a_run_with_a_mask_is_opened_again(tmp_path, capsys):
    out, mask = tmp_path / "run", tmp_path / "mask.mrc"
    pc.io.write_map(mask, _half(32, 2), 3.0)
    short = ["--steps", "3", "--batch-size", "8", "--draws", "2", "--n", "40", "--out", str(out)]
    words = ["fit", "models/vae.py", *short, "--focus", str(mask)]
    assert main(words) == 0
    assert json.loads((out / "config.json").read_text())["focus"] == str(mask)
    mask.unlink()
    fit, _ = pc.io.load_fit(out)
    assert fit.pairs[0].volume.mask is not None
    pc.io.write_map(mask, _half(32, 2), 2.0)
    capsys.readouterr()
    assert main([*words[:-3], str(tmp_path / "other"), *words[-2:]]) == 2
    assert "64 Å wide, the particles' box 96 Å" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    pc.io.write_map(mask, _half(32, 2), 3.0)
    other = [*words[:-3], str(tmp_path / "other"), *words[-2:], "--volume", "implicit"]
    assert main(other) == 2
    assert "Implicit cannot be confined to a mask" in capsys.readouterr().err
