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
# # Real particles
#
# From the star file of a refinement to a verdict, and back to the star file. Each step is a
# question that users of heterogeneity programs ask: is the file what I think it is, is there
# anything in my particles, where are they, does this axis only follow the views, which particles
# do I take back? The same from a shell is in
# [docs/from_relion_to_a_verdict.md](../docs/from_relion_to_a_verdict.md).

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import pyrocryo as pc

# %matplotlib inline
SHORT = "PYROCRYO_SHORT" in os.environ  # how the tests run this
N, STEPS, SEEDS = (400, 20, 1) if SHORT else (5000, 250, 3)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A file
#
# This cell stands for the microscope and the refinement: adenylate kinase, whose two domains move,
# through a CTF, darker than its background as raw particles are. Yours begins at the next one.

# %%
kinase = pc.molecules.AdenylateKinase()
made = pc.simulate.poses(kinase, n=N, seed=0, snr=0.3, box=64, pixel_size=1.5, ctf=True)
pc.io.save(made.inverted(), folder / "particles.star")

# %% [markdown]
# ## Is it what I think it is?
#
# `pyrocryo inspect particles.star` prints all of this and more. The sign says whether the middle
# of the images is brighter or darker than chance allows; the signal-to-noise ratio comes from the
# corners.

# %%
read = pc.io.load(folder / "particles.star")
found = pc.inspection.summary(read)
print(read)
print(f"sign: {found['sign']['verdict']}, SNR {found['snr']['box']:.2f}")
print("views uniform: p =", round(found["views"]["uniform_p"], 2))

# %% [markdown]
# Dark: their sign is changed. Conformations are large, so half the pixels do; shifts, pixel size
# and CTF follow.

# %%
particles = read.prepared(32, invert=True).standardised()
fig, axes = plt.subplots(1, 4, figsize=(9, 2.3))
for ax, image in zip(axes[:2], read.images[:2], strict=True):
    ax.imshow(image, cmap="gray")
    ax.set(title="as read", xticks=[], yticks=[])
for ax, image in zip(axes[2:], particles.batch(np.arange(2)).images, strict=True):
    ax.imshow(image, cmap="gray")
    ax.set(title="as fitted", xticks=[], yticks=[])
fig.tight_layout()

# %% [markdown]
# ## A fit
#
# Nothing is known of the molecule but its images. A consensus map from their poses, a hundred
# Gaussians in its place, and each learns how it moves with `z`; the guide takes Gauss-Newton steps
# on the volume itself, through the CTF. It is what `models/particles.py` does.

# %%
consensus = pc.imaging.backproject(particles.train)
blobs = pc.molecules.mixture(consensus.map, consensus.voxel_size, count=100)
volume = pc.volumes.Atoms(
    blobs.positions,
    width=blobs.width,
    weight=blobs.weight,
    free=True,
    pixel_size=particles.pixel_size,
)
pair = pc.Pair(
    prior=pc.priors.IsotropicNormal(2),
    volume=volume,
    box=particles.box,
    guide=pc.guides.GaussNewton(),
    optics=pc.optics.CTF(margin=2),
)
fit = pc.fit(pair, particles, steps=STEPS, seeds=SEEDS, batch_size=32, lr=4e-3)

# %% [markdown]
# ## Is there anything?
#
# The held-out images are more likely under this model than under the same one with `z` held at 0,
# trained as long, or they are not.

# %%
heterogeneity = pc.diagnose.heterogeneity(fit, particles, most=400)
print(heterogeneity.sentence)

# %% [markdown]
# ## May I read the axes?

# %%
some = particles.test.take(range(min(200, len(particles.test))))
post = pc.posterior(fit, some, draws=10)
print(pc.identify.report(fit, post)["sentence"])

# %% [markdown]
# No: the prior is the same in all directions, so `z` is known up to a rotation at best, and a movie
# along "axis 1" shows a mixture of both domains. What does not hang on axes can be read all the
# same: how many directions there are, where particles cluster, which lie far apart. The truth of
# this simulation says that all seeds know the motions (R²), and that how near the axes of one lie
# to them is chance (MCC).

# %%
for seed, trained in zip(fit.seeds, fit.pairs, strict=True):
    z = pc.diagnose.posterior_means(trained, particles.test)
    r2 = pc.metrics.r2(particles.test.truth, z).value
    mcc = pc.metrics.mcc(particles.test.truth, z).value
    print(f"seed {seed}: R² {r2:.2f}, MCC {mcc:.2f}")

# %% [markdown]
# ## Do they follow the views?
#
# Molecules lie on the grid whatever their conformation, so `z` should not depend on the pose. By
# permutation, for the latents of any program (`pyrocryo audit`):

# %%
z = pc.diagnose.posterior_means(fit.pairs[0], particles)
leak = pc.diagnose.leak(z, particles.rotation)
print(leak.sentence)

# %% [markdown]
# ## Where are they?
#
# Clusters and the maps at their centres; populations along a direction with the posterior's width
# taken out, and what bootstrap and seeds leave open.

# %%
clusters, maps = pc.io.write_clusters(folder / "clusters", fit, particles, 4, seed=0)
profiles = pc.diagnose.populations(fit, particles, most=1000, resamples=40)
fig, axes = plt.subplots(1, 5, figsize=(11, 2.4))
axes[0].scatter(*z.T, c=clusters.label, s=3, cmap="viridis")
axes[0].set(title="latents, clusters", xticks=[], yticks=[])
for ax, path, count in zip(axes[1:], maps, clusters.count, strict=True):
    ax.imshow(pc.io.read_map(path)[0].sum(0), cmap="gray", origin="lower")
    ax.set(title=f"{count} particles", xticks=[], yticks=[])
fig.tight_layout()
print(profiles[0].sentence)

# %% [markdown]
# ## Back to the refinement
#
# The same rows, order and columns as the file had, and the posterior's as further ones; or one
# cluster of them. RELION takes either; reconstruct from them there: a motion that is real is in
# maps of the particles alone, too.

# %%
pc.io.annotate(folder / "particles.star", folder / "with_z.star", fit, particles, seed=0)
chosen = np.flatnonzero(clusters.label == 0)
pc.io.select(folder / "particles.star", folder / "cluster_1.star", chosen)
print(pc.io.load(folder / "cluster_1.star"))
print([line for line in (folder / "with_z.star").read_text().splitlines() if "pyrocryoZ" in line])

# %% [markdown]
# ## What can go wrong
#
# - *Not identified* is the usual end of single images without further knowledge. Conditions, time
#   or a structure change it (tutorials 4, 5 and 6); more particles and longer training do not.
# - Wrong pixel sizes, signs or defocus give a fit all the same, of something. `inspect` before,
#   `pyrocryo diagnose` after.
# - Poses come from a consensus refinement, and are those of whatever dominates the images. If a
#   domain drags its pose along, `z` depends on the view, and the audit says so, but not why.
# - A mixture of Gaussians moves mass. Density that comes and goes (a ligand, a missing subunit)
#   is better shown by `volumes.Grid`, which wants many more particles.
# - A free energy along an axis that is not identified is one of an arbitrary coordinate.
