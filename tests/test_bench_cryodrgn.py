"""CryoDRGN's default model is the pair that its timings are compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.bench.cryodrgn import rows
from pyrocryo.bench.hartley import disc, hartley, transform
from pyrocryo.bench.vae import Slice, loss, renamed, vae

STEP = Path(__file__).parent / "data" / "cryodrgn_step.npz"

ONES = np.ones((2, 9, 9))


def inside(images):
    """Without the pixels that cryoDRGN never looks at."""
    flat, where = images.flatten(1), disc(images.shape[-1])
    return torch.zeros_like(flat).index_copy(1, where, flat[:, where]).view(images.shape)


def compared(step, monkeypatch, **sizes):
    """Largest relative errors of loss and gradients against a step that cryoDRGN made."""
    given = {k: torch.as_tensor(v) for k, v in step.items()}
    n, latent = given["noise"].shape
    pair = vae(given["prepared"].shape[-1], latent=latent, **sizes)
    weights = renamed({k[7:]: v for k, v in given.items() if k.startswith("weight.")})
    missing, unexpected = pair.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"first_noise", "noise_steps", "rotation.angle"}
    images = inside(given["prepared"]).numpy()
    particles = pc.Particles(images, rotation=step["rotation"], test_fraction=0)
    pair.check(particles)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: given["noise"])
    found = loss(pair, particles.batch(np.arange(n)), beta=float(given["beta"]))
    monkeypatch.undo()
    found.backward()
    expected = renamed({k[9:]: v for k, v in given.items() if k.startswith("gradient.")})
    ours = {k: p.grad for k, p in pair.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    errors = [(ours[k] - g).norm() / g.norm() for k, g in expected.items()]
    return float(abs(found.detach() / given["loss"] - 1)), float(max(errors))


@pytest.mark.parametrize("folded", [True, False])
def test_loss_and_gradients_are_those_of_cryodrgn(folded, monkeypatch):
    """On cryoDRGN's own weights, with its noise, in single precision."""
    errors = compared(np.load(STEP), monkeypatch, layers=2, width=24, folded=folded)
    assert max(errors) < 1e-5


def test_particles_are_prepared_as_cryodrgn_does():
    step = np.load(STEP)
    box = step["images"].shape[-1]
    shift = -step["translation"] * (box + 1)  # cryoDRGN's box is one pixel larger here
    particles = pc.Particles(
        step["images"], pixel_size=1.5, rotation=step["rotation"], shift=1.5 * shift, temperature=
        np.full(4, 300.0),
    )  # fmt: skip
    found = hartley(particles)
    assert set(found.fields) == {"rotation", "temperature"}
    assert len(found.test) == len(particles.test)
    prepared = found.batch(np.arange(4)).images
    expected = inside(torch.as_tensor(step["prepared"]))
    torch.testing.assert_close(prepared, expected, rtol=1e-5, atol=1e-5)


def test_half_of_the_disc_gives_all_of_it():
    """Each pixel beside its opposite; the rest is zero; k and -k are conjugates in 3-D as well."""
    where = disc(17)
    assert len(where) == 196
    assert torch.equal(where.flip(0), 17**2 - 1 - where)
    volume = Slice(layers=1, width=16, features=4).build(2, 17)
    z, points = torch.randn(3, 2), torch.randn(3, 50, 3) / 4
    with torch.no_grad():
        real, imag = volume._values(points, z)
        again, opposite = volume._values(-points, z)
        images = volume(z, torch.eye(3), torch.zeros(2)).flatten(1)
    torch.testing.assert_close(again, real)
    torch.testing.assert_close(opposite, -imag)
    outside = torch.ones(17**2, dtype=bool)
    outside[where] = False
    assert images[:, outside].abs().max() == 0
    assert images[:, where].abs().min() > 0


def test_the_map_is_the_one_that_is_projected():
    volume = Slice(layers=1, width=16, features=2).build(2, 17)
    z = torch.randn(1, 2)
    with torch.no_grad():
        image = volume(z, torch.eye(3), torch.zeros(2))
        projected = volume.density(z).sum(1)
    expected = transform(image[:, :-1, :-1], 2) / 16**2
    assert float((projected - expected).norm() / expected.norm()) < 1e-5


def test_the_pair_learns_with_our_own_trainer(rng):
    images = rng.standard_normal((40, 8, 8)) + np.eye(8)
    particles = pc.Particles(images, rotation=np.tile(np.eye(3), (40, 1, 1)))
    made = hartley(particles)
    pair = vae(made.box, latent=2, layers=1, width=32)
    fit = pc.fit(pair, made, steps=30, batch_size=16, beta=0.25, lr=1e-3)
    assert fit.exact_kl
    assert fit.history["loss"][0, -5:].mean() < fit.history["loss"][0, :5].mean()
    assert fit.pairs[0].density(torch.zeros(1, 2)).shape == (1, 8, 8, 8)


def test_geometry_stays_single_under_autocast():
    volume = Slice(layers=1, width=16, features=4).build(2, 17)
    rotation = torch.as_tensor(pc.rotations.matrix_from_euler(np.full((1, 3), 40.0)))
    case = torch.randn(1, 2), rotation.float(), torch.zeros(1, 2)
    seen = []
    volume.network.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    with torch.no_grad():
        exact = volume(*case)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = volume(*case)
    assert torch.equal(*seen)
    assert rough.dtype == torch.float32
    assert 1e-5 < float((rough - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vae(16), "box: Hartley images have an odd box"),
        (lambda: hartley(pc.Particles(np.ones((3, 9, 9)))), "images: expected .N, D, D. with an"),
        (lambda: hartley(pc.Particles(np.zeros((3, 8, 8)))), "every pixel has the same value"),
        (lambda: renamed({"encoder.conv": None}), "encoder.conv: not a weight of cryoDRGN's"),
        (
            lambda: vae(9, width=8).volume.check(pc.Particles(ONES, shift=np.ones((2, 2)))),
            "shift: Hartley images are centred already",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


@pytest.mark.benchmark
def test_steps_against_those_of_cryodrgn():
    """Printed: seconds an image on both sides, and their ratio."""
    found = list(rows("cpu", quick=True))
    if not found:
        pytest.skip("cryodrgn cannot be imported: pip install cryodrgn==4.3.1")
    for row in found:
        low, high = row["spread"]
        print(
            f"{row['name']:60s}{row['ours']:9.4f} s, cryoDRGN {row['other']:7.3f} s an image: "
            f"{row['ratio']:.2f} x ({low:.2f} to {high:.2f})"
        )
    assert all(np.isfinite(row["ratio"]) for row in found)


def test_without_cryodrgn_there_are_no_rows(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "cryodrgn", None)
    monkeypatch.delitem(sys.modules, "cryodrgn.commands.train_vae", raising=False)
    with caplog.at_level("INFO", logger="pyrocryo"):
        assert not list(rows("cpu", quick=True))
    assert "pip install cryodrgn" in caplog.text
