import math

import numpy as np
import pytest
import torch
from toys import written

import pyrocryo as pc
from pyrocryo.interventions import arc, until_converged


def _plain(n):
    """A small pair with plain heads, as published models have them."""
    particles = pc.simulate.poses(pc.molecules.TwoArms(), n=n, seed=0, box=12, pixel_size=8.0)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        pc.volumes.Grid(hidden=(16,)),
        12,
        pose=pc.poses.InPlane(),
        guide=pc.guides.Amortised((16,), upright=False),
        pose_guide=pc.guides.PlainPose((16,)),
    )
    return pair, particles


def _eq2(pair, particles, **options):
    options = {"noise": False} | options
    return pc.Interventions(**options)(pair, particles.batch(np.arange(len(particles))))


@pytest.mark.parametrize("poses", ["exchanged", "prior"])
@pytest.mark.parametrize("distance", ["plain", "batch", "posterior"])
def test_a_pair_that_inverts_itself_has_no_loss(poses, distance):
    pair, particles = written()
    assert _eq2(pair, particles, poses=poses, distance=distance) < 5e-3


def test_the_distances_are_what_they_say():
    pair, particles = written(share=0.5, off=0.3)  # reads z / 2, then z / 4; always .3 too far on
    z = 0.5 * particles.truth
    length = np.linalg.norm(z - 0.5 * z, axis=1)
    assert _eq2(pair, particles).item() == pytest.approx(length.mean() + 0.3, abs=2e-3)
    scaled = np.linalg.norm(0.5 * z / (z.std(axis=0, ddof=1) + 1e-3), axis=1)
    found = _eq2(pair, particles, distance="batch").item()
    assert found == pytest.approx(scaled.mean() + 0.3, abs=2e-3)
    # the posterior's sd is 1: as plain
    assert _eq2(pair, particles, distance="posterior").item() == pytest.approx(
        length.mean() + 0.3, abs=2e-3
    )
    # an error that is the same in every pose is one of the frame
    assert _eq2(pair, particles, relative=True).item() == pytest.approx(length.mean(), abs=5e-3)


def test_a_collapse_lowers_all_but_the_contrastive_distance():
    told = {}
    for share in (1.0, 0.8, 0.0):
        pair, particles = written(share=share)
        told[share] = [_eq2(pair, particles, distance=d).item() for d in ("plain", "contrastive")]
    assert told[0.0][0] < 0.01 < told[0.8][0]
    assert told[1.0][1] < told[0.8][1] < told[0.0][1]
    assert told[0.0][1] > math.log(len(particles))  # no conformation can be told from another


def test_noise_is_added_if_asked_for():
    pair, particles = written(n=2000)
    noisy = _eq2(pair, particles, noise=True).item()
    # two latents off by N(0, .1²) each: Rayleigh; the pose by N(0, .1²) across: half-normal
    expected = 0.1 * (math.sqrt(math.pi / 2) + math.sqrt(2 / math.pi))
    assert noisy == pytest.approx(expected, rel=0.05)


def test_gradients_of_the_encoder_alone():
    for gradients in ("both", "encoder"):
        pair, particles = written(share=0.5)
        _eq2(pair, particles, gradients=gradients).backward()
        gain = pair.volume.gain.grad
        assert (gain is None or gain == 0) == (gradients == "encoder")


def test_known_poses_are_exchanged_too():
    pair, particles = written(known=True, share=0.5)
    z = 0.5 * particles.truth
    expected = np.linalg.norm(0.5 * z, axis=1).mean()
    assert _eq2(pair, particles).item() == pytest.approx(expected, abs=2e-3)
    for wrong in ({"poses": "prior"}, {"relative": True}):
        with pytest.raises(pc.InputError, match="these poses are known"):
            pc.fit(pair, particles, steps=2, interventions=pc.Interventions(**wrong))


@pytest.mark.parametrize("dim", [2, 4])
def test_arcs_are_accurate_at_both_ends(dim):
    angle = torch.tensor([1e-2, 1.0, math.pi / 2, 3.0, math.pi], dtype=torch.float64)
    half = angle if dim == 2 else angle / 2
    p = torch.zeros(5, dim, dtype=torch.float64)
    q = p.clone()
    p[:, 0], q[:, 0], q[:, 1] = 1, half.cos(), half.sin()
    torch.testing.assert_close(arc(p, q), angle, atol=3e-3, rtol=0)
    if dim == 4:
        torch.testing.assert_close(arc(p, -q), arc(p, q))


OPTIONS = (
    {"poses": "prior", "start": 1, "ramp": 3},
    {"distance": "contrastive"},
    {"gradients": "encoder", "draws": True},
    {"relative": True},
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o)))
def test_traced_and_stacked_as_in_python(options, caplog):
    caplog.set_level("INFO", "pyrocryo")
    pair, particles = _plain(n=80)
    settings = {"steps": 8, "batch_size": 16, "rigid_steps": 2, "progress": False, "seeds": 2}
    settings["interventions"] = pc.Interventions(**options)
    python = pc.fit(pair, particles, capture=False, **settings).history["loss"]
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **settings)
        np.testing.assert_allclose(fit.history["loss"], python, rtol=1e-6)
    assert "2 seeds at once" in caplog.text
    without = pc.fit(pair, particles, capture=False, **(settings | {"interventions": None}))
    np.testing.assert_array_equal(without.history["loss"][:, :2], python[:, :2])  # rigid steps
    assert (without.history["loss"][:, 4:] != python[:, 4:]).all()


def test_the_weight_rises():
    chosen = pc.Interventions(8.0, start=10, ramp=4)
    weights = [chosen.weight_at(n) for n in (0, 9, 10, 11, 13, 100)]
    assert weights == [0, 0, 2, 4, 8, 8]
    settings = pc.svi.Settings(rigid_steps=5, interventions=chosen)
    assert settings.weights_at(14) == [0] < settings.weights_at(15)
    assert pc.svi.Settings().weights_at(3) == []


def test_resumed_with_the_same_interventions_only(tmp_path):
    pair, particles = written()
    options = {"steps": 4, "checkpoint": tmp_path / "checkpoint.pt", "progress": False}
    fit = pc.fit(pair, particles, interventions=pc.Interventions(2.0), **options)
    again = pc.fit(pair, particles, interventions=pc.Interventions(2.0), resume=True, **options)
    np.testing.assert_array_equal(fit.history["loss"], again.history["loss"])
    with pytest.raises(pc.InputError, match="other settings"):
        pc.fit(pair, particles, interventions=pc.Interventions(3.0), resume=True, **options)


def test_eq2_alone_until_it_has_converged():
    pair, particles = _plain(n=200)
    before = {name: p.clone() for name, p in pair.named_parameters()}
    better, history = until_converged(pair, particles, patience=50, steps=400)
    assert history[-50:].mean() < 0.7 * history[:50].mean()
    assert all(torch.equal(p, before[name]) for name, p in pair.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in better.named_parameters())


def test_bad_interventions_are_refused():
    for wrong, said in (
        ({"weight": -1.0}, "weight: expected 0 or more, got -1.0"),
        ({"ramp": -1}, "ramp: expected 0 or more"),
        ({"distance": "long"}, "distance: expected one of plain, batch, posterior, contrastive"),
        ({"relative": True, "distance": "contrastive"}, "relative: the contrastive distance"),
    ):
        with pytest.raises(pc.InputError, match=said):
            pc.Interventions(**wrong)
    pair, particles = written()
    with pytest.raises(pc.InputError, match="patience: expected at least 1, got 0"):
        until_converged(pair, particles, patience=0)


def test_poses_in_space_are_exchanged_with_their_shifts_kept():
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=24, seed=0, box=16, pixel_size=6.0, snr=20.0)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(molecule.dim),
        pc.volumes.Atoms.known(molecule, pixel_size=6.0),
        16,
        pose=pc.poses.SO3(around=3.0, shift_sd=1.0),
        rotate=False,
    )
    for options in ({}, {"relative": True}):
        fit = pc.fit(
            pair,
            particles,
            steps=2,
            batch_size=8,
            interventions=pc.Interventions(1.0, **options),
            progress=False,
        )
        assert np.isfinite(fit.history["loss"]).all()


def test_a_fit_says_what_to_look_at(caplog):
    pair, particles = written()
    pc.fit(pair, particles, steps=2, progress=False)
    assert "Algorithm 1" not in caplog.text
    pc.fit(pair, particles, steps=2, progress=False, interventions=pc.Interventions())
    assert caplog.text.count("look at diagnose.pose_invariance") == 1
