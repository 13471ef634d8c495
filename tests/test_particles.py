import numpy as np
import pytest

import pyrocryo as pc


@pytest.fixture
def images(rng):
    return rng.standard_normal((40, 8, 8)).astype(np.float32)


def test_a_batch_holds_images_and_fields_of_the_right_rows(images, rng):
    temperature = rng.uniform(100, 300, 40)
    particles = pc.Particles(images, pixel_size=2.5, temperature=temperature)
    batch = particles.batch(np.array([3, 17]))
    np.testing.assert_array_equal(batch.images, images[[3, 17]])
    np.testing.assert_allclose(batch.temperature, temperature[[3, 17]], rtol=1e-6)
    assert batch.index.tolist() == [3, 17]
    assert batch.pixel_size == 2.5
    assert batch.images.dtype == batch.temperature.dtype


def test_split_is_drawn_by_seed_and_parts_nothing(images):
    particles = pc.Particles(images, test_fraction=0.25, split_seed=1)
    same = pc.Particles(images, test_fraction=0.25, split_seed=1)
    other = pc.Particles(images, test_fraction=0.25, split_seed=2)
    assert len(particles.test) == 10
    assert len(particles.train) == 30
    assert set(particles.test.index) | set(particles.train.index) == set(range(40))
    np.testing.assert_array_equal(particles.test.index, same.test.index)
    assert set(particles.test.index) != set(other.test.index)
    assert particles.train.train is not None
    assert not particles.train.has_test
    row = particles.test.batch(np.array([4]))
    np.testing.assert_array_equal(row.images[0], images[particles.test.index[4]])


def test_some_of_the_particles_are_of_the_whole_stack():
    whole = pc.Particles(np.zeros((1000, 4, 4), np.float32), test_fraction=0)
    small = set()
    for most in (0, 1, 2, 50, 100, 333, 999, 1000, 1001):
        index = whole.spread(most).index
        assert len(index) == min(most, 1000)
        assert (np.diff(index) > 0).all()
        assert small <= (small := set(index))
        expected = len(index) / 10
        assert np.abs(np.bincount(index // 100, minlength=10) - expected).max() < 2
        for period in (2, 3, 7, 10):  # of conditions that alternate
            expected = len(index) / period
            found = np.bincount(index % period, minlength=period)
            assert np.abs(found - expected).max() < 3


def test_a_few_particles_still_leave_one_to_score(images):
    assert len(pc.Particles(images[:3]).test) == 1
    assert not pc.Particles(images[:1]).has_test
    with pytest.raises(pc.InputError, match="no particle is held out of these 1"):
        _ = pc.Particles(images[:1]).test


def test_frames_of_a_molecule_stay_together(pairs_in_time):
    assert pairs_in_time.frames == 2
    assert pairs_in_time.test.batch(np.arange(3)).images.shape == (3, 2, 32, 32)


def test_images_are_read_only_where_asked(images):
    class Source:
        shape = images.shape
        read = []

        def __getitem__(self, index):
            self.read.append(np.array(index))
            return images[index]

    source = Source()
    particles = pc.Particles(source)
    assert not source.read
    particles.test.batch(np.array([0, 1]))
    assert len(source.read) == 1
    assert len(source.read[0]) == 2


def test_memory_mapped_images_stay_on_disk(images, tmp_path):
    np.save(tmp_path / "x.npy", images)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    particles = pc.Particles(mapped)
    assert isinstance(particles.images, np.memmap)
    assert isinstance(particles.train.images, np.memmap)
    np.testing.assert_array_equal(particles.batch(np.array([5])).images[0], images[5])


def _disc(images, height):
    return images + height * (np.hypot(*np.indices((8, 8)) - 4) < 3)


def test_statistics_and_standardised(images):
    particles = pc.Particles(3 + 7 * _disc(images, 2))
    found = particles.statistics()
    pixels = 3 + 7 * _disc(images, 2)
    corner = np.hypot(*np.indices((8, 8)) - 4) > 4
    expected = pixels.mean(), pixels.std(), pixels[:, corner].mean(), pixels[:, corner].std()
    assert found == pytest.approx(expected, rel=1e-5)
    scaled = particles.standardised().batch(np.arange(40)).images[:, corner]
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "most"), [((512, 512), 64), ((4, 512, 512), 16), ((8, 8), 1024)]
)
def test_large_images_are_scanned_a_few_at_a_time(shape, most):
    images = np.broadcast_to(np.float32(0), (1100, *shape))
    parts = list(pc.Particles(images).chunks())
    assert max(map(len, parts)) == most
    np.testing.assert_array_equal(np.concatenate(parts), np.arange(1100))


def test_a_clean_stack_is_scaled_by_all_its_pixels(images):
    scaled = pc.Particles(_disc(0 * images, 5)).standardised().batch(np.arange(40)).images
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-4)
    assert float(scaled[0, 0, 0]) == 0
    with pytest.raises(pc.InputError, match="every pixel has the same value 5"):
        pc.Particles(0 * images + 5).standardised()


def test_pixels_that_are_no_numbers_are_found(images):
    images[23, 1, 1] = np.nan
    with pytest.raises(pc.InputError, match="images: particle 23 has pixels that are not"):
        pc.Particles(images).statistics()


def test_digest_tells_data_apart(images):
    digest = pc.Particles(images).digest()
    assert digest == pc.Particles(images.copy()).digest()
    assert digest != pc.Particles(images[::-1]).digest()
    assert digest != pc.Particles(images, temperature=np.full(40, 300.0)).digest()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotation": np.eye(3)}, r"rotation: expected shape \(40, 3, 3\)"),
        ({"rotation": np.tile(2 * np.eye(3), (40, 1, 1))}, "rotation: particle 0 .* not a rot"),
        ({"rotation": np.tile(-np.eye(3), (40, 1, 1))}, "determinant is negative"),
        ({"shift": np.zeros((40, 3))}, r"shift: expected shape \(40, 2\)"),
        ({"temperature": np.full(40, -3.0)}, "temperature: expected kelvin"),
        ({"temperature": np.full(39, 3.0)}, r"temperature: expected shape \(40,\)"),
        ({"truth": np.zeros(40)}, "truth: expected shape"),
        ({"time": np.full(40, np.inf)}, "time: particle 0 .* not a finite"),
        ({"pixel_size": -1.0}, "pixel_size: expected a positive"),
        ({"index": np.arange(3)}, r"index: expected shape \(40,\)"),
        ({"train": np.zeros(40)}, "'train' cannot be the name of a field"),
        ({"class": np.zeros(40)}, "'class' cannot be the name of a field"),
        ({"label": np.array(["a"] * 40)}, "label: expected numbers"),
        ({"test_fraction": 1.0}, "test_fraction: expected a number in"),
    ],
)
def test_wrong_fields_are_named(images, fields, message):
    with pytest.raises(pc.InputError, match=message):
        pc.Particles(images, **fields)


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 9), (0, 8, 8)])
def test_wrong_images_are_named(shape):
    with pytest.raises(pc.InputError, match=r"images: expected shape \(N, D, D\)"):
        pc.Particles(np.zeros(shape))


def test_unknown_field_lists_what_there_is(images):
    particles = pc.Particles(images, shift=np.zeros((40, 2)))
    with pytest.raises(AttributeError, match=r"no field 'temperature', only \['shift'\]"):
        _ = particles.temperature


def _long(images, rng, **options):
    shape = (5, 8)
    return pc.Particles(
        images.reshape(*shape, 8, 8),
        time=np.arange(40.0).reshape(shape),
        truth=rng.standard_normal((*shape, 3)),
        temperature=np.arange(1.0, 6.0),
        true_shift=rng.standard_normal((*shape, 2)),
        label=np.arange(40).reshape(5, 8),
        test_fraction=0.4,
        **options,
    )


class _Lazy:
    def __init__(self, images):
        self.images, self.shape, self.read = images, images.shape, 0

    def __getitem__(self, index):
        found = self.images[index]
        self.read += found.size // 64
        return found


@pytest.mark.parametrize("lazy", [False, True])
def test_windows_are_consecutive_frames(images, rng, lazy):
    long = _long(images, rng)
    source = _Lazy(long.images) if lazy else long.images
    windows = _long(images, np.random.default_rng(1)) if lazy else long
    windows.images = source
    windows = windows.windows(3)
    assert len(windows) == 30
    assert windows.frames == 3
    assert windows.index.tolist() == list(range(30))
    assert windows.in_memory != lazy
    batch = windows.batch(np.array([29, 7, 0]))
    for i, (molecule, first) in enumerate(((4, 5), (1, 1), (0, 0))):
        cut = slice(first, first + 3)
        np.testing.assert_array_equal(batch.images[i], long.images[molecule, cut])
        np.testing.assert_array_equal(batch.time[i], long.time[molecule, cut])
        assert batch.temperature[i] == long.temperature[molecule]
        assert batch.label[i].tolist() == long.label[molecule].tolist()
    assert batch.true_shift.shape == (3, 3, 2)
    if lazy:
        assert source.read == 9
    else:
        assert np.shares_memory(windows.images, long.images)


def test_windows_of_a_molecule_are_held_out_together(images, rng):
    long = _long(images, rng)
    assert len(long.windows(2).test) == 2 * 7
    held = set(long.windows(2).test.index // 7)
    assert held == set(long.test.index)
    assert set(long.windows(2).train.index // 7) == set(long.train.index)
    # cut first or split first: the same
    for part in ("train", "test"):
        one, other = getattr(long.windows(2), part), getattr(long, part).windows(2)
        assert one.digest() == other.digest()
        np.testing.assert_array_equal(one.index, other.index)
    assert long.windows(8).digest() == long.digest()
    with pytest.raises(pc.InputError, match="and only once"):
        long.windows(4).windows(2)


def test_rows_of_images_in_their_stack(images, rng):
    long = _long(images, rng)
    np.testing.assert_array_equal(long.image_rows, np.arange(40).reshape(5, 8))
    some = long.windows(3).take([7, 11, 29])
    np.testing.assert_array_equal(images[some.image_rows], some.raw(np.arange(3)))
    np.testing.assert_array_equal(some.image_rows[0], [9, 10, 11])
    assert (
        pc.Particles(images).test.image_rows.tolist() == pc.Particles(images).test.index.tolist()
    )


def test_windows_of_mapped_images_stay_on_disk(images, tmp_path):
    np.save(tmp_path / "x.npy", images.reshape(5, 8, 8, 8))
    mapped = pc.Particles(np.load(tmp_path / "x.npy", mmap_mode="r")).windows(2)
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.in_memory
    np.testing.assert_array_equal(mapped.raw(np.array([8])), [images[9:11]])
    assert mapped.standardised().batch(np.array([8])).images.is_contiguous()


@pytest.mark.parametrize("frames", [1, 9])
def test_windows_need_frames(images, rng, frames):
    with pytest.raises(pc.InputError, match="expected 2 to 8 frames a window"):
        _long(images, rng).windows(frames)
    with pytest.raises(pc.InputError, match="only trajectories"):
        pc.Particles(images).windows(2)
