# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write a prior
#
# What you know about the motions of your molecule is the prior on `z`, and any Pyro distribution
# will do. Nothing is registered and nothing in the package changes.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pyrocryo as pc

# %matplotlib inline
SHORT = "PYROCRYO_SHORT" in os.environ  # how the tests run this
STEPS, SEEDS = (150, 1) if SHORT else (1200, 2)

# %% [markdown]
# ## As a function
#
# Its parameters are named as the fields of the particles that it wants. Here the temperature, in
# K, says how widely each component spreads; the second one is stiffer.


# %%
def cooler_is_narrower(temperature):
    width = torch.stack([(temperature / 300) ** 0.5, (temperature / 300) ** 2.5], dim=-1)
    return dist.Normal(torch.zeros_like(width), width).to_event(1)


kelvin = {"temperature": torch.tensor([300.0, 240.0, 180.0])}
for check, found in pc.testing.check_prior(cooler_is_narrower, context=kelvin).items():
    print(f"{check:14s}{found}")

# %% [markdown]
# ## As a distribution
#
# Steps between two frames with heavy tails. The event has shape `(T, K)`: one law for both frames
# of a molecule. `expand` matters: without it Pyro wraps the distribution inside a plate.


# %%
class StudentTransition(dist.TorchDistribution):
    arg_constraints = {"scale": constraints.positive}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, dim, scale, batch_shape=torch.Size(), validate_args=None):
        self.scale = torch.as_tensor(scale)
        super().__init__(batch_shape, torch.Size([2, dim]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        return StudentTransition(self.event_shape[1], self.scale, torch.Size(batch_shape))

    def rsample(self, sample_shape=torch.Size()):
        shape = self._extended_shape(sample_shape)
        first = torch.randn(*shape[:-2], 1, shape[-1], device=self.scale.device)
        steps = dist.StudentT(3.0, 0.0, self.scale).rsample(first.shape)
        return torch.cat([first, first + steps], dim=-2)

    def log_prob(self, z):
        first = dist.Normal(0.0, 1.0).log_prob(z[..., 0, :]).sum(-1)
        return first + dist.StudentT(3.0, 0.0, self.scale).log_prob(z.diff(dim=-2)).sum((-1, -2))


for check, found in pc.testing.check_prior(StudentTransition(2, 0.4)).items():
    print(f"{check:14s}{found}")

# %% [markdown]
# ## What the check is for
#
# Leave `expand` out and get the normaliser wrong: nothing crashes, and training would go on for
# hours under another model than the one on paper.


# %%
class Careless(StudentTransition):
    expand = dist.TorchDistribution.expand

    def log_prob(self, z):
        return super().log_prob(z) + 0.3


try:
    pc.testing.check_prior(Careless(2, 0.4))
except pc.testing.CheckFailed as failed:
    print(failed)

# %% [markdown]
# ## Use it
#
# No closed-form KL is known for these steps, so the ELBO is sampled, and `fit` says so. (A KL of
# your own is one function under `torch.distributions.kl.register_kl`; `check_prior` then compares
# it with Monte Carlo.)

# %%
particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=8_000, seed=0, scale=0.5)
scores = {}
for prior in (pc.priors.IsotropicNormal(2), StudentTransition(2, 0.4)):
    pair = pc.Pair(prior, pc.volumes.Grid(), particles.box)
    fit = pc.fit(pair, particles, steps=STEPS, seeds=SEEDS, progress=False)
    post = pc.posterior(fit, particles.test, draws=20)
    name = type(prior).__name__
    scores[name] = pc.metrics.report(post)["angle_deg"]["per_seed"]
    print(f"{name}, closed form: {fit.exact_kl}")
    print(" ", pc.identify.report(fit, post)["sentence"])

# %% [markdown]
# ## From physics: energies
#
# If you can write the energy of a component down, its law at every temperature follows:
# $p(z_k | \tau) = e^{-\epsilon_k(z_k) / \tau} / Q_k(\tau)$, with `Q` by quadrature, exact samples
# and a KL. Energies here are in units of $k_B \cdot 300$ K; any elementwise function is one.

# %%
wells = pc.priors.Boltzmann(
    energies=(pc.priors.DoubleWell(3.0, tilt=0.5), lambda z: z.abs() ** 1.5), reference=300.0
)
grid = torch.linspace(-2.5, 2.5, 201)
figure, panels = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for tau in (300.0, 200.0, 120.0):
    law = wells(torch.tensor(tau))
    still = torch.zeros(201)
    middle = law.log_prob(torch.zeros(1, 2))
    for k, axes in enumerate(panels):
        z = torch.stack([grid, still] if k == 0 else [still, grid], dim=-1)
        density = (law.log_prob(z) - middle).exp()
        axes.plot(grid, density / torch.trapezoid(density, grid), label=f"{tau:.0f} K")
        axes.set(xlabel=f"z{k + 1}")
panels[0].set(ylabel="density")
panels[1].legend()

# %% [markdown]
# ## What can go wrong
#
# A prior can be right, pass every check, and still not identify anything. This one is rotation
# invariant within each temperature, and `rotation_gap` says so before any training: nats a particle
# that a turn of the axes would cost. Energies that do not depend on temperature have a subtler
# fault: no rotation leaves them unchanged, but flows along the level curves of the total energy
# do, so with a free decoder they do not identify `z` either, however many temperatures are measured.


# %%
def equally_narrow(temperature):
    width = (temperature / 300).unsqueeze(-1).expand(-1, 2)
    return dist.Normal(torch.zeros_like(width), width).to_event(1)


hot_and_cold = pc.simulate.temperature(pc.molecules.TwoArms(), n=200)
batch = hot_and_cold.batch(np.arange(60))
for prior in (cooler_is_narrower, equally_narrow, wells):
    pair = pc.Pair(prior, pc.volumes.Grid(), 32, dim=2)
    name = getattr(prior, "__name__", "wells")
    print(f"{name:20s}{pc.identify.rotation_gap(pair, batch):8.3f} nats")
print({name: np.round(angles, 1) for name, angles in scores.items()}, "degrees left to the truth")
