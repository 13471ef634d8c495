import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.diagnose import turned_batch
from pyrocryo.imaging import contrast_transfer, modulated
from pyrocryo.imaging.ctf import wavelength

OTHERS = np.load(Path(__file__).parent / "data" / "ctf.npz")
GOOD = torch.tensor([15_000.0, 14_500.0, 30.0, 300.0, 2.7, 0.1, 0.0])


def _ours():
    settings = torch.as_tensor(OTHERS["settings"])
    return contrast_transfer(settings, box=64, pixel_size=float(OTHERS["pixel_size"])).numpy()


def test_as_torch_ctf():
    # theirs is in single precision
    assert np.abs(_ours() - OTHERS["torch_ctf"]).max() < 1e-4


def test_as_cryodrgn_but_for_the_sign_and_the_wavelength(monkeypatch):
    apart = np.abs(_ours() + OTHERS["cryodrgn"]).max(axis=(1, 2))
    kilovolt = OTHERS["settings"][:, 3]
    assert 1e-4 < apart[kilovolt == 300].max() < 3e-3
    assert 1e-3 < apart[kilovolt == 200].max() < 1.2e-2
    monkeypatch.setattr(
        "pyrocryo.imaging.ctf.wavelength",
        lambda kv: 12.2639 / torch.sqrt(1e3 * kv + 0.97845e-6 * (1e3 * kv) ** 2),
    )
    assert np.abs(_ours() + OTHERS["cryodrgn"]).max() < 1e-6  # that is all there is


def test_wavelengths_of_the_usual_microscopes():
    # Reimer & Kohl 2008, table 2.2: 3.701, 2.508, 1.969 pm
    found = wavelength(torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64))
    np.testing.assert_allclose(found, [0.03701, 0.02508, 0.01969], atol=5e-6)


def test_zeros_and_signs():
    ctf = torch.tensor([20_000.0, 20_000.0, 0.0, 300.0, 0.0, 0.07, 0.0])
    box, pixel = 128, 1.0
    row = contrast_transfer(ctf, box=box, pixel_size=pixel)[0]
    assert row[0].item() == pytest.approx(0.07)
    k = torch.fft.rfftfreq(box, dtype=torch.float64) / pixel
    length = wavelength(torch.tensor(300.0, dtype=torch.float64))
    expected = torch.sin(math.pi * length * 20_000 * k**2 + math.asin(0.07))
    torch.testing.assert_close(row, expected)
    first = math.sqrt((math.pi - math.asin(0.07)) / (math.pi * length * 20_000))
    assert (row[k < first] > 0).all()
    assert row[int(first * box) + 1] < 0


def test_the_phase_plate_and_the_envelope():
    flat = contrast_transfer(
        torch.tensor([0.0, 0.0, 0.0, 300.0, 0.0, 0.0, 90.0, 80.0]), box=16, pixel_size=2.0
    )
    ky, kx = torch.fft.fftfreq(16)[:, None] / 2, torch.fft.rfftfreq(16) / 2
    torch.testing.assert_close(flat, torch.exp(-20 * (kx**2 + ky**2)).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("box", [16, 17])
def test_defocus_u_is_along_its_angle(box):
    ctf = torch.tensor([3_000.0, 1_000.0, 90.0, 300.0, 0.0, 0.0, 0.0])
    transfer = contrast_transfer(ctf, box=box, pixel_size=4.0)
    length = wavelength(torch.tensor(300.0, dtype=torch.float64))
    k = 2 / box / 4.0
    for place, defocus in (((2, 0), 3_000), ((0, 2), 1_000)):  # along y, along x
        expected = torch.sin(math.pi * length * defocus * k**2)
        torch.testing.assert_close(transfer[place], expected)


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("degrees", [90.0, 180.0])
def test_turned_images_have_turned_ctfs(box, degrees):
    molecule = pc.molecules.TwoArms()  # smooth: nothing at Nyquist, where even boxes are lopsided
    images = pc.simulate.poses(molecule, 3, box=box, pixel_size=5.0, snr=1e6).images
    ctf = np.tile(GOOD.numpy(), (3, 1))
    ctf[:, 1] -= 3000
    batch = pc.Particles(images, ctf=ctf, pixel_size=3.0).batch(np.arange(3))

    def seen(batch):
        return batch._replace(images=modulated(batch.images, batch.ctf, pixel_size=3.0))

    expected = turned_batch(seen(batch), degrees).images
    found = seen(turned_batch(batch, degrees)).images
    scale = expected.abs().max()
    assert (found - expected)[:, 1:, 1:].abs().max() < 1e-3 * scale
    if degrees == 90:
        untouched = batch._replace(images=turned_batch(batch, degrees).images)
        assert (seen(untouched).images - expected).abs().max() > 0.02 * scale


def test_margins_let_signal_leave_the_box():
    image = torch.zeros(32, 32)
    image[16, 28] = 1.0  # near the right edge
    around = modulated(image, GOOD, pixel_size=3.0)
    beyond = modulated(image, GOOD, pixel_size=3.0, margin=2)
    assert around[16, :6].abs().max() > 5 * beyond[16, :6].abs().max()
    large = torch.zeros(64, 64)
    large[32, 44] = 1.0
    torch.testing.assert_close(
        beyond, modulated(large, GOOD, pixel_size=3.0)[16:48, 16:48], atol=1e-5, rtol=0
    )


def test_flipping_phases_keeps_white_noise_white(rng):
    noise = torch.as_tensor(rng.standard_normal((200, 24, 24)))
    flipped = modulated(noise, GOOD, pixel_size=3.0, sign=True)
    power = torch.fft.rfft2(flipped).abs().square().mean(0) / 24**2
    assert (power - 1).abs().max() < 0.6  # of 312 squares, 7 % each (10 % where they are real)
    torch.testing.assert_close(modulated(flipped, GOOD, pixel_size=3.0, sign=True), noise)


def test_real_parameters_give_real_contrast():
    folder = os.environ.get("PYROCRYO_TEST_DATA")
    if not folder:
        pytest.skip("PYROCRYO_TEST_DATA names no folder with other people's data")
    with open(Path(folder) / "cs" / "ctf2.pkl", "rb") as file:
        table = pickle.load(file)  # our own copy, an array
    ctf = torch.as_tensor(table[:64, 2:].astype(np.float64))
    box, pixel = int(table[0, 0]), float(table[0, 1])
    transfer = contrast_transfer(ctf, box=box, pixel_size=pixel)
    assert transfer.shape == (64, box, box // 2 + 1)
    assert torch.isfinite(transfer).all()
    torch.testing.assert_close(transfer[:, 0, 0], ctf[:, 5])
    # far from focus the square of a sine, half on average
    assert transfer.square().mean().item() == pytest.approx(0.5, abs=0.05)
