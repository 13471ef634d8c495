"""Readers and spoiled or hostile files: a result or one InputError, and no more memory than due.

The spoiled files are those of ``fuzz.py``; what once went wrong has a case of its own here.
"""

import gzip
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import fuzz
import h5py
import numpy as np
import pytest
import spoil
import torch

import pyrocryo as pc
from pyrocryo import report
from pyrocryo.cli import latents
from pyrocryo.io import cryodrgn, mrc, others, star
from pyrocryo.svi import checkpoints

INPUTS = {
    "star": 200, "mrc": 300, "sections": 300, "pickle": 300, "array": 300, "structure": 200,
    "checkpoint": 100, "run_folder": 100, "cs": 100, "copies": 100, "columns": 100, "audit": 15,
    "finished": 50, "posterior": 30, "inspect": 50, "where": 300,
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return fuzz.Workshop(tmp_path_factory.mktemp("fuzz"))


def test_every_reader_is_counted(workshop):
    assert workshop.readers.keys() == INPUTS.keys()


@pytest.mark.parametrize("reader", INPUTS)
def test_spoiled_files_give_a_result_or_one_line(reader, workshop):
    for number in range(INPUTS[reader]):
        found = list(fuzz.escapes(workshop, reader, number))
        assert not found, f"input {number} of {reader}: {found}"


@pytest.mark.parametrize("reader", [name for name in INPUTS if name != "sections"])
def test_files_as_they_were_are_read(reader, workshop, monkeypatch):
    """Else the test above could not fail."""
    monkeypatch.setattr(spoil, "spoiled", lambda raw, rng: raw)
    calls, refused = 0, 0
    for seed in range(8):
        for call in workshop.readers[reader](fuzz.random.Random(seed)):
            calls += 1
            try:
                call()
            except pc.InputError:  # not every file suits every reader
                refused += 1
    assert refused <= calls * 3 / 4


def _refused(call, message):
    """Calls, and checks that it is refused in one line with hardly any memory taken."""
    tracemalloc.start()
    try:
        with pytest.raises(pc.InputError, match=message) as caught:
            call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 1100


@pytest.fixture
def put(tmp_path):
    def put(name, raw):
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return put


READERS = {
    "a.star": star.read,
    "b.star": pc.io.load,
    "a.mrcs": mrc.read_header,
    "b.mrcs": pc.io.load,
    "c.mrc": pc.io.read_map,
    "a.pkl": cryodrgn.read_poses,
    "b.pkl": latents.array,
    "a.npy": latents.array,
    "a.pdb": pc.io.read_structure,
    "b.cif": pc.io.read_trajectory,
    "c.pt": checkpoints.read,
}


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, tmp_path):
    path, read = tmp_path / name, READERS[name]
    path.write_bytes(b"")
    _refused(lambda: read(path), name)
    path.unlink()
    path.mkdir()
    _refused(lambda: read(path), "cannot read it")
    path.rmdir()
    os.mkfifo(path)  # whoever opens it waits for a writer
    _refused(lambda: read(path), "not a regular file")
    path.unlink()
    path.symlink_to("/dev/zero")  # and this one never ends
    _refused(lambda: read(path), "not a regular file")
    path.unlink()
    if name != "c.pt":  # of which there is none, then
        path.symlink_to(path)
        _refused(lambda: read(path), "cannot read it")


def _laughs(last):
    """Forty lists, each twice in the next: 2^40 of them to whoever walks through."""
    start = b"\x80\x04]q\x00"
    return start + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(40)) + last


def _tuples(last):
    start = b"\x80\x04)q\x00"
    return start + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40)) + last


HOSTILE = {
    "a place in memory far away": (b"\x80\x04Nr\xff\xff\xff\x7f.", "expected"),
    "an endless buffer": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "truncated"),
    "an endless string": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".", "pkl"),
    "a place of a name": (b"\x80\x04)\x81.", "not a pickle"),
    "an extension": (b"\x80\x04\x82\x01.", "not a pickle"),
    "a persistent id": (b"\x80\x04Pname\n.", "not a pickle"),
    "lists of lists of lists": (_laughs(b"."), "expected"),
    "a key that takes for ever": (_tuples(b"0}h\x28Ns."), "keys other than"),
    "keys that take for ever": (_tuples(b"0}(h\x28Nu."), "keys other than"),
    "a dict of such keys": (_tuples(b"0(h\x28Nd."), "keys other than"),
    "a set of them": (_tuples(b"0\x8f(h\x28\x90."), "not a pickle"),
    "a dtype whose name is endless": (
        _tuples(b"0cnumpy\ndtype\nh\x28\x85R."),
        "an array of no dtype",
    ),
    "depth": (b"\x80\x04" + b"(" * 100_000 + b"l" * 100_000 + b".", "not a pickle"),
    "text of two lines": (b"cos\nsys\x07tem\x1b[2J\n.", "refused"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_take_neither_time_nor_memory(name, put):
    raw, message = HOSTILE[name]
    path = put("a.pkl", raw)
    _refused(lambda: cryodrgn.read_poses(path), message)


def test_one_buffer_named_many_times_is_refused(put):
    """A megabyte that asks to be a thousand arrays of a megabyte."""

    class Shared:
        def __init__(self, raw):
            self.raw = raw

        def __reduce__(self):
            return np._core.numeric._frombuffer, (self.raw, np.dtype("u1"), (2**20,), "C")

    raw = bytes(2**20)
    path = put("a.pkl", pickle.dumps([Shared(raw) for _ in range(1000)], 4))
    with pytest.raises(pc.InputError, match="much more memory than it fills"):
        cryodrgn.read_pickle(path)


def test_what_is_shared_in_a_pickle_stays_shared(put):
    z = np.arange(6.0)
    read = cryodrgn.read_pickle(put("a.pkl", pickle.dumps([z, {"z": z}])))
    assert read[0] is read[1]["z"]
    np.testing.assert_array_equal(read[0], z)


def test_optics_are_not_multiplied_by_particles(put):
    """Rows times columns of optics would be 600 MB of pointers from 300 kB."""
    columns, rows = 5000, 15_000
    optics = "".join(f"_rlnX{k}\n" for k in range(columns))
    text = f"data_optics\nloop_\n_rlnOpticsGroup\n{optics}1" + " 1" * columns + "\n"
    text += "data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n" + "1@a 1\n" * rows
    path = put("a.star", text.encode())
    _refused(lambda: pc.io.load(path), "image stack a is not in")
    text = text.replace("_rlnX7\n", "_pyrocryoField_x\n")
    _refused(lambda: pc.io.load(put("a.star", text.encode())), "belongs to data_particles")


def test_numbers_of_a_star_that_are_too_large(put, workshop):
    put("p.mrcs", workshop.stacks[2])
    names = ("rlnImageName", "rlnOriginX", "rlnOriginY", "pyrocryoField_a", "rlnImagePixelSize")
    head = "data_\nloop_\n" + "".join(f"_{name}\n" for name in names)
    path = put("a.star", f"{head}1@p.mrcs 0 0 99999999999999999999 9\n".encode())
    assert pc.io.load(path).a[0] == 1e20  # no whole number of numpy's
    path = put("a.star", f"{head}1@p.mrcs 1e308 0 1 9\n".encode())
    _refused(lambda: pc.io.load(path), "shift: particle 0")
    path = put("a.star", f"{head}1@p.mrcs 0 0 1e40 9\n".encode())  # batches are float32
    _refused(lambda: pc.io.load(path), r"a: particle 0 has a value that is too large \(1e\+40\)")
    path = put("a.star", f"{head}1@p.mrcs 0 0 {5000 * 'x'} 9\n".encode())
    _refused(lambda: pc.io.load(path), "row 1 of .* expected a finite number")


def test_arrays_that_claim_to_be_huge(put, tmp_path):
    np.save(tmp_path / "z.npy", np.zeros((3, 2)))
    raw = (tmp_path / "z.npy").read_bytes()
    huge = raw.replace(b"(3, 2), }" + 13 * b" ", b"(30000000000000, 2), }")
    assert huge != raw
    for content in (huge, raw[:40], raw.replace(b"(3, 2)", b"(3, 2(")):
        path = put("z.npy", content)
        _refused(lambda path=path: latents.array(path), "cannot be read as an array")


def test_structures_that_unpack_without_end(put):
    path = put("a.pdb.gz", gzip.compress(bytes(2**24)))
    _refused(lambda: pc.io.read_structure(path), "unpacks to more than 100 times")
    path = put("a.pdb.gz", gzip.compress(b"ATOM" * 100)[:-9])
    _refused(lambda: pc.io.read_structure(path), "cannot be unpacked")


def test_structures_with_other_letters_and_far_atoms(put, workshop):
    raw = workshop.structures[0]
    read = pc.io.read_structure(put("a.pdb", raw.replace(b"ALA A", b"ALA \xff")))
    assert set(read.chain.tolist()) <= {"?", "A", "B"}
    far = raw.replace(raw[raw.index(b"ATOM") :][30:38], b"1e300   ", 1)
    _refused(lambda: pc.io.read_structure(put("a.pdb", far), atoms="all"), "a.pdb")


def _checkpoint(put, raw, change):
    content = torch.load(put("c.pt", raw), weights_only=True)
    change(content)
    path = put("c.pt", b"")
    torch.save(content, path)
    return path


CHANGES = {
    "seeds": lambda c: c["key"].update(seeds=["0"]),
    "steps": lambda c: c["key"]["settings"].update(steps=10**9),
    "a history of no weight": lambda c: c["done"][0].update(
        history=torch.zeros((), dtype=torch.float64).expand(2, 4)
    ),
    "expanded": lambda c: c["done"][0]["pair"].update(x=torch.zeros(1).expand(2**40)),
    "sparse": lambda c: c["done"][0]["pair"].update(x=torch.zeros(2).to_sparse()),
    "no tensor": lambda c: c["done"][0]["pair"].update(x=3),
    "steps done": lambda c: c["current"].update(steps=5),
    "seeds begun": lambda c: c["current"].update(seeds=[7]),
    "moments": lambda c: c.update(current=3),
}


@pytest.mark.parametrize("name", CHANGES)
def test_checkpoints_of_another_shape(name, put, workshop):
    path = _checkpoint(put, workshop.run[5], CHANGES[name])
    if name == "a history of no weight":  # harmless, and of the right shape
        checkpoints.read(path)
    else:
        _refused(lambda: checkpoints.read(path), "is not a checkpoint of pyrocryo")


def test_checkpoints_with_moments_of_another_model(put, workshop):
    _, pair, particles, *_ = workshop.run
    path = _checkpoint(
        put, workshop.run[5], lambda c: c["current"]["moments"].update(exp_avg=torch.zeros(1, 3))
    )
    again = {"steps": 2, "batch_size": 4, "seeds": 2, "together": 1}
    with pytest.raises(pc.InputError, match=r"another model's exp_avg \(1, 3\)"):
        pc.fit(pair, particles, checkpoint=path, resume=True, **again)


def test_checkpoints_that_unpack_or_call(put, workshop, tmp_path):
    path = put("c.pt", workshop.run[4])
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, raw in parts.items():
            file.writestr(name, raw + bytes(2**20) * name.endswith("data/0"))
    _refused(lambda: checkpoints.read(path), "holds compressed parts")
    mark = tmp_path / "ran"
    for call in (
        f"cposix\nsystem\n(Vtouch {mark}\ntR.",
        "cbuiltins\nbytearray\n(J\xff\xff\xff\x7ftR.",
    ):
        with zipfile.ZipFile(path, "w") as file:
            for name, raw in parts.items():
                file.writestr(name, call.encode("latin1") if name.endswith("data.pkl") else raw)
        _refused(lambda: checkpoints.read(path), "it asks for (posix system|builtins bytearray)")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read as JSON"),
        ('["source", "model", "seconds"]', "expected an object"),
        ("3", "expected an object"),
        ("\xff", "cannot be read as JSON"),
        ({"seconds": "long"}, "seconds is 'long'"),
        ({"seconds": None}, "seconds is None"),
        ({"model": 3}, "model is 3"),
        ({"source": "a\0b"}, "source is"),
        ({"options": {"n": "many"}}, "option n is 'many', expected something like 12"),
        ({"options": {"parts": 3}}, "option parts is 3"),
        ({"options": ["n"]}, "options is"),
        ({"body": 3}, "body is 3"),
        ({"seconds": float("nan")}, "seconds is nan"),
    ],
)
def test_settings_of_a_run_that_are_none(text, message, put, workshop, tmp_path):
    put("model.py", fuzz.MODEL.encode())
    if isinstance(text, dict):
        text = json.dumps(json.loads(workshop.run[3]) | text)
    put("config.json", text.encode("latin1"))
    with pytest.raises(pc.InputError, match=message) as caught:
        pc.io.load_fit(tmp_path)
    assert str(caught.value).isprintable()


def test_lists_of_other_lists_are_no_indices(put):
    path = put("ind.pkl", pickle.dumps([[1, 2], [3]]))
    _refused(lambda: others.read_indices(path), "got lists")
    path = put("ctf.pkl", pickle.dumps(np.zeros((3, 9), bool)))
    _refused(lambda: others.read_ctf(path), "expected numbers, got bool")


def test_signalling_nan_in_poses(put):
    """Numpy warns as it widens them."""
    rotation = np.zeros((2, 3, 3), "<f4")
    rotation.view("<u4")[1, 2, 2] = 0x7F800001
    path = put("poses.pkl", pickle.dumps(rotation))
    _refused(lambda: cryodrgn.read_poses(path), "matrix 1 is not a rotation")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics", "[" * 3000, "metrics.json: cannot be read as JSON"),
        ("metrics", "[]", "expected an object of names"),
        ("metrics", '{"elbo": {"mean": "x"}}', "as pyrocryo writes it"),
        ("identify", '{"prior": 3, "seeds": {}, "sentence": ""}', "as pyrocryo writes it"),
        ("config", '{"seeds": 3}', "it has no 'settings'"),
    ],
)
def test_reports_of_changed_folders(name, text, message, workshop, tmp_path):
    for file, raw in workshop.finished.items():
        (tmp_path / file).write_bytes(raw)
    (tmp_path / f"{name}.json").write_text(text)
    _refused(lambda: report.write(tmp_path), message)
    if name != "identify":  # of which tables show little
        _refused(lambda: report.compare([tmp_path]), message)


HDF = {
    "a link to another file": (
        lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/hostname", "/")),
        "lies in another file",
    ),
    "an array in another file": (
        lambda file: file.create_dataset("x", (9,), "u1", external=[("/etc/hostname", 0, 9)]),
        "lies in another file",
    ),
    "a group in itself": (lambda file: file.__setitem__("x", file["/"]), "two names"),
    "zeros without end": (
        lambda file: file.create_dataset("x", (2**40,), "f8", chunks=(2**20,)),
        "would take more than",
    ),
    "nothing": (lambda file: file.pop("posterior"), "cannot be read as a posterior|in it is not"),
}


@pytest.mark.parametrize("name", HDF)
def test_posteriors_that_lead_elsewhere(name, workshop, put):
    change, message = HDF[name]
    path = put("posterior.nc", workshop.finished["posterior.nc"])
    particles, z = latents.posterior(path.parent)
    assert z.shape[0] == 2
    assert len(particles) == z.shape[1]
    with h5py.File(path, "r+") as file:
        change(file)
    _refused(lambda: latents.posterior(path.parent), message)


def test_checkpoints_whose_numbers_were_changed(put, workshop):
    """Torch would read them, and training go on from there."""
    raw = bytearray(workshop.run[5])
    weights = next(iter(torch.load(put("c.pt", bytes(raw)))["done"].values()))["pair"]
    value = max(weights.values(), key=torch.Tensor.numel).numpy().tobytes()
    raw[raw.index(value) + 3] ^= 1
    _refused(lambda: checkpoints.read(put("c.pt", bytes(raw))), r"data/\d+ is damaged")


def test_signalling_nan_in_a_cs_file(put, workshop):
    table = np.load(put("a.npy", workshop.tables[0])).copy()
    table["alignments3D/pose"].view("<u4")[1, 2] = 0x7F800001
    path = put("a.cs", b"")
    with path.open("wb") as file:
        np.save(file, table)
    _refused(lambda: pc.io.load(path, folder=workshop.folder), "row 2 .* expected finite numbers")
    _refused(lambda: others.read_columns(path), "alignments3D/pose is .*expected finite numbers")


def test_pixels_that_are_no_numbers_are_told_after_a_crop_too():
    """Without numpy's warnings."""
    images = np.random.default_rng(0).standard_normal((4, 8, 8)).astype(np.float32)
    images[2, 1, 1] = np.inf
    small = pc.Particles(images).downsampled(4)
    with pytest.raises(pc.InputError, match="particle 2 has pixels that are not finite numbers"):
        small.standardised()


def test_metrics_beyond_all_numbers_are_compared_without_warnings(workshop, tmp_path):
    for file, raw in workshop.finished.items():
        (tmp_path / file).write_bytes(raw)
    table = json.loads((tmp_path / "metrics.json").read_text())
    table["elbo"]["per_seed"] = [1e300, -1e300]
    (tmp_path / "metrics.json").write_text(json.dumps(table))
    text = report.compare([workshop.folder / "finished", tmp_path])
    assert tmp_path.name in text
