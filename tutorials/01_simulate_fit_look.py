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
# # Simulate, fit, look at the posterior
#
# A molecule with two arms, photographed twice each, a short time apart. We know how the arms stood
# and how the molecule lay, so we can see what a model finds out, and what it cannot know.

# %%
import os

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import torch

import pyrocryo as pc

# %matplotlib inline
SHORT = "PYROCRYO_SHORT" in os.environ  # how the tests run this
STEPS, SEEDS = (150, 2) if SHORT else (1200, 3)

# %% [markdown]
# ## Particles
#
# Every frame lies in a pose of its own. The second conformation is the first plus a Laplace step:
# most steps are small, a few are large, and each arm moves by itself.

# %%
particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=8_000, seed=0, scale=0.5)
print(particles)
batch = particles.batch(np.arange(4))
for name, field in zip(batch._fields, batch, strict=True):
    print(f"{name:12s}{tuple(field.shape)}")

figure, panels = plt.subplots(2, 4, figsize=(5.2, 2.8), layout="constrained")
for t, row in enumerate(panels):
    for axes, image in zip(row, batch.images[:, t], strict=True):
        axes.imshow(image, cmap="gray", origin="lower")
        axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(f"frame {t + 1}")

# %% [markdown]
# ## A pair: the generative model and its guide
#
# $$z_1 \sim N(0, I), \quad (z_2 - z_1)_k \sim \mathrm{Laplace}(0, 1 / \lambda), \quad
#   x_t \sim N(\pi_\phi(v(z_t)), \sigma^2)$$
#
# The prior on `z` is a plug-in, and so are pose and volume.

# %%
pair = pc.Pair(
    prior=pc.priors.LaplaceTransition(dim=2, rate=2.0),
    pose=pc.poses.Known(),
    volume=pc.volumes.Grid(dim=2),
    box=particles.box,
)
print(sum(p.numel() for p in pair.parameters()), "numbers to learn")

# %% [markdown]
# ## Fit
#
# SVI on the training part, seed by seed. Several seeds are not a luxury: that they agree is the
# only sign of identified axes that needs no truth.

# %%
fit = pc.fit(pair, particles, steps=STEPS, seeds=SEEDS, progress=False)
pc.plots.loss(fit.history["loss"], fit.seeds)

# %% [markdown]
# ## The verdict, before looking at any axis

# %%
post = pc.posterior(fit, particles.test, draws=50)
print(pc.identify.report(fit, post)["sentence"])

# %% [markdown]
# ## The posterior is an ArviZ object
#
# One chain a seed. Everything of ArviZ's that reads a posterior reads it; it is also in the run
# folder, as netCDF.

# %%
post

# %%
three = {"particle": particles.test.index[:3], "frame": 0}
az.summary(post, var_names=["z"], coords=three)

# %%
az.plot_forest(post, var_names=["z"], coords=three, combined=False)
# %% [markdown]
# Chains that lie apart are seeds that call different things "first axis", or the same thing with
# the other sign. Nothing in the prior says which arm comes first. So align the seeds before
# comparing them: `pc.identify.consistency` finds out up to which map they agree.

# %%
z = np.asarray(post["posterior"]["z"]).mean(
    axis=1
)  # posterior means: seed, particle, frame, latent
seeds = [one.reshape(-1, 2) for one in z]
print(pc.identify.consistency(seeds, frames=2).sentence)

# %% [markdown]
# R-hat says the same in its own way, particle by particle: near 1 where seeds agree without any
# alignment, large where order or sign differ. (Within a seed the draws are independent: R-hat, ESS
# and trace plots of one seed say nothing about whether to trust it.)

# %%
rhat = az.rhat(post, var_names=["z"])["z"]
print("median R-hat between seeds as they come:", round(float(rhat.median()), 2))

# %% [markdown]
# ## Against the truth, which only simulations know

# %%
truth = np.asarray(post["constant_data"]["truth"]).reshape(-1, 2)
r = np.corrcoef(truth.T, seeds[0].T)[:2, 2:]
pc.plots.latents(truth, seeds[0], r, "seed 0")

# %%
for name, row in pc.metrics.report(post).items():
    floor = "" if row["floor"] is None else f"   floor {row['floor']:.3f}"
    print(f"{name:18s} {row['mean']:10.3f} ± {row['sd']:.3f}{floor}")

# %% [markdown]
# ## What moving along an axis does to the molecule

# %%
values = np.linspace(-2, 2, 7)
path = np.zeros((2, 7, 2), dtype=np.float32)
path[[0, 1], :, [0, 1]] = values
maps = fit.pairs[0].density(torch.as_tensor(path)).numpy()
pc.plots.traversal(maps, np.tile(values, (2, 1)), "one arm an axis")

# %% [markdown]
# ## What can go wrong
#
# The same data, frame by frame under an isotropic normal prior: the model knows the conformations
# as well, and its axes are arbitrary. The loss does not show it; the verdict does.

# %%
plain = pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(), particles.box)
blind = pc.fit(plain, particles, steps=STEPS, seeds=SEEDS, progress=False)
unread = pc.posterior(blind, particles.test, draws=20)
print(pc.identify.report(blind, unread)["sentence"])
table = pc.metrics.report(unread)
for name in ("r2_linear", "mcc_pearson", "angle_deg"):
    print(f"{name:12s}", np.round(table[name]["per_seed"], 2))
