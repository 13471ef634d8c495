"""What a prior can identify: every prior whose answer is known, and priors written here."""

import json
import math
import time

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.errors import InputError
from pyrocryo.identify import check_prior

KELVIN = [600.0, 480.0, 390.0, 300.0, 220.0, 150.0]
FIVE = [0.0, 1.0, 2.0, 3.0, 4.0]


class Own(dist.TorchDistribution):
    """A user's own law, by the potentials of its components; sampled on a grid."""

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, potential, *shape):
        self.potential = potential  # elementwise on (..., [L,] K)
        super().__init__(torch.Size(shape[:-1]), torch.Size(shape[-1:]))

    def sample(self, shape=()):
        event = self.batch_shape + self.event_shape
        grid = torch.linspace(-8, 8, 1601).view(-1, *(1 for _ in event))
        weight = torch.softmax(-self.potential(grid.expand(-1, *event)), 0)
        node = dist.Categorical(weight.movedim(0, -1)).sample(shape)
        return 0.01 * (node + torch.rand(node.shape)) - 8

    def log_prob(self, z):
        return -self.potential(z).sum(-1)


def normal(loc, scale):
    return dist.Normal(loc, scale).to_event(1)


def rows(*sd):
    """A Gaussian by class."""
    return lambda u: normal(0.0, torch.tensor(sd, dtype=torch.float64)[u])


def column(u):
    return u[:, None].double()


def wells(z):
    return torch.stack([3 * (z[..., 0] ** 2 - 1) ** 2, z[..., 1] ** 4], -1)


def entropic(temperature):
    beta = 300 / column(temperature)
    return Own(lambda z: beta * wells(z) - 0.5 * torch.tanh(z), len(beta), 2)


def heat_capacity(temperature):
    t = column(temperature) / 300

    def heat(z):
        return torch.stack([torch.exp(-((z[..., 0] - 1) ** 2)), 0.6 * z[..., 1].tanh()], -1)

    return Own(lambda z: wells(z) / t + t.log() * heat(z), len(t), 2)


def one_ligand(temperature, ligand):
    beta, c = 300 / column(temperature), column(ligand)

    def bound(z):
        return torch.stack([torch.exp(-((z[..., 0] - 1) ** 2)), 0 * z[..., 1]], -1)

    return Own(lambda z: beta * (wells(z) - c * bound(z)), len(beta), 2)


def two_ligands(first, second):
    c = torch.stack([first, second], -1)
    return Own(lambda z: wells(z) - c * z, len(c), 2)


def rough(u):
    """Pseudo-Huber, smooth Laplace, with rates of their own."""
    rate = torch.stack([1 + u, 4 - 0.6 * u + 0.2 * u**2], -1)
    return Own(lambda z: rate * (0.01 + z**2).sqrt(), len(u), 2)


def moving(u):
    return torch.stack([u.sin(), (2 * u).cos()], -1)


def spreading(u):
    return torch.stack([1.5 + (3 * u).sin(), 1.5 + (5 * u).cos()], -1)


def four(first, second):
    return {first: [300.0, 300.0, 200.0, 200.0], second: [0.0, 1.0, 0.0, 1.0]}


HARMONIC = pc.priors.Boltzmann([300.0, 900.0])
DOUBLE = pc.priors.Boltzmann(energies=[pc.priors.DoubleWell(3.0), lambda z: z**4], reference=300.0)
LIGANDS = {"first": [0.0, 1.0, 0.0, 1.0], "second": [0.0, 0.0, 1.0, 1.0]}
TABLE = {  # prior, conditions, rank F, its blocks, rank J, rank W, known, learned
    "plain Boltzmann, wells": (DOUBLE, KELVIN, 1, (1, 1), 1, 1, "twist", "twist"),
    "plain Boltzmann, harmonic": (HARMONIC, KELVIN, 1, (1, 1), 1, 1, "twist", "twist"),
    "with entropy": (entropic, KELVIN, 1, (1, 1), 1, 1, "twist", "twist"),
    "with heat capacity": (heat_capacity, KELVIN, 2, (2, 2), 2, 2, "identified", "unknown"),
    "scales, 2": (rows((1, 1), (2**0.5, 6**0.5)), [0, 1], 1, (1, 1), 1, 1, "twist", "twist"),
    "scales, 3": (
        rows((1, 1), (2**0.5, 6**0.5), (2, 1.5**0.5)), [0, 1, 2],
        2, (1, 1), 2, 2, "identified", "permutation",
    ),
    "one frozen": (rows((1, 1), (1, 0.1)), [0, 1], 1, (0, 1), 1, 1, "identified", "unknown"),
    "two frozen": (rows((1, 1, 1), (1, 0.1, 1)), [0, 1], 1, (0, 1, 0), 1, 1, "twist", "twist"),
    "means": (lambda u: normal(moving(u), 1.0), FIVE, 2, (1, 1), 2, 2, "identified", "linear"),
    "means and scales": (
        lambda u: normal(moving(u), spreading(u)), FIVE,
        4, (2, 2), 2, 4, "identified", "permutation",
    ),
    "pseudo-Huber scales": (rough, FIVE, 2, (1, 1), 2, 2, "identified", "permutation"),
    "Student scales": (
        lambda u: dist.StudentT(4.0, 0.0, spreading(u)).to_event(1), FIVE,
        4, (4, 4), 2, 4, "identified", "permutation",
    ),
    "a ligand on one well": (
        one_ligand, four("temperature", "ligand"), 2, (2, 1), 2, 2, "identified", "unknown",
    ),
    "two ligands": (two_ligands, LIGANDS, 2, (1, 1), 2, 2, "identified", "linear"),
    "isotropic": (pc.priors.IsotropicNormal(2), None, 0, (0, 0), 0, 0, "not", "not"),
}  # fmt: skip


@pytest.fixture(scope="module")
def checks():
    return {name: check_prior(prior, given) for name, (prior, given, *_) in TABLE.items()}


def told(check):
    return (
        check.rank_f,
        check.ranks_f,
        check.rank_j,
        check.rank_w,
        check.verdict.known.free.kind,
        check.verdict.learned.free.kind,
    )


@pytest.mark.parametrize("name", TABLE)
def test_known_answers(name, checks):
    assert told(checks[name]) == TABLE[name][2:]


@pytest.mark.parametrize(
    ("name", "known", "learned"),
    [
        ("plain Boltzmann, wells", "identified", "permutation"),  # linear ICA
        ("plain Boltzmann, harmonic", "rotation", "rotation"),
        ("scales, 2", "identified", "permutation"),  # distinct ratios
        ("two frozen", "rotation", "rotation"),
        ("means", "identified", "rotation"),
        ("two ligands", "identified", "permutation"),
        ("isotropic", "rotation", "rotation"),
    ],
)
def test_linear_decoders(name, known, learned, checks):
    verdict = checks[name].verdict
    assert (verdict.known.linear.kind, verdict.learned.linear.kind) == (known, learned)
    assert verdict.known.modes.axes
    assert verdict.learned.modes.axes


@pytest.mark.parametrize(
    ("name", "words", "planes"),
    [
        ("isotropic", "any rotation", ((1, 2),)),
        (
            "plain Boltzmann, harmonic",
            "any rotation of whitened z and energy-preserving twists",
            ((1, 2),),
        ),
        ("plain Boltzmann, wells", "energy-preserving twists", ()),
        (
            "two frozen",
            "rotations of z in the plane (1, 3) and energy-preserving twists",
            ((1, 3),),
        ),
        ("means", "linear class (if learned)", ()),
        ("scales, 3", "signed permutation", ()),
    ],
)
def test_symmetries(name, words, planes, checks):
    check = checks[name]
    assert (check.symmetry, check.rotations, check.group) == (words, planes, len(planes))


def test_orthogonal_decoders_have_no_theorem_but_equal_wells_still_turn(checks):
    for name in ("plain Boltzmann, wells", "plain Boltzmann, harmonic", "scales, 2"):
        answer = checks[name].verdict.known.orthogonal
        assert answer.kind == "unknown"
        assert answer.sentence == "Known counterexamples excluded, no theorem."
    assert checks["isotropic"].verdict.known.orthogonal.kind == "rotation"
    assert checks["two frozen"].verdict.known.orthogonal.kind == "rotation"


def test_level_curves(checks):
    assert checks["scales, 2"].fibres == "closed"
    assert checks["plain Boltzmann, wells"].fibres == "closed"
    assert checks["one frozen"].fibres == "open"
    assert checks["two frozen"].fibres is None  # surfaces
    ends = check_prior(
        lambda u: dist.Exponential(torch.stack([u, 2 * u], -1)).to_event(1), [1.0, 2.0]
    )
    assert (ends.fibres, ends.verdict.known.free.kind) == ("open", "identified")
    corners = check_prior(
        lambda u: dist.Laplace(0.0, torch.stack([u, u**2], -1)).to_event(1), [1.0, 2.0]
    )
    assert (corners.fibres, corners.verdict.known.free.kind) == ("closed", "identified")
    assert "corners" in corners.verdict.known.free.sentence
    # one of three components frozen, two free to tell apart: lines along it
    line = check_prior(rows((1, 1, 1), (2, 1, 3), (3, 1, 0.5)), [0, 1, 2])
    assert (line.rank_j, line.fibres, line.verdict.known.free.kind) == (2, "open", "identified")


def test_statistics(checks):
    assert checks["means"].monotone == (True, True)
    assert checks["two ligands"].monotone == (True, True)
    assert checks["scales, 3"].monotone == (False, False)
    assert checks["one frozen"].monotone == (None, False)
    assert checks["means and scales"].monotone == (None, None)


def test_signed_permutations(checks):
    assert set(checks["isotropic"].permutations) == {(-1, 2), (1, -2), (2, 1)}
    assert set(checks["scales, 3"].permutations) == {(-1, 2), (1, -2)}
    assert (2, 1) in checks["plain Boltzmann, harmonic"].permutations  # of whitened z
    assert checks["means"].permutations == ()
    same = check_prior(lambda u: normal(0.0, column(u) * torch.ones(3)), [1.0, 2.0])
    assert {(2, 1, 3), (3, 2, 1), (1, 3, 2)} < set(same.permutations)
    assert same.symmetry.startswith("any rotation")
    assert same.group == 3
    moved = check_prior(lambda u: normal(torch.stack([u, -u], -1), 1.0), FIVE)
    assert moved.permutations == ((-2, -1),)  # the sign belongs to the exchange


def test_singular_values_say_how_close_to_failing():
    near, far = (check_prior(rows((1, 1), (2, 3), (3, r)), [0, 1, 2]) for r in (4.7, 1.5))
    assert near.verdict == far.verdict
    assert near.condition_numbers["j"] > 5 * far.condition_numbers["j"]
    for check in (near, far):
        for values in check.singular_values.values():
            assert values[0] == pytest.approx(1)
            assert (np.diff(values) <= 1e-12).all()
    assert check_prior(HARMONIC, KELVIN).condition_numbers["j"] == math.inf


def stretched(prior, by=(3.0, 0.2)):
    def law(**context):
        map_ = dist.transforms.AffineTransform(0.0, torch.tensor(by), event_dim=1)
        own = prior(**context) if context else prior
        return dist.TransformedDistribution(own, [map_])

    law.fields = pc.context.wanted(prior)
    return law


@pytest.mark.parametrize("name", [name for name in TABLE if "frozen" not in name])
def test_units_of_z_do_not_matter(name, checks):
    prior, given = TABLE[name][:2]
    if name.startswith("plain"):
        given = {"temperature": given}
    wider = check_prior(stretched(prior), given)
    assert told(wider) == TABLE[name][2:]
    assert wider.verdict.known.linear.kind == checks[name].verdict.known.linear.kind
    for letter, values in checks[name].singular_values.items():
        close = values > 1e-6
        assert np.allclose(wider.singular_values[letter][close], values[close], rtol=0.2)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize(("samples", "seed"), [(500, 0), (8000, 0), (2000, 7)])
def test_draws_do_not_matter(name, samples, seed, checks):
    check = check_prior(*TABLE[name][:2], samples=samples, seed=seed)
    assert told(check) == TABLE[name][2:]
    assert (check.symmetry, check.rotations) == (checks[name].symmetry, checks[name].rotations)
    assert check.permutations == checks[name].permutations


@pytest.mark.parametrize(
    ("laws", "kind", "planes"),
    [
        ("LG", "permutation", ()),  # one Gaussian is allowed
        ("LQ", "permutation", ()),
        ("LGG", "rotation", ((2, 3),)),
    ],
)
def test_linear_ica(laws, kind, planes):
    of = {"L": torch.abs, "G": lambda x: 2 * x**2, "Q": lambda x: x**4}

    def potential(z):
        return torch.stack([of[name](z[..., k]) for k, name in enumerate(laws)], -1)

    check = check_prior(Own(potential, len(laws)))
    assert check.verdict.learned.linear.kind == kind
    assert check.rotations == planes
    assert check.verdict.known.free.kind == check.verdict.learned.free.kind == "not"


def test_dependent_components_have_no_theorem():
    spread = torch.tensor([[1.0, 0.5], [0.5, 1.0]])

    def correlated(u):
        return dist.MultivariateNormal(torch.zeros(2), column(u)[:, :, None] * spread)

    check = check_prior(correlated, [1.0, 2.0, 3.0])
    assert not check.factorises
    assert check.rank_f is None
    assert check.rank_w is None
    assert (check.rank_j, check.group, check.verdict.known.free.kind) == (1, 1, "twist")
    assert check.verdict.learned.linear.kind == "rotation"

    def mixing(u):  # dependent, but every direction is told
        return dist.MultivariateNormal(moving(u), spread.double().expand(len(u), 2, 2))

    check = check_prior(mixing, FIVE)
    assert check.verdict.known.free.axes
    assert check.verdict.learned.free.kind == "unknown"


def test_a_family_is_more_than_its_first_values():
    conditional = pc.priors.Conditional("dose", 2)
    check = check_prior(conditional, FIVE)
    assert check.trainable
    assert check.rank_j == 0
    assert check.verdict.known.free.kind == "not"
    assert check.family == {"j": 2, "f": 4, "w": 4}
    assert check.verdict.learned.free.kind == "permutation"
    assert not any(p.isnan().any() for p in conditional.parameters())
    assert conditional.network[-1].weight.dtype == torch.float32  # as it was

    equal = {300.0: (1.0, 0.6), 200.0: (0.8, 0.48), 100.0: (0.7, 0.42)}
    given = pc.priors.Boltzmann(table=equal)
    assert check_prior(given, list(equal)).verdict.learned.free.kind == "twist"
    learned = check_prior(pc.priors.Boltzmann(table=equal, learned=True), list(equal))
    assert learned.verdict.known.free.kind == "twist"
    assert learned.verdict.learned.free.kind == "permutation"
    stiff = check_prior(pc.priors.Boltzmann([300.0, 900.0], learned=True), KELVIN)
    assert stiff.family["j"] == 1
    assert stiff.verdict.learned.free.kind == "twist"


def test_classes_index_a_table():
    class Mutants(nn.Module):
        def __init__(self):
            super().__init__()
            self.spread = nn.Parameter(torch.tensor([[1.0, 1.0], [2.0, 5.0], [4.0, 2.0]]))

        def forward(self, mutant):
            return normal(0.0, self.spread[mutant])

    check = check_prior(Mutants(), [0, 1, 2], dim=2)
    assert (check.rank_f, check.rank_j, check.verdict.learned.free.kind) == (2, 2, "permutation")


def advice(*given):
    return " ".join(check_prior(*given).advice)


def test_advice():
    assert "never help: they enter through one function" in advice(DOUBLE, KELVIN)
    assert "linear in z (modes with unknown mixing) suffices" in advice(DOUBLE, KELVIN)
    assert "suffices" not in advice(HARMONIC, KELVIN)
    assert "A second knob" in advice(HARMONIC, KELVIN)
    assert "2 functions" in advice(heat_capacity, KELVIN)

    def powers(u):
        return normal(0.0, torch.stack([u, u**2], -1))

    assert "1 more value of u: then iVAE, theorems 1 and 3" in advice(powers, [1.0, 2.0])
    assert check_prior(powers, [1.0, 2.0, 3.0]).advice == ()
    assert "also changes component 1." in advice(rows((1, 1), (1, 0.1)), [0, 1])


def test_one_condition_is_allowed_but_compares_nothing():
    check = check_prior(HARMONIC, [300.0])
    assert (check.conditions, check.rank_j, check.verdict.known.free.kind) == (1, 0, "not")
    assert "nothing to compare" in check.sentence


def test_it_reads_as_a_table_and_as_json(checks):
    for name, check in checks.items():
        lines = str(check).splitlines()
        assert max(map(len, lines)) < 250
        row = next(line for line in lines if line.startswith("  free"))
        assert row.split() == ["free", *told(check)[-2:]], name
        again = json.loads(json.dumps(check.as_dict(), allow_nan=False))
        assert again["verdict"]["known"]["free"]["kind"] == check.verdict.known.free.kind
        assert again["rank_j"] == check.rank_j
        assert len(again["gaps"]) == len(check.gaps)


def test_nothing_outside_is_touched():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_prior(HARMONIC, KELVIN)
    assert torch.rand(1) == expected
    with pytest.raises(InputError):
        check_prior(HARMONIC, [-1.0, 300.0])
    assert torch.get_default_dtype() == torch.float32
    assert HARMONIC.given.dtype == torch.float32


def test_ten_temperatures_of_five_components_take_seconds():
    energies = [
        pc.priors.DoubleWell(3.0),
        pc.priors.DoubleWell(2.0, position=1.3, tilt=0.2),
        lambda z: z**4,
        pc.priors.Harmonic(3.0),
        pc.priors.LearnedEnergy(4.0),
    ]
    prior = pc.priors.Boltzmann(energies=energies, reference=300.0)
    start = time.process_time()
    check = check_prior(prior, np.linspace(150.0, 600.0, 10))
    assert time.process_time() - start < 20  # 2.5 s on one core
    assert (check.rank_f, check.ranks_f, check.rank_j) == (1, (1,) * 5, 1)


class Untold(dist.TorchDistribution):
    """Two latents, with a density of its own making."""

    arg_constraints = {}
    support = dist.constraints.real_vector

    def __init__(self, log_prob):
        self.own = log_prob
        super().__init__(torch.Size(), torch.Size([2]))

    def sample(self, shape=()):
        return torch.randn(*shape, 2)

    def log_prob(self, z):
        return self.own(z)


@pytest.mark.parametrize(
    ("prior", "given", "said"),
    [
        (HARMONIC, None, "temperature is missing"),
        (two_ligands, {"first": [0.0, 1.0]}, "second is missing"),
        (two_ligands, {"first": [0.0, 1.0], "second": [0.0]}, "2 of first, 1 of second"),
        (two_ligands, [0.0, 1.0], "wants first and second"),
        (HARMONIC, {"temperature": [300.0], "ligand": [1.0]}, "not ligand"),
        (HARMONIC, {"temperature": [300.0, math.nan]}, "finite numbers"),
        (HARMONIC, [], "finite numbers"),
        ("normal", None, "expected a distribution or a function"),
        (pc.priors.IsotropicNormal(2), [1.0], "wants no field"),
        (lambda u: u, [1.0, 2.0], "not a distribution"),
        (lambda u: dist.Normal(u, 1.0), [1.0, 2.0], "event shape"),
        (lambda u: normal(torch.zeros(3, 2), 1.0), [1.0, 2.0], "batch shape"),
        (Untold(lambda z: torch.tensor(z.detach().numpy()).sum(-1)), None, "differentiated"),
        (Untold(lambda z: z.sum(-1) * math.nan), None, "log_prob of Untold is nan"),
        (
            Untold(lambda z: -z.square().sum(-1).detach() + 0 * z.sum(-1)),
            None,
            "is not its slope",
        ),
    ],
)
def test_bad_input(prior, given, said):
    with pytest.raises(InputError, match=said):
        check_prior(prior, given)


def test_bad_numbers():
    with pytest.raises(InputError, match="dim: 3 was given"):
        check_prior(HARMONIC, KELVIN, dim=3)
    with pytest.raises(InputError, match="samples: expected at least 100"):
        check_prior(HARMONIC, KELVIN, samples=10)


def test_particles_share_conditions():
    few = check_prior(HARMONIC, KELVIN)
    many = check_prior(HARMONIC, np.repeat(np.array(KELVIN, dtype=np.float32), 1000))
    assert many.conditions == 6
    assert told(many) == told(few)
    spread = check_prior(HARMONIC, np.linspace(100.0, 600.0, 1500))
    assert (spread.conditions, spread.rank_j, spread.fibres) == (1500, 1, "closed")


def test_advice_on_what_is_learned_is_about_the_family():
    said = advice(pc.priors.Conditional("dose", 2), FIVE)
    assert said.startswith("A learned prior has axes wherever it is fitted")
    assert "as a family        J 2, F 4, W 4" in str(
        check_prior(pc.priors.Conditional("dose", 2), FIVE)
    )


def test_a_function_too_few_is_counted():
    def three(temperature):  # 1 / T and ln T, for three components
        t = column(temperature) / 300
        own = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        return Own(lambda z: own * z**2 / t + t.log() * (own * z).sin(), len(t), 3)

    check = check_prior(three, KELVIN)
    assert (check.rank_j, check.rank_f, check.sum_f) == (2, 2, 6)
    assert "2 functions in all" in check.advice[0]
    few = check_prior(three, KELVIN[:2])
    assert few.rank_j == 1
    assert "no more ever" in few.advice[0]


def test_signs_are_about_any_centre_and_exchanges_in_any_unit():
    narrow = pc.priors.Boltzmann(energies=[pc.priors.DoubleWell(9.0)] * 2, reference=300.0)
    moves = {"loc": torch.tensor([50.0, -7.0]), "scale": torch.tensor([1.0, 30.0])}

    def moved(temperature):
        map_ = dist.transforms.AffineTransform(*moves.values(), event_dim=1)
        return dist.TransformedDistribution(narrow.double()(temperature), [map_])

    check = check_prior(moved, KELVIN)
    assert set(check.permutations) == {(-1, 2), (1, -2), (2, 1)}
    tilted = [pc.priors.DoubleWell(3.0, tilt=0.3), pc.priors.DoubleWell(3.0, tilt=-0.3)]
    check = check_prior(pc.priors.Boltzmann(energies=tilted, reference=300.0), KELVIN)
    assert check.permutations == ((-2, -1),)


def test_a_turn_that_costs_next_to_nothing_is_told():
    check = check_prior(rows((1, 1), (1.001, 1.002), (1.003, 1.001)), [0, 1, 2])
    assert check.verdict.known.free.axes
    assert "hardly any number of particles" in check.advice[0]
    assert "hardly" not in advice(TABLE["scales, 3"][0], [0, 1, 2])


def test_where_contrasts_vanish_is_told():
    def local(temperature, ligand):
        """A ligand that binds near z1 = 1 alone."""
        beta, c = 300 / column(temperature), column(ligand)

        def bound(z):
            near = torch.exp(-((z[..., 0] - 1) ** 2) / 0.02)
            return torch.stack([near, 0 * z[..., 1]], -1)

        return Own(lambda z: beta * (wells(z) - c * bound(z)), len(beta), 2)

    check = check_prior(local, four("temperature", "ligand"))
    assert check.rank_j == 2
    assert "% of z" in check.verdict.known.free.sentence
