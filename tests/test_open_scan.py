"""`open_scan`: the arrays of a dict have one form for all file layouts, and equal what h5py reads."""

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import make_scan, save, save_slices, save_volume

from medsegpy_core import (
    CategoryError,
    MetadataCatalog,
    ReadError,
    RecordError,
    build_loader,
    load_scan,
    open_scan,
    register_reader,
)
from medsegpy_core.catalog import DatasetCatalog
from medsegpy_core.config import Config

pytestmark = pytest.mark.usefixtures("backend")

IMAGE, MASK = make_scan((4, 3, 5), channels=2)
LABELS = np.random.default_rng(3).integers(0, 4, IMAGE.shape).astype(np.int16)


def planes(labels, channels):
    return np.stack([labels == v + 1 for v in range(channels)], axis=-1).astype(np.uint8)


def arrays(d, dataset=""):
    with open_scan(d, dataset) as scan:
        return scan.image[...], None if scan.mask is None else scan.mask[...]


def volume(tmp_path, image=IMAGE, mask=MASK, **keys):
    path = save(tmp_path / "scan.h5", **{"volume": image} | ({} if mask is None else {"seg": mask}))
    return {"file_name": path, "scan_id": "s", **({} if mask is None else {"sem_seg_file": path}), **keys}


def one_slice(tmp_path, image, mask, **keys):
    return {
        "file_name": save(tmp_path / "x.im", data=image),
        "sem_seg_file": save(tmp_path / "x.seg", data=mask),
        "scan_id": "s",
        "slice_id": 1,
        "scan_num_slices": 5,
        **keys,
    }


def test_a_volume(tmp_path):
    image, mask = arrays(volume(tmp_path))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK)
    assert (image.dtype, mask.dtype) == (np.float32, np.uint8)
    image, mask = arrays(volume(tmp_path, mask=None))
    np.testing.assert_array_equal(image, IMAGE)
    assert mask is None


@pytest.mark.parametrize("unit", [True, False], ids=["HxWx1xC", "HxWxC"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (4, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_slice_with_and_without_its_unit_axis(tmp_path, unit, shape, channels):
    image, mask = make_scan(shape, channels)
    stored = (image[..., None], mask[:, :, None]) if unit else (image, mask)
    found = arrays(one_slice(tmp_path, *stored))
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], mask)


def test_two_files_have_the_key_data(tmp_path):
    d = {
        "file_name": save(tmp_path / "i.h5", data=IMAGE),
        "sem_seg_file": save(tmp_path / "m.h5", data=MASK),
        "scan_id": "s",
    }
    image, mask = arrays(d)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK)


def test_other_keys_and_groups(tmp_path):
    path = tmp_path / "many.h5"
    with h5py.File(path, "w") as file:
        file["0000001_V00/volume"], file["0000001_V00/seg"] = IMAGE, MASK
        file["deep/er/T1"], file["deep/labels"] = IMAGE + 1, MASK[..., :1]
    base = {"file_name": str(path), "sem_seg_file": str(path), "scan_id": "s"}
    image, mask = arrays({**base, "image_key": "0000001_V00/volume"})
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(mask, MASK)
    image, mask = arrays({**base, "image_key": "/deep/er/T1", "sem_seg_key": "deep/labels"})
    np.testing.assert_array_equal(image, IMAGE + 1)
    np.testing.assert_array_equal(mask, MASK[..., :1])
    with pytest.raises(ReadError, match="nowhere"):
        arrays({**base, "image_key": "nowhere"})


@settings(max_examples=60, deadline=None)
@given(
    axes=st.sampled_from([set("HWD"), set("HWDC")]).flatmap(lambda s: st.permutations(sorted(s))).map("".join),
    mask_axes=st.permutations("HWDC").map("".join),
)
def test_axes_in_any_order(tmp_path_factory, axes, mask_axes):
    tmp_path = tmp_path_factory.mktemp("axes")
    image = make_scan((4, 3, 5, 2), 1)[0] if "C" in axes else IMAGE
    stored = np.transpose(image, ["HWDC".index(a) for a in axes])
    stored_mask = np.transpose(MASK, ["HWDC".index(a) for a in mask_axes])
    d = volume(tmp_path, stored, stored_mask, image_axes=axes, sem_seg_axes=mask_axes)
    with open_scan(d) as scan:
        assert scan.image.shape == image.shape
        assert scan.mask.shape == MASK.shape
        np.testing.assert_array_equal(scan.image[...], image)
        np.testing.assert_array_equal(scan.mask[...], MASK)
        np.testing.assert_array_equal(scan.image[1:3, 0, -2], image[1:3, 0, -2])
        np.testing.assert_array_equal(scan.mask[:, ::2, 1:4, 1], MASK[:, ::2, 1:4, 1])
        assert scan.image[1:3].flags.c_contiguous


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("HWC")])
def test_axes_of_slices(tmp_path, axes):
    image, mask = make_scan((4, 3, 2), 1)[0], make_scan((4, 3), 2)[1]
    order = ["HWC".index(a) for a in axes]
    d = one_slice(tmp_path, image.transpose(order), mask.transpose(order), image_axes=axes, sem_seg_axes=axes)
    found = arrays(d)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], mask)


def test_axes_of_slices_that_store_their_depth(tmp_path):
    image, mask = make_scan((4, 3), 2)
    d = one_slice(tmp_path, image[None], mask[None], image_axes="DHW", sem_seg_axes="DHWC")
    found = arrays(d)
    np.testing.assert_array_equal(found[0], image)
    np.testing.assert_array_equal(found[1], mask)
    with pytest.raises(ReadError, match="D"):
        arrays(one_slice(tmp_path, np.stack([image] * 2), mask[None], image_axes="DHW", sem_seg_axes="DHWC"))


def test_axes_from_the_metadata(tmp_path):
    MetadataCatalog.get("d").set(image_axes="DHW", sem_seg_axes="CDHW", category_ids=[0, 1], categories=["a", "b"])
    d = volume(tmp_path, IMAGE.transpose(2, 0, 1), MASK.transpose(3, 2, 0, 1))
    for image, mask in (arrays(d, "d"), _loaded(d, "d")):
        np.testing.assert_array_equal(image, IMAGE)
        np.testing.assert_array_equal(mask, MASK)


def _loaded(d, name):
    DatasetCatalog.register(name, lambda: [d])
    return load_scan(name, "s")


@pytest.mark.parametrize(
    ("axes", "what"),
    [({"image_axes": "HWC"}, "D"), ({"image_axes": "HW"}, "axes"), ({"sem_seg_axes": "HWD"}, "4|axes")],
)
def test_inconsistent_axes(tmp_path, axes, what):
    d = volume(tmp_path, **axes)
    with pytest.raises(ReadError, match=what) as caught:
        arrays(d)
    assert d["file_name"] in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (4, 3), (4, 3, 5, 2, 2)], ids=str)
def test_another_rank_is_rejected_with_a_hint(tmp_path, shape):
    d = volume(tmp_path, np.zeros(shape, np.float32))
    with pytest.raises(ReadError, match="image_axes") as caught:
        arrays(d)
    assert d["file_name"] in str(caught.value)
    assert " x ".join(map(str, shape)) in str(caught.value)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5, 2, 2)], ids=str)
def test_another_rank_of_the_mask_is_rejected_with_a_hint(tmp_path, shape):
    with pytest.raises(ReadError, match="sem_seg_axes"):
        arrays(volume(tmp_path, mask=np.zeros(shape, np.uint8)))


def test_a_mask_of_the_rank_of_the_image_is_one_binary_class(tmp_path):
    np.testing.assert_array_equal(arrays(volume(tmp_path, mask=MASK[..., 0]))[1], MASK[..., :1])
    image, mask = make_scan((4, 3), 1)
    np.testing.assert_array_equal(arrays(one_slice(tmp_path, image, mask[..., 0]))[1], mask)


def test_a_mask_of_another_size(tmp_path):
    d = volume(tmp_path, mask=MASK[:, :2])
    with pytest.raises(ReadError) as caught:
        arrays(d)
    for part in (d["sem_seg_file"], "4 x 3 x 5", "4 x 2 x 5"):
        assert part in str(caught.value)
    with pytest.raises(ReadError, match="separate"):
        arrays(volume(tmp_path, IMAGE.transpose(2, 0, 1), MASK.transpose(2, 0, 1, 3), image_axes="DHW"))


def test_several_keys_are_channels(tmp_path):
    path = save(tmp_path / "scan.h5", T1w=IMAGE, T2w=IMAGE * 2, seg=MASK)
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "image_key": ("T1w", "T2w")}
    image, _ = arrays(d)
    np.testing.assert_array_equal(image, np.stack([IMAGE, IMAGE * 2], axis=-1))
    image, _ = arrays({**d, "image_key": ["T2w"]})
    np.testing.assert_array_equal(image, IMAGE[..., None] * 2)
    path = save(tmp_path / "scan.h5", T1w=IMAGE.transpose(2, 1, 0), T2w=IMAGE.transpose(2, 1, 0) * 2, seg=MASK)
    image, _ = arrays({**d, "image_axes": "DWH"})
    np.testing.assert_array_equal(image, np.stack([IMAGE, IMAGE * 2], axis=-1))
    path = save(tmp_path / "scan.h5", T1w=IMAGE, T2w=IMAGE[1:], seg=MASK)
    with pytest.raises(ReadError, match=r"T1w.*T2w"):
        arrays(d)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<u8", "?"])
def test_a_label_map(tmp_path, dtype):
    labels = LABELS.astype(dtype)
    MetadataCatalog.get("d").set(category_ids=[0, (1, 3), 2], categories=["a", "b", "c"])
    d = volume(tmp_path, mask=labels, label_map=True)
    with open_scan(d, "d") as scan:
        assert scan.mask.shape == (*IMAGE.shape, 4)
        np.testing.assert_array_equal(scan.mask[...], planes(labels, 4))
        np.testing.assert_array_equal(scan.mask[1:, 2, ::2, 1:3], planes(labels, 4)[1:, 2, ::2, 1:3])
    with open_scan(d) as scan:
        np.testing.assert_array_equal(scan.mask[...], planes(labels, int(labels.max())))
    cfg = Config(TRAIN_DATASET="d", IMG_SIZE=(4, 3, 5), TAG="PatchDataLoader", CATEGORIES=[0, (1, 3)])
    _, masks = build_loader(cfg, [d], batch_size=1)[0]
    expected = np.stack([labels == 1, (labels == 2) | (labels == 4)], axis=-1)
    np.testing.assert_array_equal(masks[0], expected)


@pytest.mark.parametrize("kind", ["HxW", "HxWx1"])
def test_a_label_map_of_a_slice(tmp_path, kind):
    labels = LABELS[:, :, 0]
    d = one_slice(tmp_path, IMAGE[:, :, 0], labels if kind == "HxW" else labels[..., None], label_map=True)
    MetadataCatalog.get("d").set(category_ids=[0, 1, 2], categories=["a", "b", "c"])
    np.testing.assert_array_equal(arrays(d, "d")[1], planes(labels, 3))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_label_map_with_as_many_labels_as_its_type_has(tmp_path, dtype):
    largest = int(np.iinfo(dtype).max)
    labels = np.full(IMAGE.shape, largest, dtype)
    labels[0] = 1
    MetadataCatalog.get("d").set(category_ids=[0, largest - 1], categories=["a", "b"])
    d = volume(tmp_path, mask=labels, label_map=True)
    loader = build_loader(Config(TRAIN_DATASET="d", IMG_SIZE=(4, 3, 5), TAG="PatchDataLoader"), [d], batch_size=1)
    np.testing.assert_array_equal(loader[0][1][0], np.stack([labels == 1, labels == largest], axis=-1))


def test_a_label_map_without_declared_labels(tmp_path):
    slices = save_slices(tmp_path, IMAGE, None)
    for d, labels in zip(slices, np.moveaxis(LABELS, 2, 0), strict=True):
        d.update(sem_seg_file=save(d["file_name"].replace(".im", ".seg"), data=labels), label_map=True)
    with pytest.raises(CategoryError, match="CATEGORIES"):
        build_loader(Config(), slices)
    _, masks = build_loader(Config(CATEGORIES=[0, 2]), slices, batch_size=5, shuffle=False)[0]
    np.testing.assert_array_equal(masks, np.moveaxis(planes(LABELS, 3)[..., [0, 2]], 2, 0))


def test_invalid_label_maps(tmp_path):
    with pytest.raises(ReadError, match="whole numbers"):
        arrays(volume(tmp_path, mask=LABELS + np.float32(0.5), label_map=True))
    with pytest.raises(ReadError, match="-1"):
        arrays(volume(tmp_path, mask=LABELS - 1, label_map=True))
    with pytest.raises(ReadError, match="label map"):
        arrays(volume(tmp_path, mask=MASK, label_map=True))


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (MASK * 255, "0 and 255"),
        (MASK * 2, "label_map"),
        (MASK - 0.5, r"0.5, expected 0 and 1 \("),
        (MASK.astype("i1") * -1, "-1"),
    ],
    ids=["0/255", "0/2", "halves", "negative"],
)
@pytest.mark.parametrize("tag", ["DefaultDataLoader", "PatchDataLoader"])
def test_a_mask_that_is_not_binary(tmp_path, mask, what, tag):
    d = volume(tmp_path, mask=mask)
    loader = build_loader(Config(CATEGORIES=[0], TAG=tag, IMG_SIZE=(4, 3, 5)), [d], batch_size=1)
    with pytest.raises(ReadError, match=what) as caught:
        loader[0]
    assert d["sem_seg_file"] in str(caught.value)


def test_nan_is_not_binary(tmp_path):
    mask = MASK.astype(np.float32)
    mask[0, 0, 0, 0] = np.nan
    loader = build_loader(
        Config(CATEGORIES=[0], TAG="PatchDataLoader", IMG_SIZE=(4, 3, 5)), [volume(tmp_path, mask=mask)]
    )
    with pytest.raises(ReadError, match="nan"):
        loader.setup.maker.make([0], 0)


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", ">f4", "<f8", ">f8", "f2", "<u8", "i8", "?"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "shuffle": True, "fletcher32": True}, {"compression": "lzf"}], ids=str
)
def test_values_equal_those_of_h5py(tmp_path, dtype, options):
    rng = np.random.default_rng(1)
    image = (rng.random((4, 3, 5)) * 1000).astype(dtype)
    if dtype in ("<u8", "i8"):
        image += (np.iinfo(dtype).max - 2000) if dtype == "i8" else np.uint64(2**64 - 5000)
    if "f8" in dtype:
        image[0, 0, :4] = 1e39, -1e300, 1e-50, np.nan
    path = tmp_path / "scan.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("volume", data=image, **options)
        file.create_dataset("seg", data=MASK.astype(dtype), **options)
    d = {"file_name": str(path), "sem_seg_file": str(path), "scan_id": "s"}
    with h5py.File(path) as file, np.errstate(over="ignore"):
        stored = file["volume"][...]
        expected = stored.astype(np.float32)
    with open_scan(d) as scan:
        assert scan.image.dtype == stored.dtype.newbyteorder("=")
        assert scan.image.dtype.isnative
        assert scan.image[...].dtype.isnative
        np.testing.assert_array_equal(scan.image[...], stored)
    cfg = Config(TAG="PatchDataLoader", IMG_SIZE=(4, 3, 5))
    with np.errstate(over="ignore"):
        images, masks = build_loader(cfg, [d], batch_size=1)[0]
    np.testing.assert_array_equal(images[0, ..., 0], expected)
    np.testing.assert_array_equal(masks[0], MASK)
    assert images.dtype == masks.dtype == np.float32


def test_invalid_dataset_dicts():
    with pytest.raises(RecordError), open_scan({"file_name": "x"}):
        pass


def test_missing_and_damaged_files(tmp_path):
    d = volume(tmp_path)
    for path, content in (
        ("gone.h5", None),
        ("empty.h5", b""),
        ("text.h5", b"hello" * 100),
        ("cut.h5", (tmp_path / "scan.h5").read_bytes()[:600]),
    ):
        if content is not None:
            (tmp_path / path).write_bytes(content)
        with pytest.raises(ReadError) as caught, open_scan({**d, "file_name": str(tmp_path / path)}):
            pass
        assert path in str(caught.value)
        assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), ValueError("magic"), RuntimeError("lost")])
def test_errors_of_a_reader_become_read_errors(tmp_path, plugins, error):
    class Failing:
        name = "failing"
        suffixes = (".fail",)

        def probe(self, path):
            return False

        def open(self, record):
            raise error

    register_reader(Failing())
    path = tmp_path / "x.fail"
    path.touch()
    DatasetCatalog.register("x", lambda: [{"file_name": str(path), "scan_id": "s", "sem_seg_file": str(path)}])
    MetadataCatalog.get("x").set(category_ids=[0])
    with pytest.raises(ReadError) as caught:
        build_loader(Config(), "x", batch_size=1)[0]
    for part in (
        str(path),
        "reader 'failing' cannot open it",
        type(error).__name__,
        str(error),
        "Dataset 'x', element 0",
    ):
        assert part in str(caught.value)
    assert caught.value.__cause__ is error


def test_errors_of_the_body_are_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="mine"), open_scan(volume(tmp_path)):
        raise FileNotFoundError("mine")


def test_a_slice_of_a_volume_file(tmp_path):
    path = save_volume(tmp_path, IMAGE, MASK)["file_name"]
    for i in range(5):
        d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "slice_id": i + 1, "scan_num_slices": 5}
        image, mask = arrays(d)
        np.testing.assert_array_equal(image, IMAGE[:, :, i])
        np.testing.assert_array_equal(mask, MASK[:, :, i])


def test_metadata_of_the_file(tmp_path):
    d = volume(tmp_path)
    with h5py.File(d["file_name"], "a") as file:
        file["volume"].attrs["spacing"] = (0.5, 0.5, 2.0)
    with open_scan(d) as scan:
        assert tuple(scan.metadata["spacing"]) == (0.5, 0.5, 2.0)
