import os
import warnings

import mrcfile
import numpy as np
import pytest

from pyrocryo.errors import InputError
from pyrocryo.io import mrc as io_mrc
from pyrocryo.io.mrc import Stacks, read_header, read_map, write_map, write_stack
from pyrocryo.particles import Particles


def stack(path, n=5, box=6, dtype=np.float32, seed=0):
    images = np.random.default_rng(seed).normal(0, 20, size=(n, box, box)).astype(dtype)
    with mrcfile.new(path, overwrite=True) as m:
        m.set_data(images)
        m.set_image_stack()
        m.voxel_size = 1.31
    return images


def patch(path, offset, raw):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(raw)


@pytest.mark.parametrize("box", [5, 6])
@pytest.mark.parametrize("n", [1, 4, io_mrc.CHUNK + 3])
def test_stack_round_trip(tmp_path, n, box):
    images = np.random.default_rng(0).normal(3, 2, size=(n, box, box)).astype(np.float32)
    path = tmp_path / "a.mrcs"
    write_stack(path, images, 2.5)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as m:
        np.testing.assert_array_equal(m.data.reshape(images.shape), images)
        assert float(m.voxel_size.x) == 2.5
        assert m.is_image_stack() or n == 1
        np.testing.assert_allclose(
            [m.header.dmin, m.header.dmax, m.header.dmean, m.header.rms],
            [images.min(), images.max(), images.mean(), images.std()],
            rtol=1e-5,
        )
    read = Stacks([(path, i) for i in range(n)])
    assert read.shape == images.shape
    assert read.voxel_size == 2.5
    np.testing.assert_array_equal(read[np.arange(n)], images)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16, np.float16, np.float32])
def test_modes_become_float32(tmp_path, dtype):
    images = abs(stack(tmp_path / "a.mrcs", seed=1)).astype(dtype)
    with mrcfile.new(tmp_path / "b.mrcs") as m:
        m.set_data(images)
    read = Stacks([(tmp_path / "b.mrcs", i) for i in range(5)])[np.arange(5)]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, images.astype(np.float32))


def test_big_endian_and_extended_header(tmp_path):
    images = np.arange(2 * 4 * 4, dtype=">f4").reshape(2, 4, 4)
    with mrcfile.new(tmp_path / "a.mrcs") as m:
        m.set_extended_header(np.zeros(128, dtype="V1"))
        m.set_data(images)
    np.testing.assert_array_equal(Stacks([(tmp_path / "a.mrcs", 1)])[0], images[1])


def test_index_of_any_shape_over_several_files(tmp_path):
    a, b = stack(tmp_path / "a.mrcs", seed=1), stack(tmp_path / "b.mrcs", n=3, seed=2)
    rows = [(tmp_path / "b.mrcs", 2), (tmp_path / "a.mrcs", 4), (tmp_path / "a.mrcs", 0)]
    rows += [(tmp_path / "b.mrcs", 0), (tmp_path / "a.mrcs", 1)]
    expected = np.stack([b[2], a[4], a[0], b[0], a[1]])
    read = Stacks(rows)
    for index in (
        3,
        slice(1, 4),
        np.array([2, 2, 0]),
        np.array([[4, 1], [0, 3]]),
        np.array([], int),
    ):
        np.testing.assert_array_equal(read[index], expected[index])
    framed = read.arranged(np.array([[0, 3], [4, 1]]))
    assert framed.shape == (2, 2, 6, 6)
    np.testing.assert_array_equal(framed[np.array([1, 0])], expected[[[4, 1], [0, 3]]])


def test_more_stacks_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(io_mrc, "OPEN_FILES", 2)
    paths = [tmp_path / f"{i}.mrcs" for i in range(5)]
    images = np.stack([stack(path, n=1, seed=i)[0] for i, path in enumerate(paths)])
    read = Stacks([(path, 0) for path in paths])
    np.testing.assert_array_equal(read[np.arange(5)], images)


def test_reads_only_what_is_asked_for(tmp_path):
    n, box = 40_000, 256  # 10 GiB by its header, a few blocks on disk
    path = tmp_path / "a.mrcs"
    stack(path, n=1, box=box)
    os.truncate(path, 1024 + 4 * n * box * box)
    patch(path, 8, np.int32(n).tobytes())
    patch(path, 1024 + 4 * (n - 1) * box * box, np.float32(7).tobytes())
    particles = Particles(Stacks([(path, i) for i in range(n)]))
    assert particles.batch(np.array([n - 1, 3])).images[:, 0, 0].tolist() == [7, 0]


def test_headers_in_the_wild(tmp_path):
    path = tmp_path / "a.mrcs"
    images = stack(path)
    patch(path, 208, bytes(8))  # no map ID, no machine stamp
    patch(path, 88, np.int32(1).tobytes())  # says it is a volume
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = Stacks([(path, i) for i in range(5)])
    np.testing.assert_array_equal(read[np.arange(5)], images)


def test_truncated(tmp_path):
    path = tmp_path / "a.mrcs"
    stack(path)
    os.truncate(path, 1700)
    with pytest.raises(InputError, match=r"a\.mrcs: truncated, expected 1744 bytes .* found 1700"):
        Stacks([(path, 0)])


@pytest.mark.parametrize(
    "content", [b"", b"data_\nloop_\n" * 300, bytes(4096), b"\x1f\x8b" + bytes(range(256)) * 9]
)
def test_not_mrc(tmp_path, content):
    (tmp_path / "a.mrcs").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mrcs: (not an MRC file|truncated)"):
        read_header(tmp_path / "a.mrcs")


def test_complex_pixels(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc", np.zeros((2, 4, 4), dtype=np.complex64)):
        pass
    with pytest.raises(InputError, match="mode 4, expected one of"):
        read_header(tmp_path / "a.mrc")


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"gone\.mrcs: cannot read it \(No such file"):
        Stacks([(tmp_path / "gone.mrcs", 0)])


@pytest.mark.parametrize("section", [-1, 5])
def test_section_past_the_end(tmp_path, section):
    stack(tmp_path / "a.mrcs")
    rows = [(tmp_path / "a.mrcs", 0), (tmp_path / "a.mrcs", section)]
    text = f"row 2 of p.star asks for image {section + 1} of a.mrcs, which holds 5"
    with pytest.raises(InputError, match=text):
        Stacks(rows, source="p.star")


def test_boxes(tmp_path):
    stack(tmp_path / "a.mrcs")
    stack(tmp_path / "b.mrcs", box=7)
    with mrcfile.new(tmp_path / "c.mrcs", np.zeros((2, 6, 5), dtype=np.float32)):
        pass
    with pytest.raises(InputError, match=r"b\.mrcs: images of 7 pixels, expected 6 as in a\.mrcs"):
        Stacks([(tmp_path / "a.mrcs", 0), (tmp_path / "b.mrcs", 0)])
    with pytest.raises(InputError, match=r"c\.mrcs: images of 5 x 6 pixels, expected squares"):
        Stacks([(tmp_path / "c.mrcs", 0)])
    with pytest.raises(InputError, match="no images"):
        Stacks([])


def test_another_file_under_the_same_name(tmp_path):
    stack(tmp_path / "a.mrcs")
    read = Stacks([(tmp_path / "a.mrcs", 0)])
    write_stack(tmp_path / "a.mrcs", np.zeros((5, 6, 6)), 1.0)
    with pytest.raises(InputError, match="changed since it was opened"):
        read[0]


def test_nan_is_found_by_statistics(tmp_path):
    images = np.ones((4, 5, 5), dtype=np.float32)
    images[2, 1, 1] = np.nan
    write_stack(tmp_path / "a.mrcs", images, 1.0)
    particles = Particles(Stacks([(tmp_path / "a.mrcs", i) for i in range(4)]))
    with pytest.raises(InputError, match="particle 2 has pixels that are not finite"):
        particles.statistics()


@pytest.mark.parametrize("shape", [(5, 5, 5), (6, 6, 6), (7, 7)])
def test_map_round_trip(tmp_path, shape):
    array = np.random.default_rng(0).normal(size=shape)
    path = tmp_path / "map.mrc"
    write_map(path, array, 1.31)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as m:
        np.testing.assert_array_equal(m.data, array.astype(np.float32))
        assert m.is_volume() == (len(shape) == 3)
        assert m.header.origin.tolist() == (0, 0, 0)
    if len(shape) == 3:
        read, voxel_size = read_map(path)
        np.testing.assert_array_equal(read, array.astype(np.float32))
        assert voxel_size == 1.31
    assert [p.name for p in tmp_path.iterdir()] == ["map.mrc"]


def test_map_refused(tmp_path):
    path = tmp_path / "map.mrc"
    write_map(path, np.zeros((4, 4, 4)), 1.0)
    patch(path, 64, np.array([3, 2, 1], dtype=np.int32).tobytes())
    with pytest.raises(InputError, match=r"axes stored in the order \(3, 2, 1\)"):
        read_map(path)
    write_map(path, np.zeros((3, 4, 4)), 1.0)
    with pytest.raises(InputError, match="expected a cubic map, got 3 x 4 x 4"):
        read_map(path)
    with pytest.raises(InputError, match="expected a map"):
        write_map(path, np.zeros(4), 1.0)
    with pytest.raises(InputError, match="expected a stack"):
        write_stack(path, np.zeros((4, 4)), 1.0)


def test_failed_write_leaves_the_old_file(tmp_path):
    class Failing:
        shape = (3, 4, 4)

        def __getitem__(self, index):
            raise RuntimeError("pulled the plug")

    path = tmp_path / "a.mrcs"
    write_stack(path, np.ones((2, 4, 4)), 1.0)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="plug"):
        write_stack(path, Failing(), 1.0)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
