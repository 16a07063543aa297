"""`open_h5_scan`: the arrays of a record, with default keys and in all supported layouts."""

import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import h5py
import numpy as np
import pytest

from medsegpy_core import ReadError, Record
from medsegpy_core.hdf5 import open_array, open_h5_scan, read

pytestmark = pytest.mark.usefixtures("backend")

RNG = np.random.default_rng(5)
VOLUME = RNG.normal(size=(5, 6, 4)).astype(np.float32)
SEG = (RNG.random((5, 6, 4, 3)) > 0.5).astype(np.uint8)


def save(path, attrs=(), **arrays):
    with h5py.File(path, "w") as f:
        for key, array in arrays.items():
            f[key.replace("__", "/")] = array
        for where, name, value in attrs:
            f[where].attrs[name] = value
    return str(path)


def opened(**d):
    d = {"scan_id": "a", **d}
    if "slice_id" in d:
        d = {"scan_num_slices": 4, **d}
    return open_h5_scan(Record.from_dict(d))


def test_default_keys_of_one_file_and_of_two(tmp_path):
    one = save(tmp_path / "one.h5", volume=VOLUME, seg=SEG, data=np.zeros((2, 2)))
    with opened(file_name=one, sem_seg_file=one) as scan:
        np.testing.assert_array_equal(scan.image[...], VOLUME)
        np.testing.assert_array_equal(scan.mask[...], SEG)
        assert scan.metadata == {}
    image, mask = save(tmp_path / "a.h5", data=VOLUME), save(tmp_path / "b.h5", data=SEG)
    with opened(file_name=image, sem_seg_file=mask) as scan:
        np.testing.assert_array_equal(scan.image[...], VOLUME)
        np.testing.assert_array_equal(scan.mask[...], SEG)


@pytest.mark.parametrize("key", ["volume", "data"])
@pytest.mark.parametrize("slice_id", [None, 2])
def test_default_keys_without_a_mask(tmp_path, key, slice_id):
    path = save(tmp_path / "one.h5", **{key: VOLUME[..., 0] if slice_id else VOLUME})
    with opened(file_name=path, **({"slice_id": slice_id} if slice_id else {})) as scan:
        np.testing.assert_array_equal(scan.image[...], VOLUME[..., 0] if slice_id else VOLUME)
        assert scan.mask is None
    with pytest.raises(ReadError, match="nor"), opened(file_name=save(tmp_path / "b.h5", other=VOLUME)):
        pass


def test_many_scans_in_a_file(tmp_path):
    path = save(tmp_path / "many.h5", A__volume=VOLUME, A__seg=SEG, B__volume=VOLUME + 1, B__seg=1 - SEG, seg=SEG[:2])
    with opened(file_name=path, sem_seg_file=path, image_key="B/volume") as scan:
        np.testing.assert_array_equal(scan.image[...], VOLUME + 1)
        np.testing.assert_array_equal(scan.mask[...], 1 - SEG)
    with opened(file_name=path, sem_seg_file=path, image_key="/B/volume", sem_seg_key="A/seg") as scan:
        np.testing.assert_array_equal(scan.mask[...], SEG)


@pytest.mark.parametrize("slice_id", [None, 1])
def test_several_keys_are_channels(tmp_path, slice_id):
    one, two = (VOLUME, (VOLUME * 10).astype(np.int16)) if slice_id is None else (VOLUME[..., :1], VOLUME[..., 1:2] * 2)
    path = save(tmp_path / "a.h5", T1w=one, T2w=two, other=VOLUME[1:])
    number = {} if slice_id is None else {"slice_id": slice_id}
    expected = np.stack([one, two], -1) if slice_id is None else np.concatenate([one, two], -1)
    with opened(file_name=path, image_key=("T1w", "T2w"), **number) as scan:
        assert scan.image.dtype == np.float32
        assert scan.image.shape == expected.shape
        np.testing.assert_array_equal(scan.image[...], expected)
        np.testing.assert_array_equal(scan.image[1:3, ..., 1:], expected[1:3, ..., 1:])
    with (
        pytest.raises(ReadError, match=r"'T1w' is .* and 'other' is"),
        opened(file_name=path, image_key=("T1w", "other")),
    ):
        pass


# What is stored for an image and a mask of slice 3 of 4, and what is expected of them.
H, W, C = 5, 6, 3
SLICE, CHANNELS = VOLUME[..., 2], SEG[:, :, 2]
LABELS = SEG[..., 2, 0] * 2


@pytest.mark.parametrize(
    ("image", "mask", "expected", "more"),
    [
        (SLICE, CHANNELS, CHANNELS, {}),
        (SLICE[..., None], CHANNELS[:, :, None], CHANNELS, {}),
        (SLICE[..., None], CHANNELS, CHANNELS, {}),
        (SLICE[..., None], CHANNELS[..., :1], CHANNELS[..., :1], {}),  # one channel, or the unit axis: the same
        (SLICE[..., None], CHANNELS[..., 0], CHANNELS[..., 0], {}),  # one class
        (SLICE, LABELS, LABELS, {"label_map": True}),
        (SLICE[..., None], LABELS[..., None], LABELS, {"label_map": True}),
        (VOLUME, SEG, CHANNELS, {}),  # the whole volume
        (SLICE, SEG, CHANNELS, {}),
        (VOLUME, SEG[..., 0], CHANNELS[..., 0], {}),
        (VOLUME, SEG[..., 0] * 2, LABELS, {"label_map": True}),
        # the axes are named: everything as stored
        (SLICE[..., None], CHANNELS[:, :, None], CHANNELS[:, :, None], {"image_axes": "HWD", "sem_seg_axes": "HWDC"}),
    ],
)
@pytest.mark.parametrize("files", [1, 2])
def test_layouts_of_slices(tmp_path, image, mask, expected, more, files):
    if files == 1:
        a = b = save(tmp_path / "a.h5", volume=image, seg=mask)
    else:
        a, b = save(tmp_path / "a.im", data=image), save(tmp_path / "a.seg", data=mask)
    with opened(file_name=a, sem_seg_file=b, slice_id=3, **more) as scan:
        np.testing.assert_array_equal(scan.image[...], image if more.get("image_axes") else SLICE)
        np.testing.assert_array_equal(scan.mask[...], expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
@pytest.mark.parametrize("channels", [1, 2])
def test_slices_that_are_one_pixel_wide_keep_their_axes(tmp_path, shape, channels):
    image = RNG.normal(size=(*shape, 1))
    mask = np.ones((*shape, 1, channels), np.uint8)
    a, b = save(tmp_path / "a.im", data=image), save(tmp_path / "a.seg", data=mask)
    with opened(file_name=a, sem_seg_file=b, slice_id=1, scan_num_slices=1) as scan:
        assert scan.image.shape == shape
        assert scan.mask.shape == (*shape, channels)
        np.testing.assert_array_equal(scan.image[...], image[..., 0])


def test_a_volume_of_one_slice_keeps_its_axis(tmp_path):
    path = save(tmp_path / "a.h5", volume=VOLUME[..., :1], seg=SEG[:, :, :1])
    with opened(file_name=path, sem_seg_file=path) as scan:
        assert scan.image.shape == (5, 6, 1)
        assert scan.mask.shape == (5, 6, 1, 3)


def test_ambiguous_slices_are_rejected(tmp_path):
    path = save(tmp_path / "a.im", data=VOLUME[..., :3])
    with pytest.raises(ReadError, match="image_axes='HWC'"), opened(file_name=path, slice_id=1):
        pass
    a, b = save(tmp_path / "b.im", data=SLICE), save(tmp_path / "b.seg", data=SEG[:, :, :2])
    with pytest.raises(ReadError, match="5 x 6 x 2 x 3"), opened(file_name=a, sem_seg_file=b, slice_id=1):
        pass


def test_metadata_of_the_file(tmp_path):
    affine = np.diag([0.3, 0.3, 0.7, 1])
    attrs = [("volume", "spacing", [0.3, 0.3, 0.7]), ("/", "spacing", [1, 1, 1]), ("/", "affine", affine)]
    path = save(tmp_path / "a.h5", volume=VOLUME, attrs=attrs)
    with opened(file_name=path) as scan:
        assert scan.metadata["spacing"] == (0.3, 0.3, 0.7)
        np.testing.assert_array_equal(scan.metadata["affine"], affine)


@pytest.mark.parametrize(
    "spacing", ["wide", [0, 1, 1], [-1, 1, 1], [np.nan, 1, 1], [1], [[1, 1, 1]], 3.0, np.ones(5000)]
)
def test_an_invalid_spacing_is_ignored(tmp_path, spacing):
    attrs = [("volume", "spacing", spacing), ("volume", "affine", np.zeros((4, 4)))]
    with opened(file_name=save(tmp_path / "a.h5", volume=VOLUME, attrs=attrs)) as scan:
        assert scan.metadata == {}


def test_indexing_works_as_in_numpy(tmp_path):
    array = open_array(save(tmp_path / "a.h5", data=VOLUME), "data")
    for selection in (
        ...,
        0,
        -1,
        (1, 2, 3),
        np.s_[..., 2],
        np.s_[1:4:2, ::3],
        np.s_[2:2],
        np.s_[:, -3:-1, 1],
        np.int64(3),
    ):
        found = array[selection]
        np.testing.assert_array_equal(found, VOLUME[selection])
        assert found.flags.c_contiguous
    np.testing.assert_array_equal(np.asarray(array), VOLUME)
    assert np.asarray(array, np.float64).dtype == np.float64
    for selection in (5, (0, 0, 0, 0), "x", np.s_[::-1], None, [1, 2]):
        with pytest.raises(IndexError):
            array[selection]
    out = np.zeros((2, 6, 4), np.float32)
    with pytest.raises(ValueError, match="does not match"):
        array.read_into((slice(0, 3), slice(0, 6), slice(0, 4)), out)
    with pytest.raises(IndexError, match="exceeds"):
        array.read_into((slice(4, 6), slice(0, 6), slice(0, 4)), out)


def total(array):
    return float(array[...].sum(dtype=np.float64))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_arrays_in_other_processes(tmp_path, method):
    arrays = [
        open_array(save(tmp_path / "a.h5", data=VOLUME), "data"),
        open_array(save(tmp_path / "b.h5", volume=SEG), ("data", "volume")),
    ]
    expected = [total(a) for a in arrays]
    assert [total(pickle.loads(pickle.dumps(a))) for a in arrays] == expected
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert list(pool.map(total, arrays)) == expected


def test_eight_threads(tmp_path):
    paths = [save(tmp_path / f"{i}.h5", data=VOLUME + i) for i in range(10)]
    wrong = []

    def read(seed):
        rng = np.random.default_rng(seed)
        for i in rng.integers(0, 10, 200).tolist():
            start = int(rng.integers(0, 5))
            if not np.array_equal(open_array(paths[i], "data")[start:, 1:3], VOLUME[start:, 1:3] + i):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_only_the_needed_chunks_are_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as f:
        d = f.create_dataset("data", data=VOLUME, chunks=(5, 6, 1), compression="gzip")
        at = d.id.get_chunk_info_by_coord((0, 0, 3)).byte_offset
    data = bytearray(path.read_bytes())
    data[at : at + 8] = bytes(8)
    path.write_bytes(data)
    array = open_array(path, "data")
    np.testing.assert_array_equal(array[..., :3], VOLUME[..., :3])
    with pytest.raises(ReadError, match="chunk 3"):
        array[..., 3]


def test_layouts_are_small_and_shared(tmp_path, monkeypatch):
    import tracemalloc

    # Empty, as a dict that grows would count for what other tests left in it.
    monkeypatch.setattr(read, "_remembered", read._Remembered())
    paths = [save(tmp_path / f"{i}.im", data=VOLUME) for i in range(300)]
    open_array(paths[0], "data")
    tracemalloc.start()
    try:
        for path in paths:
            open_array(path, "data")
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / len(paths) < 560
