import copy
import math
import time

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

import pyrocryo as pc
from pyrocryo.rotated_normal import RotatedNormal, RotationLayer

Boltzmann, DoubleWell, Harmonic, LearnedEnergy = (
    pc.priors.Boltzmann,
    pc.priors.DoubleWell,
    pc.priors.Harmonic,
    pc.priors.LearnedEnergy,
)


def _learned(scale=2.0):
    energy = LearnedEnergy(1.5, bumps=12)
    with torch.no_grad():
        energy.height.copy_(scale * torch.sin(torch.arange(12.0)))
    return energy


ENERGIES = {
    "double well": lambda: DoubleWell(3.0),
    "wide double well": lambda: DoubleWell(6.0, position=1.7),
    "tilted": lambda: DoubleWell(3.0, tilt=0.5),
    "quartic": lambda: lambda z: z**4,
    "harmonic": lambda: Harmonic(1.0),
    "learned": _learned,
}
KELVIN = (100.0, 180.0, 300.0, 400.0)


@pytest.fixture(params=ENERGIES)
def energy(request):
    return ENERGIES[request.param]()


def _exact(energy, tau, reference=300.0):
    """The law in double precision by adaptive quadrature: its normalised density."""

    def density(z):
        with torch.no_grad():
            return np.exp(-energy(torch.tensor(z).double()).numpy() * reference / tau)

    total, _ = integrate.quad(density, -8, 8, limit=400, points=[-2, -1, 0, 1, 2])
    return lambda z: density(z) / total


def _posterior(n, dim=2):
    """Correlated and turned Gaussians."""
    layer = RotationLayer(dim)
    with torch.no_grad():
        layer.angle.uniform_(-0.2, 0.2)
    scale = 0.3 * torch.randn(n, dim, dim).tril(-1)
    scale = scale + torch.diag_embed(0.2 + 0.5 * torch.rand(n, dim))
    return RotatedNormal(torch.randn(n, dim), scale, layer().detach())


@pytest.mark.parametrize("tau", KELVIN)
def test_density_against_adaptive_quadrature(energy, tau):
    prior = Boltzmann(energies=(energy,), reference=300.0)
    prior.check(temperature=np.array(KELVIN))
    z = torch.linspace(-6, 6, 20_001)
    with torch.no_grad():
        log_p = prior(torch.tensor(tau)).log_prob(z.unsqueeze(-1))
    assert float(torch.trapezoid(log_p.exp(), z)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(log_p.exp(), _exact(energy, tau)(z.numpy()), atol=1e-5)


@pytest.mark.parametrize("tau", KELVIN)
def test_samples_are_the_inverse_of_the_distribution_function(energy, tau):
    """F(z) of a sample is the uniform number it came from; and Kolmogorov-Smirnov."""
    law = Boltzmann(energies=(energy,), reference=300.0)(torch.tensor(tau))
    z = law.sample((50_000,)).squeeze(-1).numpy()
    torch.manual_seed(0)
    u = torch.rand(1, 50_000)[0].numpy()
    grid = np.linspace(-8, 8, 100_001)
    mass = integrate.cumulative_trapezoid(_exact(energy, tau)(grid), grid, initial=0)
    assert np.abs(np.interp(z, grid, mass) - u).max() < 5e-4
    assert stats.kstest(z, lambda x: np.interp(x, grid, mass)).pvalue > 1e-3


def test_wells_are_as_full_as_theory_says():
    energy = DoubleWell(4.0, tilt=0.4)
    n = 100_000
    for tau in (200.0, 400.0):
        right, _ = integrate.quad(_exact(energy, tau), 0, 8)
        z = Boltzmann(energies=(energy,), reference=300.0)(torch.tensor(tau)).sample((n,))
        error = math.sqrt(right * (1 - right) / n)
        assert float((z > 0).float().mean()) == pytest.approx(right, abs=4 * error)
        odds = math.exp(-2 * 0.4 * 300 / tau)  # the wells have nearly the same width
        assert right / (1 - right) == pytest.approx(odds, rel=0.1)


def test_sample_shapes_and_independent_rows():
    tau = torch.tensor([[100.0, 200.0, 300.0], [300.0, 200.0, 100.0]])
    law = Boltzmann(energies=(DoubleWell(2.0), Harmonic(1.0)), reference=300.0)(tau)
    assert law.batch_shape == (2, 3)
    assert law.event_shape == (2,)
    z = law.sample((20_000,))
    assert z.shape == (20_000, 2, 3, 2)
    assert law.log_prob(z).shape == (20_000, 2, 3)
    torch.testing.assert_close(z[..., 1].var(0), tau / 300, rtol=0.05, atol=0)
    correlation = torch.corrcoef(z.flatten(1).T) - torch.eye(12)
    assert correlation.abs().max() < 0.04
    alone = Boltzmann(energies=(DoubleWell(2.0), Harmonic(1.0)), reference=300.0)(tau[0, 1])
    torch.testing.assert_close(law.log_prob(z)[:, 0, 1], alone.log_prob(z[:, 0, 1]))


def test_gradients_of_samples_are_those_of_finite_differences():
    def samples(tau, height):
        energy = LearnedEnergy(1.5, bumps=6).double()
        del energy.height
        energy.height = height
        law = pc.priors.BoltzmannWells(tau, (energy,), reference=300.0)
        torch.manual_seed(5)
        return law.rsample((40,))

    tau = torch.tensor([200.0], dtype=torch.float64, requires_grad=True)
    height = torch.tensor([1.0, -2.0, 2.0, 1.0, -1.0, 0.5]).double().requires_grad_()
    torch.autograd.gradcheck(samples, (tau, height), eps=1e-4, atol=1e-4, rtol=1e-3)


def test_gradients_of_density_and_kl():
    """In z, posterior, temperature and energy: against finite differences."""
    energy = LearnedEnergy(1.5, bumps=6).double()

    def run(z, tau, height, loc):
        energy.__dict__["height"] = height
        law = pc.priors.BoltzmannWells(tau, (energy, DoubleWell(2.0)), reference=300.0)
        q = RotatedNormal(loc, 0.3 * torch.eye(2).double(), torch.eye(2).double())
        return law.log_prob(z), kl_divergence(q, law)

    del energy.height
    z, loc = torch.randn(2, 3, 2, dtype=torch.float64)
    tau = torch.tensor([150.0, 200.0, 300.0]).double()
    height = torch.tensor([1.0, -2.0, 2.0, 1.0, -1.0, 0.5]).double()
    inputs = [x.requires_grad_() for x in (z, tau, height, loc)]
    torch.autograd.gradcheck(run, inputs)


def test_kl_against_monte_carlo():
    """For correlated, turned posteriors at temperatures of their own."""
    tau = torch.tensor([120.0, 180.0, 240.0, 300.0])
    law = Boltzmann(energies=(DoubleWell(3.0, tilt=0.4), _learned()), reference=300.0)(tau)
    q, n = _posterior(4), 400_000
    with torch.no_grad():
        z = q.sample((n,))
        terms = q.log_prob(z) - law.log_prob(z)
        error = terms.std(0) / math.sqrt(n)
        assert ((kl_divergence(q, law) - terms.mean(0)).abs() < 5 * error).all()
        assert (error < 0.02 * terms.mean(0)).all()


def test_kl_in_a_plate():
    law = Boltzmann(energies=(DoubleWell(3.0), Harmonic(1.0)), reference=300.0)(
        torch.tensor(200.0)
    )
    q = _posterior(5)
    wide = law.expand((5,))
    assert wide.batch_shape == (5,)
    torch.testing.assert_close(kl_divergence(q, wide), kl_divergence(q, law))

    def model():
        with pyro.plate("particle", 5):
            pyro.sample("z", law)

    def guide():
        with pyro.plate("particle", 5):
            pyro.sample("z", q)

    loss = pyro.infer.TraceMeanField_ELBO().loss(model, guide)
    assert loss == pytest.approx(float(kl_divergence(q, law).sum()), rel=1e-5)


def test_harmonic_wells_are_the_normal():
    tau = torch.tensor([100.0, 200.0, 300.0, 400.0])
    energies = (Harmonic(1.0), Harmonic(2.5))
    wells = Boltzmann(energies=energies, reference=300.0)(tau)
    in_kelvin = Boltzmann(energies=(Harmonic(300.0), Harmonic(750.0)))(tau)
    normal = Boltzmann(stiffness=(300.0, 750.0))(tau)
    z, q = 1.5 * torch.randn(100, 4, 2), _posterior(4)
    for law in (wells, in_kelvin):
        torch.testing.assert_close(law.log_prob(z), normal.log_prob(z), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kl_divergence(q, law), kl_divergence(q, normal))


def test_barrier_is_learned_by_maximum_likelihood():
    """From samples of a double well at three temperatures, one profile for all of them."""
    true = DoubleWell(3.0)
    tau = torch.tensor([180.0, 240.0, 300.0]).repeat(5000)
    z = Boltzmann(energies=(true,), reference=300.0)(tau).sample()
    prior = Boltzmann(energies=(LearnedEnergy(2.0),), reference=300.0)
    optimiser = torch.optim.LBFGS(prior.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = -prior(tau).log_prob(z).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        found = prior.energies[0](torch.linspace(-1.3, 1.3, 101))
        best = -Boltzmann(energies=(true,), reference=300.0)(tau).log_prob(z).mean()
    assert closure().item() < best.item() + 1e-4
    left, right = found[:50].min(), found[51:].min()
    assert float(left) == pytest.approx(float(right), abs=0.15)
    assert float(found[30:71].max() - (left + right) / 2) == pytest.approx(3.0, abs=0.3)


def test_learned_energies_train_move_and_start_again():
    prior = Boltzmann(energies=(LearnedEnergy(), lambda z: z**4), reference=300.0)
    height = prior.energies[0].height
    assert [p is height for p in prior.parameters()] == [True]
    law = prior(torch.tensor([200.0, 300.0]))
    for value in (
        law.rsample((9,)).square(),
        law.log_prob(law.sample()),
        kl_divergence(_posterior(2), law),
    ):
        height.grad = None
        value.sum().backward(retain_graph=True)
        assert height.grad.abs().max() > 1e-3
    with torch.no_grad():
        height += 1
    other = Boltzmann(energies=(LearnedEnergy(), lambda z: z**4), reference=300.0)
    other.load_state_dict(prior.state_dict())
    twin = copy.deepcopy(prior)
    for module in prior.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert height.abs().max() == 0
    tau, z = torch.tensor(200.0), torch.tensor([0.3, -0.2])
    torch.testing.assert_close(twin(tau).log_prob(z), other(tau).log_prob(z))
    assert twin(tau).log_prob(z) != prior(tau).log_prob(z)
    twin.double()
    assert twin(tau.double()).log_prob(z.double()).dtype == torch.float64


def test_nothing_waits_for_the_device():
    """On the meta device, which has no values: what it runs, a CUDA graph can capture."""
    prior = Boltzmann(energies=(LearnedEnergy(), DoubleWell(2.0)), reference=300.0).to("meta")
    law = pc.priors.BoltzmannWells(
        torch.empty(4, device="meta"), prior.energies, reference=300.0, validate_args=False
    )
    z = law.rsample((3,))
    law.log_prob(z).sum().backward()
    eye = torch.eye(2, device="meta")
    q = RotatedNormal(z[0].detach(), eye, eye, validate_args=False)
    assert kl_divergence(q, law).shape == (4,)


def test_two_priors_look_different():
    def told(energy, **unit):
        return repr(Boltzmann(energies=(energy,), **unit))

    seen = [
        told(DoubleWell(3.0)),
        told(DoubleWell(3.0), reference=300.0),
        told(DoubleWell(3.0, tilt=0.1)),
        told(DoubleWell(3.0, position=2.0)),
        told(DoubleWell(2.0)),
        told(Harmonic(2.0)),
        told(LearnedEnergy(2.0)),
        told(LearnedEnergy(2.0, bumps=8)),
        told(lambda z: z**4),
        told(lambda z: 2 * z**4),
    ]
    assert len(set(seen)) == len(seen)
    assert told(lambda z: z**4) == told(lambda z: z**4)


def test_pair_learns_with_wells(at_temperatures):
    wells = (DoubleWell(3.0), LearnedEnergy(1.0))
    prior = Boltzmann(energies=wells, reference=300.0)
    truth = Boltzmann(energies=(DoubleWell(3.0), Harmonic(1.0)), reference=300.0)
    particles = pc.simulate.temperature(pc.molecules.TwoArms(), n=120, seed=0, prior=truth)
    pair = pc.Pair(prior, pc.volumes.Grid(), particles.box)
    fit = pc.fit(pair, particles, steps=4, batch_size=32)
    assert fit.exact_kl
    assert np.isfinite(fit.history["loss"]).all()
    assert fit.pairs[0].prior.energies[1].height.abs().max() > 0
    assert pair.prior.energies[1].height.abs().max() == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DoubleWell(0.0), "barrier: expected a positive"),
        (lambda: DoubleWell(1.0, position=-1.0), "position: expected a positive"),
        (lambda: DoubleWell(1.0, tilt=math.nan), "tilt: expected a finite"),
        (lambda: Harmonic(math.inf), "stiffness: expected a positive"),
        (lambda: LearnedEnergy(-1.0), "stiffness: expected a positive"),
        (lambda: LearnedEnergy(extent=0.0), "extent: expected a positive"),
        (lambda: LearnedEnergy(bumps=1), "bumps: expected at least 2"),
        (lambda: Boltzmann((1.0,), energies=(Harmonic(1.0),)), "exactly one of"),
        (lambda: Boltzmann((1.0,), reference=300.0), "reference: 300 K is the unit of energies"),
        (lambda: Boltzmann(energies=(Harmonic(1.0),), learned=True), "learned: energies learn"),
        (lambda: Boltzmann(energies=()), "energies: expected functions"),
        (lambda: Boltzmann(energies=(3.0,)), "energies: expected functions"),
        (lambda: Boltzmann(energies=(Harmonic(1.0),), reference=0.0), "reference: expected"),
        (lambda: Boltzmann(energies=(Harmonic(1.0),), extent=math.inf), "extent: expected"),
        (lambda: Boltzmann(energies=(Harmonic(1.0),), nodes=4), "nodes: expected a number over"),
        (lambda: Boltzmann(energies=(lambda z: z.sum(),)), r"energies\[0\]: .* shape of z"),
        (lambda: Boltzmann(energies=(lambda z: 1.0,)), r"energies\[0\]: .* got 1.0"),
        (lambda: Boltzmann(energies=(Harmonic(1.0), torch.log)), r"energies\[1\]: .* finite"),
    ],
)
def test_wrong_input_is_named(make, message):
    with pytest.raises(pc.InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("energies", "options", "message"),
    [
        ((Harmonic(1.0), lambda z: 0 * z), {}, r"energies\[1\]: .* does not confine z within ± 6"),
        ((Harmonic(1.0), lambda z: -z), {}, r"energies\[1\]: .* does not confine"),
        ((Harmonic(1.0),), {"extent": 2.0}, r"energies\[0\]: .* at 300 K.* widen extent"),
        ((Harmonic(1.0),), {"reference": 1.0}, "is reference not in K"),
        ((Harmonic(1.0), DoubleWell(90.0)), {}, r"energies\[1\]: .* at 100 K too narrow for 256"),
    ],
)
def test_temperatures_are_checked_before_training(energies, options, message):
    prior = Boltzmann(energies=energies, **{"reference": 300.0, **options})
    with pytest.raises(pc.InputError, match=message):
        prior.check(temperature=np.array([300.0, 100.0]))


def test_temperatures_are_positive():
    prior = Boltzmann(energies=(Harmonic(1.0),), reference=300.0)
    with pytest.raises(pc.InputError, match="temperature: expected positive K, got 0"):
        prior.check(temperature=np.array([0.0, 100.0]))
    with pytest.raises(AttributeError, match="stiffness"):
        prior.stiffness  # noqa: B018


@pytest.mark.benchmark
def test_speed():
    """Evaluations a second on one thread, 1e5 particles at three temperatures."""
    n, threads = 100_000, torch.get_num_threads()
    tau = torch.tensor([300.0, 240.0, 180.0])[torch.randint(3, (n,))]
    wells = Boltzmann(energies=(DoubleWell(3.0), Harmonic(1.0)), reference=300.0)
    normal = Boltzmann(stiffness=(300.0, 300.0))
    z, q = torch.randn(n, 2), _posterior(n)
    calls = {
        "log_prob": lambda prior: prior(tau).log_prob(z),
        "rsample": lambda prior: prior(tau).rsample(),
        "kl": lambda prior: kl_divergence(q, prior(tau)),
    }
    torch.set_num_threads(1)
    try:
        for name, call in calls.items():
            rates = []
            for prior in (wells, normal):
                times = []
                for _ in range(4):
                    start = time.perf_counter()
                    call(prior)
                    times.append(time.perf_counter() - start)
                rates.append(n / min(times))
            print(f"{name}: {rates[0]:.3g} a second, {rates[1] / rates[0]:.0f} x BoltzmannNormal")
    finally:
        torch.set_num_threads(threads)


def test_a_network_of_a_user_is_an_energy():
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
            )

        def forward(self, z):
            return z.square() + self.net(z.unsqueeze(-1)).squeeze(-1)

    prior = pc.priors.Boltzmann(energies=(Mine(), Mine()), reference=300.0)
    particles = pc.simulate.temperature(pc.molecules.TwoArms(), n=60, prior=prior)
    pair = pc.Pair(prior, pc.volumes.Grid(), particles.box)
    assert pc.fit(pair, particles, steps=2).exact_kl
