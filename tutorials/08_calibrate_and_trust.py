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
# # Calibrate and trust
#
# Variational inference gives numbers for anything. Three questions, and none of them answers
# another: is the guide the posterior of this model, is the model that of the images, and do its
# axes mean anything? What each check can and cannot see, with detection rates, is in
# [docs/calibrate_and_trust.md](../docs/calibrate_and_trust.md).

# %%
import os

import arviz as az
import matplotlib.pyplot as plt

import pyrocryo as pc

# %matplotlib inline
SHORT = "PYROCRYO_SHORT" in os.environ  # how the tests run this
N, STEPS, CHECKED = (400, 40, 40) if SHORT else (4000, 800, 256)

# %% [markdown]
# ## A fit
#
# Pairs of frames of two arms. The usual guide, an encoder of each frame by itself with a
# covariance matrix, and a Laplace prior on their difference.

# %%
particles = pc.simulate.time_resolved(pc.molecules.TwoArms(), n=N, seed=0)


def pair_of(prior):
    return pc.Pair(prior=prior, volume=pc.volumes.Grid(dim=2), box=particles.box)


slow = pc.fit(pair_of(pc.priors.LaplaceTransition(2, rate=2.0)), particles, steps=STEPS, seeds=2)

# %% [markdown]
# ## Is the guide the posterior of the model?
#
# Draws of the guide, weighed by the model: k-hat says whether the guide lacks tails (above .7 it
# does), the gap between IWAE and ELBO how many nats it is off. Ranks of true latents among the
# guide's draws, for particles drawn from the fitted model itself, are flat if it is right.

# %%
checked = pc.diagnose.check(slow, particles, n=CHECKED, images=CHECKED, most=CHECKED)
print(checked.sentence)
print(checked.importance.verdict)
print(checked.sbc.verdict)
print(checked.calibration.verdict)

# %% [markdown]
# An encoder sees a frame and not the other, and one network serves all particles. A few steps on
# each particle from the encoder's answer, under the model itself and with nothing trained, take
# away most of what it is off.

# %%
better = pc.refined(slow)
again = pc.diagnose.check(better, particles, n=CHECKED, images=CHECKED, most=CHECKED)
print(again.sentence)
print(again.importance.verdict)

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 2.8))
for name, found, colour in (("encoder", checked, "C0"), ("refined", again, "C1")):
    axes[0].hist(found.importance.khat[0], bins=30, alpha=0.6, color=colour, label=name)
    share = (found.sbc.ranks[0, :, 0] + 0.5) / (found.sbc.draws + 1)
    axes[1].hist(share, bins=10, range=(0, 1), alpha=0.6, color=colour)
    axes[2].plot(found.tarp.alpha, found.tarp.coverage[0, 0], color=colour)
axes[0].axvline(0.7, color="k", lw=0.8)
axes[0].set(xlabel="k-hat", ylabel="particles")
axes[0].legend()
axes[1].axhline(CHECKED / 10, color="k", lw=0.8)
axes[1].set(xlabel="rank of the true z1 among draws")
axes[2].plot([0, 1], [0, 1], "k", lw=0.8)
axes[2].set(xlabel="credibility", ylabel="coverage (TARP)")
fig.tight_layout()

# %% [markdown]
# Sampling knows no family of guides: NUTS from the guide's draws, for some particles.

# %%
exact = pc.nuts(better, particles.test, index=range(1 if SHORT else 6), draws=100, warmup=50)
print(exact.verdict)
az.summary(exact.draws).head(4)

# %% [markdown]
# ## Is the model that of the images?
#
# All of the above is within the model, and blind to what it leaves out. Residuals of the images
# are compared with those of images that the model makes. A fault, planted: the noise has 1.3
# times the deviation that the model is told.

# %%
print(checked.predictive.verdict)
louder = pc.fit(
    pc.Pair(
        prior=pc.priors.LaplaceTransition(2, rate=2.0),
        volume=pc.volumes.Grid(dim=2),
        box=particles.box,
        noise=1 / 1.3,
    ),
    particles,
    steps=STEPS,
)
print(pc.diagnose.predictive(louder, particles.test).verdict)

# %% [markdown]
# ## Do its axes mean anything?
#
# Likelihood does not tell. An isotropic prior that knows nothing of time, against the one that
# made the data:

# %%
plain = pc.fit(pair_of(pc.priors.IsotropicNormal(2)), particles, steps=STEPS, seeds=2)
models = {"Laplace transition": slow, "isotropic": plain}
held_out = {name: pc.elpd(pc.refined(fit), particles.test) for name, fit in models.items()}
print(az.compare(held_out))
for name, found in held_out.items():
    print(f"{name}: {found.identifiability}")

# %% [markdown]
# The prior that made the data wins here. One that is told the wrong rate, ten times too slow, loses
# by far, to one without any axes: the order by likelihood is not the order by axes (MCC), and a
# model is not to be chosen by it for the meaning of its latents.

# %%
wrong = pc.fit(pair_of(pc.priors.LaplaceTransition(2, rate=20.0)), particles, steps=STEPS, seeds=2)
held_out["ten times too slow"] = pc.elpd(pc.refined(wrong), particles.test)
print(az.compare(held_out))
for name, fit in (models | {"ten times too slow": wrong}).items():
    z = pc.diagnose.posterior_means(fit.pairs[0], particles.test)
    print(name, "MCC", round(pc.metrics.mcc(particles.test.truth.reshape(-1, 2), z).value, 3))

# %% [markdown]
# ## What can go wrong
#
# - k-hat cannot see a guide that is too wide; ranks and coverage can. Ranks cannot see a wrong
#   model: only the predictive checks can. None sees axes that are turned.
# - Checks speak of the particles they were given: one odd particle in a hundred is lost in the
#   averages, so look at k-hat particle by particle.
# - `refined` mends the encoder, not the decoder; it stays a normal, so of two peaks it has one.
# - NUTS that starts from a guide knows the peaks that the guide knows, and R-hat likewise.
# - A likelihood is compared on the same held-out particles, refined, or encoders are compared
#   with it. `az.loo` for latents of each particle's own is meaningless.
