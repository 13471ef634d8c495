import copy
import os
import pickle
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.bench import feed as bench
from pyrocryo.io.mrc import Stacks, write_stack
from pyrocryo.svi import memory
from pyrocryo.svi.feed import AHEAD, Feed

CPU = torch.device("cpu")
N, BOX = 60, 8


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def stack(rng, tmp_path):
    path = tmp_path / "a.mrcs"
    write_stack(path, rng.standard_normal((N, BOX, BOX)).astype(np.float32), 2.0)
    return path


def _particles(images, rng, **options):
    n, *frames = images.shape[:-2]
    options |= {"temperature": rng.uniform(100, 300, n), "state": np.arange(n)}
    return pc.Particles(images, pixel_size=2.0, shift=rng.normal(size=(n, *frames, 2)), **options)


def _read(path):
    return Stacks([(path, i) for i in range(N)])


def _mapped(path):
    return np.memmap(path, np.float32, "r", 1024, (N, BOX, BOX))


SOURCES = {
    "array": lambda path: _read(path)[np.arange(N)],
    "doubles": lambda path: _read(path)[np.arange(N)].astype(float),
    "memmap": _mapped,
    "stacks": _read,
    "frames": lambda path: _read(path).arranged(np.arange(N).reshape(-1, 2)),
}


def _orders(n, *shape):
    return lambda step: np.random.default_rng(step).permutation(n)[: np.prod(shape)].reshape(shape)


@pytest.mark.parametrize("resident", [True, False, None])
@pytest.mark.parametrize("scaling", [{}, {"offset": 0.3, "scale": 1.7}])
@pytest.mark.parametrize("source", SOURCES)
def test_gives_the_batches_of_the_particles(source, scaling, resident, stack, rng):
    train = _particles(SOURCES[source](stack), rng, **scaling).train
    for shape in ((5,), (3, 4)):
        rows = _orders(len(train), *shape)
        with Feed(train, CPU, rows, range(4, 11), resident=resident) as feed:
            assert feed.resident is (resident is not False)
            for step in range(4, 11):
                batch, expected = feed(step), train.batch(rows(step))
                assert type(batch) is type(expected)
                for name, field in batch._asdict().items():
                    wanted = getattr(expected, name)
                    assert field.dtype == wanted.dtype
                    assert torch.equal(field, wanted), name
        assert batch.images.shape == (*shape, *train.images.shape[1:])
        assert batch.shift.shape == (*shape, *train.shift.shape[1:])
        assert batch.pixel_size.shape == ()


@pytest.mark.parametrize("resident", [True, False])
def test_batches_may_be_changed_and_kept(resident, stack, rng):
    images = SOURCES["array"](stack)
    before = images.copy()
    train = _particles(images, rng, offset=1.0).train
    with Feed(train, CPU, lambda step: np.arange(3), range(6), resident=resident) as feed:
        kept = feed(0)
        copied = kept.images.clone()
        for step in range(1, 6):
            feed(step).images.zero_()
    assert torch.equal(kept.images, copied)
    np.testing.assert_array_equal(images, before)


def test_an_array_in_memory_is_not_copied(stack, rng, monkeypatch):
    monkeypatch.setattr(memory.torch.cuda, "mem_get_info", None)
    for source, free, resident in (
        ("array", 0, True),
        ("memmap", 0, False),
        ("memmap", 1 << 20, True),
        ("stacks", 0, False),
    ):
        monkeypatch.setattr("pyrocryo.svi.feed.free_memory", lambda device, free=free: free)
        particles = _particles(SOURCES[source](stack), rng)
        assert particles.in_memory == particles.train.in_memory == (source == "array")
        assert Feed(particles.train, CPU, _orders(9, 3), range(1)).resident is resident
        n = len(particles.train)
        for asked, pays in ((n, True), (n - 1, source == "array")):
            feed = Feed(particles.train, CPU, _orders(9, 3), range(1), asked=asked)
            assert feed.resident is (resident and pays)


def test_reads_a_few_steps_ahead_and_no_further(stack, rng):
    train = _particles(_read(stack), rng).train
    asked = []

    def rows(step):
        asked.append(step)
        return np.arange(4)

    with Feed(train, CPU, rows, range(100), resident=False) as feed:
        feed(0)
        feed._ahead[-1][1].result()
        assert asked == list(range(AHEAD + 1))
    with Feed(train, CPU, rows, range(2), resident=False) as feed:
        with pytest.raises(ValueError, match="step 1 is out of turn"):
            feed(1)
        feed(0), feed(1)
        with pytest.raises(ValueError, match="step 2 is out of turn"):
            feed(2)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_leaving_early(stack, rng, error):
    train = _particles(_read(stack), rng).train
    with pytest.raises(error) if error else nullcontext():  # noqa: PT012
        with Feed(train, CPU, _orders(len(train), 8), range(10**6), resident=False) as feed:
            feed(0)
            if error:
                raise error


def _truncate(path):
    os.truncate(path, 2000)


def _overwrite(path):
    with open(path, "r+b") as file:
        file.seek(1024)
        file.write(bytes(64))
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("harm", [_truncate, _overwrite])
def test_a_stack_that_changes_stops_the_trainer(stack, rng, harm):
    train = _particles(_read(stack), rng).train
    with Feed(train, CPU, _orders(len(train), 8), range(100), resident=False) as feed:
        for step in range(5):
            feed(step)
        harm(stack)
        with pytest.raises(pc.InputError, match=r"a\.mrcs: (changed since|ends before)"):
            [feed(step) for step in range(5, 5 + AHEAD + 1)]


def test_a_mistake_in_the_rows_stops_the_trainer(stack, rng):
    train = _particles(_read(stack), rng).train
    with Feed(train, CPU, lambda step: np.array([N]), range(3), resident=False) as feed:
        with pytest.raises(IndexError):
            feed(0)


def test_stacks_copy_and_travel(stack):
    images = _read(stack)
    first = images[np.arange(3)]
    for other in (copy.copy(images), copy.deepcopy(images), pickle.loads(pickle.dumps(images))):
        np.testing.assert_array_equal(other[np.arange(3)], first)


def test_stacks_close_their_files(stack):
    before = len(os.listdir("/dev/fd"))
    images = _read(stack)
    images[np.arange(3)]
    assert len(os.listdir("/dev/fd")) == before + 1
    del images
    assert len(os.listdir("/dev/fd")) == before


STREAM = """
import os, sys
import numpy as np, torch
from pyrocryo.io.mrc import Stacks
from pyrocryo.particles import Particles
from pyrocryo.svi.feed import Feed

path, n, size = sys.argv[1], int(sys.argv[2]), 32
train = Particles(Stacks([(path, i) for i in range(n)]), offset=0.1).train
steps = range(2 * len(train) // size)
order = np.concatenate([np.random.default_rng(i).permutation(len(train)) for i in range(2)])
rows = lambda step: order[step * size : (step + 1) * size]
def held():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

before, most = held(), 0
with Feed(train, torch.device("cpu"), rows, steps, resident=False) as feed:
    for step in steps:
        feed(step)
        most = max(most, held())
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_streaming_holds_a_few_batches_only(tmp_path):
    n, box = 1280, 128  # 80 MB, a batch 2 MB
    path = tmp_path / "a.mrcs"
    write_stack(path, bench.Noise(n, box), 1.0)
    command = [sys.executable, "-c", STREAM, str(path), str(n)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(told.stdout) < 40e6  # bytes: a few batches; a memory map comes to 90 MB here


def test_free_memory_minds_the_limits_of_the_job(tmp_path, monkeypatch):
    free = memory.free_memory(CPU)
    assert 0 < free < 1 << 50
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\nfile 9000\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    assert memory.free_memory(CPU) == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(CPU) > 3000


@pytest.mark.benchmark
def test_what_a_stack_out_of_memory_costs(capsys):
    for row in bench.rows("cpu", quick=True):
        low, high = row["spread"]
        with capsys.disabled():
            print(
                f"\n{row['name']}: {1e3 * row['ours']:.2f} ms against {1e3 * row['other']:.2f} "
                f"ms, ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})",
                end="",
            )
        assert row["ours"] > 0


def test_a_million_images_feed_in_flat_memory(tmp_path):
    """Six GB of holes, a hundredth of which are read: no more is kept than a few batches."""
    from pyrocryo.bench.feed import _Highest, _resident, sparse_stack

    n, box, size = 400_000, 64, 100
    particles = pc.Particles(sparse_stack(tmp_path / "a.mrcs", n, box), test_fraction=0.0)
    assert (tmp_path / "a.mrcs").stat().st_size > 6.5e9
    order = np.random.default_rng(0).permutation(n)
    rows = [order[i * size : (i + 1) * size] for i in range(60)]
    with Feed(particles, CPU, rows.__getitem__, range(60), resident=False) as feed:
        feed(0)
        before = _resident()
        with _Highest() as highest:
            for step in range(1, 60):
                assert not feed(step).images.any()
    each = size * box**2 * 4
    assert highest.bytes - before < 12 * each < 0.25 * 60 * each
