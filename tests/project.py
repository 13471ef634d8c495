"""A project as RELION, cryoSPARC and cryoDRGN leave it, of a few simulated particles."""

import pickle
from pathlib import Path

import numpy as np

import pyrocryo as pc
from pyrocryo.io import star
from pyrocryo.io.mrc import write_stack
from pyrocryo.rotations import vector_from_matrix

STAR = "Refine3D/job019/run_data.star"
CS, PASSTHROUGH = "J42/cryosparc_P7_J42_particles.cs", "J42/J42_passthrough_particles.cs"
YAML = """cmd: [cryodrgn, train_vae]
dataset_args:
  ctf: ctf.pkl
  ind: null
  poses: pose.pkl
"""


def make(folder: Path, n: int = 240, box: int = 32) -> pc.Particles:
    """Adenylate kinase from all sides, through a CTF, in two micrographs.

    ``Refine3D/job019/run_data.star`` names stacks of ``Extract/job012``; ``J42`` holds a .cs file
    and its passthrough; ``cryodrgn/z8_a`` and ``z8_b`` are runs, one of which has z from the pose.
    """
    particles = pc.simulate.poses(
        pc.molecules.AdenylateKinase(), n, seed=0, snr=1.0, box=box, pixel_size=2.0, ctf=True
    )
    pc.io.save(particles, folder / "p.star")
    _relion(folder, particles)
    _cryosparc(folder, particles)
    _cryodrgn(folder, particles)
    for name in ("p.star", "p.mrcs"):
        (folder / name).unlink()
    return particles


def _relion(folder: Path, particles: pc.Particles) -> None:
    blocks, n = star.read(folder / "p.star"), len(particles)
    table, names = blocks["particles"], []
    stacks = folder / "Extract" / "job012" / "Micrographs"
    stacks.mkdir(parents=True)
    for m, rows in enumerate(np.array_split(np.arange(n), 2), start=1):
        name = f"20240311_{m:04d}.mrcs"
        write_stack(stacks / name, particles.raw(rows), particles.pixel_size)
        names += [f"{k:06d}@Extract/job012/Micrographs/{name}" for k in range(1, len(rows) + 1)]
    table["rlnImageName"] = names
    table["rlnMicrographName"] = [
        name.split("@")[1].replace("Extract", "Motion") for name in names
    ]
    blocks["particles"] = {k: v for k, v in table.items() if "Truth" not in k}
    (folder / STAR).parent.mkdir(parents=True)
    star.write(folder / STAR, blocks)


def _cryosparc(folder: Path, particles: pc.Particles) -> None:
    n, number = len(particles), np.float32
    (folder / "J42").mkdir()
    write_stack(folder / "J42/extract.mrc", particles.raw(np.arange(n)), particles.pixel_size)
    uid, ctf = np.arange(n, dtype=np.uint64) * 977 + 13, particles.ctf.astype(number)
    own = {
        "uid": uid,
        "blob/path": np.array([b"J42/extract.mrc"] * n),
        "blob/idx": np.arange(n, dtype=np.uint32),
        "blob/shape": np.full((n, 2), particles.box, np.uint32),
        "blob/psize_A": np.full(n, particles.pixel_size, number),
        "alignments3D/pose": -vector_from_matrix(particles.rotation).astype(number),
        "alignments3D/shift": (-particles.shift / particles.pixel_size).astype(number),
    }
    names = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast")
    ctf[:, 2] = np.deg2rad(ctf[:, 2])
    other = {"uid": uid} | {f"ctf/{name}": ctf[:, k] for k, name in enumerate(names)}
    for path, columns in ((CS, own), (PASSTHROUGH, other)):
        dtype = [(name, value.dtype, value.shape[1:]) for name, value in columns.items()]
        table = np.empty(n, dtype)
        for name, value in columns.items():
            table[name] = value
        with (folder / path).open("wb") as file:
            np.save(file, table)


def _cryodrgn(folder: Path, particles: pc.Particles) -> None:
    rng, n = np.random.default_rng(0), len(particles)
    true = particles.truth + 0.3 * rng.normal(size=(n, 2))
    leaky = np.stack([particles.rotation[:, 2, 2], true[:, 0]], axis=1)
    wide = particles.box * particles.pixel_size
    contents = {
        "pose.pkl": [(particles.rotation, -particles.shift / wide)],
        "ctf.pkl": [np.hstack([np.tile([particles.box, particles.pixel_size], (n, 1)),
                               particles.ctf[:, :7]])],
        "z8_a/z.49.pkl": [true.astype("f4"), np.full((n, 2), -2, "f4")],
        "z8_b/z.49.pkl": [leaky.astype("f4"), np.full((n, 2), -2, "f4")],
    }  # fmt: skip
    for name, pickles in contents.items():
        path = folder / "cryodrgn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(map(pickle.dumps, pickles)))
    for run in ("z8_a", "z8_b"):
        text = YAML.replace("ctf.pkl", f"{folder}/cryodrgn/ctf.pkl")
        text = text.replace("pose.pkl", f"{folder}/cryodrgn/pose.pkl")
        (folder / "cryodrgn" / run / "config.yaml").write_text(text)
