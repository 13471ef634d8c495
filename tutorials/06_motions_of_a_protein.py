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
# # Motions of a protein
#
# Klindt et al. (2024), sections 2.1 and 4.2.3: with physics in the decoder, what comes out of
# particles are structures, and motions that have names. From images of adenylate kinase to its two
# domains closing, and a movie of each. What the physics alone does not give are the axes: ten
# normal modes hold the motions, and mix them.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro.distributions as dist
import torch

import pyrocryo as pc

# %matplotlib inline
SHORT = "PYROCRYO_SHORT" in os.environ  # how the tests run this
N, STEPS = (600, 30) if SHORT else (6000, 400)

# %% [markdown]
# ## Particles, and a structure
#
# Simulated here, through a CTF, with known poses: NMP and LID each close over the CORE, from wide
# open to shut, all angles alike likely. Of your own: `particles = pc.io.load("particles.star")`.

# %%
kinase = pc.molecules.AdenylateKinase()
flat = dist.Uniform(torch.full((2,), -3.0), 3.0).to_event(1)
particles = pc.simulate.poses(
    kinase, n=N, seed=0, prior=flat, snr=0.6, box=32, pixel_size=3.0, ctf=True
)
particles

# %% [markdown]
# A structure comes from a file, `pc.io.read_structure("4ake.pdb", chain="A")`, and lies anywhere.
# The consensus map, from the images by their poses, says where it belongs. `dock` tries all
# orientations; a runner-up or a mirror image that fits as well would be a warning.

# %%
consensus = pc.imaging.backproject(particles.train)
turn = np.array([[0.0, -1.0, 0.0], [0.6, 0.0, 0.8], [-0.8, 0.0, 0.6]])
as_read = kinase.ca_open @ turn.T + [20.0, -30.0, 5.0]  # stands for what was read
docked = pc.molecules.dock(as_read, consensus.map, consensus.voxel_size)
print(consensus)
print(docked)

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4))
left.imshow(particles.images[:2].reshape(64, 32).T, cmap="gray")
left.set(title="two particles", xticks=[], yticks=[])
edge = consensus.voxel_size * 16
right.imshow(consensus.map.sum(0), cmap="gray", origin="lower", extent=(-edge, edge, -edge, edge))
right.plot(*docked.positions[:, :2].T, lw=0.8, color="C1")
right.set(title="consensus map, and the structure in it", xlabel="x (Å)", ylabel="y (Å)")
fig.tight_layout()

# %% [markdown]
# ## Ten normal modes
#
# The softest motions of an elastic network of the structure. `z` says how far along each; `rest`
# learns the mean conformation, `stretch` how far the molecule goes.

# %%
modes = pc.molecules.normal_modes(docked.positions, 10)
volume = pc.volumes.NormalModes(
    modes, pixel_size=particles.pixel_size, rest=True, stretch=True, whole=True
)
pair = pc.Pair(
    prior=pc.priors.IsotropicNormal(10),
    volume=volume,
    box=particles.box,
    guide=pc.guides.GaussNewton(),
    optics=pc.optics.CTF(margin=2),
    rotate=False,
)
fit = pc.fit(pair, particles, steps=STEPS, batch_size=32, lr=1e-2)
some = particles.test if particles.has_test else particles
post = pc.posterior(fit, some.take(range(min(200, len(some)))), draws=4)
print(pc.identify.report(fit, post)["sentence"])

# %% [markdown]
# Each latent is a mode, because the decoder says so, and the modes of a spring network are not the
# molecule's hinges: the latents know the angles (R²), and none of them is one (MCC). A decoder
# that learns which combinations of modes to use would not help by itself: its prior cannot tell
# one from another.

# %%
trained = fit.pairs[0]
z = pc.diagnose.posterior_means(trained, particles)
print("R²", pc.metrics.r2(particles.truth, z).value)
print("MCC of modes", pc.metrics.mcc(particles.truth, z).value)
print(pc.identify.check_prior(pc.priors.IsotropicNormal(2)).sentence)

# %% [markdown]
# ## Axes from amplitudes that are not Gaussian
#
# PCA finds that two directions hold the motion; ICA turns them to where they are independent. It
# says whether they can have been told apart: of Gaussian amplitudes none could (Fig. 2 of the
# paper, after Gao et al. 2020).

# %%
ica = pc.identify.linear_ica(z, components=2)
print(ica.sentence)
print("MCC of components", pc.metrics.mcc(particles.truth, ica.sources).value)

# %% [markdown]
# Names come from structures: along each component, how far does each domain turn?

# %%
DOMAINS = ("CORE", "NMP", "LID")
fig, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
for k, ax in enumerate(axes):
    with torch.no_grad():
        structures = trained.volume.structure(torch.as_tensor(ica.path(k)).float()).numpy()
    moved = pc.molecules.domain_angles(structures, docked.positions, kinase.domain)
    degrees = np.degrees(moved.hinges()[1])
    for b, name in enumerate(moved.domains):
        ax.plot(range(1, 11), degrees[:, b], "o-", label=DOMAINS[name])
    ax.set(title=f"component {k + 1}", xlabel="bin, from first to last")
axes[0].set_ylabel("turned from the open form (°)")
axes[0].legend()
fig.tight_layout()

# %% [markdown]
# ## Axes from a segmentation
#
# Who knows the domains can say so: rigid bodies with a latent each. The axes are then given, not
# found, and the verdict says that.

# %%
bodies = pc.Pair(
    prior=pc.priors.IsotropicNormal(2),
    volume=pc.volumes.RigidBodies(
        docked.positions,
        kinase.domain,
        pixel_size=particles.pixel_size,
        separate=True,
        hidden=(),
    ),
    box=particles.box,
    guide=pc.guides.GaussNewton(),
    optics=pc.optics.CTF(margin=2),
    rotate=False,
)
rigid = pc.fit(
    bodies, particles, steps=STEPS, batch_size=32, lr=1e-2, penalties=[pc.penalties.Bonds(0.1)]
)
post = pc.posterior(rigid, some.take(range(min(200, len(some)))), draws=4)
print(pc.identify.report(rigid, post)["sentence"])
print(pc.diagnose.structures(rigid, kinase, some).sentence)
print(pc.diagnose.stereochemistry(rigid, some).sentence)

# %% [markdown]
# ## Movies
#
# Of each latent (or of a path, such as `ica.path(0)`): maps, a structure of as many models, and a
# script for ChimeraX that plays them over each other: `chimerax z1.cxc`.

# %%
out = Path(tempfile.mkdtemp())
for k in range(2):
    files = pc.io.write_motion(out, rigid, k, latents=some, frames=10)
print(*sorted(path.name for path in out.iterdir()), sep="  ")

# %%
fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
means = pc.diagnose.posterior_means(rigid.pairs[0], some)
for k, (ax, name) in enumerate(zip(axes, ("NMP", "LID"), strict=True)):
    path = np.tile(means.mean(axis=0), (5, 1))
    path[:, k] = np.quantile(means[:, k], np.linspace(0.05, 0.95, 5))
    with torch.no_grad():
        frames = rigid.pairs[0].volume.structure(torch.as_tensor(path).float()).numpy()
    for frame, colour in zip(frames, plt.cm.viridis(np.linspace(0, 1, 5)), strict=True):
        ax.plot(frame[:, 0], frame[:, 2], lw=1, color=colour)
    ax.set(title=f"latent {k + 1}: {name}", xlabel="x (Å)", aspect="equal")
axes[0].set_ylabel("z (Å)")
fig.tight_layout()

# %% [markdown]
# ## What can go wrong
#
# - Modes are axes that were given, not the molecule's; combinations of them under an isotropic
#   prior are *not identified*, however well they fit. If the hinges' laws were normal, ICA would
#   say that it cannot tell either; pairs in time or a second condition can
#   (`models/modes.py --knowledge time`).
# - A wrong segmentation gives axes all the same: they are given. Compare the ELBO with that of
#   bodies that are all driven by all latents (`separate=False`).
# - Poses are those of the CORE here, and modes move the whole: hence `whole=True`. Poses of a
#   consensus refinement would be of whatever dominates the images.
# - Modes are straight lines, and stretch bonds far from rest; bodies tear where they are cut
#   unless something holds them. `stereochemistry` tells, `penalties.Bonds` helps.
# - A structure that does not move at all is off by a few Å only: read RMSDs beside that number.
