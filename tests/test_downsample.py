"""Smaller boxes, the other sign, backgrounds and masks, applied as images are read."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrocryo import io, simulate
from pyrocryo.errors import InputError
from pyrocryo.imaging import contrast_transfer, modulated, resample_projection
from pyrocryo.molecules import TwoArms
from pyrocryo.particles import Particles
from pyrocryo.preprocess import fourier_crop, soft_disc
from pyrocryo.rotations import random_in_space

DATA = Path(os.environ.get("PYROCRYO_TEST_DATA", "no folder"))
real_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="PYROCRYO_TEST_DATA does not name the folder of others' test data"
)


def blobs(box, width, centres, *, dims=2, sigma=4.0):
    """Gaussians (Å) seen in pixels of ``width`` Å, values at the pixels' centres."""
    axes = np.meshgrid(*[width * (np.arange(box) - box // 2)] * dims, indexing="ij")
    image = np.zeros((box,) * dims)
    for weight, *centre in centres:
        square = sum((a - c) ** 2 for a, c in zip(axes, centre[::-1], strict=True))
        image += weight * np.exp(-0.5 * square / sigma**2)
    return image


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


CENTRES = [(1.0, 6.3, -4.1), (2.0, -9.0, 2.5), (0.7, 1.7, 11.2)]


@pytest.mark.parametrize("old", [48, 49])
@pytest.mark.parametrize("box", [24, 32, 46, 48])
def test_values_at_the_new_pixels(old, box):
    width = 1.5
    found = fourier_crop(blobs(old, width, CENTRES), box)
    wider = old / box
    np.testing.assert_allclose(
        found, wider * blobs(box, width * wider, CENTRES), atol=2e-3 * wider
    )


@pytest.mark.parametrize("old", [24, 25])
def test_maps(old):
    centres = [(1.0, 2.3, -4.1, 3.0), (2.0, -5.0, 2.5, 0.4)]
    found = fourier_crop(blobs(old, 2.0, centres, dims=3, sigma=4.5), 16, dims=3)
    wider = old / 16
    expected = wider**1.5 * blobs(16, 2 * wider, centres, dims=3, sigma=4.5)
    np.testing.assert_allclose(found, expected, atol=4e-3 * wider**1.5)
    # a central slice: sums along the beam and crops come in either order
    flat = fourier_crop(blobs(old, 2.0, centres, dims=3, sigma=4.5).sum(axis=0), 16)
    np.testing.assert_allclose(found.sum(axis=0) * np.sqrt(wider), flat, atol=5e-2)


@pytest.mark.parametrize("old", [32, 33])
def test_white_noise_stays_white(old):
    noise = np.random.default_rng(0).normal(size=(4000, old, old)).astype(np.float32)
    small = fourier_crop(noise, 20)
    assert small.dtype == np.float32
    power = (np.abs(np.fft.fft2(small)) ** 2).mean(axis=0) / 20**2
    assert power.mean() == pytest.approx(1, abs=3e-3)
    assert np.abs(power - 1).max() < 0.12  # each of 4000 draws, 1 ± .016 or ± .022 where real


@pytest.mark.parametrize("old", [40, 41])
def test_shifts_stay_where_they_are(old):
    """A molecule found by its centre of mass, to a twentieth of the wide pixel."""
    rng = np.random.default_rng(1)
    shift = rng.uniform(-8, 8, (20, 2))
    images = np.stack([blobs(old, 2.0, [(1.0, *t)], sigma=6.0) for t in shift])
    small = Particles(images, pixel_size=2.0, shift=shift).downsampled(20)
    assert small.pixel_size == pytest.approx(2 * old / 20)
    seen = small.batch(np.arange(20))
    x = small.pixel_size * (np.arange(20) - 10)
    mass = seen.images.double().numpy()
    for axis, marginal in enumerate((mass.sum(axis=1), mass.sum(axis=2))):
        found = (marginal * x).sum(axis=1) / marginal.sum(axis=1)
        error = (found - seen.shift.numpy()[:, axis]) / small.pixel_size
        assert np.abs(error).max() < 0.05


def test_projection_of_a_downsampled_map():
    """Projecting the small map gives the small images, poses and shifts unchanged."""
    rng = np.random.default_rng(2)
    centres = np.column_stack([rng.uniform(0.5, 2, 8), rng.uniform(-25, 25, (8, 3))])
    fine = blobs(64, 2.0, centres, dims=3, sigma=7.0)
    rotation, shift = random_in_space((6,), rng), rng.uniform(-6, 6, (6, 2))
    like = {"dtype": torch.float64}

    def projected(density, width):
        maps = torch.as_tensor(density, **like).expand(6, *density.shape)
        moved = torch.as_tensor(shift / width, **like)
        turned = torch.as_tensor(rotation, **like)
        return resample_projection(maps, turned, moved, box=density.shape[-1]).numpy()

    images = Particles(projected(fine, 2.0), pixel_size=2.0, rotation=rotation, shift=shift)
    small = images.downsampled(40)
    again = projected(fourier_crop(fine, 40, dims=3), small.pixel_size)
    for a, b in zip(small.raw(np.arange(6)), again, strict=True):
        assert correlation(a, b) > 0.999


def test_ctf_stays_in_physical_units():
    """Seen through a CTF and then cropped is cropped and then seen through it."""
    ctf = torch.tensor([[9000.0, 8000, 30, 300, 2.7, 0.1, 0]])
    clean = blobs(64, 2.0, CENTRES, sigma=3.0)
    seen = modulated(torch.as_tensor(clean)[None], ctf, pixel_size=2.0).numpy()
    particles = Particles(seen, pixel_size=2.0, ctf=ctf.numpy()).downsampled(32)
    assert particles.ctf.tolist() == ctf.tolist()
    spectrum = np.fft.rfft2(fourier_crop(clean, 32)) * contrast_transfer(
        ctf[0], box=32, pixel_size=particles.pixel_size
    ).numpy()  # fmt: skip
    expected = np.fft.irfft2(spectrum, s=(32, 32))
    assert correlation(particles.raw(np.arange(1))[0], expected) > 0.9995


def test_lazily_from_disk_and_in_any_order(tmp_path):
    saved = simulate.poses(TwoArms(), 30, 0, box=32)
    io.save(saved, tmp_path / "p.star")
    read = io.load(tmp_path / "p.star").standardised()
    small = read.downsampled(16)
    assert small.box == 16
    assert not small.in_memory
    assert "box 16" in repr(small)
    order = np.array([5, 2, 29, 2])
    alone = np.concatenate([small.batch(np.array([i])).images for i in order])
    np.testing.assert_array_equal(small.batch(order).images, alone)
    copied = pickle.loads(pickle.dumps(small.images))  # noqa: S301
    np.testing.assert_array_equal(copied[order], small.raw(order))
    # scaled before or after is the same
    after = io.load(tmp_path / "p.star").downsampled(16)
    after.offset, after.scale = 2 * read.offset, read.scale
    np.testing.assert_allclose(after.batch(order).images, alone, atol=1e-6)
    assert small.test.downsampled(8).box == 8
    io.save(small, tmp_path / "small.star")
    again = io.load(tmp_path / "small.star")
    assert again.pixel_size == pytest.approx(6.0)
    np.testing.assert_array_equal(again.raw(order), small.raw(order))


def test_trajectories_and_their_windows():
    frames = simulate.time_resolved(TwoArms(), 6, 0, box=24, frames=4)
    small = frames.downsampled(12)
    assert small.batch(np.array([3, 1])).images.shape == (2, 4, 12, 12)
    expected = small.raw(np.arange(6))[4, 1:3]
    for cut in (small.windows(2), frames.windows(2).downsampled(12)):
        np.testing.assert_array_equal(cut.raw(np.array([4 * 3 + 1]))[0], expected)


@pytest.mark.parametrize("box", [0, 15, 34, 16.0, -2])
def test_boxes_refused(box):
    particles = Particles(np.ones((2, 32, 32), np.float32))
    with pytest.raises(InputError, match="box: expected an even number of pixels from 2 to 32"):
        particles.downsampled(box)


def test_inverted_twice_is_the_same():
    particles = simulate.poses(TwoArms(), 5, 0, box=16).standardised()
    dark = particles.inverted()
    rows = np.arange(5)
    np.testing.assert_allclose(dark.batch(rows).images, -particles.batch(rows).images, atol=1e-6)
    np.testing.assert_array_equal(dark.inverted().batch(rows).images, particles.batch(rows).images)
    assert dark.digest() != particles.digest()


def test_each_background_by_itself():
    rng = np.random.default_rng(0)
    images = (
        rng.normal(size=(6, 21, 21)) * rng.uniform(1, 9, (6, 1, 1)) + np.arange(6)[:, None, None]
    )
    seen = Particles(images.astype(np.float32)).normalised().batch(np.arange(6)).images.numpy()
    r = np.hypot(*np.ogrid[-10:11, -10:11])
    corner = seen[:, r > 10.5]
    np.testing.assert_allclose(corner.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(corner.std(axis=1), 1, atol=1e-5)
    with pytest.raises(InputError, match="background of one has no spread"):
        Particles(np.ones((1, 8, 8))).normalised().batch(np.arange(1))


def test_soft_mask():
    disc = soft_disc(33, 8.0, 4.0)
    assert disc[16, 16:25].tolist() == [1] * 9
    assert disc[16, 26] == pytest.approx(0.5)
    assert disc[16, 28:].tolist() == [0] * 5
    np.testing.assert_array_equal(disc, disc.T)
    particles = simulate.poses(TwoArms(), 4, 0, box=33, pixel_size=3.0).standardised()
    masked = particles.masked(24.0, 12.0).batch(np.arange(4)).images
    expected = torch.as_tensor(disc) * particles.batch(np.arange(4)).images
    torch.testing.assert_close(masked, expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="radius, edge"):
        particles.masked(0, 3)


@real_data
def test_toy_images_match_the_small_map():
    """Projections of the known map, both cropped: as close as they were, and centred alike."""
    toy = DATA / "toy"
    particles = io.load(toy / "toy_projections.star", poses=toy / "toy_rot_zerotrans.pkl")
    density, _ = io.read_map(toy / "toymodel_small_nocenter.mrc")
    small = fourier_crop(density.astype(np.float64), 20, dims=3)
    rotation = torch.as_tensor(particles.rotation[:20])
    maps = torch.as_tensor(small).expand(20, 20, 20, 20)
    made = resample_projection(maps, rotation, torch.zeros(20, 2).double(), box=20).numpy()
    seen = particles.downsampled(20).raw(np.arange(20))
    assert np.mean([correlation(a, b) for a, b in zip(made, seen, strict=True)]) > 0.99
