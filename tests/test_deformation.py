import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import pyrocryo as pc
from pyrocryo.chain import bond_lengths
from pyrocryo.volumes.deformation import control_points

PIXEL = 3.0


@pytest.fixture(scope="module")
def adk():
    return pc.molecules.AdenylateKinase()


def flowing(positions, *, size=1.0, latent=2, seed=0, dtype=torch.float64, **options):
    """A volume whose field is as strong as after training, or `size` times that."""
    torch.manual_seed(seed)
    volume = pc.volumes.Deformation(positions, pixel_size=PIXEL, **options).build(latent, 32)
    for module in volume.field:
        if hasattr(module, "weight"):
            torch.nn.init.normal_(module.weight, 0, size / module.weight.shape[1] ** 0.5)
    return volume.to(dtype)


def draws(n=4, latent=2):
    return torch.randn(n, latent, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(move, points):
    """Jacobians `(n, 3, 3)` of a map of points that treats each apart."""
    return torch.vmap(torch.func.jacrev(lambda r: move(r[None])[0]))(points)


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_z_of_0_starts_as_the_reference_and_moves_from_there(adk, hidden):
    volume = pc.volumes.Deformation(adk.ca_open, pixel_size=PIXEL, hidden=hidden).build(2, 32)
    z = torch.zeros(2, requires_grad=True)
    structure = volume.structure(z)
    torch.testing.assert_close(structure.double(), torch.as_tensor(adk.ca_open))
    rotation, shift = torch.eye(3), torch.zeros(2)
    by_z = torch.autograd.functional.jacobian(lambda z: volume(z, rotation, shift), z)
    assert (by_z.flatten(0, 1).norm(dim=0) > 1e-3 * volume(z, rotation, shift).norm()).all()
    went = (volume.structure(torch.eye(2)) - structure).norm(dim=-1)
    assert 0.1 < went.mean() < 5.0  # Å
    with torch.no_grad():
        volume.rest += 0.05
    assert (volume.structure(z) - structure).norm(dim=-1).min() > 0.1  # the reference adapts
    volume.reset_parameters()
    torch.testing.assert_close(volume.structure(z), structure)


@pytest.mark.parametrize("incompressible", [False, True])
def test_the_field_is_what_the_formula_says(adk, incompressible):
    volume = flowing(adk.ca_open, incompressible=incompressible, hidden=(), points=7)
    z, r = draws(1)[0], torch.as_tensor(adk.ca_open[:5])
    w = volume.length * volume.first * volume.field(z).unflatten(-1, (7, 3))

    def kernels(x):
        s = (x - torch.as_tensor(volume.control)) / volume.length
        return s, (-0.5 * s.square().sum(-1, keepdim=True)).exp()

    def potential(x):
        s, kernel = kernels(x)
        return (0.5 * volume.length * kernel * torch.linalg.cross(w, s)).sum(0)

    if incompressible:
        j = torch.vmap(torch.func.jacrev(potential))(r)
        ahead, across = [1, 2, 0], [2, 0, 1]
        expected = j[:, across, ahead] - j[:, ahead, across]
    else:
        expected = torch.stack([(kernels(x)[1] * w).sum(0) for x in r])
    torch.testing.assert_close(volume.velocity(r, z), expected, atol=1e-6, rtol=1e-6)


def test_an_incompressible_flow_keeps_volumes(adk):
    z, r = draws(1)[0], torch.as_tensor(adk.ca_open[::6])
    free, kept = (flowing(adk.ca_open, incompressible=i, steps=2, size=2.0) for i in (False, True))
    for volume in (free, kept):
        slope = gradients(lambda x, v=volume: v.velocity(x, z), r)
        volume.divergence = slope.diagonal(dim1=-2, dim2=-1).sum(-1)
        volume.grown = torch.linalg.det(gradients(lambda x, v=volume: v.carried(x, z), r))
        went = (volume.carried(r, z) - r).norm(dim=-1)
        assert went.max() > 5.0  # Å
    assert kept.divergence.abs().max() < 1e-12 < 0.1 < free.divergence.abs().max()
    assert (kept.grown - 1).abs().max() < 5e-3
    assert (free.grown - 1).abs().max() > 0.3
    assert free.grown.min() > 0  # never folded
    # the error is that of the integration: of fourth order
    fine = flowing(adk.ca_open, incompressible=True, steps=8, size=2.0)
    off = torch.linalg.det(gradients(lambda x: fine.carried(x, z), r)) - 1
    assert off.abs().max() < (kept.grown - 1).abs().max() / 50


@pytest.mark.parametrize("incompressible", [False, True])
def test_the_flow_is_inverted(adk, incompressible):
    z, r = draws(), torch.as_tensor(adk.ca_open)
    off = []
    for steps in (1, 4):
        told = {"incompressible": incompressible, "steps": steps, "size": 2.0}
        volume = flowing(adk.ca_open, **told)
        there = volume.carried(r, z)
        again = volume.carried(there, z, back=True)
        went = (there - r).norm(dim=-1).max()
        assert went > 10.0  # Å
        off.append((again - r).norm(dim=-1).max() / went)
    assert off[0] < 0.1
    assert off[1] < off[0] / 50  # of fourth order


def test_bonds_stretch_no_more_than_the_bound(adk):
    """exp of the integral of the largest stretch, taken along the way of a bond's atoms."""
    volume = flowing(adk.ca_open, steps=20, size=1.5)
    r, z = torch.as_tensor(adk.ca_open), draws(1)[0]
    long = bond_lengths(volume.carried(r, z)) / bond_lengths(r)
    rates, here = [], r
    for part in torch.arange(20) / 20:  # fields are steady: a step of the flow is a shorter one
        ends = torch.stack([here[:-1], (here[:-1] + here[1:]) / 2, here[1:]])
        slope = gradients(lambda x: volume.velocity(x, z), ends.flatten(0, 1))
        rates.append(torch.linalg.matrix_norm(slope, 2).unflatten(0, (3, -1)).amax(0))
        here = here + volume.velocity(here, z) / 20
        del part
    bound = torch.stack(rates).mean(0).exp()
    assert long.max() > 1.2
    assert (long < 1.02 * bound).all()
    assert (long > 0.98 / bound).all()


@pytest.mark.parametrize("incompressible", [False, True])
def test_where_a_structure_lies_and_how_it_is_turned_does_not_matter(adk, incompressible):
    turn = Rotation.random(random_state=3).as_matrix()
    by = np.array([12.0, -9.0, 4.0])
    volume = flowing(adk.ca_open, incompressible=incompressible, hidden=())
    other = flowing(adk.ca_open @ turn.T + by, incompressible=incompressible, hidden=())
    turn, by = torch.as_tensor(turn), torch.as_tensor(by)
    assert other.length == pytest.approx(volume.length, rel=1e-6)
    with torch.no_grad():
        old = volume.field[0].weight.unflatten(0, (-1, 3))
        new = torch.einsum("ij,njk->nik", turn, old).flatten(0, 1)
        other.field[0].weight.copy_(new)
    z = draws()
    expected = volume.structure(z) @ turn.T + by
    torch.testing.assert_close(other.structure(z), expected, atol=2e-5, rtol=0)


def test_control_points_are_spread_and_always_the_same(adk):
    found = control_points(adk.ca_open, 32)
    assert np.array_equal(found, control_points(adk.ca_open, 32))
    to_nearest = np.linalg.norm(adk.ca_open[:, None] - found, axis=-1).min(axis=1)
    draw = np.random.default_rng(0).choice(214, 32, replace=False)
    by_chance = np.linalg.norm(adk.ca_open[:, None] - adk.ca_open[draw], axis=-1).min(axis=1)
    assert (to_nearest**2).mean() < 0.7 * (by_chance**2).mean()
    few = np.repeat(np.eye(3), 4, axis=0)
    assert len(control_points(few, 32)) == 3


def a_map(adk, side=32, voxel=3.0):
    atoms = pc.volumes.Atoms.known(adk, pixel_size=voxel).build(2, side)
    return atoms.density(torch.zeros(2)).detach().numpy()


def test_a_map_at_rest_is_the_map(adk):
    density = a_map(adk)
    volume = pc.volumes.Deformation.of_map(density, 3.0, pixel_size=3.0).build(2, 32)
    found = volume.density(torch.zeros(2)).detach().numpy()
    assert volume.count <= 2000
    assert np.corrcoef(found.ravel(), density.ravel())[0, 1] > 0.99
    # axes and units: other voxels, other pixels and a lump off the centre
    finer = a_map(adk, 48, 2.0)
    volume = pc.volumes.Deformation.of_map(finer, 2.0, pixel_size=3.0, most=800).build(2, 32)
    found = volume.density(torch.zeros(2)).detach().numpy()
    assert volume.count <= 800
    assert np.corrcoef(found.ravel(), density.ravel())[0, 1] > 0.98


def test_what_a_map_weighs_is_kept(adk):
    volume = flowing_map(adk)
    z = 0.3 * draws(5).float()
    went = (volume.structure(z) - volume.structure(torch.zeros(2))).norm(dim=-1)
    assert went.max() > 3.0
    maps = volume.density(torch.cat([torch.zeros(1, 2), z])).sum((1, 2, 3))
    torch.testing.assert_close(maps, maps[:1].expand(6), rtol=1e-3, atol=0)


def flowing_map(adk):
    torch.manual_seed(0)
    told = {"pixel_size": 3.0, "threshold": 0.2 * a_map(adk).max(), "most": 300, "hidden": ()}
    volume = pc.volumes.Deformation.of_map(a_map(adk), 3.0, **told).build(2, 32)
    torch.nn.init.normal_(volume.field[0].weight, 0, 1.0)
    return volume.requires_grad_(False)


def fitted(adk, volume, particles, reference, **options):
    """Where a reference is in the first 200 particles `(200, A, 3)`, and linear R² of truth."""
    guide = pc.guides.GaussNewton(2)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, particles.box, guide=guide)
    settings = {"steps": 100, "batch_size": 32, "lr": 2e-2, "progress": False}
    fit = pc.fit(pair, particles, **settings, **options)
    with torch.no_grad():
        z = fit.pairs[0].posterior_of(particles.batch(np.arange(200))).mean
        u = z @ fit.pairs[0].rotation()
        reference = torch.as_tensor(reference, dtype=torch.float32)
        found = fit.pairs[0].volume.carried(reference, u).double()
    columns = np.c_[z, np.ones(200)]
    truth = particles.truth[:200]
    rest = truth - columns @ np.linalg.lstsq(columns, truth, rcond=None)[0]
    return fit, found, 1 - rest.var(0) / truth.var(0)


def test_hinges_are_found_and_restraints_keep_bonds(adk):
    particles = pc.simulate.poses(adk, n=600, seed=0, box=24, pixel_size=4.0, snr=2.0)
    true = adk.centres(torch.as_tensor(particles.truth[:200], dtype=torch.float64))

    def off(structure):  # Å
        return (structure - true).square().sum(-1).mean(-1).sqrt().median()

    torn = []
    for given in ((), (pc.penalties.Bonds(0.005),)):
        volume = pc.volumes.Deformation(adk.ca_open, pixel_size=4.0)
        fit, found, r2 = fitted(adk, volume, particles, adk.ca_open, penalties=given)
        assert (r2 > [0.5, 0.75]).all()  # .73 and .88 under the true decoder
        assert off(found) < 0.75 * off(torch.as_tensor(adk.ca_open))
        torn.append(pc.diagnose.stereochemistry(fit, particles).bond_99[0])
    assert torn[1] < 0.8 * torn[0]


def test_a_map_that_is_carried_finds_the_hinges(adk):
    """Conformations, that is: how density slides within itself no image shows."""
    particles = pc.simulate.poses(adk, n=600, seed=0, box=24, pixel_size=4.0, snr=2.0)
    volume = pc.volumes.Deformation.of_map(a_map(adk, 24, 4.0), 4.0, pixel_size=4.0, most=300)
    _, _, r2 = fitted(adk, volume, particles, adk.centres(torch.zeros(2)))
    assert (r2 > [0.45, 0.75]).all()  # .73 and .88 under the true decoder


def test_all_gradients_are_right(adk):
    positions = adk.ca_open[::30]
    volume = flowing(positions, points=4, incompressible=True, hidden=(3,), length=15.0)
    z = draws(2).requires_grad_()
    names, values = zip(*volume.named_parameters(), strict=True)

    def made(z, *values):
        pose = torch.eye(3, dtype=z.dtype), torch.zeros(2, dtype=z.dtype)
        told = dict(zip(names, values, strict=True))
        return torch.func.functional_call(volume, told, (z, *pose))[:, ::8, ::8]

    assert torch.autograd.gradcheck(made, (z, *values), atol=1e-5)


@pytest.mark.parametrize("kind", ["residues", "map"])
def test_traced_stacked_and_in_bfloat16(adk, kind, caplog):
    caplog.set_level("INFO", "pyrocryo")
    particles = pc.simulate.poses(adk, n=40, seed=0, box=16, pixel_size=6.0)
    given = {"pixel_size": 6.0, "hidden": (16,), "points": 8}
    if kind == "map":
        given |= {"threshold": 0.2 * a_map(adk, 16, 6.0).max(), "incompressible": True}
        volume = pc.volumes.Deformation.of_map(a_map(adk, 16, 6.0), 6.0, **given)
    else:
        volume = pc.volumes.Deformation(adk.ca_open, **given)
    guide = pc.guides.Amortised((16,))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 16, guide=guide, rotate=False)
    settings = {"steps": 4, "batch_size": 8, "progress": False, "seeds": 2}
    python = pc.fit(pair, particles, capture=False, **settings).history["loss"]
    assert np.isfinite(python).all()
    assert (python[0] != python[1]).all()
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **settings)
        np.testing.assert_allclose(fit.history["loss"], python, rtol=1e-5)
    assert "2 seeds at once" in caplog.text
    rounded = pc.fit(pair, particles, precision="bf16", **settings).history["loss"]
    np.testing.assert_allclose(rounded, python, rtol=0.1)


def test_fields_are_not_rounded_in_bfloat16(adk):
    volume = flowing(adk.ca_open, dtype=torch.float32)
    z = draws().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = volume.structure(z)
    torch.testing.assert_close(found, volume.structure(z))


def test_what_is_told_to_those_who_resume(adk):
    a = pc.volumes.Deformation(adk.ca_open, pixel_size=PIXEL, points=20, length=12.0)
    assert "points=20, length=12, steps=1" in a.extra_repr()
    b = pc.volumes.Deformation(adk.ca_open, pixel_size=PIXEL, incompressible=True)
    assert "incompressible" in b.extra_repr()
    assert a.build(2, 32).numbers_an_image > 32**2 + 214 * 20


def test_particles_must_have_the_pixel_size(adk):
    particles = pc.simulate.poses(adk, n=4, seed=0, box=16, pixel_size=6.0)
    volume = pc.volumes.Deformation(adk.ca_open, pixel_size=3.0)
    with pytest.raises(pc.InputError, match="pixel_size: the particles have 6"):
        pc.Pair(pc.priors.IsotropicNormal(2), volume, 16).check(particles)


def test_bad_input_is_refused(adk):
    make, of_map = pc.volumes.Deformation, pc.volumes.Deformation.of_map
    x, d = adk.ca_open, np.zeros((4, 4, 4))
    d[2, 2, 2] = 1.0
    for wrong, said in (
        (lambda: make(x[:, :2], pixel_size=1.0), r"positions: expected \(A, 3\) in Å"),
        (lambda: make(np.nan * x, pixel_size=1.0), "positions: expected finite"),
        (lambda: make(x, pixel_size=0.0), "pixel_size: expected a positive"),
        (lambda: make(x, pixel_size=1.0, points=0), "points: expected at least 1"),
        (lambda: make(x, pixel_size=1.0, length=-3.0), "length: expected a positive"),
        (lambda: make(x, pixel_size=1.0, steps=0), "steps: expected at least 1"),
        (lambda: make(x, pixel_size=1.0, width=[1.0, 2.0]), "width: expected a positive number"),
        (
            lambda: make(x + 500, pixel_size=1.0).build(2, 32),
            "214 of 214 atoms are outside of the box",
        ),
        (lambda: of_map(d[0], 1.0, pixel_size=1.0), r"density: .* got shape \(4, 4\)"),
        (lambda: of_map(np.where(d > 0, np.nan, 0.0), 1.0, pixel_size=1.0), "density: "),
        (lambda: of_map(d, 0.0, pixel_size=1.0), "voxel_size: expected a positive number"),
        (lambda: of_map(d, 1.0, pixel_size=1.0, threshold=2.0), "threshold: .* which is 1, got 2"),
        (lambda: of_map(-d, 1.0, pixel_size=1.0), "threshold: expected"),
        (lambda: of_map(d, 1.0, pixel_size=1.0, most=0), "most: expected at least 1"),
    ):
        with pytest.raises(pc.InputError, match=said):
            wrong()
