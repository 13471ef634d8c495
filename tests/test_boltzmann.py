"""Boltzmann priors of free energies: entropies, heat capacities, tilts, errors of labels."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

import pyrocryo as pc
from pyrocryo.context import wanted
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.testing import check_prior

Boltzmann, Conditional, DoubleWell, Harmonic, LearnedEnergy, SingleWell = (
    pc.priors.Boltzmann,
    pc.priors.Conditional,
    pc.priors.DoubleWell,
    pc.priors.Harmonic,
    pc.priors.LearnedEnergy,
    pc.priors.SingleWell,
)
BOX = 16
TAU = torch.tensor([180.0, 240.0, 300.0, 350.0])
LIGAND = torch.tensor([0.0, 1.0, 2.0, 0.5])
WELLS = {"energies": (DoubleWell(3.0, tilt=0.2), Harmonic(1.0)), "reference": 300.0}
STANDARD = 290.0


def bound(z):
    return torch.tanh(2 * z)


def room(z):
    return 0.7 * torch.cos(1.3 * z)


def heat(z):
    return 1.5 * torch.exp(-z.square())


def _full(**more):
    return Boltzmann(
        **WELLS,
        entropies=(room, None),
        heat_capacities=(heat, None),
        standard=STANDARD,
        tilts={"ligand": {0: bound, 1: None}},
        extent=8.0,
        nodes=384,
        **more,
    )


def _learned():
    torch.manual_seed(0)
    prior = Boltzmann(
        energies=(SingleWell(1.5), LearnedEnergy()),
        heat_capacities=(None, LearnedEnergy(0)),
        tilts={"ligand": {0: LearnedEnergy(0, bumps=6)}},
        reference=300.0,
    )
    for parameter in prior.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return prior


KELVIN, BOTH = {"temperature": TAU}, {"temperature": TAU, "ligand": LIGAND}
MADE = {
    "entropy": (lambda: Boltzmann(**WELLS, entropies=(room, None)), KELVIN),
    "heat capacity": (lambda: Boltzmann(**WELLS, heat_capacities=(heat, heat)), KELVIN),
    "everything": (_full, BOTH),
    "learned": (_learned, BOTH),
    "one temperature": (lambda: _full(temperature=300.0), {"ligand": LIGAND}),
    "no field": (lambda: Boltzmann((300.0, 100.0), temperature=250.0), {}),
    "error": (lambda: Boltzmann(**WELLS, temperature_error=15.0), KELVIN),
    "error of each": (
        lambda: _full(temperature_error="sd"),
        {**BOTH, "sd": torch.tensor([0.0, 5.0, 30.0, 40.0])},
    ),
    "error, harmonic": (lambda: Boltzmann((300.0, 100.0), temperature_error=9.0), KELVIN),
    "smooth": (
        lambda: Conditional("temperature", 2, mean=False, standard=(270.0, 50.0)), KELVIN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_every_check_passes(name):
    make, context = MADE[name]
    prior = make()
    assert sorted(wanted(prior)) == sorted(context)
    prior.check(**{field: value.numpy() for field, value in context.items()})
    found = check_prior(prior, context=context, dim=2, frames=2)
    exact = "closed form" if "error" not in name else "none registered"
    assert found["KL"].startswith(exact)


def _exponent(k, tau, ligand):
    """The law of component k up to its normalisation, as the derivation has it: U and S first."""
    energy = (DoubleWell(3.0, tilt=0.2), Harmonic(1.0))[k]
    tilt = (bound, lambda z: z)[k]

    def exponent(z):
        z = torch.as_tensor(z, dtype=torch.float64)
        capacity, entropy = (heat(z), room(z)) if k == 0 else (0 * z, 0 * z)
        inner = 300 * (energy(z) - ligand * tilt(z)) + capacity * (tau - STANDARD)
        disorder = entropy + capacity * math.log(tau / STANDARD)
        return (-(inner - tau * disorder) / tau).numpy()

    return exponent


@pytest.mark.parametrize(("tau", "ligand"), [(180.0, 0.0), (290.0, -1.0), (350.0, 1.5)])
def test_partition_against_adaptive_quadrature(tau, ligand):
    law = _full()(torch.tensor(tau).double(), ligand=torch.tensor(ligand).double())
    z = torch.linspace(-3, 3, 41, dtype=torch.float64)
    each = law.log_each(z[:, None].expand(-1, 2))
    for k in range(2):
        h = _exponent(k, tau, ligand)
        total, _ = integrate.quad(
            lambda s, h=h: np.exp(h(s)), -8, 8, epsabs=0, epsrel=1e-11, limit=400
        )
        assert float(law.log_partition[k]) == pytest.approx(math.log(total), abs=1e-6)
        np.testing.assert_allclose(each[:, k], h(z) - math.log(total), atol=1e-6)


def test_samples_follow_the_law_of_their_own_conditions():
    law = _full()(TAU, ligand=LIGAND)
    z = law.sample((20_000,)).numpy()
    grid = np.linspace(-8, 8, 20_001)
    for row, (tau, ligand) in enumerate(zip(TAU.tolist(), LIGAND.tolist(), strict=True)):
        for k in range(2):
            density = np.exp(_exponent(k, tau, ligand)(grid))
            mass = integrate.cumulative_trapezoid(density, grid, initial=0)
            values = np.interp(z[:, row, k], grid, mass / mass[-1])
            assert stats.kstest(values, "uniform").pvalue > 1e-3


def test_gradients_are_those_of_finite_differences():
    """In z, temperature, field, learned energy and tilt; of densities, KL and samples."""
    energy, tilt = LearnedEnergy(1.5, bumps=5), LearnedEnergy(0, bumps=5)
    prior = Boltzmann(
        energies=(energy, Harmonic(1.0)),
        heat_capacities=(heat, None),
        tilts={"ligand": {0: tilt, 1: None}},
        reference=300.0,
    ).double()
    del energy.height, tilt.height

    def run(tau, ligand, height, slope, loc):
        energy.__dict__["height"], tilt.__dict__["height"] = height, slope
        law = prior(tau, ligand=ligand)
        eye = torch.eye(2).double()
        torch.manual_seed(5)
        q = RotatedNormal(loc, 0.3 * eye, eye)
        return law.log_prob(loc), kl_divergence(q, law), law.rsample((3,))

    tau, ligand = torch.tensor([200.0, 300.0]).double(), torch.tensor([0.4, -0.3]).double()
    height, slope = 0.5 * torch.randn(2, 5, dtype=torch.float64)
    loc = torch.randn(2, 2, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (tau, ligand, height.clone(), slope.clone(), loc)]
    torch.autograd.gradcheck(run, inputs, eps=1e-4, atol=2e-4, rtol=1e-3)


def test_mean_energy_and_heat_capacity_are_derivatives_of_the_partition():
    r"""∂ ln Q / ∂(1/τ) = -E U, and d E U / dτ = E c + var U / τ² (k_B = 1)."""
    prior = Boltzmann(
        energies=(DoubleWell(3.0, tilt=0.5),),
        entropies=(room,),
        heat_capacities=(heat,),
        standard=STANDARD,
        reference=300.0,
        nodes=400,
    )
    z = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    inverse = torch.tensor([1 / 180, 1 / 290, 1 / 340], dtype=torch.float64, requires_grad=True)
    law = prior(1 / inverse)
    slope, *_ = torch.autograd.grad(law.log_partition.sum(), inverse, create_graph=True)
    curve, *_ = torch.autograd.grad(slope.sum(), inverse)
    with torch.no_grad():
        density = law.log_prob(z[:, None, None]).exp().T  # (3, n)
        tau = (1 / inverse)[:, None]
        u = 300 * DoubleWell(3.0, tilt=0.5)(z) + heat(z) * (tau - STANDARD)
        mean = torch.trapezoid(density * u, z)
        variance = torch.trapezoid(density * (u - mean[:, None]).square(), z)
        capacity = torch.trapezoid(density * heat(z), z)
    torch.testing.assert_close(-slope.detach(), mean, rtol=1e-6, atol=0)
    total = capacity + variance / tau[:, 0].square()
    # dE/dτ = -d(slope)/d(1/τ) · d(1/τ)/dτ = curve / τ²
    torch.testing.assert_close(curve / tau[:, 0].square(), total, rtol=1e-5, atol=0)


def _rank(prior, **fields):
    """Rank of the gradients of log-density contrasts between conditions, at random points."""
    z = torch.randn(20, 1, prior.dim, dtype=torch.float64).requires_grad_()
    law = prior.double()(**{name: torch.tensor(u).double() for name, u in fields.items()})
    log_p = law.log_prob(z.expand(-1, *law.batch_shape, -1)).unbind(-1)
    rows = [
        torch.autograd.grad((log - log_p[0]).sum(), z, retain_graph=True)[0] for log in log_p[1:]
    ]
    values = torch.linalg.svdvals(torch.cat(rows, dim=1))
    ranks = (values > 1e-7 * values[:, :1]).sum(-1)
    assert (ranks == ranks[0]).all()
    return int(ranks[0])


def test_ranks_are_those_of_theory():
    """Energies alone give rank 1, with entropies too; heat capacities 2; a knob each, one more."""
    kelvin = [180.0, 210.0, 240.0, 270.0, 300.0, 330.0]
    third = lambda z: z**4  # noqa: E731
    three = {"energies": (*WELLS["energies"], third), "reference": 300.0}
    assert _rank(Boltzmann(**WELLS), temperature=kelvin) == 1
    assert _rank(Boltzmann(**WELLS, entropies=(room, heat)), temperature=kelvin) == 1
    capacities = (heat, room, lambda z: z.square().cos())
    assert _rank(Boltzmann(**three, heat_capacities=capacities), temperature=kelvin) == 2
    one = Boltzmann(**WELLS, tilts={"ligand": {0: bound}})
    assert _rank(one, temperature=[300.0, 200.0, 300.0], ligand=[0.0, 0.0, 1.0]) == 2
    assert _rank(one, temperature=[300.0] * 3, ligand=[0.0, 1.0, 2.0]) == 1
    two = Boltzmann(**WELLS, tilts={"a": {0: None}, "b": {1: None}}, temperature=300.0)
    assert _rank(two, a=[0.0, 1.0, 0.0, 1.0], b=[0.0, 0.0, 1.0, 1.0]) == 2


def test_entropy_fills_wells_alike_at_every_temperature():
    """Two wells of one depth; one of them has ln 4 more entropy: four times as full, always."""
    prior = Boltzmann(
        energies=(DoubleWell(6.0),),
        entropies=(lambda z: math.log(4) * torch.sigmoid(40 * z),),
        reference=300.0,
    )
    for tau in (150.0, 250.0, 350.0):
        assert prior.profiles(tau)[0].populations[1] == pytest.approx(0.8, abs=2e-3)


def test_a_heat_capacity_that_is_the_same_everywhere_changes_nothing():
    z = torch.randn(7, 4, 2)
    with_it = Boltzmann(**WELLS, heat_capacities=(lambda z: 0 * z + 3, None))(TAU)
    torch.testing.assert_close(with_it.log_prob(z), Boltzmann(**WELLS)(TAU).log_prob(z))
    assert Boltzmann(**WELLS, heat_capacities=(heat, None))(TAU).log_prob(z).sub(
        with_it.log_prob(z)
    ).abs().max() > 0.05  # fmt: skip


def test_constants_change_nothing():
    """Offset gauge: of energies, entropies and tilts, in density, KL and samples."""

    def laws(constant):
        return Boltzmann(
            energies=(lambda z: z**4 + constant, lambda z: z.square() - 2 * constant),
            entropies=(lambda z: room(z) + constant, None),
            tilts={"ligand": {1: lambda z: z - constant}},
            reference=300.0,
        )(TAU, ligand=LIGAND)

    one, other = laws(0.0), laws(9.0)
    z, eye = torch.randn(5, 4, 2), torch.eye(2)
    torch.testing.assert_close(one.log_prob(z), other.log_prob(z), rtol=1e-4, atol=1e-4)
    q = RotatedNormal(torch.randn(4, 2), 0.4 * eye, eye)
    torch.testing.assert_close(kl_divergence(q, one), kl_divergence(q, other), atol=1e-4, rtol=0)
    drawn = []
    for law in (one, other):
        torch.manual_seed(3)
        drawn.append(law.sample((50,)))
    torch.testing.assert_close(*drawn, atol=1e-4, rtol=0)


def test_a_force_moves_a_harmonic_well():
    """exp(-(κ z²/2 - f z) r / τ) is N(f / κ, τ / (r κ))."""
    prior = Boltzmann(
        energies=(Harmonic(2.0), Harmonic(1.0)),
        tilts={"force": {0: None}},
        reference=300.0,
        temperature=200.0,
    )
    law = prior(force=torch.tensor([0.0, 1.0, -2.0]))
    normal = torch.distributions.Normal(
        torch.tensor([[0.0, 0.0], [0.5, 0.0], [-1.0, 0.0]]),
        (torch.tensor([1 / 2.0, 1.0]) * 200 / 300).sqrt(),
    )
    z = torch.randn(9, 3, 2)
    torch.testing.assert_close(law.log_prob(z), normal.log_prob(z).sum(-1), atol=1e-5, rtol=1e-5)
    warmer = prior(torch.full((3,), 300.0), force=torch.ones(3)).log_prob(z)
    normal = torch.distributions.Normal(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]).sqrt())
    torch.testing.assert_close(warmer, normal.log_prob(z).sum(-1), atol=1e-5, rtol=1e-5)


def test_labels_with_errors_mix_the_laws_around_them():
    """A harmonic well is linear in τ: the variance stays, and E z⁴ = 3 (τ² + s²) / κ²."""
    tau, sd = torch.tensor(300.0).double(), 40.0
    exact = Boltzmann((300.0,)).double()
    law = Boltzmann((300.0,), temperature_error=sd).double()(tau)
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = law.log_prob(z[:, None]).exp()
    moments = [float(torch.trapezoid(density * z**n, z)) for n in (0, 2, 4)]
    assert moments == pytest.approx([1, 1, 3 * (300**2 + sd**2) / 300**2], rel=1e-6)
    sample = law.sample((200_000,))[:, 0]
    assert float(sample.var()) == pytest.approx(1, rel=0.02)
    assert float((sample**4).mean()) == pytest.approx(moments[2], rel=0.05)
    each = Boltzmann((300.0,), temperature_error="sd").double()
    rows = each(tau.expand(2), sd=torch.tensor([0.0, sd]).double())
    torch.testing.assert_close(rows.log_prob(z[:, None, None])[:, 1], law.log_prob(z[:, None]))
    torch.testing.assert_close(
        rows.log_prob(z[:, None, None])[:, 0], exact(tau).log_prob(z[:, None])
    )


def test_convexity_bounds_the_kl_of_labels_with_errors_from_above():
    law = Boltzmann(**WELLS, temperature_error=60.0)(TAU[1:])
    eye = torch.eye(2)
    q = RotatedNormal(torch.randn(3, 2), torch.tensor([0.9, 0.3])[:, None] * eye, eye)
    with torch.no_grad():
        z = q.sample((200_000,))
        terms = q.log_prob(z) - law.log_prob(z)
        error = terms.std(0) / math.sqrt(len(z))
        wide = q.expand((3,)).loc.unsqueeze(1).expand(3, 5, 2)
        each = kl_divergence(RotatedNormal(wide, q.scale_tril.unsqueeze(1), eye), law.laws)
        above = (each * law.weights).sum(-1) - terms.mean(0)
    assert (above > -4 * error).all()
    assert (above > 4 * error).any()
    with pytest.raises(NotImplementedError):
        kl_divergence(q, law)


EXTREMES = {
    "zero": lambda shape: torch.zeros(shape),
    "high": lambda shape: torch.full(shape, 1e3),
    "low": lambda shape: torch.full(shape, -1e6),
    "edges": lambda shape: 1e6 * (2 * (torch.arange(shape.numel()) % 2) - 1.0).reshape(shape),
    "random": lambda shape: 1e3 * torch.randn(shape),
    "mild": lambda shape: torch.randn(shape),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_single_well_stays_one_whatever_is_learned(name, seed):
    torch.manual_seed(seed)
    well = SingleWell(1.5, limit=4.0).double()
    with torch.no_grad():
        well.steps.copy_(EXTREMES[name](well.steps.shape))
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    energy = well(z)
    assert abs(energy[1000]) < 1e-12
    assert (energy[1000:].diff() > 0).all()
    assert (energy[:1001].diff() < 0).all()
    assert (energy >= 0.5 * 1.5 / 4 * z**2 - 1e-9).all()
    assert (energy <= 0.5 * 1.5 * 4 * z**2 + 1e-9).all()
    if name == "zero":
        torch.testing.assert_close(energy, 0.75 * z**2)
    prior = Boltzmann(energies=(well,), reference=300.0, extent=14.0, nodes=600).float()
    prior.check(temperature=np.array([200.0, 350.0]))
    law = prior(torch.tensor([200.0, 350.0]))
    wide = torch.linspace(-20, 20, 40_001)
    total = torch.trapezoid(law.log_prob(wide[:, None, None]).exp(), wide, dim=0)
    torch.testing.assert_close(total, torch.ones(2), atol=2e-4, rtol=0)
    law.rsample((5,)).sum().backward()
    assert well.steps.grad.isfinite().all()


@pytest.mark.parametrize("name", EXTREMES)
def test_a_learned_energy_confines_whatever_is_learned(name):
    energy = LearnedEnergy(1.0)
    with torch.no_grad():
        energy.height.copy_(EXTREMES[name](energy.height.shape))
    law = Boltzmann(energies=(energy,), reference=300.0)(torch.tensor(300.0).double())
    z = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    if name in ("zero", "high", "mild"):  # elsewhere wells are narrower than any grid
        with torch.no_grad():
            total = torch.trapezoid(law.log_prob(z[:, None]).exp(), z)
        assert float(total) == pytest.approx(1, abs=1e-3)
    assert law.log_partition.isfinite().all()
    value = law.log_prob(law.rsample((50,))).sum()
    assert value.isfinite()
    value.backward()
    assert energy.height.grad.isfinite().all()


def _most_likely(prior, z, **context):
    optimiser = torch.optim.LBFGS(prior.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -prior(**context).log_prob(z).mean()
        loss.backward()
        return loss

    optimiser.step(closure)


def test_double_well_is_learned_from_two_temperatures():
    tau = torch.tensor([220.0, 300.0]).repeat(6000)
    truth = Boltzmann(energies=(DoubleWell(3.0, tilt=0.3),), reference=300.0)
    prior = Boltzmann(energies=(LearnedEnergy(2.0),), reference=300.0)
    _most_likely(prior, truth(tau).sample(), temperature=tau)
    for kelvin in (220.0, 300.0, 350.0):  # the last was not measured
        found, true = prior.profiles(kelvin)[0], truth.profiles(kelvin)[0]
        np.testing.assert_allclose(found.wells, true.wells, atol=0.05)
        np.testing.assert_allclose(found.populations, true.populations, atol=0.02)
        assert found.heights[0] == pytest.approx(true.heights[0], abs=0.3)


def test_single_well_and_tilt_are_learned():
    """A lopsided well, and how a ligand tilts it."""

    def lopsided(z):
        return 2 * (z.exp() - z - 1)

    u = torch.tensor([-1.0, 0.0, 1.0]).repeat(3000)
    options = {"reference": 300.0, "temperature": 300.0}
    truth = Boltzmann(energies=(lopsided,), tilts={"u": {0: bound}}, extent=8.0, **options)
    tilt = LearnedEnergy(0.0, bumps=12)
    prior = Boltzmann(energies=(SingleWell(2.0),), tilts={"u": {0: tilt}}, **options)
    _most_likely(prior, truth(u=u).sample(), u=u)
    z = np.linspace(-1.5, 1.2, 61)
    for value in (-1.0, 0.0, 1.0, 0.5):
        found, true = prior.profiles(z=z, u=value)[0], truth.profiles(z=z, u=value)[0]
        off = found.free_energy - true.free_energy
        assert np.abs(off - np.median(off)).max() < 0.3
        assert found.mean == pytest.approx(true.mean, abs=0.05)


def test_spreads_at_many_temperatures_follow_a_smooth_law():
    """Conditional("temperature") where a table would have a row each."""
    tau = torch.linspace(180, 350, 40).repeat(300)
    scale = torch.stack([(tau / 265).sqrt(), (tau / 265) ** 2], dim=-1)  # 1 at the anchor
    z = scale * torch.randn(len(tau), 2)
    prior = Conditional("temperature", 2, mean=False, hidden=(16,))
    prior.check(temperature=tau.numpy())
    _most_likely(prior, z, temperature=tau)
    law = prior(temperature=torch.tensor([200.0, 265.0, 340.0]))
    truth = torch.tensor([[200.0, 265.0, 340.0]]).T.div(265) ** torch.tensor([0.5, 2.0])
    torch.testing.assert_close(law.scale, truth, rtol=0.06, atol=0)


def test_profiles_of_a_harmonic_well_and_a_table():
    (found,) = Boltzmann((600.0,)).profiles(150.0)
    np.testing.assert_allclose(found.free_energy, 2 * found.z**2, atol=1e-5)
    np.testing.assert_allclose(found.kelvin, 300 * found.z**2, atol=2e-3)
    assert (found.mean, found.sd) == pytest.approx((0, 0.5), abs=1e-3)
    assert np.ptp(found.standard) == pytest.approx(8, abs=0.02)
    assert (len(found.wells), len(found.barriers)) == (1, 0)
    table = Boltzmann(table={300: (1, 1), 200: (0.5, 0.1)})
    assert [p.sd for p in table.profiles(200.0)] == pytest.approx([0.5, 0.1], rel=1e-3)
    assert [p.temperature for p in table.profiles()] == [300, 300]
    with pytest.raises(pc.InputError, match="holds only 300, 200 K"):
        table.profiles(250.0)


def test_profiles_of_a_double_well():
    prior = Boltzmann(energies=(DoubleWell(4.0, position=1.2),), reference=300.0)
    for tau in (200.0, 300.0):
        (found,) = prior.profiles(tau)
        np.testing.assert_allclose(found.wells, [-1.2, 1.2], atol=1e-3)
        np.testing.assert_allclose(found.barriers, [0], atol=1e-3)
        np.testing.assert_allclose(found.heights * tau, [1200], rtol=1e-3)  # k_B · K
        np.testing.assert_allclose(found.populations, [0.5, 0.5], atol=1e-3)
        np.testing.assert_allclose(found.depths, [0, 0], atol=1e-4)
        assert integrate.trapezoid(found.density, found.z) == pytest.approx(1, abs=1e-6)
    assert str(found).startswith(
        "component 1 at 300 K: wells at -1.20 (50 %), 1.20 (50 %); barrier"
    )
    assert "4.00 k_B T (1200 K)" in str(found)
    shallow = Boltzmann(energies=(DoubleWell(0.04), DoubleWell(2.0)), reference=300.0)
    assert [len(p.wells) for p in shallow.profiles()] == [1, 2]
    tilted = Boltzmann(**WELLS, tilts={"ligand": {0: None}})
    favoured = [tilted.profiles(300.0, ligand=c)[0].populations[1] for c in (0.0, 0.5, 1.0)]
    assert favoured == sorted(favoured)
    assert tilted.profiles(ligand=1)[0].conditions == {"ligand": 1.0}


def test_profiles_see_through_errors_of_labels():
    found = Boltzmann(**WELLS, temperature_error=50.0).profiles(300.0)
    for one, other in zip(found, Boltzmann(**WELLS).profiles(300.0), strict=True):
        np.testing.assert_array_equal(one.free_energy, other.free_energy)


@pytest.fixture(scope="module")
def particles():
    truth = Boltzmann(**WELLS, tilts={"ligand": {0: bound, 1: None}}, extent=8.0, nodes=384)
    conditions = {"temperature": [300, 240, 300], "ligand": [0.0, 0.5, 1.0], "sd": [5.0, 0, 9.0]}
    return pc.simulate.conditions(
        pc.molecules.TwoArms(), n=80, prior=truth, conditions=conditions, box=BOX
    )


def _pair(prior):
    return pc.Pair(prior, pc.volumes.Grid(hidden=(16,)), BOX, guide=pc.guides.Amortised((16,)))


FITTED = {
    "learned": _learned,
    "error": lambda: Boltzmann(
        energies=(LearnedEnergy(), Harmonic(1.0)), reference=300.0, temperature_error="sd"
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_stacked_and_traced_steps_are_those_of_python(name, particles, caplog):
    settings = {"steps": 2, "batch_size": 8, "seeds": 2}
    as_python = pc.fit(_pair(FITTED[name]()), particles, capture=False, **settings)
    caplog.clear()
    stacked = pc.fit(_pair(FITTED[name]()), particles, capture=True, together=2, **settings)
    assert "not traced" not in caplog.text
    assert "one after another" not in caplog.text
    assert stacked.exact_kl == (name != "error")
    np.testing.assert_allclose(stacked.history["loss"], as_python.history["loss"], rtol=1e-4)
    first, second = (
        torch.cat([p.flatten() for p in pair.prior.parameters()]) for pair in stacked.pairs
    )
    assert not torch.equal(first, second)


def test_a_prior_that_wants_nothing_and_a_smooth_one_drop_into_a_pair(particles):
    fixed = Boltzmann(energies=(LearnedEnergy(), Harmonic(1.0)), reference=300.0, temperature=300)
    for prior in (fixed, Conditional("temperature", 2, mean=False)):
        fit = pc.fit(_pair(prior), particles, steps=2, batch_size=8, capture=False)
        assert fit.exact_kl
        assert np.isfinite(fit.history["loss"]).all()
        learned = next(fit.pairs[0].prior.parameters())
        assert not torch.equal(learned, next(prior.parameters()))


def test_frames_and_a_tilt_by_time(pairs_in_time):
    prior = Boltzmann(
        energies=(Harmonic(1.0), Harmonic(1.0)), tilts={"time": {0: None}}, temperature=300.0,
        reference=300.0, extent=9.0, nodes=384,
    )  # fmt: skip
    pair = pc.Pair(prior, pc.volumes.Grid(), pairs_in_time.box)
    pair.check(pairs_in_time)
    law = pair.prior_of(pairs_in_time.batch(np.arange(5)))
    assert (law.batch_shape, law.event_shape) == ((5,), (2, 2))
    tilted = Boltzmann(
        energies=prior.energies, tilts={"time": {0: None}}, reference=300.0
    )(torch.tensor([300.0, 200.0]), time=torch.zeros(2, 3))  # fmt: skip
    assert tilted.batch_shape == (2, 3)
    torch.testing.assert_close(tilted.temperature[:, 0], torch.tensor([300.0, 200.0]))


def test_checkpoints_and_resets():
    prior, other = _learned(), _learned()
    assert all("fixed" not in name for name in _full(temperature=300.0).state_dict())
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    z = torch.randn(4, 2)
    before = prior(**BOTH).log_prob(z)
    assert (before - other(**BOTH).log_prob(z)).abs().max() > 0.01
    other.load_state_dict(prior.state_dict())
    torch.testing.assert_close(other(**BOTH).log_prob(z), before)
    for module in prior.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(not parameter.any() for parameter in prior.parameters())


def test_two_priors_look_different():
    seen = [
        repr(Boltzmann(**WELLS, **options))
        for options in (
            {},
            {"entropies": (room, None)},
            {"entropies": (None, room)},
            {"heat_capacities": (room, None)},
            {"heat_capacities": (room, None), "standard": 250.0},
            {"tilts": {"ligand": {0: None}}},
            {"tilts": {"force": {0: None}}},
            {"tilts": {"ligand": {0: bound}}},
            {"temperature": 300.0},
            {"temperature_error": 5.0},
            {"temperature_error": 6.0},
            {"temperature_error": "sd"},
        )
    ]
    seen += [repr(SingleWell()), repr(SingleWell(2.0)), repr(SingleWell(limit=3.0))]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entropies": (room,)}, "entropies: expected 2 functions"),
        ({"entropies": room}, "entropies: expected 2 functions"),
        ({"heat_capacities": (3.0, None)}, r"heat_capacities\[0\]: expected a function"),
        ({"entropies": (None, torch.log)}, r"entropies\[1\]: expected finite"),
        ({"tilts": {"temperature": {0: None}}}, "tilts: 'temperature' cannot"),
        ({"tilts": {"ligand": {2: None}}}, r"tilts\['ligand'\]: .* 0 to 1, got 2"),
        ({"tilts": {"ligand": [None]}}, r"tilts\['ligand'\]: expected functions by component"),
        ({"tilts": {"ligand": {0: lambda z: z.sum()}}}, r"tilts\['ligand'\]\[0\]: .* shape"),
        ({"tilts": {"sd": {0: None}}, "temperature_error": "sd"}, "'sd' is the error"),
        ({"temperature": 0.0}, "temperature: expected positive K"),
        ({"temperature_error": -1.0}, "temperature_error: expected positive K"),
        ({"temperature_error": "a b"}, "temperature_error: 'a b' cannot"),
        ({"standard": 0.0, "heat_capacities": (heat, None)}, "standard: expected positive K"),
    ],
)
def test_wrong_input_is_named(options, message):
    with pytest.raises(pc.InputError, match=message):
        Boltzmann(**WELLS, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Boltzmann((300.0,), entropies=(room,)), "entropies: they add to energies"),
        (lambda: Boltzmann(table={300: (1,)}, tilts={"u": {0: None}}), "tilts: they add"),
        (lambda: Boltzmann(table={300: (1,)}, temperature_error=3.0), "between its rows"),
        (lambda: SingleWell(0.0), "stiffness: expected a positive"),
        (lambda: SingleWell(knots=1), "knots: expected at least 2"),
        (lambda: SingleWell(limit=1.0), "limit: expected a ratio"),
        (lambda: _full()(TAU), "ligand: the Boltzmann prior needs it"),
        (lambda: _full().profiles(300.0), "ligand: the Boltzmann prior needs it"),
        (lambda: Boltzmann(**WELLS).profiles(300.0, ligand=1.0), "ligand: .* does not ask"),
        (lambda: Boltzmann(**WELLS).profiles(300.0, z=[1, 0]), "z: expected at least three"),
    ],
)
def test_more_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "temperature: the Boltzmann prior needs it of each particle; got none"),
        ({"temperature": [300.0]}, "ligand: the Boltzmann prior needs it .* got temperature"),
        ({"temperature": [300.0], "ligand": [np.nan]}, "ligand: expected finite numbers"),
        ({"temperature": [300.0], "ligand": [[1.0, 2.0]]}, "ligand: expected a number for each"),
        ({"temperature": [300.0, 200.0], "ligand": [9.0, 0.0]}, r"ligand = 9, .* tilt less"),
        ({"temperature": [300.0], "ligand": [0.0], "ph": [7.0]}, "ph: .* does not ask"),
    ],
)
def test_fields_are_checked_before_training(fields, message):
    with pytest.raises(pc.InputError, match=message):
        _full().check(**{name: np.array(value) for name, value in fields.items()})


@pytest.mark.parametrize("error", [61.0, -1.0])
def test_errors_of_labels_are_small(error):
    prior = Boltzmann(**WELLS, temperature_error="sd", extent=7.0)
    prior.check(temperature=np.array([300.0]), sd=np.array([60.0]))
    with pytest.raises(pc.InputError, match="temperature_error: expected 0 K to a fifth"):
        prior.check(temperature=np.array([300.0]), sd=np.array([error]))
