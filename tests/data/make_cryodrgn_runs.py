"""Makes cryodrgn_runs/: two run folders of cryoDRGN 4.3.1's own train_vae, as small as they get.

    pip install cryodrgn==4.3.1 && pip install -e .
    python tests/data/make_cryodrgn_runs.py [tests/data/cryodrgn_runs]

The particles are two arms in space, 16 x 16 pixels; one run has CTFs, indices and the default
encoder, one a plain MLP of the whole image and no window. Left out of what cryoDRGN writes are
the optimiser's state, the command, the time and all of its log but the losses; files are named
without their folders.
"""

import argparse
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import yaml
from cryodrgn.commands.train_vae import add_args, main

import pyrocryo as pc
from pyrocryo.io.to_cryodrgn import write_cryodrgn

SMALL = ["--enc-dim", "16", "--dec-dim", "8", "--enc-layers", "2", "--dec-layers", "1",
         "--num-epochs", "1", "--batch-size", "16", "--seed", "0", "--lr", ".01",
         "--no-analysis", "--no-amp", "--max-threads", "1"]  # fmt: skip


def make(folder: Path, options: list[str], *, ctf: bool, some: bool) -> None:
    """One run, its particles beside it."""
    molecule = pc.molecules.Arms3D(2)
    particles = pc.simulate.poses(molecule, 64, seed=1, snr=1.0, box=16, pixel_size=8.0, ctf=ctf)
    files = write_cryodrgn(particles, folder)
    given = [str(files[0]), "--poses", str(files[1]), "-o", str(folder)]
    if ctf:
        given += ["--ctf", str(files[2])]
    if some:
        with open(folder / "ind.pkl", "wb") as file:
            pickle.dump(np.arange(60, 3, -1), file, protocol=4)
        given += ["--ind", str(folder / "ind.pkl")]
    parser = argparse.ArgumentParser()
    add_args(parser)
    main(parser.parse_args([*given, *SMALL, *options]))
    state = torch.load(folder / "weights.1.pkl", weights_only=True)
    del state["optimizer_state_dict"]
    torch.save(state, folder / "weights.1.pkl")
    told = yaml.safe_load((folder / "config.yaml").read_text())
    del told["cmd"], told["time"]
    data = told["dataset_args"]
    for name in ("particles", "poses", "ctf", "ind"):
        data[name] = data[name] and Path(data[name]).name
    (folder / "config.yaml").write_text(yaml.dump(told))
    log = folder / "run.log"  # cryoDRGN's analyze looks for its losses
    losses = [line for line in log.read_text().splitlines() if "====" in line]
    log.unlink()  # its handler stays open
    log.write_text("\n".join(losses) + "\n")
    (folder / "weights.pkl").unlink()
    (folder / "z.pkl").unlink()


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("cryodrgn_runs")
    make(out / "resid", ["--zdim", "2"], ctf=True, some=True)
    plain = ["--zdim", "3", "--encode-mode", "mlp", "--uninvert-data", "--no-window",
             "--enc-mask", "-1", "--activation", "leaky_relu"]  # fmt: skip
    make(out / "mlp", plain, ctf=False, some=False)
