"""Draws the README's picture from the runs of `make demo`.

python docs/picture.py runs/demo models/axes.png
"""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pyrocryo.files import replacing
from pyrocryo.io.netcdf import read_posterior
from pyrocryo.metrics.mcc import correlation

RUNS = (("vae", "isotropic normal prior", "C3"), ("slowvae", "Laplace transition prior", "C0"))
SHOWN = 2000  # points


def draw(folder, path):
    """Latents against true motions, of the seed with the best ELBO of each run."""
    figure = Figure(figsize=(8.2, 3.5), layout="constrained")
    for part, (name, title, colour) in zip(figure.subfigures(1, 2), RUNS, strict=True):
        found = read_posterior(Path(folder) / name / "posterior.nc")
        elbo = json.loads((Path(folder) / name / "metrics.json").read_text())["elbo"]["per_seed"]
        z = np.asarray(found["posterior"]["z"])[int(np.argmax(elbo))].mean(axis=0).reshape(-1, 2)
        truth = np.asarray(found["constant_data"]["truth"]).reshape(-1, 2)
        r = correlation(truth, z).round(2) + 0.0  # no -0.00
        panels = part.subplots(2, 2, sharex="col", sharey="row")
        for i, k in np.ndindex(2, 2):
            axes, rows = panels[i, k], slice(None, None, max(1, len(z) // SHOWN))
            axes.plot(z[rows, k], truth[rows, i], ".", ms=2, alpha=0.4, color=colour)
            axes.set_title(f"r = {r[i, k]:.2f}".replace("-", "−"), fontsize=8, pad=3)
            axes.set(xlabel=f"inferred z{k + 1}" if i else None)
        for i in range(2):
            panels[i, 0].set_ylabel(f"true angle, arm {i + 1}")
        part.suptitle(title, fontsize=11)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


if __name__ == "__main__":
    draw(*sys.argv[1:])
