import copy

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

import pyrocryo as pc
from pyrocryo.diagnose.worlds import Learned, oracle
from pyrocryo.noise import Gaussian, ImageNormal, estimate_spectrum, on_grid

FALLING = np.array([6.0, 4.0, 2.0, 1.0, 0.7])


def _covariance(box, sd, spectrum, clean, tau):
    """Of the flattened image, by the whole transform."""
    k = np.fft.fftfreq(box) * box
    power = np.ones((box, box))
    if spectrum is not None:
        power = np.interp(np.hypot(k[:, None], k), np.arange(len(spectrum)), spectrum)
        power = power / power.mean()
    basis = np.fft.fft2(np.eye(box * box).reshape(-1, box, box), norm="ortho")
    f = basis.reshape(-1, box * box)
    white = (f.conj() * power.ravel()) @ f.T
    y = clean.numpy().ravel()
    return torch.as_tensor(sd**2 * white.real + tau**2 * np.outer(y, y))


@pytest.mark.parametrize("box", [5, 6])
@pytest.mark.parametrize("spectrum", [None, FALLING], ids=["white", "coloured"])
@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_densities_are_those_of_the_whole_covariance(box, spectrum, tau):
    torch.manual_seed(1)
    clean, x = torch.randn(2, 3, box, box, dtype=torch.float64)
    sd = torch.tensor(0.7, dtype=torch.float64)
    likelihood = Gaussian(spectrum, contrast=tau or None).build(box).double()
    law = likelihood(clean, sd)
    for i in range(3):
        whole = _covariance(box, 0.7, spectrum, clean[i], tau)
        expected = MultivariateNormal(clean[i].flatten(), whole).log_prob(x[i].flatten())
        torch.testing.assert_close(law.log_prob(x)[i], expected, rtol=1e-5, atol=1e-5)
    assert law.expand((2, 3)).log_prob(x).shape == (2, 3)


def test_draws_have_the_covariance():
    torch.manual_seed(0)
    box, clean = 5, torch.randn(5, 5, dtype=torch.float64)
    likelihood = Gaussian(FALLING, contrast=0.4).build(box).double()
    draws = likelihood(clean, torch.tensor(0.7)).sample((200_000,)).flatten(1)
    torch.testing.assert_close(draws.mean(0), clean.flatten(), atol=0.02, rtol=0)
    torch.testing.assert_close(
        torch.cov(draws.T), _covariance(box, 0.7, FALLING, clean, 0.4), atol=0.03, rtol=0
    )


def test_gradients():
    torch.manual_seed(0)
    clean, x = torch.randn(2, 6, 6, dtype=torch.float64)
    sd, tau = torch.tensor([0.7, 0.4], dtype=torch.float64).unbind()
    root = torch.as_tensor(on_grid(FALLING, 6)).sqrt()

    def density(clean, sd, tau):
        return ImageNormal(clean, sd, root, tau).log_prob(x)

    inputs = [value.clone().requires_grad_() for value in (clean, sd, tau)]
    assert torch.autograd.gradcheck(density, inputs)


def test_contrast_posterior_by_bayes_on_a_grid():
    torch.manual_seed(0)
    clean = torch.randn(6, 6, dtype=torch.float64)
    sd, x = torch.tensor(0.9), 1.3 * clean + torch.randn(6, 6)
    likelihood = Gaussian(FALLING, contrast=0.5).build(6).double()
    c = torch.linspace(-2, 4, 4001, dtype=torch.float64)
    fixed = ImageNormal(c[:, None, None] * clean, sd, likelihood.root)
    odds = torch.softmax(fixed.log_prob(x) - 0.5 * ((c - 1) / 0.5) ** 2, dim=0)
    mean = (odds * c).sum()
    found, spread = likelihood.contrast_of(x, clean, sd)
    torch.testing.assert_close(found, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(spread, (odds * (c - mean) ** 2).sum().sqrt(), atol=1e-4, rtol=0)


def _falling(k):
    return 0.3 + 3 * np.exp(-((k / 0.04) ** 2))


def _particles(n=1500, **more):
    more = {"box": 24, "pixel_size": 4.0} | more
    return pc.simulate.poses(pc.molecules.TwoArms(), n=n, seed=0, **more)


@pytest.mark.parametrize("box", [24, 33])
def test_spectra_are_found_in_the_corners(box):
    particles = _particles(box=box, pixel_size=96 / box, spectrum=_falling)
    rings = np.arange(box // 2 + 1)
    true = _falling(rings / 96)
    k = np.fft.fftfreq(box) * box / 96
    true = true / _falling(np.hypot(k[:, None], k)).mean()
    found = estimate_spectrum(particles)
    assert np.abs(found / true - 1).max() < 0.2  # smoothed over some 5 rings
    flat = estimate_spectrum(_particles(box=box))
    np.testing.assert_allclose(flat, 1, atol=0.12)


def _pair(particles, likelihood=None, **more):
    volume = pc.volumes.Grid(hidden=(32, 32))
    return pc.Pair(
        pc.priors.IsotropicNormal(2), volume, particles.box, likelihood=likelihood, **more
    )


def test_white_noise_without_contrast_is_what_it_was():
    particles = _particles(60)
    pair = _pair(particles)
    same = copy.deepcopy(pair)
    same.likelihood = Gaussian().build(24)
    losses = [
        pc.fit(p, particles, steps=6, progress=False, capture=False).history["loss"]
        for p in (pair, same)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_traced_as_in_python(frames):
    if frames == 1:
        particles = _particles(60, contrast=0.2)
    else:
        particles = pc.simulate.time_resolved(
            pc.molecules.TwoArms(), n=40, box=16, pixel_size=6.0, contrast=0.2
        )
        assert particles.contrast.shape == (40, 2)
    options = {"steps": 6, "batch_size": 16, "seeds": 2, "progress": False}
    pair = _pair(particles, pc.noise.Gaussian(FALLING, contrast=True))
    python = pc.fit(pair, particles, capture=False, **options)
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **options)
        np.testing.assert_allclose(
            fit.history["loss"], python.history["loss"], rtol=1e-6 if together == 1 else 5e-3
        )
    assert all(p.likelihood.tau != pair.likelihood.tau for p in python.pairs)
    post = pc.posterior(python, particles.test, draws=3, predictive=2)
    assert np.isfinite(post["log_likelihood"]["x"]).all()
    shape = (len(particles.test), *particles.images.shape[1:])
    assert post["posterior_predictive"]["x"].shape[2:] == shape


def test_seeds_together_and_lower_precision():
    torch.manual_seed(0)
    likelihood = Gaussian(FALLING, contrast=0.3).build(24)
    clean, x, sd = torch.randn(3, 4, 24, 24), torch.randn(3, 4, 24, 24), torch.ones(3) + 0.1

    def density(clean, sd, x):
        return likelihood(clean, sd).log_prob(x)

    one_by_one = torch.stack([density(*row) for row in zip(clean, sd, x, strict=True)])
    torch.testing.assert_close(torch.vmap(density)(clean, sd, x), one_by_one)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(density(clean[0], sd[0], x[0]), one_by_one[0], rtol=0, atol=0)
    exact = copy.deepcopy(likelihood).double()(clean[0].double(), sd[0].double())
    assert (exact.log_prob(x[0].double()) - one_by_one[0]).abs().max() < 0.01  # of some 1000 nats


def test_searches_for_the_maximum_know_the_noise():
    particles = _particles(40)
    pair = _pair(particles, Gaussian(FALLING, contrast=0.3)).eval()
    batch = particles.batch(np.arange(6))
    world = Learned(pair)
    z, phi = world.latents(batch)

    def slope(z):
        z = z.detach().requires_grad_()
        clean = world.render(z, phi, batch)
        density = pair.likelihood(clean, pair.noise).log_prob(batch.images)
        (density + world.log_prior(z, batch)).sum().backward()
        return z.grad.norm()

    found, _ = oracle(world, batch.images, phi, batch, (z + 2, phi), starts=1, steps=150)
    assert slope(found) < 0.05 * slope(z + 2)


def test_contrast_is_recovered():
    particles = _particles(3000, contrast=0.25, snr=0.3)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), pc.volumes.Grid(), 24, likelihood=Gaussian(contrast=True)
    )
    trained = pc.fit(pair, particles, steps=400, batch_size=64, lr=4e-3, progress=False).pairs[0]
    assert trained.likelihood.tau.item() == pytest.approx(0.25, abs=0.06)
    batch = particles.test.batch(np.arange(300))
    with torch.no_grad():
        clean = trained.seen(trained.posterior_of(batch).mean, batch)
        found, _ = trained.likelihood.contrast_of(batch.images, clean, trained.noise)
    assert np.corrcoef(found, particles.test.contrast)[0, 1] > 0.85


def test_bad_noise_is_refused():
    for wrong, said in (
        ({"spectrum": [1.0, -1.0]}, "spectrum: expected positive powers"),
        ({"contrast": -0.1}, "contrast: expected a positive deviation or True"),
    ):
        with pytest.raises(pc.InputError, match=said):
            pc.noise.Gaussian(**wrong)
    with pytest.raises(pc.InputError, match="likelihood: whole images are needed"):
        pc.Pair(
            pc.priors.IsotropicNormal(2),
            pc.volumes.Implicit(),
            24,
            likelihood=pc.noise.Gaussian(contrast=True),
        )
    with pytest.raises(pc.InputError, match="every particle has the same"):
        Gaussian().build(8).contrast_of(torch.ones(8, 8), torch.ones(8, 8), torch.ones(()))
    with pytest.raises(pc.InputError, match="at least 12 pixels"):
        estimate_spectrum(_particles(20, box=8, pixel_size=12.0))
    with pytest.raises(pc.InputError, match="contrast: expected a deviation in"):
        _particles(20, contrast=1.5)
    with pytest.raises(pc.InputError, match="spectrum: expected a positive power"):
        _particles(20, spectrum=lambda k: -k)
