"""Spoiled files of other programs and of finished runs; a part of ``fuzz.py``."""

import contextlib
import functools
import io
import json
import pickle
import shutil

import numpy as np
import spoil

import pyrocryo as pc
from pyrocryo import report
from pyrocryo.cli.identify import Identify
from pyrocryo.cli.inspect import Inspect
from pyrocryo.cli.latents import posterior
from pyrocryo.io import cryodrgn, others
from pyrocryo.io.copies import copied, names_and_rows
from pyrocryo.io.where import true_of
from pyrocryo.report.audit import audit

ROWS = 60  # an audit wants some
YAML = """cmd: [cryodrgn, train_vae]
dataset_args:
  ctf: /data/ctf.pkl
  do_pose_sgd: false
  ind: null
  norm: [0, 1.5]
  poses: poses.pkl
model_args:
  zdim: 2
"""
WHERE = ("z1 > 1.5", "z1 > -1 and sd1 < 0.3", "z2 <= 1e3 and z1 >= .5 and z1 == 2", "sd1<3")


class More:
    """Readers of what others wrote, and of folders; needs the files of ``fuzz.Workshop``."""

    @functools.cached_property
    def tables(self):
        """A .cs file and its passthrough, with a stack beside them."""
        rng, n = np.random.default_rng(0), 6
        images = rng.standard_normal((n, 8, 8)).astype(np.float32)
        for folder in (self.folder, self.folder / "fuzzed"):
            (folder / "J1").mkdir(exist_ok=True, parents=True)
            pc.io.mrc.write_stack(folder / "J1" / "s.mrc", images, 2.0)
        number = np.float32
        own = {
            "uid": np.arange(n, dtype=np.uint64) + 7,
            "blob/path": np.array([b"J1/s.mrc"] * n),
            "blob/idx": np.arange(n, dtype=np.uint32),
            "blob/shape": np.full((n, 2), 8, np.uint32),
            "blob/psize_A": np.full(n, 2, number),
            "blob/sign": np.where(np.arange(n) % 2, -1, 1).astype(number),
        }
        other = {
            "uid": own["uid"][::-1].copy(),
            "alignments3D/pose": rng.normal(size=(n, 3)).astype(number),
            "alignments3D/shift": rng.normal(size=(n, 2)).astype(number),
            "ctf/df1_A": np.full(n, 1e4, number),
            "ctf/df2_A": np.full(n, 1.1e4, number),
            "ctf/df_angle_rad": np.zeros(n, number),
            "ctf/accel_kv": np.full(n, 300, number),
            "ctf/cs_mm": np.full(n, 2.7, number),
            "ctf/amp_contrast": np.full(n, 0.1, number),
            "location/micrograph_path": np.array([b"m/1.mrc", b"m/2.mrc"] * (n // 2)),
        }
        return [_packed(own | other), _packed(own), _packed(other)]

    @functools.cached_property
    def trained(self):
        """What cryoDRGN leaves: contents by name."""
        rng = np.random.default_rng(0)
        z = rng.normal(size=(ROWS, 2)).astype(np.float32)
        rotation = pc.rotations.random_in_plane((ROWS,), rng).astype(np.float32)
        ctf = np.tile([64, 1.5, 15000, 14000, 30, 300, 2.7, 0.1, 0], (ROWS, 1))
        settings = {"dataset_args": {"poses": "poses.pkl", "ctf": "ctf.pkl", "ind": "ind.pkl"}}
        return {
            "z.3.pkl": pickle.dumps(z) + pickle.dumps(z - 2),
            "poses.pkl": pickle.dumps((rotation, z)),
            "pose.3.pkl": pickle.dumps((rotation, 0.1 * z)),
            "ctf.pkl": pickle.dumps(ctf.astype(np.float32)),
            "ind.pkl": pickle.dumps(np.arange(ROWS)),
            "config.yaml": YAML.encode(),
            "config.pkl": pickle.dumps(settings),
        }

    @functools.cached_property
    def finished(self):
        """Files of a finished run of two seeds."""
        fit, _, particles, config, *_ = self.run
        folder = self.folder / "finished"
        pc.io.export(
            fit, pc.posterior(fit, particles, draws=3), folder,
            particles=particles, config={"name": "toy", "source": "x"},
        )  # fmt: skip
        shutil.rmtree(folder / "figures")
        shutil.rmtree(folder / "volumes")
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def _folder(self, files, changed, rng):
        """A folder with one of the files spoiled, or missing."""
        folder = self.folder / "fuzzed" / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, raw in files.items():
            (folder / name).write_bytes(spoil.spoiled(raw, rng) if name == changed else raw)
        return folder

    def read_cs(self, rng):
        both, own, other = self.tables
        path = self.put("a.cs", spoil.spoiled(both, rng))
        yield lambda: pc.io.load(path).batch(np.arange(1))
        yield lambda: others.read_columns(path)
        one = self.put("own.cs", own)
        two = self.put("a.cs", spoil.spoiled(other, rng))
        yield lambda: pc.io.load(one, passthrough=two).batch(np.arange(1))

    def read_copies(self, rng):
        """Copies of star and .cs files with columns added and rows left out."""
        kind = rng.choice((".star", ".cs"))
        raw = rng.choice(self.stars if kind == ".star" else self.tables[:1])
        path, out = self.put("b" + kind, spoil.spoiled(raw, rng)), self.put("copy" + kind, b"")
        out.unlink()

        def copy():
            _, rows = names_and_rows(path)
            keep = np.arange(rows) % 2 == 0
            copied(path, out, columns={"x": np.zeros(rows, np.float32)}, keep=keep)
            assert names_and_rows(out)[1] == keep.sum()

        yield copy

    def read_columns(self, rng):
        path = self.put("a.star", spoil.spoiled(rng.choice(self.stars), rng))
        yield lambda: others.read_columns(path)
        name = rng.choice(("poses.pkl", "ctf.pkl", "ind.pkl"))
        raw = self.put(name, spoil.spoiled(self.trained[name], rng))
        yield lambda: others.read_columns(raw)
        yield lambda: others.read_ctf(raw)
        yield lambda: others.read_indices(raw, ROWS)
        star = self.put("whole.star", self.stars[0])
        shutil.copy(self.folder / "p.mrcs", star.parent)
        yield lambda: pc.io.load(star, poses=raw)

    def read_audit(self, rng):
        """A run folder of cryoDRGN's, and what is then asked of it."""
        changed = rng.choice(list(self.trained))
        left_out = {rng.choice(("config.yaml", "config.pkl", "pose.3.pkl", ""))} - {changed}
        files = {k: v for k, v in self.trained.items() if k not in left_out}
        folder = self._folder(files, changed, rng)

        def asked():
            run = others.read_latents(folder)
            told = others.Columns(len(run.z)) if run.beside is None else run.beside
            given = {} if told.rotation is None else {"a": told.rotation}
            sds = {} if run.sd is None else {"a": run.sd}
            audit({"a": run.z}, sds=sds, rotations=given, columns={"a": told.usual},
                  permutations=59, seed=0)  # fmt: skip

        yield lambda: others.read_latents(folder / "z.3.pkl")
        yield lambda: cryodrgn.read_pickles(folder / changed, most=3) if changed else None
        yield asked

    def read_finished(self, rng):
        """A run folder that is read without its model."""
        changed = rng.choice(("config.json", "metrics.json", "identify.json"))
        files = dict(self.finished)
        if rng.random() < 0.7:
            content = spoil.rearranged(json.loads(files[changed]), rng)
            files[changed], changed = json.dumps(content).encode(), None
        folder = self._folder(files, changed, rng)
        whole = self.folder / "finished"
        yield lambda: report.write(folder)
        yield lambda: report.compare([folder])
        yield lambda: report.compare([whole, folder])
        yield lambda: _quietly(Identify((folder,)))

    def read_posterior(self, rng):
        folder = self._folder(self.finished, "posterior.nc", rng)
        yield lambda: posterior(folder)

    def read_inspect(self, rng):
        """All that is asked of particles before they are fitted."""
        kind = rng.choice((".star", ".mrcs", ".cs"))
        raw = {".star": self.stars[0], ".mrcs": self.stacks[2], ".cs": self.tables[0]}[kind]
        changed = spoil.spoiled(raw, rng)
        path = self.put("i" + kind, changed)
        shutil.copy(self.folder / "p.mrcs", path.parent)
        if rng.random() < 0.3 and kind == ".star":  # the stack in place of what names it
            path.write_bytes(raw)
            self.put("p.mrcs", spoil.spoiled((self.folder / "p.mrcs").read_bytes(), rng))
        yield lambda: _quietly(Inspect(path))
        yield lambda: pc.io.load(path).prepared(4, invert=True).standardised().batch([0])

    def read_where(self, rng):
        text = spoil.spoiled(rng.choice(WHERE).encode(), rng).decode("latin1")
        yield lambda: true_of(text, {"z1": np.zeros(3), "z2": np.ones(3), "sd1": np.ones(3)})


def _quietly(command):
    with contextlib.redirect_stdout(io.StringIO()):
        command.run()


def _packed(columns):
    dtype = [(name, value.dtype, value.shape[1:]) for name, value in columns.items()]
    table = np.empty(len(columns["uid"]), dtype)
    for name, value in columns.items():
        table[name] = value
    raw = io.BytesIO()
    np.save(raw, table)
    return raw.getvalue()
