import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.rotations import angle_between, vector_from_matrix

SHAPES = ("laplace", "student", "jump", "gaussian")


class Still:
    """A molecule that always looks the same, and costs nothing to draw."""

    def __init__(self, dim=2, spatial=2):
        self.dim, self.spatial = dim, spatial

    def render(self, z, rotation, shift, *, box, pixel_size):
        return torch.arange(float(box**2)).reshape(1, box, box).expand(len(z), box, box)


def _times(n=30_000, dim=2, **options):
    return pc.simulate.time_resolved(Still(dim), n, options.pop("seed", 0), box=2, **options)


def _excess(x):
    x = x - x.mean()
    return (x**4).mean() / (x**2).mean() ** 2 - 3


def _uniform(rng, shape):
    return rng.uniform(-np.sqrt(3), np.sqrt(3), size=shape)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("steps", [*SHAPES, _uniform])
def test_steps_have_one_variance_and_their_kurtosis(steps, correlation):
    particles = _times(100_000, steps=steps, boundary="free", correlation=correlation)
    step = np.diff(particles.truth, axis=1)
    # the sample variance of Student's t with 3 degrees converges slowly, so its quartiles go too
    assert step.var() == pytest.approx(0.5, rel=0.1 if steps == "student" else 0.03)
    quartile = np.quantile(np.abs(step), 0.5) / np.sqrt(0.5)
    excess = {"laplace": 3, "jump": 9.72, "gaussian": 0, _uniform: -1.2}
    middle = {
        "laplace": np.log(2) / np.sqrt(2),
        "student": 0.7649 / np.sqrt(3),
        "gaussian": 0.6745,
        _uniform: np.sqrt(3) / 2,
    }
    if steps in middle:
        assert quartile == pytest.approx(middle[steps], rel=0.015)
    if steps in excess:
        assert _excess(step) == pytest.approx(excess[steps], abs=0.02 + 0.06 * excess[steps] ** 2)
    else:
        assert _excess(step) > 6


def test_jumps_come_as_often_as_said():
    particles = _times(steps="jump", boundary="free", interval=(0.5, 1.5), scale=1.0)
    gap = np.diff(particles.time, axis=1)[:, 0]
    step = np.diff(particles.truth, axis=1)[:, 0]
    for low, high in ((0.5, 0.7), (1.3, 1.5)):
        chosen = (gap > low) & (gap < high)
        mean = gap[chosen].mean()
        assert step[chosen].var() == pytest.approx(2 * mean, rel=0.05)
        assert _excess(step[chosen]) == pytest.approx(9.72 / mean, rel=0.15)
        # what is left of the small steps: no jump with probability exp(-r t), by their density
        small = np.abs(step[chosen]) < 0.1 * np.sqrt(mean)
        alone = np.exp(-0.25 * mean) * 0.1769  # P(|N(0, .2)| < .1)
        assert alone < small.mean() < alone + 0.02


def test_the_priors_of_these_steps_fit_them_best():
    def nats(prior, z):
        return float(prior.log_prob(torch.as_tensor(z, dtype=torch.float32)).mean())

    def jump(factor):
        small, large = factor * 0.447 * 0.3, factor * 2.72 * 0.3
        return pc.priors.JumpTransition(2, 0.25, small=small, large=large)

    jumps = _times(steps="jump", boundary="free", scale=0.3).truth
    laplace = _times(boundary="free", scale=0.3).truth
    assert nats(jump(1.0), jumps) > max(nats(jump(f), jumps) for f in (0.9, 1.1))
    right = pc.priors.LaplaceTransition(2, 1 / 0.3)
    assert nats(right, laplace) > nats(jump(1.0), laplace)
    assert nats(jump(1.0), jumps) > nats(right, jumps)


@pytest.mark.parametrize("steps", SHAPES)
def test_ar_has_unit_variance_at_all_times(steps):
    z = _times(steps=steps, boundary="ar", frames=8, scale=0.4, interval=(0.2, 1.8)).truth
    if steps == "student":  # no fourth moment: its sample variance hardly converges
        np.testing.assert_allclose(z.std(axis=(0, 2)), 1, atol=0.15)
    else:
        np.testing.assert_allclose(z.var(axis=(0, 2)), 1, atol=0.03)
    if steps == "laplace":
        regular = _times(boundary="ar", frames=12, scale=0.5).truth
        assert _excess(regular[:, 0]) == pytest.approx(0, abs=0.05)
        assert _excess(regular[:, -1]) == pytest.approx(1, abs=0.15)
        before, after = regular[:, -2], regular[:, -1]
        assert np.corrcoef(before[:, 0], after[:, 0])[0, 1] == pytest.approx(0.5**0.5, abs=0.01)
        assert (after - before).var() == pytest.approx(2 * (1 - 0.5**0.5), rel=0.02)


@pytest.mark.parametrize(
    ("frames", "scale", "everywhere", "last"),
    [(2, 0.5, 1.19, 1.39), (8, 0.5, 1.98, 2.61), (8, 0.1, 1.055, 1.119)],
)
def test_what_is_reflected_widens(frames, scale, everywhere, last):
    z = _times(frames=frames, scale=scale).truth
    assert np.abs(z).max() <= 3
    assert z.var() == pytest.approx(everywhere, rel=0.02)
    assert z[:, -1].var() == pytest.approx(last, rel=0.02)


def test_free_walks_widen_as_they_should():
    z = _times(frames=5, scale=0.5, boundary="free").truth
    np.testing.assert_allclose(z.var(axis=(0, 2)), 1 + 0.5 * np.arange(5), rtol=0.03)


def test_uneven_gaps_scale_the_steps():
    particles = _times(100_000, frames=3, interval=(0.2, 2.0), boundary="free", scale=0.3)
    assert particles.time.shape == (100_000, 3)
    assert (particles.time[:, 0] == 0).all()
    gap = np.diff(particles.time, axis=1)
    assert gap.min() >= 0.2
    assert gap.max() <= 2.0
    unit = np.diff(particles.truth, axis=1) / np.sqrt(2 * 0.09 * gap / 1.1)[..., None]
    for chosen in (gap < 0.5, gap > 1.7):
        assert unit[chosen].var() == pytest.approx(1, rel=0.05)
        assert _excess(unit[chosen]) == pytest.approx(3, abs=0.6)


@pytest.mark.parametrize("steps", [*SHAPES, _uniform])
def test_dependent_components(steps):
    def rank_correlation(z):
        ranks = z.argsort(axis=0).argsort(axis=0)
        return np.corrcoef(ranks.T)[0, 1]

    z = _times(steps=steps, boundary="free", correlation=0.8).truth
    expected = 6 / np.pi * np.arcsin(0.4)  # Spearman's of a Gaussian copula
    assert rank_correlation(z[:, 0]) == pytest.approx(expected, abs=0.01)
    if steps != "jump":  # number and size each have their copula
        assert rank_correlation(z[:, 1] - z[:, 0]) == pytest.approx(expected, abs=0.01)
    one = _times(1000, 3, steps=steps, frames=4, correlation=1.0).truth
    np.testing.assert_array_equal(one, one[..., :1].repeat(3, axis=-1))
    apart = _times(steps=steps, boundary="free").truth
    assert abs(rank_correlation(apart[:, 1] - apart[:, 0])) < 0.02


def test_poses_that_turn():
    plane = _times(20_000, frames=3, turn=8.0, interval=(0.5, 1.5))
    angles = np.rad2deg(vector_from_matrix(plane.rotation[:, 1:] @ plane.rotation[:, :-1].mT))
    assert np.abs(angles[..., :2]).max() < 1e-9
    gap = np.diff(plane.time, axis=1)
    unit = angles[..., 2] / np.sqrt(gap)
    assert np.abs(unit).mean() == pytest.approx(8, rel=0.03)
    assert _excess(unit) == pytest.approx(3, abs=0.5)
    space = pc.simulate.time_resolved(Still(2, 3), 20_000, frames=3, turn=8.0, box=2)
    turned = angle_between(space.rotation[:, :-1], space.rotation[:, 1:])
    assert np.rad2deg(turned).mean() == pytest.approx(8, rel=0.03)
    assert np.rad2deg(angle_between(space.rotation[:-1, 0], space.rotation[1:, 0])).mean() > 120
    fresh = _times(2000)
    apart = angle_between(fresh.rotation[:, 0], fresh.rotation[:, 1])
    assert np.rad2deg(apart).mean() == pytest.approx(90, abs=5)


@pytest.mark.parametrize(
    ("lag", "excess"), [(0.02, 0.033), (0.1, 0.505), (0.5, 2.101), (2.0, 0.222)]
)
def test_langevin_steps_in_a_double_well(lag, excess):
    particles = pc.simulate.langevin(
        Still(1), 25_000, energies=pc.priors.DoubleWell(2.0), lag=lag, box=2
    )
    step = np.diff(particles.truth, axis=1)
    assert _excess(step) == pytest.approx(excess, abs=0.1)
    np.testing.assert_allclose(particles.truth.var(axis=(0, 2)), 1, atol=0.02)


def test_langevin_steps_long_after_a_hop():
    particles = pc.simulate.langevin(
        Still(1), 8_000, energies=pc.priors.DoubleWell(2.0), lag=5.0, box=2
    )
    assert _excess(np.diff(particles.truth, axis=1)) == pytest.approx(-0.627, abs=0.06)


def test_langevin_stays_in_equilibrium():
    wells = (pc.priors.DoubleWell(2.0, tilt=0.5), pc.priors.Harmonic(4.0))
    options = {"energies": wells, "lag": (0.1, 0.7), "temperature": 0.8, "diffusion": 0.5}
    particles = pc.simulate.langevin(Still(2), 20_000, frames=3, box=2, **options)
    assert particles.truth.shape == (20_000, 3, 2)
    z = particles.truth
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(z.var(axis=0), 1, atol=0.03)
    y = np.linspace(-3, 3, 2001)
    density = np.exp(-wells[0](torch.tensor(y)).numpy() / 0.8)
    density /= density.sum()
    mean = density @ y
    sd = np.sqrt(density @ (y - mean) ** 2)
    for t in range(3):
        share = (z[:, t, 0] * sd + mean > 0).mean()
        assert share == pytest.approx(density[y > 0].sum(), abs=0.01)
        assert _excess(z[:, t, 1]) == pytest.approx(0, abs=0.1)
    # harmonic: an Ornstein-Uhlenbeck process of relaxation time T / (D k) = .4
    gap = np.diff(particles.time, axis=1)
    kept = np.exp(-gap / 0.4)
    innovation = (z[:, 1:, 1] - kept * z[:, :-1, 1]) / np.sqrt(1 - kept**2)
    assert innovation.var() == pytest.approx(1, rel=0.03)


def test_single_shots_relax_each_component_by_itself():
    times, tau = (0.0, 0.3, 1.0, 3.0, 9.0), np.array([0.5, 2.0])
    particles = pc.simulate.single_shot(
        Still(2), 50_000, times=times, relaxation=tau, start=(1.5, -1.0), spread=0.3, box=2
    )
    assert particles.frames is None
    assert particles.time.shape == (50_000,)
    natural = []
    for t in times:
        z = particles.truth[particles.time == t]
        assert len(z) == 10_000
        left = np.exp(-t / tau)
        mean, variance = np.array([1.5, -1.0]) * left, 1 - (1 - 0.3**2) * left**2
        np.testing.assert_allclose(z.mean(axis=0), mean, atol=0.03)
        np.testing.assert_allclose(z.var(axis=0), variance, rtol=0.06)
        natural.append([*mean / variance, *1 / variance])
    spread = np.array(natural[1:]) - natural[0]
    assert np.linalg.matrix_rank(spread / spread.std(axis=0), tol=1e-3) == 4
    assert len(set(pc.simulate.single_shot(Still(3), 100, box=2).time)) == 8


def test_tilt_pairs_show_one_conformation():
    fresh = pc.simulate.tilt_pairs(Still(2), 500, frames=3, box=2)
    assert fresh.truth.shape == (500, 3, 2)
    assert (fresh.truth == fresh.truth[:, :1]).all()
    assert "time" not in fresh.fields
    assert (angle_between(fresh.rotation[:, 0], fresh.rotation[:, 1]) > 0.001).all()
    tilted = pc.simulate.tilt_pairs(Still(2, 3), 500, frames=3, tilt=20.0, box=2)
    turn = np.rad2deg(vector_from_matrix(tilted.rotation[:, 1:] @ tilted.rotation[:, :1].mT))
    np.testing.assert_allclose(turn[:, 0], [[0, 20, 0]] * 500, atol=1e-6)
    np.testing.assert_allclose(turn[:, 1], [[0, 40, 0]] * 500, atol=1e-6)
    assert (tilted.shift[:, 0] != tilted.shift[:, 1]).all()


SMALL = {
    "irregular": lambda seed: _times(20, seed=seed, interval=(1, 2), steps="jump", turn=5.0),
    "dependent": lambda seed: _times(20, seed=seed, correlation=0.5, steps=_uniform),
    "langevin": lambda seed: pc.simulate.langevin(
        Still(1), 20, seed, energies=lambda y: y**4, lag=0.1, box=2
    ),
    "single": lambda seed: pc.simulate.single_shot(Still(2), 20, seed, box=2),
    "tilted": lambda seed: pc.simulate.tilt_pairs(Still(2), 20, seed, box=2),
}


@pytest.mark.parametrize("kind", SMALL)
def test_same_seed_same_particles(kind):
    one, same, other = (SMALL[kind](seed).digest() for seed in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize(
    ("kind", "options", "truth", "rotation", "pixels"),
    [
        ("poses", {"ctf": True}, (1.136047, 0.109706), (-0.95344, 0.301584), (0.53863, 0.9966)),
        (
            "time_resolved",
            {"scale": 0.25},
            (1.226913, -0.079571),
            (0.999039, 0.043824),
            (0.29759, 0.02289),
        ),
        (
            "time_resolved",
            {"scale": 1.0, "frames": 8, "interval": 2.0},
            (0.958575, -0.260169),
            (-0.296645, -0.954988),
            (1.52073, 3.99048),
        ),
        ("temperature", {}, (0.109706, -0.552647), (-0.999987, -0.005177), (3.10628, 1.34451)),
    ],
)
def test_old_seeds_give_what_they_always_gave(kind, options, truth, rotation, pixels):
    made = getattr(pc.simulate, kind)(pc.molecules.TwoArms(), 3, 5, box=8, **options)
    np.testing.assert_allclose(made.truth[-1].ravel()[-2:], truth, atol=1e-5)
    np.testing.assert_allclose(made.rotation[-1].ravel()[-9:-7], rotation, atol=1e-5)
    np.testing.assert_allclose(made.images[-1].ravel()[-2:], pixels, atol=1e-4)


def test_long_trajectories_are_saved_and_loaded(tmp_path):
    molecule = pc.molecules.TwoArms()
    long = pc.simulate.time_resolved(
        molecule, 6, frames=8, interval=(0.5, 2.0), steps="jump", box=8, ctf=True
    )
    shots = pc.simulate.single_shot(molecule, 12, box=8)
    for name, made in (("long", long), ("shots", shots)):
        pc.io.save(made, tmp_path / f"{name}.star")
        back = pc.io.load(tmp_path / f"{name}.star")
        assert back.frames == made.frames
        np.testing.assert_array_equal(back.raw(np.arange(len(back))), made.images)
        for field in made.fields:
            np.testing.assert_allclose(back.fields[field], made.fields[field], atol=1e-4)
    stored = pc.io.load(tmp_path / "long.star").windows(2)
    rows = np.array([0, 41, 7])
    expected, found = long.windows(2).batch(rows), stored.batch(rows)
    for field in expected._fields:
        np.testing.assert_allclose(
            getattr(found, field), getattr(expected, field), rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pc.simulate.time_resolved(m, 1, steps="levy"), "steps: expected one of"),
        (
            lambda m: pc.simulate.time_resolved(m, 1, steps=lambda rng, shape: np.zeros(3)),
            "steps: expected finite numbers of shape",
        ),
        (lambda m: pc.simulate.time_resolved(m, 1, boundary="wall"), "boundary: expected one of"),
        (lambda m: pc.simulate.time_resolved(m, 1, boundary="ar", scale=0.71), "scale: an ar"),
        (lambda m: pc.simulate.time_resolved(m, 1, correlation=-0.1), "correlation: expected"),
        (lambda m: pc.simulate.time_resolved(m, 1, interval=0), "interval: expected a positive"),
        (lambda m: pc.simulate.time_resolved(m, 1, interval=(1, 2, 3)), "interval: expected"),
        (lambda m: pc.simulate.time_resolved(m, 1, interval=(2, 1)), "shortest first"),
        (lambda m: pc.simulate.time_resolved(m, 1, turn=0), "turn: expected a positive"),
        (lambda m: pc.simulate.single_shot(m, 1, times=(-1,)), "times: expected seconds"),
        (lambda m: pc.simulate.single_shot(m, 1, relaxation=(1,)), "relaxation: expected 2"),
        (lambda m: pc.simulate.single_shot(m, 1, start=(1, 2, 3)), "start: expected one"),
        (lambda m: pc.simulate.single_shot(m, 1, spread=0), "spread: expected a positive"),
        (lambda m: pc.simulate.tilt_pairs(m, 1, frames=1), "frames: .* at least 2"),
        (lambda m: pc.simulate.tilt_pairs(m, 1, tilt=20), "tilt: only a molecule in space"),
        (
            lambda m: pc.simulate.tilt_pairs(pc.molecules.Arms3D(2), 1, tilt=200),
            "tilt: expected degrees",
        ),
        (
            lambda m: pc.simulate.langevin(m, 1, energies=[torch.square], lag=1),
            "energies: expected 2 functions",
        ),
        (
            lambda m: pc.simulate.langevin(m, 1, energies=lambda y: 1.0, lag=1),
            r"energies\[0\]: expected a finite energy",
        ),
        (
            lambda m: pc.simulate.langevin(m, 1, energies=lambda y: 0.1 * y**2, lag=1),
            r"energies\[0\]: does not confine",
        ),
        (
            lambda m: pc.simulate.langevin(m, 1, energies=torch.square, lag=-1),
            "lag: expected a positive",
        ),
        (
            lambda m: pc.simulate.langevin(m, 1, energies=torch.square, lag=1, temperature=0),
            "temperature: expected a positive",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(pc.InputError, match=message):
        call(pc.molecules.TwoArms())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _times(9, interval=("a", "b")), "interval: expected numbers"),
        (lambda: _times(9, frames=2.5), "frames: expected a whole number"),
        (lambda: _times(9, scale=np.inf), "scale: expected"),
        (lambda: _times(9, frames=3).windows(2.5), "frames: expected 2 to 3"),
        (lambda: pc.simulate.tilt_pairs(Still(), 9, frames=2.5), "frames: expected a whole"),
        (lambda: pc.simulate.single_shot(Still(), 9, times=1.0), "times: expected seconds"),
        (lambda: pc.simulate.single_shot(Still(), 9, relaxation=1.0), "relaxation: expected 2"),
        (lambda: pc.simulate.single_shot(Still(), 9, start="a"), "start: expected numbers"),
        (
            lambda: pc.simulate.langevin(Still(), 9, energies=torch.square, lag="a"),
            "lag: expected numbers",
        ),
        (
            lambda: pc.simulate.langevin(Still(), 9, energies=lambda x, y: x, lag=1.0),
            r"energies\[0\]: .*missing 1 required",
        ),
    ],
)
def test_what_is_no_number_is_named(call, message):
    with pytest.raises(pc.InputError, match=message):
        call()


def test_a_contrast_for_each_molecule_goes_with_its_windows(pairs_in_time):
    three = pc.simulate.time_resolved(pc.molecules.TwoArms(), 6, frames=3, box=8)
    cut = three.having(contrast=np.arange(6.0)).windows(2)
    np.testing.assert_array_equal(cut.contrast, np.repeat(np.arange(6.0), 2))
