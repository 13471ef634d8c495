"""Implicit volumes in Fourier space."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import splat, splat_map


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("dim", [2, 3])
def test_images_of_a_fourier_volume_are_projections_of_its_density(box, dim):
    torch.manual_seed(0)
    volume = pc.volumes.ImplicitFourier(dim, hidden=(16,)).build(2, box).double()
    z, shift = torch.randn(2, 2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    one = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    images, density = volume(z, one, shift), volume.density(z)
    expected = density if dim == 2 else density.sum(1)
    torch.testing.assert_close(images, expected)  # a central slice, exactly
    moved = volume(z, one, shift + torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(moved, images.roll((-1, 2), dims=(-2, -1)))
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    turned = volume(z, quarter.expand(2, 3, 3), shift)
    expected = torch.rot90(images, -1, dims=(-2, -1))
    if box % 2 == 0:
        expected = expected.roll(1, dims=-1)
    torch.testing.assert_close(turned, expected)


def test_traced_as_in_python():
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=40, seed=0, box=12, pixel_size=8.0)
    volume = pc.volumes.ImplicitFourier(3, hidden=(16,), features=16)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 12)
    options = {"steps": 4, "batch_size": 8, "seeds": 2, "progress": False}
    python = pc.fit(pair, particles, capture=False, **options).history["loss"]
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **options)
        np.testing.assert_allclose(fit.history["loss"], python, rtol=1e-4)


def test_a_rigid_map_is_found():
    """Noise-free images in known poses; Fourier shell correlation with the truth."""
    box, n = 12, 200
    rng = np.random.default_rng(0)
    centres = torch.as_tensor(rng.normal(scale=0.12 * box, size=(6, 3)))
    width, height = torch.full((6,), 1.5).double(), torch.ones(6).double()
    rotation = torch.as_tensor(pc.rotations.random_in_space((n,), rng))
    shift = torch.as_tensor(rng.uniform(-2, 2, (n, 2)))
    seen = (centres @ rotation.transpose(-1, -2))[..., :2] + shift.unsqueeze(1)
    images = splat(seen, width, height, box=box, pixel_size=1.0)
    images = (images / images.std()).float().numpy()
    particles = pc.Particles(images, rotation=rotation.numpy(), shift=shift.numpy())
    pair = pc.Pair(pc.priors.IsotropicNormal(1), pc.volumes.ImplicitFourier(3), box, noise=0.3)
    trained = pc.fit(pair, particles, steps=200, batch_size=16, lr=1e-2, progress=False).pairs[0]
    found = trained.density(torch.zeros(1)).numpy()
    true = splat_map(centres, width, height, side=box, voxel_size=1.0).numpy()
    assert pc.metrics.fsc(found, true)[1:5].min() > 0.8


def test_bad_requests():
    with pytest.raises(pc.InputError, match="2 or 3 dimensions, got 4"):
        pc.volumes.ImplicitFourier(4)
