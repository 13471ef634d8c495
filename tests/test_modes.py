"""Elastic networks: the same modes as ProDy's, and volumes that move along them."""

import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.molecules.elastic import BOLTZMANN, boltzmann, hessian

OPEN = pc.molecules.AdenylateKinase().ca_open


@pytest.fixture(scope="module")
def modes():
    return pc.molecules.normal_modes(OPEN, 6, cutoff=10.0)


def _globule(n, rng):
    """Points about as dense as Cα in a protein, 3.5 Å apart or more."""
    radius = (n * 135 * 3 / (4 * np.pi)) ** (1 / 3)
    found = np.zeros((0, 3))
    while len(found) < n:
        point = rng.uniform(-radius, radius, 3)
        far = ((found - point) ** 2).sum(axis=1) > 3.5**2
        if point @ point < radius**2 and far.all():
            found = np.vstack([found, point])
    return found


def _energy(x, rest, cutoff, law):
    """The network's energy, written as its definition."""
    i, j = np.triu_indices(len(rest), k=1)
    length = np.linalg.norm(rest[i] - rest[j], axis=1)
    strength = np.ones_like(length) if law == "constant" else (3.8 / length) ** 2
    now = np.linalg.norm(x[i] - x[j], axis=1)
    return 0.5 * ((length <= cutoff) * strength * (now - length) ** 2).sum()


def test_eigenvalues_are_those_of_prody():
    with np.load(Path(__file__).parent / "data" / "modes.npz") as data:
        for law, cutoff, expected in zip(*(data[k] for k in data), strict=True):
            ours = pc.molecules.normal_modes(OPEN, 20, cutoff=float(cutoff), law=str(law))
            np.testing.assert_allclose(ours.eigenvalues, expected, rtol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("prody") is None, reason="ProDy is not installed")
@pytest.mark.filterwarnings("ignore")
def test_modes_are_those_of_prody():
    from prody import ANM

    network = ANM("adenylate kinase")
    network.buildHessian(OPEN, cutoff=15.0)
    network.calcModes(20)
    ours = pc.molecules.normal_modes(OPEN, 20)
    np.testing.assert_allclose(hessian(OPEN).toarray(), network.getHessian(), atol=1e-10)
    np.testing.assert_allclose(ours.eigenvalues, network.getEigvals(), rtol=1e-6)
    overlap = np.abs((ours.vectors.reshape(20, -1) * network.getEigvecs().T).sum(axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)


@pytest.mark.parametrize("law", ["constant", "inverse-square"])
def test_the_hessian_is_the_second_derivative_of_the_energy(law, rng):
    rest, step = 6 * rng.standard_normal((7, 3)), 1e-3
    d = rng.standard_normal((7, 3))
    there, back = (_energy(rest + sign * step * d, rest, 12.0, law) for sign in (1, -1))
    expected = (there + back) / step**2  # the energy at rest is 0
    ours = d.ravel() @ hessian(rest, cutoff=12.0, law=law) @ d.ravel()
    assert ours == pytest.approx(expected, rel=1e-5)


def test_modes_are_orthonormal_and_neither_turn_nor_move_the_molecule(modes):
    flat = modes.vectors.reshape(len(modes), -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(modes)), atol=1e-12)
    about = OPEN - OPEN.mean(axis=0)
    np.testing.assert_allclose(modes.vectors.sum(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(np.cross(about, modes.vectors).sum(axis=1), 0, atol=1e-7)
    residual = hessian(OPEN, cutoff=10.0) @ flat.T - flat.T * modes.eigenvalues
    np.testing.assert_allclose(residual, 0, atol=1e-10)


def test_modes_turn_with_the_molecule(modes, rng):
    turn = pc.rotations.random_in_space((), rng)
    turned = pc.molecules.normal_modes(OPEN @ turn.T + 30.0, 6, cutoff=10.0)
    np.testing.assert_allclose(turned.eigenvalues, modes.eigenvalues, rtol=1e-9)
    overlap = (turned.vectors * (modes.vectors @ turn.T)).sum(axis=(1, 2))
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-9)


def test_small_and_large_networks_take_different_ways_to_the_same_modes(rng):
    from scipy.linalg import eigh

    for n in (30, 100):
        x = _globule(n, rng)
        ours = pc.molecules.normal_modes(x, 8, cutoff=15.0)
        values = eigh(hessian(x, cutoff=15.0).toarray(), eigvals_only=True)
        assert np.abs(values[:6]).max() < 1e-10
        np.testing.assert_allclose(ours.eigenvalues, values[6:14], rtol=1e-8)
    assert len(pc.molecules.normal_modes(x[:4], 6, cutoff=99.0)) == 6  # all there are


def test_a_thousand_atoms_take_seconds(rng):
    x = _globule(1000, rng)
    started = time.process_time()
    pc.molecules.normal_modes(x, 10, cutoff=12.0)
    assert time.process_time() - started < 10


def test_thermal_amplitudes_are_those_of_equipartition(modes):
    """Half a k_B T in each mode; a softer spring moves further; kelvin of z follow."""
    q = modes.thermal(250.0)
    energy = 0.5 * modes.spring * modes.eigenvalues * q**2
    np.testing.assert_allclose(energy, 0.5 * BOLTZMANN * 250.0)
    soft = pc.molecules.normal_modes(OPEN, 6, cutoff=10.0, spring=0.25)
    np.testing.assert_allclose(soft.thermal(), 2 * modes.thermal())
    np.testing.assert_allclose(modes.stiffness(), 300.0)
    np.testing.assert_allclose(modes.stiffness(2.0), 1200.0)
    same = 3.0 / modes.thermal()  # 3 Å a unit of z, along each
    np.testing.assert_allclose(modes.scales(same), 3.0)
    np.testing.assert_allclose(
        modes.stiffness(same), 9 * modes.eigenvalues / BOLTZMANN, rtol=1e-12
    )


def test_the_boltzmann_prior_is_that_of_the_energy(modes):
    """ln p(z | T) is the network's own energy over k_B T, up to a constant."""
    few = modes.take([0, 2])
    amplitude = np.array([3.0, 0.7])
    prior = boltzmann(few, amplitude)
    z = torch.randn(5, 2, dtype=torch.float64)
    flat = few.vectors.reshape(2, -1)
    moved = (z.numpy() * few.scales(amplitude)) @ flat
    energy = 0.5 * np.einsum("ni,ni->n", moved, (hessian(OPEN, cutoff=10.0) @ moved.T).T)
    for kelvin in (150.0, 300.0):
        log_prob = prior(torch.full((5,), kelvin)).log_prob(z.float()).double().numpy()
        total = log_prob + energy / (BOLTZMANN * kelvin)
        np.testing.assert_allclose(total - total.mean(), 0, atol=1e-3)


def test_colder_particles_move_less(modes):
    """The prior and the molecule together make particles of several temperatures."""
    few = modes.take([0, 1])
    particles = pc.simulate.temperature(
        pc.molecules.Elastic(few, amplitude=2.0),
        n=4000,
        prior=boltzmann(few, 2.0),
        temperatures=[300.0, 100.0],
        box=8,
        pixel_size=12.0,
    )
    for kelvin in (300.0, 100.0):
        z = particles.truth[particles.temperature == kelvin]
        np.testing.assert_allclose(z.var(axis=0), kelvin / 1200, rtol=0.15)


def test_what_each_mode_moves_is_told_by_its_atoms(modes):
    from pyrocryo.identify.slopes import Latents
    from pyrocryo.identify.supports import supports

    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(3), volume, 24, rotate=False)
    draw = torch.randn(20, 3)
    found = supports(pair, Latents(draw, torch.ones(20, 3), draw, torch.ones(3), parts=[]))
    assert found.what == "atoms"
    far = np.linalg.norm(modes.vectors[:3], axis=-1)
    expected = (far >= 0.1 * far.max(axis=1, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(found.share, expected, atol=0.01)


def test_the_molecule_moves_along_its_modes(modes):
    molecule = pc.molecules.Elastic(modes.take([1, 3]), amplitude=5.0)
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.5]], dtype=torch.float64)
    moved = molecule.centres(z).numpy() - OPEN
    expected = np.tensordot(z.numpy() * molecule.scale, modes.vectors[[1, 3]], axes=1)
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    assert np.linalg.norm(moved[1]) == pytest.approx(5 * modes.thermal()[1])


def test_the_volume_shows_what_the_molecule_shows(modes, rng):
    few = modes.take([0, 1])
    width, weight = rng.uniform(3, 5, 214), rng.uniform(0.5, 2, 214)
    weight[7] = 0.0
    looks = {"amplitude": 4.0, "width": width, "weight": weight}
    molecule = pc.molecules.Elastic(few, **looks)
    # of more modes, as many are used as z has numbers
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, **looks).build(2, 32)
    z = torch.randn(4, 2)
    rotation = torch.as_tensor(pc.rotations.random_in_space((4,), rng), dtype=torch.float32)
    shift = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 1.0], [2.0, 2.0]])
    images = volume(z, rotation, shift).detach()
    expected = molecule.render(z, rotation, 3 * shift, box=32, pixel_size=3.0)
    torch.testing.assert_close(images, expected * (images.sum() / expected.sum()))
    torch.testing.assert_close(volume.structure(z), molecule.centres(z), atol=1e-4, rtol=1e-5)
    assert volume.stiffness == pytest.approx([4800.0] * 6)
    assert volume.density(z).shape == (4, 32, 32, 32)


def test_maps_move_with_the_atoms(modes):
    """The centre of mass of the map's change is where the atoms went."""
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0, width=3.0).build(1, 32)
    z = torch.tensor([[0.0], [1.0]])
    with torch.no_grad():
        maps = volume.density(z).double()
        r = torch.arange(32).double() - 16
        second = torch.stack(
            [(m * r[None, None, :] ** 2).sum() / m.sum() for m in maps]
        )  # of x, pixels²
        atoms = volume.centres(z)[..., 0].double().square().mean(dim=-1)
    assert float(second[1] - second[0]) == pytest.approx(float(atoms[1] - atoms[0]), rel=1e-3)


def test_the_pair_is_sound(modes):
    molecule = pc.molecules.Elastic(modes.take([0, 1]), amplitude=4.0)
    particles = pc.simulate.poses(molecule, n=60, box=20, pixel_size=5.0)
    volume = pc.volumes.NormalModes(modes, pixel_size=5.0, amplitude=4.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 20, rotate=False)
    assert "capture" in pc.testing.check_pair(pair, particles)


LEARNED = [
    {"rest": True},
    {"stretch": True},
    {"whole": True},
    {"rest": True, "whole": True, "hidden": ()},
    {"rest": True, "whole": True, "hidden": (8,)},
]


@pytest.mark.parametrize("learned", LEARNED, ids=str)
def test_what_is_learned_starts_at_the_first_modes(modes, learned):
    """At the reference and along the modes, or near; and all of it has a gradient."""
    torch.manual_seed(0)
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0, **learned).build(2, 32)
    plain = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0).build(2, 32)
    z = torch.randn(40, 2)
    far = (volume.structure(z) - plain.structure(z)).detach().square().sum(-1).mean().sqrt()
    still = (plain.structure(z) - plain.structure(0 * z)).square().sum(-1).mean().sqrt()
    most = {None: 1e-5, (): 0.4, (8,): 1.0}[volume.hidden]  # Å
    assert far.item() < most < 1.5 < still.item()
    (volume.centres(z) * torch.randn(214, 3)).sum().backward()
    own = [n for n, _ in volume.named_parameters() if n not in LOOKS]
    assert own
    assert all(volume.get_parameter(name).grad.abs().sum() > 0 for name in own)


LOOKS = ("brightness", "background", "log_width", "log_height")


def test_modes_are_axes_until_they_are_combined(modes):
    given = pc.volumes.NormalModes(modes, pixel_size=2.0, rest=True, stretch=True).build(2, 32)
    assert given.axes == "the motion along one normal mode"
    assert pc.volumes.NormalModes(modes, pixel_size=2.0, hidden=()).build(2, 32).axes is None


def test_rest_and_combinations_go_along_the_modes(modes):
    """Amplitudes that the volume tells are those of the atoms, superposed or not."""
    learned = {"amplitude": [1.0, 2, 3, 4, 5, 6], "rest": True, "stretch": True, "hidden": ()}
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, **learned).build(2, 32)
    with torch.no_grad():
        for parameter in (volume.constant, volume.mixing, volume.log_factor):
            parameter.normal_(std=0.05)
        z = torch.randn(5, 2)
        q = volume.amplitudes(z).double().numpy()
        moved = volume.structure(z).double().numpy()
    assert volume.factor.item() != 1.0
    expected = OPEN + np.tensordot(q * volume.scale, modes.vectors, axes=1)
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    found = pc.molecules.amplitudes(modes, moved, learned["amplitude"])
    np.testing.assert_allclose(found, q, atol=1e-4)


def test_the_whole_turns_and_shifts_with_the_modes(modes):
    """Frames of a part: what is left of a motion seen from three atoms goes to 0."""
    from pyrocryo.volumes.modes import rigid

    flat = rigid(OPEN).reshape(6, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(modes.vectors.reshape(6, -1) @ flat.T, 0, atol=1e-9)
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, whole=True).build(1, 32)
    some = [10, 80, 200]
    first, turns = modes.vectors[0] * volume.scale[0], volume.basis[-6:].double().numpy() * 3.0
    goal = np.linalg.lstsq(turns[:, some].reshape(6, -1).T, -first[some].ravel(), rcond=None)[0]
    with torch.no_grad():
        volume.mixing.copy_(torch.as_tensor(goal)[:, None] / 5.0)
    moved = volume.structure(torch.ones(1, 1))[0].detach().numpy() - OPEN
    left = np.linalg.norm(first[some]), np.linalg.norm(moved[some])
    assert left[1] < 0.5 * left[0]
    assert np.linalg.norm(moved) > np.linalg.norm(first)
    torch.testing.assert_close(volume.amplitudes(torch.ones(1, 1))[0, 0], torch.tensor(1.0))


@pytest.mark.parametrize("learned", LEARNED, ids=str)
def test_seeds_of_learned_motions_train_together(modes, learned, caplog):
    """Traced, and stacked: each seed goes where it goes alone."""
    molecule = pc.molecules.Elastic(modes.take([0, 1]), amplitude=4.0)
    particles = pc.simulate.poses(molecule, n=60, box=16, pixel_size=6.0)
    volume = pc.volumes.NormalModes(modes, pixel_size=6.0, amplitude=4.0, **learned)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 16, guide=pc.guides.GaussNewton(2))
    assert "capture" in pc.testing.check_pair(pair, particles)
    told = {"steps": 4, "batch_size": 20}
    both = pc.fit(pair, particles, seeds=[0, 1], **told).pairs
    alone = pc.fit(pair, particles, seeds=[1], **told).pairs[0]
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert not warned  # such as that seeds train one after another
    for (name, p), q in zip(both[1].named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    if learned.get("hidden") is not None:
        mixed = [dict(p.volume.named_parameters()) for p in both]
        name = "mixing" if learned["hidden"] == () else "network.0.weight"
        assert (mixed[0][name] - mixed[1][name]).abs().max() > 1e-3


def test_those_who_resume_are_told_the_modes(modes):
    said = {
        repr(pc.volumes.NormalModes(some, pixel_size=2.0, amplitude=a))
        for some in (modes, modes.take([0, 2]), modes.take([2, 0]))
        for a in (1.0, 2.0)
    }
    assert len(said) == 6
    learned = [pc.volumes.NormalModes(modes, pixel_size=2.0, **how) for how in LEARNED]
    assert len({repr(volume) for volume in learned} | said) == 6 + len(LEARNED)


def test_two_modes_are_recovered(modes):
    """Poses known: conformations nearly as well as could be known, structures within 1.5 Å."""
    molecule = pc.molecules.Elastic(modes.take([0, 1]), amplitude=4.0)
    particles = pc.simulate.poses(molecule, n=300, box=32, pixel_size=3.0, snr=0.5, seed=0)
    prior = pc.priors.IsotropicNormal(2)
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0)
    pair = pc.Pair(prior, volume, 32, rotate=False, guide=pc.guides.GaussNewton())
    fit = pc.fit(pair, particles, steps=120, batch_size=32)
    with torch.no_grad():
        z = fit.pairs[0].posterior_of(particles.batch(np.arange(300))).mean
        moved = fit.pairs[0].volume.structure(z)
    true = molecule.centres(torch.as_tensor(particles.truth, dtype=torch.float32))
    some = np.arange(60)
    bound = _r2(
        particles.truth[some], pc.simulate.information_limit(molecule, particles.take(some), prior)
    )
    assert (_r2(particles.truth, z.numpy()) > bound - 0.15).all()
    far = ((moved - true) ** 2).sum(-1).mean(-1).sqrt()
    still = ((torch.as_tensor(OPEN) - true) ** 2).sum(-1).mean(-1).sqrt()
    assert float(far.median()) < 1.5 < 3.0 < float(still.median())


def test_combinations_about_another_mean_are_recovered():
    """Hinges from the open form, poses of the CORE: mean and motions, with ten modes."""
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=300, box=32, pixel_size=3.0, snr=1.0, seed=0)
    modes = pc.molecules.normal_modes(OPEN, 10)
    learned = {"rest": True, "whole": True, "hidden": ()}
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, amplitude=4.0, **learned)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 32, guide=pc.guides.GaussNewton())
    fit = pc.fit(pair, particles, steps=150, batch_size=32)
    with torch.no_grad():
        z = fit.pairs[0].posterior_of(particles.batch(np.arange(300))).mean
        moved = fit.pairs[0].volume.structure(z)
    true = molecule.centres(torch.as_tensor(particles.truth, dtype=torch.float32))
    far = ((moved - true) ** 2).sum(-1).mean(-1).sqrt()
    still = ((torch.as_tensor(OPEN) - true) ** 2).sum(-1).mean(-1).sqrt()
    assert float(far.median()) < 1.8 < 2.8 < float(still.median())
    design = np.column_stack([np.ones(300), z.numpy()])
    guess = design @ np.linalg.lstsq(design, particles.truth, rcond=None)[0]
    assert (_r2(particles.truth, guess) > [0.5, 0.7]).all()


def _r2(truth, found):
    return 1 - ((truth - found) ** 2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)


FAR = np.vstack([OPEN[:100], OPEN[:100] + 500.0])
TIP = OPEN[np.linalg.norm(OPEN, axis=1).argmax()]
TAIL = np.vstack([OPEN, TIP * (1 + 9.0 / np.linalg.norm(TIP))])  # held by one or two


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.molecules.normal_modes(OPEN[:, :2]), r"positions: .* got shape \(214, 2\)"),
        (lambda: pc.molecules.normal_modes(OPEN[:2]), "positions: a network needs at least 3"),
        (lambda: hessian(np.vstack([OPEN, OPEN[:1]])), "positions: atoms 0 and 214 are in the"),
        (lambda: hessian(OPEN, cutoff=0), "cutoff: expected a positive"),
        (lambda: hessian(OPEN, law="cubic"), "law: expected 'constant' or"),
        (lambda: pc.molecules.normal_modes(OPEN, 0), "n: 214 atoms have 636 modes, asked for 0"),
        (lambda: pc.molecules.normal_modes(OPEN, spring=-1), "spring: expected a positive"),
        (lambda: pc.molecules.normal_modes(FAR), "cutoff: at 15 Å the network falls into 2 parts"),
        (
            lambda: pc.molecules.normal_modes(TAIL, cutoff=9.5),
            r"cutoff: at 9.5 Å, \d+ motions cost nothing instead of six",
        ),
    ],
)
def test_wrong_networks_are_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: m.take([6]), r"which: expected modes 0 to 5, got \[6\]"),
        (lambda m: pc.molecules.Elastic(m, amplitude=0), "amplitude: expected a positive factor"),
        (lambda m: pc.molecules.Elastic(m, amplitude=[1, 2]), "one for each of 6 modes"),
        (lambda m: pc.molecules.Elastic(m, width=0), "width: expected a positive number"),
        (lambda m: pc.molecules.Elastic(m, weight=np.ones(3)), r"weight: .* got shape \(3,\)"),
        (
            lambda m: pc.molecules.Elastic(m).centres(torch.zeros(2)),
            "z: expected 6 modes on the last axis, got 2",
        ),
        (lambda m: pc.volumes.NormalModes(m, pixel_size=0), "pixel_size: expected a positive"),
        (
            lambda m: pc.volumes.NormalModes(m, pixel_size=2).build(7, 32),
            "dim: there are 6 modes, z has 7 numbers",
        ),
        (
            lambda m: pc.volumes.NormalModes(m, pixel_size=0.1).build(2, 32),
            "positions: .* of 214 atoms are outside of the box",
        ),
    ],
)
def test_wrong_use_is_named(make, message, modes):
    with pytest.raises(pc.InputError, match=message):
        make(modes)
