"""Every volume shows what it holds: images are projections of the map, and each learns."""

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.imaging import resample, resample_projection, splat, splat_map
from pyrocryo.poses import turn


def _rotations(dim, n, rng):
    draw = pc.rotations.random_in_space if dim == 3 else pc.rotations.random_in_plane
    return torch.as_tensor(draw((n,), rng), dtype=torch.float32)


def _smooth(volume):
    """Makes an untrained volume vary slowly, so that interpolating its map is exact enough."""
    if isinstance(volume, pc.volumes.Implicit):
        volume.waves *= 0.3
    return volume


VOLUMES = {
    "grid": lambda dim: pc.volumes.Grid(dim),
    "linear grid": lambda dim: pc.volumes.Grid(dim, hidden=()),
    "implicit": lambda dim: pc.volumes.Implicit(dim, side=40 if dim == 3 else None),
    "atoms": lambda dim: pc.volumes.Atoms(pixel_size=2.0, dim=dim),
    "linear modes": lambda dim: pc.volumes.Atoms(
        12 * torch.rand(9, dim) - 6, pixel_size=2.0, width=5.0, hidden=()
    ),
}
CASES = [(name, dim, box) for name in VOLUMES for dim in (2, 3) for box in (16, 15)]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]} {c[1]}-D {c[2]} px")
def case(request):
    name, dim, box = request.param
    torch.manual_seed(1)
    return _smooth(VOLUMES[name](dim).build(2, box)), dim, box


def test_shapes(case, rng):
    volume, dim, box = case
    z = torch.randn(3, 4, 2)
    rotation, shift = _rotations(dim, 4, rng), torch.zeros(4, 2)
    with torch.no_grad():
        assert volume(z, rotation, shift).shape == (3, 4, box, box)
        assert volume.density(z).shape == (3, 4, *[volume.side] * dim)
        assert volume.density(z[0, 0]).shape == tuple([volume.side] * dim)
    assert volume.numbers_an_image >= box**2


def test_images_are_projections_of_the_map(case, rng):
    """Rotation, shift, axis order and units of maps and images belong together."""
    volume, dim, box = case
    n = 5
    z, rotation = torch.randn(n, 2), _rotations(dim, n, rng)
    shift = torch.as_tensor(rng.uniform(-1.5, 1.5, (n, 2)), dtype=torch.float32)
    with torch.no_grad():
        if isinstance(volume, pc.volumes.Grid):  # untrained, it is white noise: blur it
            volume.network[-1].weight *= 0
            volume.network[-1].bias.copy_(
                pc.volumes.Atoms(pixel_size=1.0, dim=dim, count=5).build(2, box)
                .density(torch.zeros(2)).ravel()
            )  # fmt: skip
        images = volume(z, rotation, shift)
        project = resample if dim == 2 else resample_projection
        expected = project(volume.density(z), rotation, shift, box=box)
    r = np.arange(box) - box // 2
    core = torch.as_tensor(np.hypot(r[:, None], r) < box / 2 - 2.5)
    for a, b in zip(images, expected, strict=True):
        assert np.corrcoef(a[core], b[core])[0, 1] > 0.93
        if not isinstance(volume, pc.volumes.Implicit):
            assert float(a[core].std() / b[core].std()) == pytest.approx(1, abs=0.2)


def test_a_linear_grid_is_linear_and_learns_bright_images(rng):
    """Voxels far from 0 are within reach of an ordinary learning rate."""
    torch.manual_seed(0)
    volume = pc.volumes.Grid(hidden=()).build(2, 16)
    z = torch.randn(64, 2)
    first, second, middle = volume.density(torch.cat([torch.eye(2), torch.zeros(1, 2)]))
    expected = middle + z[:, 0, None, None] * (first - middle)
    expected = expected + z[:, 1, None, None] * (second - middle)
    torch.testing.assert_close(volume.density(z), expected, atol=1e-4, rtol=1e-4)
    images = 12 * torch.randn(16, 16) + 3 * torch.einsum("nk,kyx->nyx", z, torch.randn(2, 16, 16))
    optimiser = torch.optim.Adam(volume.parameters(), lr=4e-3)
    for _ in range(1000):
        optimiser.zero_grad()
        error = (volume.density(z) - images).square().mean()
        error.backward()
        optimiser.step()
    assert error < 0.01 * images.var()


def test_fewer_pixels_are_the_same_pixels(rng):
    for dim in (2, 3):
        volume = pc.volumes.Implicit(dim).build(2, 12)
        z, rotation, shift = torch.randn(3, 2), _rotations(dim, 3, rng), torch.zeros(3, 2)
        pixels = torch.tensor([5, 100, 77])
        with torch.no_grad():
            some = volume(z, rotation, shift, pixels)
            every = volume(z, rotation, shift).flatten(1)
        torch.testing.assert_close(some, every[:, pixels], atol=1e-5, rtol=1e-4)


def test_a_share_of_the_pixels_gives_the_whole_loss_on_average(pairs_in_time):
    from pyro.infer import TraceMeanField_ELBO

    torch.manual_seed(0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Implicit(pixels=64), 32)
    batch = pairs_in_time.batch(np.arange(4))
    elbo = TraceMeanField_ELBO()
    losses = {}
    for mode in (True, False):
        pair.train(mode)
        with torch.no_grad():
            losses[mode] = np.array([elbo.loss(pair.model, pair.guide, batch) for _ in range(150)])
    some, every = losses[True], losses[False]
    error = np.sqrt(some.var() / 150 + every.var() / 150)
    assert abs(some.mean() - every.mean()) < 5 * error
    assert some.std() > every.std()


def test_a_map_of_gaussians_projects_to_their_image():
    centres = torch.tensor([[3.0, -5.0, 8.0], [-9.0, 2.0, 0.0]])
    width, weight = torch.tensor([6.0, 5.0]), torch.tensor([1.0, 2.0])
    volume = splat_map(centres, width, weight, side=32, voxel_size=2.0)
    image = splat(centres, width, weight, box=32, pixel_size=2.0)
    torch.testing.assert_close(volume.sum(0), image, atol=1e-3, rtol=1e-3)


def test_atoms_of_a_known_molecule_show_it(rng):
    molecule = pc.molecules.AdenylateKinase()
    volume = pc.volumes.Atoms.known(molecule, pixel_size=2.0).build(2, 40)
    z, rotation = torch.randn(3, 2), _rotations(3, 3, rng)
    shift = torch.tensor([[0.0, 0.0], [2.0, -1.0], [1.0, 1.0]])
    images = volume(z, rotation, shift).detach()
    expected = molecule.render(z, rotation, 2.0 * shift, box=40, pixel_size=2.0)
    ratio = images / expected
    bright = expected > 0.1 * expected.max()
    torch.testing.assert_close(ratio[bright], ratio[bright].mean().expand(bright.sum()))
    assert sum(p.numel() for p in volume.parameters()) == 2


@pytest.mark.parametrize("molecule", [pc.molecules.TwoArms, pc.molecules.AdenylateKinase])
def test_known_molecules_can_be_captured(molecule):
    """No copy between devices at every call, nothing that the host waits for."""
    particles = pc.simulate.poses(molecule(), n=60, box=24, pixel_size=4.0)
    volume = pc.volumes.Atoms.known(molecule(), pixel_size=4.0)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 24, rotate=False)
    assert "capture" in pc.testing.check_pair(pair, particles)


@pytest.mark.parametrize("kind", ["grid", "implicit", "atoms"])
def test_each_learns_and_swaps_by_one_word(kind, pairs_in_time):
    pair = pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), pc.volumes.of_kind(kind, pairs_in_time), 32
    )
    fit = pc.fit(pair, pairs_in_time, steps=60, batch_size=32)
    loss = fit.history["loss"][0]
    assert loss[-10:].mean() < loss[:10].mean() - 20


def test_seeds_start_elsewhere_and_atoms_from_their_reference():
    volume = pc.volumes.Atoms(torch.zeros(4, 2), pixel_size=1.0).build(2, 8)
    with torch.no_grad():
        volume.log_width += 1
        before = volume.displacement[0].weight.clone()
    for module in volume.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not volume.log_width.any()
    assert not torch.equal(volume.displacement[0].weight, before)


def _narrow(box, dim=3, count=40, **more):
    """Atoms of 1 pixel, spread over the box."""
    draw = torch.Generator().manual_seed(0)
    reference = 2.0 * 0.7 * box * (torch.rand(count, dim, generator=draw) - 0.5)
    return pc.volumes.Atoms(reference, pixel_size=2.0, width=2.0, **more).build(2, box)


def test_narrow_atoms_in_a_large_box_use_windows(rng):
    """And the images are the same to 4e-6 of each atom's height."""
    assert pc.volumes.Atoms(pixel_size=2.0).build(2, 64).widest is None
    assert _narrow(88).widest is None
    volume = _narrow(90)
    assert volume.widest == pytest.approx(1.5)
    z, rotation = torch.randn(5, 2), _rotations(3, 5, rng)
    shift = torch.as_tensor(rng.uniform(-9, 9, (5, 2)), dtype=torch.float32)
    windows = volume(z, rotation, shift).detach()
    volume.widest = None
    dense = volume(z, rotation, shift).detach()
    height = float(volume.first_height.sum())
    assert 0 < float((windows - dense).abs().max()) < 4e-6 * height


def test_widths_keep_the_promise_of_windows():
    """Below 1.5 times the first, free to shrink, and at first as without the bound."""
    volume = _narrow(128)
    with torch.no_grad():
        volume.log_width.copy_(torch.linspace(-1, 10, volume.count))
        width, _ = volume._shape()
    assert float(width.max()) <= volume.widest * (1 + 1e-6)
    assert bool((width.diff() >= 0).all())
    assert float(width[0]) == pytest.approx(np.exp(-5), rel=1e-5)
    volume.reset_parameters()
    (slope,) = torch.autograd.grad(volume._shape()[0].sum(), volume.log_width)
    assert torch.equal(volume._shape()[0], volume.first_width)
    torch.testing.assert_close(slope, 5.0 * volume.first_width)
    wide = _narrow(64)
    with torch.no_grad():
        wide.log_width += 1
        assert float(wide._shape()[0].max()) == pytest.approx(np.exp(5), rel=1e-5)


def test_atoms_of_a_known_molecule_use_windows_of_their_own_width():
    molecule = pc.molecules.AdenylateKinase()
    volume = pc.volumes.Atoms.known(molecule, pixel_size=4.0).build(2, 128)
    assert volume.widest == pytest.approx(float(molecule.width.max()) / 4)


def test_which_form_images_take_is_told_to_those_who_resume():
    assert "widest=1.5" in _narrow(128).extra_repr()
    assert "widest" not in _narrow(64).extra_repr()


def test_a_step_with_windows_can_be_traced(rng):
    """Loss and gradients of the model with make_fx, no value on its way to the host."""
    volume = _narrow(90, count=6)
    rotation = _rotations(3, 4, rng)
    inputs = dict(volume.named_parameters())

    def step(free, z):
        images = torch.func.functional_call(volume, free, (z, rotation, torch.zeros(4, 2)))
        return torch.autograd.grad(images.square().mean(), list(free.values()))

    learned = {name: p for name, p in inputs.items() if p.requires_grad}
    graph = torch.fx.experimental.proxy_tensor.make_fx(step)(learned, torch.randn(4, 2))
    z = torch.randn(4, 2)
    for a, b in zip(graph(learned, z), step(learned, z), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dim", [2, 3])
def test_atoms_without_a_reference_fill_the_box_evenly(dim):
    volume = pc.volumes.Atoms(pixel_size=1.0, dim=dim, count=100).build(2, 32)
    distance = torch.cdist(volume.start, volume.start) + 99 * torch.eye(100)
    assert volume.start.norm(dim=-1).max() <= 16
    assert volume.start.mean(0).abs().max() < 1.5
    assert distance.min(-1).values.min() > 0.3 * distance.min(-1).values.mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pc.volumes.Implicit(4), "dim: an implicit volume has 2 or 3"),
        (lambda: pc.volumes.Implicit(pixels=0), "pixels: expected at least 1"),
        (lambda: pc.volumes.Atoms(pixel_size=0), "pixel_size: expected a positive"),
        (lambda: pc.volumes.Atoms(pixel_size=1, width=-1), "width: expected a positive"),
        (lambda: pc.volumes.Atoms([1.0, 2.0], pixel_size=1), r"reference: .* got \(2,\)"),
        (lambda: pc.volumes.Atoms(pixel_size=1, dim=5), "dim, count: expected 2 or 3"),
        (
            lambda: pc.volumes.Atoms.known(pc.molecules.TwoArms(), pixel_size=1).build(3, 8),
            "dim: the molecule moves in 2 ways, z has 3",
        ),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


def test_particles_must_go_with_the_volume(rng):
    tilted = pc.rotations.matrix_from_euler(np.full((8, 3), 30.0))
    particles = pc.Particles(rng.standard_normal((8, 8, 8)), rotation=tilted)
    for volume, message in (
        (pc.volumes.Implicit(2), "a 2-D implicit volume"),
        (pc.volumes.Atoms(pixel_size=1.0), "a 2-D set of atoms"),
        (pc.volumes.Atoms(pixel_size=2.0), "pixel_size: the particles have 1 Å/px, the atoms"),
    ):
        with pytest.raises(pc.InputError, match=message):
            pc.Pair(pc.priors.IsotropicNormal(2), volume, 8).check(particles)


def test_gauss_newton_finds_the_posterior_of_a_linear_volume(rng):
    """With linear images the guide is exact: N(Λ⁻¹ Jᵀ x, Λ⁻¹)."""
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=12, box=24, pixel_size=4.0)

    class Linear(torch.nn.Module):
        dim, side = 3, 24

        def __init__(self):
            super().__init__()
            self.base = torch.nn.Parameter(torch.randn(2, 24, 24))

        def build(self, latent, box):
            return self

        def forward(self, z, rotation, shift):
            return torch.einsum("...k,kyx->...yx", z, self.base)

    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), Linear(), 24, guide=pc.guides.GaussNewton(), noise=1.0
    )
    batch = particles.batch(np.arange(12))
    q = pair.posterior_of(batch)
    jacobian = pair.volume.base.detach().flatten(1)
    precision = torch.eye(2) + jacobian @ jacobian.T
    mean = torch.linalg.solve(precision, jacobian @ batch.images.flatten(1).T).T
    torch.testing.assert_close(q.mean.detach(), mean, atol=1e-4, rtol=1e-3)
    covariance = q.scale_tril @ q.scale_tril.transpose(-1, -2)
    torch.testing.assert_close(
        covariance[0].detach(), torch.linalg.inv(precision), atol=1e-6, rtol=1e-3
    )


def test_gauss_newton_finds_the_hinges():
    molecule = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(molecule, n=80, box=48, pixel_size=2.0)
    volume = pc.volumes.Atoms.known(molecule, pixel_size=2.0)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2), volume, 48, guide=pc.guides.GaussNewton(), rotate=False
    )
    fit = pc.fit(pair, particles, steps=40, batch_size=24, lr=2e-2)
    with torch.no_grad():
        z = fit.pairs[0].posterior_of(particles.batch(np.arange(80))).mean.numpy()
    best = pc.simulate.information_limit(
        molecule, particles.take(np.arange(20)), pc.priors.IsotropicNormal(2)
    )
    assert pc.metrics.mcc(particles.truth, z).value > 0.9
    assert np.abs(z[:20] - best).mean() < 0.15


def test_turn_matches_the_simulator():
    """A flat volume turned by the latent pose is what the simulator turns by the angle."""
    molecule = pc.molecules.TwoArms()
    z, angle = torch.zeros(1, 2), torch.tensor([0.7])
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    volume = pc.volumes.Atoms.known(molecule, pixel_size=3.0).build(2, 32)
    seen = volume(z, turn(direction), torch.zeros(1, 2)).detach()
    rotation = torch.as_tensor(pc.rotations.in_plane([0.7]), dtype=torch.float32)
    expected = molecule.render(z, rotation, torch.zeros(1, 2), box=32, pixel_size=3.0)
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.9999


@pytest.mark.benchmark
def test_what_a_training_step_costs(pairs_in_time):
    """Printed: a step with each volume, in units of a step with the grid, side by side."""
    import time

    from pyro.infer import TraceMeanField_ELBO

    batch = pairs_in_time.batch(np.arange(64))
    volumes = {
        "grid": pc.volumes.Grid(),
        "implicit, 256 pixels": pc.volumes.Implicit(),
        "implicit, all 1024": pc.volumes.Implicit(pixels=None),
        "64 atoms": pc.volumes.Atoms(pixel_size=3.0),
    }
    pairs = {
        name: pc.Pair(pc.priors.LaplaceTransition(2, 2.0), volume, 32)
        for name, volume in volumes.items()
    }
    elbo, spent = TraceMeanField_ELBO(), {name: [] for name in pairs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(6):
        for name, pair in pairs.items():
            started = time.perf_counter()
            elbo.differentiable_loss(pair.model, pair.guide, batch).backward()
            spent[name].append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    median = {name: np.median(times[1:]) for name, times in spent.items()}
    for name, seconds in median.items():
        print(f"{name:22s}{1e3 * seconds:8.1f} ms {seconds / median['grid']:6.1f} x grid")
    assert all(np.isfinite(seconds) for seconds in median.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda x: pc.volumes.Atoms(x, pixel_size=3.0),
        lambda x: pc.volumes.RigidBodies(x, np.arange(len(x)) // 100, pixel_size=3.0),
        lambda x: pc.volumes.Deformation(x, pixel_size=3.0),
        lambda x: pc.volumes.NormalModes(pc.molecules.normal_modes(x, 4), pixel_size=3.0),
    ],
    ids=["atoms", "bodies", "flow", "modes"],
)
def test_structures_as_read_are_told_to_be_outside_of_the_box(make):
    x = pc.molecules.AdenylateKinase().ca_open
    make(x).build(2, 32)
    with pytest.raises(pc.InputError, match="214 of 214 atoms are outside of the box"):
        make(x + [150.0, 0, 0]).build(2, 32)


def test_voxels_of_a_map_are_no_chain():
    density = np.zeros((16, 16, 16))
    density[5:11, 5:11, 5:11] = 1.0
    volume = pc.volumes.Deformation.of_map(density, 3.8, pixel_size=3.8, points=4)
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 16)
    with pytest.raises(pc.InputError, match="Bonds needs atoms in the order of a chain"):
        pc.penalties.Bonds().check(pair)
