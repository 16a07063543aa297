"""Batches and errors are the same with and without the compiled kernels."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import medsegpy_native
from medsegpy_core import CategoryError, Config, ReadError, ShapeError, build_loader
from medsegpy_core.hdf5 import pack_bitfield
from medsegpy_core.hdf5.backend import NUMPY, current_backend, using_backend
from medsegpy_core.hdf5.native import NativeBackend

pytestmark = pytest.mark.skipif(not medsegpy_native.COMPILED, reason="there was no C compiler when it was installed")

CHANNELS = 6


@pytest.fixture
def rows_left(monkeypatch):
    """The number of rows of each batch that the kernels skipped."""
    left = []

    def counting(*args, real=NativeBackend.read_rows):
        found = real(*args)
        left.append(len(found))
        return found

    monkeypatch.setattr(NativeBackend, "read_rows", counting)
    return left


def without_kernels(make):
    with using_backend(NUMPY):
        return make()


def outcome(make):
    """Return the result of a function, or the type and text of its error."""
    try:
        return make()
    except (ReadError, CategoryError, ShapeError) as error:
        return type(error), str(error)


def loader_of(dicts, tag="DefaultDataLoader", size=(), categories=(0, (1, 4), 5), options=None, **config):
    cfg = Config(TAG=tag, SEED=0, IMG_SIZE=size, CATEGORIES=list(categories), NUM_WORKERS=0, **config)
    return build_loader(cfg, dicts, batch_size=3, shuffle=True, drop_last=False, **(options or {}))


def same(dicts, **settings):
    """Compare two passes with kernels (mapped files are mapped in the second) with one pass without."""
    loader = loader_of(dicts, **settings)

    def read(loader=loader):
        return outcome(lambda: [[array.copy() for array in batch] for batch in (loader.set_epoch(0), loader)[1]])

    read()
    with_kernels, plain = read(), without_kernels(lambda: read(loader_of(dicts, **settings)))
    assert type(with_kernels) is type(plain)
    if isinstance(plain, tuple):
        assert with_kernels == plain
        return plain
    assert len(with_kernels) == len(plain)
    for one, other in zip(with_kernels, plain, strict=True):
        for array, expected in zip(one, other, strict=True):
            assert array.dtype == expected.dtype
            assert array.flags.c_contiguous == expected.flags.c_contiguous
            np.testing.assert_array_equal(array, expected)
    return plain


def write_slices(folder, image, mask, chunks=None):
    dicts = []
    for d in range(image.shape[2]):
        names = [str(folder / f"0000001_V00-Aug00_{d + 1:03d}{suffix}") for suffix in (".im", ".seg")]
        for name, array in zip(names, (image[:, :, d, None], mask[:, :, d, None]), strict=True):
            with h5py.File(name, "w") as file:
                stored = file.create_dataset("data", data=array, chunks=array.shape if chunks else None)
                if array is not None and name.endswith(".seg") and mask.shape[-1] == 1 and mask.dtype == np.uint8:
                    stored.attrs["medsegpy_bitfield"], stored.attrs["medsegpy_format"] = CHANNELS, 1
        dicts.append({"file_name": names[0], "sem_seg_file": names[1], "scan_id": "0000001_V00", "slice_id": d + 1,
                      "scan_num_slices": image.shape[2]})  # fmt: skip
    return dicts


def write_volume(path, image, mask, chunks=None):
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=image, chunks=chunks)
        stored = file.create_dataset("seg", data=mask, chunks=chunks and (*chunks, mask.shape[-1]))
        if mask.shape[-1] == 1:
            stored.attrs["medsegpy_bitfield"], stored.attrs["medsegpy_format"] = CHANNELS, 1
    return [{"file_name": str(path), "sem_seg_file": str(path), "scan_id": "0000001_V00", "reader": "h5-volumes"}]


DTYPES = ["<f4", ">f4", "<f8", "f2", "i1", "u1", "<i2", ">i2", "<u2", "<i4", ">u4", "<i8"]
TAGS = ["PatchDataLoader", "RandomPatchDataLoader", "DefaultDataLoader", "S25dDataLoader", "N5dDataLoader"]
MASKS = ["u1", "i1", "?", "<i2", "bits"]


def make_scan(shape, dtype, mask_dtype, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 100, shape).astype(dtype)
    mask = rng.random((*shape, CHANNELS)) < rng.choice([0.01, 0.4])
    return image, pack_bitfield(mask) if mask_dtype == "bits" else mask.astype(mask_dtype)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5)),
    st.sampled_from(DTYPES),
    st.sampled_from(MASKS),
    st.booleans(),
    st.sampled_from(["float32", "uint8"]),
    st.booleans(),
)
def test_slices(tmp_path_factory, shape, dtype, mask_dtype, chunks, out, background):
    image, mask = make_scan(shape, dtype, mask_dtype, sum(shape))
    dicts = write_slices(tmp_path_factory.mktemp("slices"), image, mask, chunks)
    found = same(dicts, options={"mask_dtype": out}, INCLUDE_BACKGROUND=background)
    assert sum(len(batch[0]) for batch in found) == shape[2]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(4, 24), st.integers(4, 24), st.integers(3, 20)),
    st.sampled_from(DTYPES),
    st.sampled_from(MASKS),
    st.sampled_from(TAGS),
    st.sampled_from([None, (4, 4, 3), (40, 40, 40)]),
    st.booleans(),
)
def test_volumes(tmp_path_factory, shape, dtype, mask_dtype, tag, chunks, mmap):
    image, mask = make_scan(shape, dtype, mask_dtype, sum(shape))
    chunks = chunks and tuple(min(n, c) for n, c in zip(shape, chunks, strict=True))
    dicts = write_volume(tmp_path_factory.mktemp("volumes") / "a.h5", image, mask, chunks)
    size = (4, 3, 2) if "Patch" in tag else () if tag == "DefaultDataLoader" else (*shape[:2], 3)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("extents", "read"):  # so that small files are mapped as well
            patch.setattr(f"medsegpy_core.hdf5.{module}.SMALLEST_MAP", 1)
        same(dicts, tag=tag, size=size, options={"mmap": mmap})


def test_plain_slices_and_patches_skip_no_row(tmp_path, rows_left):
    image, mask = make_scan((40, 30, 10), "<f4", "u1", 0)
    (tmp_path / "slices").mkdir()
    slices = write_slices(tmp_path / "slices", image, mask)
    volume = write_volume(tmp_path / "volume.h5", image, mask)
    for dicts, tag, size in [
        (slices, "DefaultDataLoader", ()),
        (volume, "DefaultDataLoader", ()),
        (volume, "S25dDataLoader", (40, 30, 1)),
        (volume, "RandomPatchDataLoader", (16, 16, 4)),
    ]:
        rows_left.clear()
        same(dicts, tag=tag, size=size)
        assert rows_left
        assert not any(rows_left), tag


def test_one_class_without_a_channel_axis_and_swapped_axes(tmp_path, rows_left):
    image, mask = make_scan((40, 30, 10), "<f4", "u1", 0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volume"], file["seg"] = image, mask[..., 0]
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["volume"], file["seg"] = image.transpose(2, 0, 1), mask.transpose(2, 0, 1, 3)
    one = {"file_name": str(tmp_path / "a.h5"), "sem_seg_file": str(tmp_path / "a.h5"), "scan_id": "a"}
    same([one], categories=[0])
    same([one], tag="RandomPatchDataLoader", size=(8, 8, 8), categories=[0])
    turned = {"file_name": str(tmp_path / "b.h5"), "sem_seg_file": str(tmp_path / "b.h5"), "scan_id": "b",
              "image_axes": "DHW", "sem_seg_axes": "DHWC"}  # fmt: skip
    same([turned])
    assert not any(rows_left)  # a slice is in one piece whichever way the axes are
    same([turned], tag="RandomPatchDataLoader", size=(8, 8, 8))
    assert any(rows_left)


def test_more_than_eight_channels_and_many_categories(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 20, 4)).astype(np.float32)
    for channels, categories in [
        (9, [0, (7, 8)]),
        (9, [0, 7]),
        (8, [0, 7]),
        (8, [*range(8), *((0, c) for c in range(1, 8))]),
        (8, [*range(8), *((0, c) for c in range(1, 8)), (1, 2), (1, 3)]),
    ]:
        folder = tmp_path / f"{channels}-{len(categories)}-{categories[-1]}"
        folder.mkdir()
        mask = (rng.random((20, 20, 4, channels)) < 0.2).astype(np.uint8)
        found = same(write_slices(folder, image, mask), categories=categories)
        assert found[0][1].shape[-1] == len(categories)


def test_several_image_channels(tmp_path):
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volume"] = rng.normal(size=(12, 10, 8, 3)).astype(np.float32)
        file["seg"] = (rng.random((12, 10, 8, CHANNELS)) < 0.2).astype(np.uint8)
    one = {"file_name": str(tmp_path / "a.h5"), "sem_seg_file": str(tmp_path / "a.h5"), "scan_id": "a",
           "image_axes": "HWDC"}  # fmt: skip
    same([one])
    same([one], tag="PatchDataLoader", size=(4, 4, 4))


@pytest.fixture
def slices(tmp_path):
    image, mask = make_scan((40, 30, 10), "<f4", "u1", 0)
    return write_slices(tmp_path, image, mask)


def edit(dicts, number, key, value):
    with h5py.File(dicts[number][key], "r+") as file:
        file["data"][3, 4] = value


def test_values_that_are_not_binary_are_an_error(slices):
    edit(slices, 4, "sem_seg_file", 255)
    kind, text = same(slices)
    assert kind is ReadError
    assert "the values 0, 1, 255" in text
    assert slices[4]["sem_seg_file"] in text


def test_a_category_beyond_the_channels_of_the_file(slices):
    kind, text = same(slices, categories=[0, 6])
    assert kind is CategoryError
    assert "channel 6" in text


def test_a_slice_of_another_size(slices):
    with h5py.File(slices[4]["file_name"], "w") as file:
        file["data"] = np.zeros((8, 8, 1), np.float32)
    assert same(slices)[0] is ReadError
    with h5py.File(slices[4]["sem_seg_file"], "w") as file:
        file["data"] = np.zeros((8, 8, 1, CHANNELS), np.uint8)
    assert same(slices)[0] is ShapeError


def test_unlabelled_slices(slices):
    del slices[4]["sem_seg_file"]
    found = same(slices, options={"keep_unlabelled": True})
    assert any((batch[1] == -1).all(axis=(1, 2, 3)).any() for batch in found)


def test_images_for_prediction_are_the_same(slices):
    def infer():
        cfg = Config(CATEGORIES=[0], SEED=0, NUM_WORKERS=0)
        loader = build_loader(cfg, slices, batch_size=3, is_test=True)
        ((_, outputs),) = loader.inference(lambda batch: batch * 2)
        return outputs

    one, other = infer(), without_kernels(infer)
    np.testing.assert_array_equal(one["y_pred"], other["y_pred"])
    np.testing.assert_array_equal(one["y_true"], other["y_true"])


@pytest.mark.parametrize("mmap", [False, True])
def test_files_that_change_between_two_passes(slices, tmp_path, mmap, monkeypatch):
    for module in ("extents", "read"):
        monkeypatch.setattr(f"medsegpy_core.hdf5.{module}.SMALLEST_MAP", 1)
    loader = loader_of(slices, options={"mmap": mmap})
    for _ in range(2):
        list(loader)
    # In place, and replaced.
    edit(slices, 2, "file_name", 1234.5)
    with h5py.File(tmp_path / "new", "w") as file:
        file["data"] = np.full((40, 30, 1), -7, np.float32)
        file["more"] = np.arange(10)
    Path(tmp_path / "new").replace(slices[5]["file_name"])
    images = np.concatenate([images for images, _ in loader])
    assert (images == 1234.5).any()
    assert any((image == -7).all() for image in images)
    os.truncate(slices[6]["sem_seg_file"], 3000)
    with pytest.raises(ReadError, match=r"cut short|truncated|cannot") as caught:
        list(loader)
    assert caught.value.path == Path(slices[6]["sem_seg_file"])


def test_the_limit_of_one_read_applies(slices, monkeypatch):
    loader = loader_of(slices)
    list(loader)
    monkeypatch.setenv("MEDSEGPY_MAX_READ", "1000")
    with pytest.raises(ReadError, match="MEDSEGPY_MAX_READ"):
        list(loader)


def test_threads_and_reused_buffers_give_the_same_batches(slices):
    plain = [[array.copy() for array in batch] for batch in loader_of(slices)]
    cfg = Config(SEED=0, CATEGORIES=[0, (1, 4), 5], NUM_WORKERS=3)
    loader = build_loader(cfg, slices, batch_size=3, shuffle=True, drop_last=False, reuse_buffers=True)
    for _ in range(3):
        loader.set_epoch(0)
        for batch, expected in zip(loader, plain, strict=True):
            for array, wanted in zip(batch, expected, strict=True):
                np.testing.assert_array_equal(array, wanted)


def test_a_loader_keeps_the_backend_that_it_was_built_with(slices, rows_left, monkeypatch):
    native, plain = loader_of(slices), without_kernels(lambda: loader_of(slices))
    expected = [[array.copy() for array in batch] for batch in plain]
    assert not rows_left  # the kernels were not called
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", "")
    assert current_backend() is NUMPY
    for batch, other in zip(native, expected, strict=True):
        for array, values in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, values)
    assert rows_left
    assert not any(rows_left)


def test_backends_are_pickled_by_name(slices, monkeypatch):
    native, plain = current_backend(), without_kernels(current_backend)
    assert (native.name, plain.name) == ("native", "numpy")
    assert pickle.loads(pickle.dumps(native)) is native
    assert pickle.loads(pickle.dumps(plain)) is plain
    # A process in which the kernels are not to be loaded has the same batches from NumPy.
    pickled = pickle.dumps(loader_of(slices))
    expected = [[array.copy() for array in batch] for batch in loader_of(slices)]
    monkeypatch.setenv("MEDSEGPY_LOAD_PLUGINS", "")
    assert pickle.loads(pickle.dumps(native)) is NUMPY
    for batch, other in zip(pickle.loads(pickled), expected, strict=True):
        for array, values in zip(batch, other, strict=True):
            np.testing.assert_array_equal(array, values)
