import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from test_jacobian import BOX, linear, toy
from torch import nn

import pyrocryo as pc
from pyrocryo.chain import bond_lengths, bonded, overlaps
from pyrocryo.diagnose.stereochemistry import violations
from pyrocryo.jacobians import gram, ima_contrast, isometry_contrast, spread
from pyrocryo.penalties import Bonds, Clashes, Isometric, Orthogonal, Sparse, again

LENGTH = 3.8


def zigzag(n):
    """A chain with bonds of 3.8 Å, every second atom 5.4 Å apart."""
    x = torch.zeros(n, 2)
    x[:, 0], x[1::2, 1] = 2.7 * torch.arange(n), math.sqrt(LENGTH**2 - 2.7**2)
    return x - x.mean(0)


class Opening(nn.Module):
    """A chain that z pulls apart in its middle, by ``gain`` Å for each unit."""

    dim, side, numbers_an_image, pixel_size, box = 2, 8, 64, 2.0, 8

    def __init__(self, atoms=8):
        super().__init__()
        self.register_buffer("start", zigzag(atoms) / self.pixel_size)

    def build(self, latent, box):
        self.gain = nn.Parameter(torch.ones(()))
        return self

    def centres(self, z):
        half = (torch.arange(len(self.start)) >= len(self.start) // 2).to(z)
        along = self.gain / self.pixel_size * z[..., :1] * half
        return self.start + torch.stack([along, 0 * along], dim=-1)

    places = centres

    def forward(self, z, rotation, shift):
        return self.gain * z.sum(-1)[..., None, None] * z.new_ones(8, 8)

    def density(self, z):
        return z.new_zeros(*z.shape[:-1], 8, 8)

    def check(self, particles):
        pass


class At(nn.Module):
    """A guide that knows: z is the first pixel."""

    def __init__(self, sd):
        super().__init__()
        self.sd = sd

    def build(self, latent, box, volume):
        self.gain = nn.Parameter(torch.ones(()))
        return self

    def forward(self, images, rotation, shift):
        z = self.gain * images.flatten(-2)[..., :1]
        return z, torch.diag_embed(torch.full_like(z, self.sd))


def opening(n=32, atoms=8):
    images = np.zeros((n, 8, 8), dtype=np.float32)
    images[:, 0, 0] = np.random.default_rng(0).standard_normal(n)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(1), Opening(atoms), 8, pose=pc.poses.Absent(), guide=At(1e-4)
    )
    return pair, pc.Particles(images, pixel_size=2.0)


def batch_of(particles):
    return particles.batch(np.arange(len(particles)))


def test_a_chain_knows_its_bonds():
    x = zigzag(6)
    torch.testing.assert_close(bond_lengths(x), torch.full((5,), LENGTH))
    assert bonded(x).all()
    x[3:, 1] += 4.0
    assert bonded(x).tolist() == [True, True, False, True, True]
    near = overlaps(torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 2], [0, 3]]), 3.5)
    expected = torch.zeros(5, 5)
    expected[0, 3], expected[0, 4] = 1.5, 0.5
    expected[1, 4] = 3.5 - math.sqrt(10)
    torch.testing.assert_close(near, expected)
    coincident = torch.zeros(4, 3, requires_grad=True)
    overlaps(coincident, 3.0).sum().backward()
    assert torch.isfinite(coincident.grad).all()


def test_energies_of_bonds_and_clashes():
    pair, particles = opening()
    z = batch_of(particles).images[:, 0, 0]
    # the bond in the middle runs by 2.7 along x, and z is added
    length = ((2.7 + z).square() + LENGTH**2 - 2.7**2).sqrt()
    expected = ((length - LENGTH) / 0.1).square().mean() / 2
    found = Bonds(particles=32)(pair, batch_of(particles))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    first = ((length - LENGTH)[:4] / 0.5).square().mean() / 2
    found = Bonds(particles=4, sd=0.5)(pair, batch_of(particles))
    torch.testing.assert_close(found, first, rtol=1e-3, atol=0)
    # pairs (2, 5), (1, 4), (3, 6): 8.1 + z along x and the width across
    across = LENGTH**2 - 2.7**2
    apart = ((8.1 + z).square() + across).sqrt()
    expected = 3 * ((8.5 - apart).clamp_min(0) / 0.2).square().mean() / 2
    still = 2 * ((8.5 - math.sqrt(8.1**2 + across)) / 0.2) ** 2 / 2  # (0, 3) and (4, 7)
    found = Clashes(distance=8.5, particles=32)(pair, batch_of(particles))
    torch.testing.assert_close(found, expected + still, rtol=1e-2, atol=0)


def test_the_decoder_gives_way_and_not_the_guide():
    pair, particles = opening()
    Bonds()(pair, batch_of(particles)).backward()
    assert pair.volume.gain.grad > 0
    assert pair.encoder.gain.grad is None


def test_restraints_bound_violations():
    pair, particles = opening(n=64)
    images = particles.images[:]
    z = images[:, :1, :1].copy()
    images[:] = 3.0 * z  # the data ask for a gain of 3, where z is in the first pixel
    images[:, 0, 0] = z[:, 0, 0]
    particles = pc.Particles(images, pixel_size=2.0)
    off = {}
    for name, penalties in {"free": (), "held": (Bonds(100.0),)}.items():
        settings = {"steps": 150, "batch_size": 32, "lr": 0.05, "progress": False}
        fit = pc.fit(pair, particles, penalties=penalties, **settings)
        found = pc.diagnose.stereochemistry(fit, particles)
        off[name] = found.bond_max[0]
        assert (found.torn[0] > 0) == (name != "held")
        assert found.worst[0] == 3
        assert f"{off[name]:.2f} Å at most (between atoms 3 and 4)" in found.sentence
    assert off["free"] > 3 > 0.3 > off["held"]


def test_violations_are_counted():
    reference = torch.tensor([[0.0, 0, 0], [3.8, 0, 0], [7.6, 0, 0], [7.6, 3.8, 0], [20, 0, 0]])
    centres = reference.repeat(2, 1, 1)
    centres[1, 3] = torch.tensor([7.6, 2.0, 0.0])  # 1.8 too short
    centres[1, 4] = torch.tensor([1.0, 0.0, 0.0])  # was never bonded; (0, 4), (1, 4) are near
    found = violations(centres, reference, 3.5)
    assert found["bond_max"] == pytest.approx(1.8, abs=1e-5)
    assert found["worst"] == 2
    assert found["torn"] == 0.5
    assert (found["clashes"], found["clashing"]) == (1.0, 0.5)
    assert found["nearest"] == pytest.approx(1.0, abs=1e-5)


def test_contrasts_in_closed_form():
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)
    stiff = turn @ torch.diag(torch.tensor([4.0, 1.0]).double()) @ turn.mT
    assert ima_contrast(stiff).item() == pytest.approx(0.2231, abs=1e-4)
    basis = torch.randn(5, 7, 4).double()
    g = basis.mT @ basis
    expected = g.diagonal(dim1=-2, dim2=-1).log().sum(-1) / 2 - torch.logdet(g) / 2
    torch.testing.assert_close(ima_contrast(g), expected)
    # |diag(5, 3) / 4 - 1| / sqrt(2) = 1 / 4
    assert isometry_contrast(torch.diag(torch.tensor([5.0, 3.0]))[None]).item() == 0.25
    assert isometry_contrast(7 * torch.eye(3)[None]).item() < 1e-6
    slope = torch.zeros(2, 1, 16)
    slope[0], slope[1, 0, 3] = -2.0, 5.0
    torch.testing.assert_close(spread(slope), torch.tensor([[1.0], [0.25]]))
    torch.testing.assert_close(gram(slope)[0], torch.tensor([[64.0, -10.0], [-10.0, 25.0]]))


def test_penalties_are_what_the_report_says(columns):
    """Of a linear decoder whose columns have an angle of 60° and lengths 4 and 2."""
    columns = columns[:2].copy()
    columns[1] = 0.5 * columns[0] + math.sqrt(0.75) * columns[1]
    pair, particles = toy(linear(columns * np.array([[4.0], [2.0]])))
    found = pc.identify.jacobian(pair, particles)
    batch = particles.batch(np.arange(300))
    assert found.ima[0] == pytest.approx(-math.log(0.75) / 2, abs=1e-3)
    told = {
        "ima": Orthogonal(particles=300)(pair, batch).item(),
        "isometry": Isometric(particles=300)(pair, batch).item(),
    }
    for name, value in told.items():
        assert getattr(found, name)[0] == pytest.approx(value, rel=0.02)
    sparse = Sparse(particles=300)(pair, batch).item()
    expected = np.abs(columns).sum(1) / BOX
    np.testing.assert_allclose(found.spread[0], expected, rtol=1e-3)
    assert sparse == pytest.approx(expected.sum(), rel=0.01)


@pytest.fixture
def columns(rng):
    """Orthonormal images, `(3, pixels)`."""
    return np.linalg.qr(rng.standard_normal((BOX * BOX, 3)))[0].T


def _trained(penalties, steps=100):
    """A flexible decoder of two overlapping motions, on data that a Gaussian prior leaves free."""
    particles = pc.simulate.poses(
        pc.molecules.TwoArms(), n=200, seed=0, box=12, pixel_size=8.0, max_angle=1.0, snr=4.0
    )
    guide = pc.guides.Amortised((32,))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(32,)), 12, guide=guide)
    settings = {"batch_size": 32, "progress": False, "steps": steps}
    return pc.fit(pair, particles, penalties=penalties, **settings).pairs[0], particles


def test_penalties_lower_their_contrasts():
    free, particles = _trained(())
    batch = particles.batch(np.arange(200))
    for kind, weight in ((Orthogonal, 30.0), (Isometric, 100.0), (Sparse, 100.0)):
        held, _ = _trained((kind(weight, particles=8),))
        torch.manual_seed(0)
        before, after = (kind(particles=200)(pair, batch).item() for pair in (free, held))
        assert after < 0.8 * before, (kind, before, after)


@pytest.mark.parametrize("kind", [Orthogonal, Sparse])
def test_the_rotation_layer_turns_the_axes_and_not_the_draw(kind):
    """Of latents scaled alike: the slope that the layer sees is that of the term itself."""
    pair, particles = _trained((), steps=60)
    pair, batch = pair.double(), particles.batch(np.arange(64))
    batch = batch._make(f.double() if f.is_floating_point() else f for f in batch)
    (angle,) = [p for name, p in pair.rotation.named_parameters()]

    def term(off=0.0):
        with torch.no_grad():
            angle.add_(off)
        torch.manual_seed(0)
        value = kind(particles=64)(pair, batch)
        with torch.no_grad():
            angle.sub_(off)
        return value

    (slope,) = torch.autograd.grad(term(), [angle])
    rise = (term(1e-4).item() - term(-1e-4).item()) / 2e-4
    assert slope.item() == pytest.approx(rise, rel=0.05, abs=2e-2 * term().item())


@pytest.mark.parametrize("kind", ["stereochemistry", "jacobian"])
def test_traced_stacked_and_in_bfloat16(kind, caplog):
    caplog.set_level("INFO", "pyrocryo")
    images = np.random.default_rng(0).standard_normal((40, 12, 12)).astype(np.float32)
    turns = pc.rotations.random_in_space((40,), np.random.default_rng(1))
    particles = pc.Particles(images, rotation=turns, pixel_size=6.0)
    chain = torch.cat([zigzag(12), torch.zeros(12, 1)], dim=1)
    volume = pc.volumes.RigidBodies(chain, np.arange(12) // 6, pixel_size=6.0, hidden=(8,))
    guide = pc.guides.Amortised((16,))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 12, guide=guide)
    given = {
        "stereochemistry": (Bonds(1e-2, ramp=3), Clashes(start=2, particles=4)),
        "jacobian": (Orthogonal(particles=4), Isometric(particles=4), Sparse(particles=4)),
    }[kind]
    settings = {"steps": 4, "batch_size": 8, "progress": False, "seeds": 2, "rigid_steps": 1}
    settings |= {"interventions": pc.Interventions(1.0)} if kind == "jacobian" else {}
    settings |= {"penalties": given}
    python = pc.fit(pair, particles, capture=False, **settings).history["loss"]
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **settings)
        np.testing.assert_allclose(fit.history["loss"], python, rtol=1e-4)
    assert "2 seeds at once" in caplog.text
    rounded = pc.fit(pair, particles, precision="bf16", **settings).history["loss"]
    np.testing.assert_allclose(rounded, python, rtol=0.1)
    without = pc.fit(pair, particles, capture=False, **(settings | {"penalties": ()}))
    np.testing.assert_array_equal(without.history["loss"][:, 0], python[:, 0])  # rigid
    assert (without.history["loss"][:, 1:] != python[:, 1:]).all()


def test_differences_of_images_are_not_taken_in_bfloat16():
    pair, particles = _trained((), steps=20)
    batch = particles.batch(np.arange(16))
    values = []
    for low in (False, True):
        torch.manual_seed(0)
        if low:
            pair.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
        values.append(Orthogonal()(pair, batch).item())
    # the guide's rounding moves the draws; of images, differences would be noise
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_weights_rise_as_those_of_interventions():
    settings = pc.svi.Settings(
        rigid_steps=5,
        interventions=pc.Interventions(2.0),
        penalties=[Bonds(8.0, start=10, ramp=4), Clashes(3.0)],
    )
    assert settings.penalties == (Bonds(8.0, start=10, ramp=4), Clashes(3.0))
    assert settings.weights_at(5) == [2.0, 0.0, 3.0]
    assert settings.weights_at(16) == [2.0, 4.0, 3.0]


def test_resumed_and_reopened_with_the_same_penalties_only(tmp_path):
    pair, particles = opening()
    path = tmp_path / "checkpoint.pt"
    options = {"steps": 4, "checkpoint": path, "progress": False}
    given = (Orthogonal(2.0), Sparse(1.0))
    fit = pc.fit(pair, particles, penalties=given, **options)
    again_ = pc.fit(pair, particles, penalties=given, resume=True, **options)
    np.testing.assert_array_equal(fit.history["loss"], again_.history["loss"])
    assert pc.svi.reopen(pair, particles, path).settings.penalties == given
    for other in ((Isometric(2.0), Sparse(1.0)), (Orthogonal(3.0), Sparse(1.0)), ()):
        with pytest.raises(pc.InputError, match="other settings"):
            pc.fit(pair, particles, penalties=other, resume=True, **options)
    assert "penalties" not in pc.fit(pair, particles, steps=2, progress=False).key["settings"]
    json.dumps(fit.key["settings"])


@dataclass(frozen=True)
class Quiet:
    """A penalty of someone's own."""

    weight: float = 2.0

    def check(self, pair):
        pass

    def weight_at(self, step):
        return self.weight

    def __call__(self, pair, batch):
        return pair.volume.gain.square()


def test_anyone_can_write_a_penalty():
    pair, particles = opening()
    settings = {"steps": 3, "progress": False}
    with_it = pc.fit(pair, particles, penalties=(Quiet(),), **settings)
    without = pc.fit(pair, particles, **settings)
    np.testing.assert_allclose(
        with_it.history["loss"][0, 0] - without.history["loss"][0, 0], 2.0, rtol=1e-4
    )
    with pytest.raises(pc.InputError, match="penalties: Quiet is none of Bonds, Clashes"):
        again({"kind": "Quiet", "weight": 2.0})


def test_bad_penalties_are_refused():
    for wrong, said in (
        (lambda: Bonds(-1.0), "weight: expected 0 or more, got -1.0"),
        (lambda: Bonds(sd=0.0), "sd: expected a positive number, got 0.0"),
        (lambda: Clashes(distance=-1.0), "distance: expected a positive number"),
        (lambda: Orthogonal(particles=0), "particles: expected a positive number"),
        (lambda: pc.svi.Settings(penalties=(3.0,)), "penalties: expected terms such as"),
    ):
        with pytest.raises(pc.InputError, match=said):
            wrong()
    particles = pc.simulate.poses(pc.molecules.TwoArms(), n=20, seed=0, box=12, pixel_size=8.0)
    prior = pc.priors.IsotropicNormal(2)
    for volume, said in (
        (pc.volumes.Grid(), "Bonds needs a volume of atoms, and Grid has no places"),
        (pc.volumes.Atoms(pixel_size=8.0), "in the reference no two in a row are bonded"),
    ):
        pair = pc.Pair(prior, volume, 12)
        with pytest.raises(pc.InputError, match=said):
            pc.fit(pair, particles, steps=2, penalties=(Bonds(),))
        with pytest.raises(pc.InputError, match=said):
            pc.diagnose.stereochemistry(pair, particles)
    pair = pc.Pair(pc.priors.IsotropicNormal(11), pc.volumes.Grid(), 12)
    with pytest.raises(pc.InputError, match="at most 10 latents; got 11"):
        pc.fit(pair, particles, steps=2, penalties=(Sparse(),))
