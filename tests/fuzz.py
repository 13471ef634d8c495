"""Files spoiled at random, and what reads them: each gives a result or one InputError.

``python tests/fuzz.py 0 1500`` runs inputs 0 to 1499 of every reader and lists what escapes;
``python tests/fuzz.py 0 1500 star mrc`` those of these readers.
"""

import functools
import gzip
import json
import logging
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import spoil
from fuzz_more import More

import pyrocryo as pc
from pyrocryo.cli import latents
from pyrocryo.io import cryodrgn, model_file, mrc, star
from pyrocryo.io.sections import Run, Sections
from pyrocryo.svi import checkpoints, reopen

SECONDS = 60  # for one input
ROOM = 2**28  # bytes, for all files of a few kB

MODEL = '''
import dataclasses
import numpy as np
import pyrocryo as pc

@dataclasses.dataclass
class Config:
    """A toy."""
    n: int = 12
    rate: float = 2.0
    name: str = "toy"
    parts: tuple = (1, 2)

def particles(config):
    images = np.random.default_rng(0).standard_normal((12, 8, 8)).astype(np.float32)
    return pc.Particles(images, rotation=np.broadcast_to(np.eye(3), (12, 3, 3)))

def pair(config, particles):
    return pc.Pair(pc.priors.IsotropicNormal(2), pc.volumes.Grid(hidden=(4,)), particles.box)
'''


class Workshop(More):
    """Valid files, in a folder of their own, and readers by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readers = {
            name.removeprefix("read_"): getattr(self, name)
            for name in sorted(dir(type(self)))
            if name.startswith("read_")
        }

    @functools.cached_property
    def particles(self):
        rng = np.random.default_rng(0)
        n = 6
        ctf = np.tile([15000, 14000, 30, 300, 2.7, 0.1, 0], (n, 2, 1)).astype(float)
        return pc.Particles(
            rng.standard_normal((n, 2, 8, 8)).astype(np.float32), pixel_size=2.0, ctf=ctf,
            rotation=pc.rotations.random_in_plane((n, 2), rng), shift=rng.normal(size=(n, 2, 2)),
            temperature=np.full(n, 290.0), truth=rng.normal(size=(n, 2, 2)), ligand=np.arange(n),
        )  # fmt: skip

    @functools.cached_property
    def stars(self):
        """RELION 3.1 as we write it, 3.0, and with quotes and more than one table."""
        pc.io.save(self.particles, self.folder / "p.star")
        raw = (self.folder / "p.star").read_bytes()
        old = (
            "\ndata_\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n_rlnAngleTilt #3\n_rlnAnglePsi\n"
            "_rlnOriginX\n_rlnOriginY\n_rlnDetectorPixelSize\n_rlnMagnification\n"
        )
        old += "".join(f"{i + 1:06d}@p.mrcs {i} 10 {2 * i} .5 -1 5 10000\n" for i in range(12))
        return [raw, old.encode()]

    @functools.cached_property
    def stacks(self):
        """All modes, with an extended header, and big endian."""
        rng, found = np.random.default_rng(0), []
        import mrcfile

        for kind in ("i1", "i2", "f4", "u2", "f2"):
            with mrcfile.new(self.folder / "x.mrcs", overwrite=True) as file:
                file.set_data((5 * rng.standard_normal((3, 8, 8))).astype(kind))
                file.set_image_stack()
                file.voxel_size = 1.5
                if kind == "i2":
                    file.set_extended_header(np.zeros(100, "V1"))
            found.append((self.folder / "x.mrcs").read_bytes())
        pc.io.write_map(self.folder / "m.mrc", rng.standard_normal((6, 6, 6)), 1.0)
        raw = (self.folder / "m.mrc").read_bytes()
        swapped = np.frombuffer(raw, ">i4").astype("<i4").tobytes()
        return [*found, raw, swapped[:208] + b"MAP \x11\x11\0\0" + swapped[216:]]

    @functools.cached_property
    def pickles(self):
        rng = np.random.default_rng(0)
        rotation = pc.rotations.random_in_plane((7,), rng).astype(np.float32)
        poses = rotation, rng.normal(size=(7, 2)).astype(np.float32)
        other = {"z": rng.normal(size=(5, 2)), "n": [np.float64(1), 2, "x", None, True, 2**70]}
        return [pickle.dumps(c, p) for c in (poses, rotation, other) for p in range(6)]

    @functools.cached_property
    def structures(self):
        rng, found = np.random.default_rng(0), []
        line = "ATOM  {:5d}  {:<3s} {} {}{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           {}  "
        text = "HEADER\nCRYST1   50.000   50.000   50.000  90.00  90.00  90.00 P 1\n"
        for model in (1, 2):
            text += f"MODEL     {model:4d}\n"
            n = 0
            for chain in "AB":
                for residue in range(1, 5):
                    for atom in ("N", "CA", "C", "O"):
                        n += 1
                        name = "MSE" if residue == 3 else "ALA"
                        xyz = 3.8 * residue + rng.normal(size=3)
                        text += line.format(n, atom, name, chain, residue, *xyz, atom[0]) + "\n"
                text += "TER\n"
            text += "ENDMDL\n"
        found.append((text + "END\n").encode())
        (self.folder / "s.pdb").write_bytes(found[0])
        one = pc.io.read_structure(self.folder / "s.pdb", atoms="all")
        pc.io.write_structure(self.folder / "s.cif", one, [one.positions, one.positions + 1])
        found.append((self.folder / "s.cif").read_bytes())
        return found

    @functools.cached_property
    def run(self):
        """A finished run folder of a toy, with what is needed to open it."""
        (self.folder / "toy.py").write_text(MODEL)
        module = model_file.load_model(self.folder / "toy.py")
        particles = module.particles(None)
        pair = module.pair(None, particles)
        path = self.folder / "checkpoint.pt"
        written, write, every = [], checkpoints._write, checkpoints.EVERY
        checkpoints._write = lambda c, path: [write(c, path), written.append(path.read_bytes())]
        checkpoints.EVERY = 1
        fit = pc.fit(pair, particles, steps=2, batch_size=4, seeds=2, checkpoint=path, together=1)
        checkpoints._write, checkpoints.EVERY = write, every
        config = {
            "source": model_file.SIMULATED, "model": "toy.py", "seconds": 1.5, "poses": None,
            "options": {"n": 12, "rate": 2.0, "name": "toy", "parts": [1, 2]}, "body": None,
            "pixel_size": None,
        }  # fmt: skip
        return fit, pair, particles, json.dumps(config, indent=1).encode(), written[-1], written[2]

    def put(self, name: str, raw: bytes) -> Path:
        path = self.folder / "fuzzed" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw)
        return path

    def read_star(self, rng):
        path = self.put("a.star", spoil.spoiled(rng.choice(self.stars), rng))
        (self.folder / "fuzzed" / "p.mrcs").write_bytes((self.folder / "p.mrcs").read_bytes())
        yield lambda: star.read(path)
        yield lambda: pc.io.load(path).batch(np.arange(1))
        yield lambda: pc.io.load(path, folder=self.folder).statistics()

    def read_mrc(self, rng):
        path = self.put("a.mrcs", spoil.spoiled(rng.choice(self.stacks), rng))
        yield lambda: mrc.read_header(path)
        yield lambda: pc.io.read_map(path)
        yield lambda: pc.io.load(path).batch(np.arange(1))

    def read_sections(self, rng):
        """A stack that changes under its reader."""
        raw = rng.choice(self.stacks)
        path = self.put("b.mrcs", raw)
        header = mrc.read_header(path)
        images = mrc.Stacks([(path, 0)]) if header.shape[1] == header.shape[2] else None
        reader = Sections(header)
        path.write_bytes(spoil.spoiled(raw, rng))
        if rng.random() < 0.2:
            path.unlink()
        out = np.empty(header.shape, np.float32)
        yield lambda: reader.read([Run(0, 0, header.shape[0])], out)
        yield lambda: images[np.arange(1)]

    def read_pickle(self, rng):
        path = self.put("a.pkl", spoil.spoiled(rng.choice(self.pickles), rng))
        yield lambda: cryodrgn.read_pickle(path)
        yield lambda: cryodrgn.read_poses(path)
        yield lambda: latents.array(path)

    def read_array(self, rng):
        np.save(self.folder / "z.npy", np.random.default_rng(0).normal(size=(9, 2)))
        path = self.put("z.npy", spoil.spoiled((self.folder / "z.npy").read_bytes(), rng))
        yield lambda: latents.array(path)

    def read_structure(self, rng):
        raw = spoil.spoiled(rng.choice(self.structures), rng)
        packed = rng.random()
        if packed < 0.2:
            raw = gzip.compress(raw)
        if packed < 0.1:
            raw = spoil.spoiled(raw, rng)
        suffix = rng.choice((".pdb", ".cif", ".ent", "")) + (".gz" if packed < 0.2 else "")
        path = self.put("a" + suffix, raw)
        yield lambda: repr(pc.io.read_structure(path, atoms="all").centred())
        yield lambda: pc.io.read_structure(path)
        yield lambda: pc.io.read_trajectory(path, atoms="backbone", altloc="A")

    def read_checkpoint(self, rng):
        _, pair, particles, _, *checks = self.run
        path = self.put("c.pt", spoil.spoiled(rng.choice(checks), rng))
        yield lambda: checkpoints.read(path)
        yield lambda: reopen(pair, particles, path)
        again = {"steps": 2, "batch_size": 4, "seeds": 2, "together": 1}
        yield lambda: pc.fit(pair, particles, checkpoint=path, resume=True, **again)

    def read_run_folder(self, rng):
        _, _, _, config, checkpoint, _ = self.run
        (self.folder / "fuzzed").mkdir(exist_ok=True)
        self.put("model.py", MODEL.encode())
        self.put("checkpoint.pt", checkpoint)
        changed = spoil.spoiled(config, rng)
        if rng.random() < 0.5:
            changed = json.dumps(spoil.rearranged(json.loads(config), rng)).encode()
        self.put("config.json", changed)
        yield lambda: pc.io.load_fit(self.folder / "fuzzed")


def escapes(workshop: Workshop, reader: str, number: int):
    """What input ``number`` of a reader raises beside InputError, by call."""
    rng = random.Random(f"{reader} {number}")
    for n, call in enumerate(workshop.readers[reader](rng)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                call()
        except pc.InputError as error:
            if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 2000:
                yield n, error
        except Exception as error:  # noqa: BLE001
            yield n, error


def main() -> None:
    first, last = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    workshop = Workshop(Path(tempfile.mkdtemp()))
    readers = sys.argv[3:] or list(workshop.readers)
    for reader in readers:  # what they all need is loaded now
        list(escapes(workshop, reader, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGALRM, _late)
    for reader in readers:
        found, shown = Counter(), {}
        for number in range(first, last):
            print(reader, number, file=sys.stderr, flush=True)  # the last line before a crash
            signal.alarm(SECONDS)
            for n, error in escapes(workshop, reader, number):
                trace = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in trace if "pyrocryo/" in frame.filename] or trace
                places = [f"{Path(f.filename).name}:{f.lineno}" for f in (ours[-1], trace[-1])]
                key = f"{type(error).__name__} at {places[0]} in {places[1]}"
                found[key] += 1
                shown.setdefault(key, (number, n, str(error)[:150]))
            signal.alarm(0)
        print(f"{reader}: {last - first} inputs, {sum(found.values())} escapes", flush=True)
        for key, many in found.most_common():
            print(f"  {many:5d} {key}  e.g. {shown[key]}", flush=True)


def _late(*_) -> None:
    raise TimeoutError(f"took more than {SECONDS} s")


if __name__ == "__main__":
    main()
