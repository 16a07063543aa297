"""Label maps, ignored values and channels that are not annotated, compared with a plain NumPy definition."""

import json
import warnings

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import everything, patches_of, save

from medsegpy_core import (
    CategoryError,
    Config,
    DatasetCatalog,
    DataWarning,
    MetadataCatalog,
    MetadataError,
    ReadError,
    Record,
    RecordError,
    build_loader,
    load_scan,
    open_scan,
)
from medsegpy_core.cli.app import cli
from medsegpy_core.diagnostics import check_dataset
from medsegpy_core.hdf5 import pack_bitfield, unpack_bitfield
from medsegpy_core.loading.collate import Collation
from medsegpy_core.packing import pack_dataset, register_packed
from medsegpy_core.reading.masks import ValueCodes

SHAPE = (6, 5, 7)
VALUES = (17, 2035, 1001)
IGNORED = (255, -3)
RNG = np.random.default_rng(5)
IMAGE = RNG.normal(size=SHAPE).astype(np.float32)
LABELS = RNG.choice([0, 0, *VALUES, *IGNORED], SHAPE)
NAMES = ["a", "b", "c"]
TAGS = {
    "DefaultDataLoader": (),
    "S25dDataLoader": (6, 5, 3),
    "N5dDataLoader": (6, 5, 3),
    "PatchDataLoader": (4, 4, 3),
    "RandomPatchDataLoader": (6, 5, 7),
}


def channels_of_labels(labels, values, ignored=(), annotated=None):
    """Return the channels of a label map: 1, 0, and 255 for unknown."""
    mask = np.stack([labels == value for value in values], axis=-1).astype(np.uint8)
    if annotated is not None:
        mask[..., [c for c in range(len(values)) if c not in annotated]] = 255
    mask[np.isin(labels, ignored)] = 255
    return mask


def collated(mask, category_ids, background=False):
    """Return the categories of channels with 0, 1 and 255; unknown is -1."""
    parts = [mask[..., np.atleast_1d(category_id)] for category_id in category_ids]
    planes = [np.where((p == 1).any(-1), 1, np.where((p == 255).any(-1), -1, 0)) for p in parts]
    if background:
        every = np.stack(planes)
        planes.insert(0, np.where((every == 1).any(0), 0, np.where((every == -1).any(0), -1, 1)))
    return np.stack(planes, axis=-1).astype(np.float32)


def register(name, tmp_path, mask=LABELS, suffix="", metadata=None, **keys):
    path = save(tmp_path / f"{name}{suffix}.h5", volume=IMAGE, seg=mask)
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "s", "subject_id": 1, **keys}
    DatasetCatalog.register(name, lambda: [d], replace=True)
    ids = [0, 1, 2]
    settings = {"category_ids": ids, "categories": NAMES, "category_id_to_contiguous_id": {i: i for i in ids}}
    settings |= {"scan_root": str(tmp_path), "evaluator_type": "SemSegEvaluator"}
    MetadataCatalog.get(name).set(replace=True, **(settings | (metadata or {})))
    return d


def loader_of(name, tag="PatchDataLoader", size=SHAPE, shuffle=False, keep_unlabelled=True, **keys):
    options = {key: keys.pop(key) for key in ("mask_dtype", "is_test", "batch_size") if key in keys}
    cfg = Config(TRAIN_DATASET=name, TAG=tag, IMG_SIZE=size, SEED=0, NUM_WORKERS=0, **keys)
    options = {"batch_size": 1, **options}
    return build_loader(cfg, name, shuffle=shuffle, keep_unlabelled=keep_unlabelled, **options)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["<i2", ">i4", "i8", "<f4", ">f8"])
@pytest.mark.parametrize("where", ["dict", "metadata"])
def test_values_ignored_and_annotated(tmp_path, dtype, where):
    keys = {"label_map": True, "label_values": VALUES, "ignore_values": IGNORED, "annotated": [(0, 2)]}
    named = {"metadata": keys} if where == "metadata" else keys
    register("d", tmp_path, LABELS.astype(dtype), **named)
    mask = channels_of_labels(LABELS, VALUES, IGNORED, {0, 2})
    with open_scan(DatasetCatalog.get("d")[0], "d") as scan:
        assert scan.mask.shape == mask.shape
        assert scan.mask.dtype == np.uint8
        np.testing.assert_array_equal(scan.mask[...], mask)
        np.testing.assert_array_equal(scan.mask[1:, 2, ::2, 1:], mask[1:, 2, ::2, 1:])
    np.testing.assert_array_equal(load_scan("d", "s")[1], mask)
    for ids in ([0, 1, 2], [2, (0, 1)], [(0, 2)], [1]):
        for background in (False, True):
            expected = collated(mask, ids, background)
            loader = loader_of("d", CATEGORIES=ids, INCLUDE_BACKGROUND=background)
            np.testing.assert_array_equal(loader[0][1][0], expected)
            loader = loader_of("d", CATEGORIES=ids, INCLUDE_BACKGROUND=background, mask_dtype="uint8")
            np.testing.assert_array_equal(loader[0][1][0], np.where(expected < 0, 255, expected))


def test_the_dict_overrides_the_metadata(tmp_path):
    wrong = {"label_map": True, "label_values": (1, 2, 3), "ignore_values": (17,), "annotated": [0]}
    keys = {"label_values": VALUES, "ignore_values": IGNORED, "annotated": [0, 1, 2]}
    register("d", tmp_path, metadata=wrong, **keys)
    np.testing.assert_array_equal(load_scan("d", "s")[1], channels_of_labels(LABELS, VALUES, IGNORED))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("preload", [False, True])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("annotated", [[0, 1, 2], [0, 2]])
def test_all_loaders(tmp_path, tag, preload, background, annotated):
    register("d", tmp_path, label_map=True, label_values=VALUES, ignore_values=IGNORED, annotated=annotated)
    mask = collated(channels_of_labels(LABELS, VALUES, IGNORED, set(annotated)), [0, (1, 2)], background)
    loader = loader_of("d", tag, TAGS[tag], PRELOAD_DATA=preload, INCLUDE_BACKGROUND=background, CATEGORIES=[0, (1, 2)])
    _, found = everything(loader)
    slices = np.moveaxis(mask, 2, 0)
    expected = {
        "DefaultDataLoader": slices,
        "S25dDataLoader": slices,
        "N5dDataLoader": slices[1:-1],
        "PatchDataLoader": np.stack(patches_of(mask, (4, 4, 3))),
        "RandomPatchDataLoader": np.stack([mask] * 8),
    }
    np.testing.assert_array_equal(found, expected[tag])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
@pytest.mark.parametrize("background", [False, True])
def test_padding(tmp_path, mode, background):
    register("d", tmp_path, label_map=True, label_values=VALUES, ignore_values=IGNORED, annotated=[0, 2])
    mask = collated(channels_of_labels(LABELS, VALUES, IGNORED, {0, 2}), [0, 1, (0, 2)], background)
    pad = (2, 1, 3)
    expected = np.pad(mask, [*((n, n) for n in pad), (0, 0)], mode)
    if mode == "constant":
        # Beside the scan is nothing; what is not annotated stays unknown.
        outside = np.ones([n + 2 * p for n, p in zip(SHAPE, pad, strict=True)], bool)
        outside[tuple(slice(p, p + n) for n, p in zip(SHAPE, pad, strict=True))] = False
        expected[outside] = [-1, 0, -1, 0] if background else [0, -1, 0]
    for preload in (False, True):
        loader = loader_of(
            "d", size=expected.shape[:3], IMG_PAD_SIZE=pad, IMG_PAD_MODE=mode, PRELOAD_DATA=preload,
            CATEGORIES=[0, 1, (0, 2)], INCLUDE_BACKGROUND=background,
        )  # fmt: skip
        np.testing.assert_array_equal(loader[0][1][0], expected)


def test_unknown_voxels_are_never_drawn_as_foreground(tmp_path):
    labels = np.full(SHAPE, 255)
    labels[0, 0, 0] = 17
    register("d", tmp_path, labels, label_map=True, label_values=VALUES, ignore_values=(255,), annotated=[0, 2])
    loader = loader_of("d", "RandomPatchDataLoader", (1, 1, 1), FOREGROUND_RATIO=1.0, PATCHES_PER_SCAN=20)
    for _, masks in loader:
        np.testing.assert_array_equal(masks[0, ..., 0], 1)


def test_inference_marks_unknown_voxels(tmp_path):
    register("d", tmp_path, label_map=True, label_values=VALUES, ignore_values=IGNORED, annotated=[0, 2])
    mask = channels_of_labels(LABELS, VALUES, IGNORED, {0, 2})
    loader = loader_of("d", keep_unlabelled=False, is_test=True)
    ((_, outputs),) = loader.inference(lambda x: np.zeros((*x.shape[:-1], 3)))
    assert outputs["y_true"].dtype == np.uint8
    np.testing.assert_array_equal(outputs["y_true"], mask)
    _, masks, _ = loader[0]
    np.testing.assert_array_equal(masks[0], collated(mask, [0, 1, 2]))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "?"])
def test_annotated_channels_of_a_binary_mask(tmp_path, dtype):
    planes = (RNG.random((*SHAPE, 11)) < 0.3).astype(dtype)
    for channels in (3, 11):
        register("d", tmp_path, planes[..., :channels], annotated=[0, 2])
        mask = planes[..., :channels].astype(np.uint8)
        mask[..., [c for c in range(channels) if c not in (0, 2)]] = 255
        with open_scan(DatasetCatalog.get("d")[0]) as scan:
            np.testing.assert_array_equal(scan.mask[...], mask)
            np.testing.assert_array_equal(scan.mask[1:3, ..., 1:3], mask[1:3, ..., 1:3])
        for ids in ([0, 2], [1, 0], [(0, 1), 2]):
            for background in (False, True):
                loader = loader_of("d", CATEGORIES=ids, INCLUDE_BACKGROUND=background)
                np.testing.assert_array_equal(loader[0][1][0], collated(mask, ids, background))


def test_a_binary_mask_with_other_values_is_rejected(tmp_path):
    planes = (RNG.random((*SHAPE, 2)) < 0.3).astype(np.uint8) * 255
    register("d", tmp_path, planes, annotated=[0])
    with pytest.raises(ReadError, match=r"0 and 255.*ignore_values"):
        loader_of("d", CATEGORIES=[0])[0]
    with open_scan(DatasetCatalog.get("d")[0]) as scan, pytest.raises(ReadError, match="0 and 255"):
        scan.mask[...]


@pytest.mark.parametrize("key", [{"ignore_values": [255]}, {"annotated": [0, 2]}])
def test_training_on_unknown_voxels_needs_keep_unlabelled(tmp_path, key):
    register("d", tmp_path, np.minimum(abs(LABELS), 3), label_map=True, **key)
    with pytest.raises(RecordError, match=rf"'d'.*{next(iter(key))}.*keep_unlabelled=True"):
        loader_of("d", keep_unlabelled=False)
    loader_of("d", keep_unlabelled=False, is_test=True)[0]
    if "annotated" in key:
        # What is not selected may be unknown.
        _, masks = loader_of("d", keep_unlabelled=False, CATEGORIES=[0, 2], INCLUDE_BACKGROUND=True)[0]
        assert masks.min() == 0
        with pytest.raises(RecordError, match="annotated"):
            loader_of("d", keep_unlabelled=False, CATEGORIES=[0, (1, 2)])


def told(function):
    """Return the messages of the warnings of a function."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        function()
    assert {w.category for w in seen} <= {DataWarning}
    return [str(w.message) for w in seen]


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_undeclared_values_are_background_with_one_warning(tmp_path, dtype):
    labels = np.zeros(SHAPE, dtype)
    labels[0], labels[1], labels[2] = 1, 3, 7
    ids = {"category_ids": [0, 1], "categories": ["a", "b"], "category_id_to_contiguous_id": {0: 0, 1: 1}}
    register("d", tmp_path, labels, label_map=True, metadata=ids)
    expected = np.stack([labels == 1, labels == 2], axis=-1)
    loader = loader_of("d", "DefaultDataLoader", ())

    def read():
        for _ in range(2):
            np.testing.assert_array_equal(everything(loader)[1], np.moveaxis(expected, 2, 0))

    (message,) = told(read)
    assert "'d'" in message
    assert "d.h5" in message
    assert "value 3" in message
    assert len(told(lambda: load_scan("d", "s"))) == 1
    with pytest.warns(DataWarning, match="value 3"):
        np.testing.assert_array_equal(load_scan("d", "s")[1], expected)


def test_declared_values_that_are_not_selected_are_background(tmp_path):
    labels = np.where(LABELS < 0, 0, LABELS)
    register("d", tmp_path, labels, label_map=True, label_values=(*VALUES, 255))
    assert told(lambda: loader_of("d", CATEGORIES=[1])[0]) == []
    np.testing.assert_array_equal(loader_of("d", CATEGORIES=[1])[0][1][0, ..., 0], labels == 2035)
    register("d", tmp_path, np.minimum(labels, 3), label_map=True)
    np.testing.assert_array_equal(loader_of("d", CATEGORIES=[1])[0][1][0, ..., 0], np.minimum(labels, 3) == 2)


def test_a_category_beyond_the_values_is_an_error(tmp_path):
    register("d", tmp_path, label_map=True, label_values=(17, 2035), ignore_values=(1001, *IGNORED))
    with pytest.raises(CategoryError, match=r"2.*d\.h5.*2 channels"):
        loader_of("d")[0]


def test_dicts_alone_declare_the_number_of_channels(tmp_path):
    d = register("d", tmp_path, label_map=True, label_values=VALUES, ignore_values=IGNORED)
    MetadataCatalog.remove("d")
    DatasetCatalog.remove("d")
    with open_scan({**d}) as scan:
        assert scan.mask.shape == (*SHAPE, 3)
    loader = build_loader(Config(TAG="PatchDataLoader", IMG_SIZE=SHAPE), [d], batch_size=1, keep_unlabelled=True)
    np.testing.assert_array_equal(loader[0][1][0], collated(channels_of_labels(LABELS, VALUES, IGNORED), [0, 1, 2]))


def test_channels_are_counted_only_on_request(tmp_path):
    path = save(tmp_path / "a.h5", volume=IMAGE, seg=np.full(SHAPE, 0.5))
    d = {"file_name": path, "sem_seg_file": path, "scan_id": "a", "label_map": True}
    with open_scan(d) as scan:
        with pytest.raises(ReadError, match="whole numbers"):
            assert scan.mask.shape
        with pytest.raises(ReadError, match="whole numbers"):
            scan.mask[...]
    with open_scan({**d, "label_values": VALUES}) as scan:
        assert scan.mask.shape == (*SHAPE, 3)


def test_a_check_reports_undeclared_values(tmp_path):
    register("d", tmp_path, np.minimum(abs(LABELS), 9), label_map=True)
    (found,) = check_dataset("d").findings
    assert (found.kind, found.file) == ("labels", str(tmp_path / "d.h5"))
    assert "value 9" in found.message


@pytest.mark.parametrize("dtype", ["i1", "i2", "i8", "f8"])
def test_negative_values(tmp_path, dtype):
    labels = np.where(LABELS > 0, 1, LABELS).astype(dtype)
    register("d", tmp_path, labels, label_map=True)
    with pytest.raises(ReadError, match=r"-3.*ignore_values"):
        loader_of("d")[0]
    with pytest.raises(ReadError, match="-3"):
        load_scan("d", "s")
    (found,) = check_dataset("d").findings
    assert "-3" in found.message
    register("d", tmp_path, labels, label_map=True, ignore_values=[-3])
    np.testing.assert_array_equal(loader_of("d")[0][1][0, ..., 0], np.where(labels == -3, -1, labels))
    assert not check_dataset("d").findings


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_floats_are_labels_if_they_are_whole_numbers(tmp_path, dtype):
    labels = (np.minimum(abs(LABELS), 3) * 0.9998).astype(dtype)
    register("d", tmp_path, labels, label_map=True)
    with open_scan(DatasetCatalog.get("d")[0], "d") as scan:
        np.testing.assert_array_equal(scan.mask[...], channels_of_labels(np.rint(labels), (1, 2, 3)))
    for wrong in (0.5, 1.002, np.nan, np.inf, 3e9):
        with np.errstate(over="ignore"):
            labels[0, 0, 0] = wrong
        register("d", tmp_path, labels, label_map=True)
        if np.isfinite(labels[0, 0, 0]) and labels[0, 0, 0] == 1:
            continue  # of so few digits
        with pytest.raises(ReadError, match="whole numbers"):
            loader_of("d")[0]


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"label_values": (0, 1)}, "label_values"),
        ({"label_values": (1, 1)}, "label_values"),
        ({"label_values": ()}, "label_values"),
        ({"label_values": (1.5,)}, "label_values"),
        ({"label_values": 3}, "label_values"),
        ({"ignore_values": "255"}, "ignore_values"),
        ({"ignore_values": (True,)}, "ignore_values"),
        ({"annotated": 0}, "annotated"),
        ({"annotated": [-1]}, "annotated"),
    ],
)
def test_invalid_keys(tmp_path, keys, what):
    with pytest.raises(RecordError, match=what):
        Record.from_dict({"file_name": "a.h5", "scan_id": "s", "label_map": True, **keys})
    with pytest.raises(MetadataError, match=what):
        MetadataCatalog.get("other").set(**keys)


@pytest.mark.parametrize("keys", [{"label_values": VALUES}, {"ignore_values": [-2]}])
def test_label_values_mean_a_label_map(tmp_path, keys):
    values = (0, 1, 2, 3, -2) if "ignore_values" in keys else (0, *VALUES)
    mask = np.random.default_rng(0).choice(values, SHAPE)
    register("declared", tmp_path, mask, label_map=True, **keys)
    register("meant", tmp_path, mask, **keys)
    (_, expected), (_, found) = load_scan("declared", "s"), load_scan("meant", "s")
    assert expected.shape == (*LABELS.shape, 3)
    assert np.array_equal(found, expected)


def test_keys_that_contradict_each_other(tmp_path):
    for keys in ({"label_values": VALUES, "ignore_values": [17]}, {"ignore_values": [3]}):
        register("d", tmp_path, label_map=True, **keys)
        with pytest.raises(RecordError, match=r"value (17|3) is both that of a category"):
            load_scan("d", "s")


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(st.integers(-300, 70000), max_size=12, unique=True),
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", ">u2", "i4", "u4", "i8", "u8"]),
    data=st.data(),
)
def test_codes_are_found_whatever_the_type(known, dtype, data):
    info = np.iinfo(dtype)
    some = st.one_of(st.integers(info.min, info.max), st.sampled_from([0, *known]))
    values = np.array(
        [min(max(v, info.min), info.max) for v in data.draw(st.lists(some, max_size=20))], np.dtype(dtype)
    )
    codes = ValueCodes(known)
    expected = [known.index(v) + 1 if v in known else 0 if v == 0 else len(known) + 1 for v in values.tolist()]
    np.testing.assert_array_equal(codes.of(values), expected)
    np.testing.assert_array_equal(codes.of(values[::-1][None]), [expected[::-1]])


ids_of = st.lists(
    st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True).map(tuple)),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@pytest.mark.usefixtures("backend")
@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(10, 18),
    ids=ids_of,
    background=st.booleans(),
    annotated=st.one_of(st.none(), st.frozensets(st.integers(0, 9))),
    dtype=st.sampled_from(["float32", "uint8"]),
    share=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 9),
)
def test_bits_with_unknown_voxels(tmp_path_factory, channels, ids, background, annotated, dtype, share, seed):
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 255], (3, 4, 2, channels), p=[1 - 2 * share, share, share]).astype(np.uint8)
    packed = pack_bitfield(mask, unknown=True)
    assert packed.shape == (3, 4, 2, 2 * -(-channels // 8))
    np.testing.assert_array_equal(unpack_bitfield(packed, channels), mask)
    path = tmp_path_factory.mktemp("bits") / "a.h5"
    with h5py.File(path, "w") as file:
        file["volume"], file["seg"] = np.zeros((3, 4, 2)), packed
        file["seg"].attrs.update(medsegpy_bitfield=channels, medsegpy_format=2)
    d = {"file_name": str(path), "sem_seg_file": str(path), "scan_id": "a"}
    if annotated is not None:
        d["annotated"] = sorted(annotated)
        mask[..., [c for c in range(channels) if c not in annotated]] = 255
    with open_scan(d) as scan:
        np.testing.assert_array_equal(scan.mask[...], mask)
        np.testing.assert_array_equal(scan.mask[1:, ..., 3:9], mask[1:, ..., 3:9])
        out = np.empty((3, 4, 2, len(ids) + background), dtype)
        Collation(tuple(ids), background).read(scan.mask, tuple(slice(0, n) for n in (3, 4, 2)), out, None)
    expected = collated(mask, ids, background)
    np.testing.assert_array_equal(out, np.where(expected < 0, 255, expected) if dtype == "uint8" else expected)


def test_training_on_unknown_bits_needs_keep_unlabelled(tmp_path):
    mask = np.zeros((*SHAPE, 2), np.uint8)
    mask[0, 0, 0, 1] = 255
    d = register("d", tmp_path, pack_bitfield(mask, unknown=True))
    with h5py.File(d["file_name"], "a") as file:
        file["seg"].attrs.update(medsegpy_bitfield=2, medsegpy_format=2)
    with pytest.raises(RecordError, match="keep_unlabelled"):
        loader_of("d", keep_unlabelled=False, CATEGORIES=[0, 1])[0]
    loader = loader_of("d", keep_unlabelled=False, CATEGORIES=[0])
    assert loader[0][1].max() == 0
    loader = loader_of("d", keep_unlabelled=False, CATEGORIES=[0, 1])
    ((_, outputs),) = loader.inference(lambda x: np.zeros((*x.shape[:-1], 2)))
    np.testing.assert_array_equal(outputs["y_true"], mask)


def test_newer_and_truncated_bit_fields(tmp_path):
    d = register("d", tmp_path, np.zeros((*SHAPE, 1), np.uint8))
    for number, what in ((2, "two uint8"), (3, "newer")):
        with h5py.File(d["file_name"], "a") as file:
            file["seg"].attrs.update(medsegpy_bitfield=2, medsegpy_format=number)
        with pytest.raises(ReadError, match=what):
            load_scan("d", "s")


@pytest.mark.parametrize("layout", ["slices", "patches"])
@pytest.mark.parametrize("case", ["bits", "labels", "binary", "nothing"])
def test_packing_keeps_unknown_voxels(tmp_path, layout, case):
    keys = {"label_map": True, "label_values": tuple(np.array(VALUES)), "ignore_values": tuple(np.array(IGNORED))}
    keys["annotated"] = [0, np.int64(2)]
    mask = LABELS.astype(np.int32)
    if case == "labels":
        keys["label_values"] = (*VALUES, *range(3000, 3040))
        mask = mask.astype(np.int16)
    elif case == "binary":
        keys, mask = {"annotated": [0, 2]}, (RNG.random((*SHAPE, 3)) < 0.5).astype(np.uint8)
    elif case == "nothing":
        keys, mask = {**keys, "annotated": [0, 1, 2]}, np.where(np.isin(mask, IGNORED), 0, mask)
    register("d", tmp_path, mask, **keys)
    packed = pack_dataset("d", tmp_path / "out", layout=layout)
    register_packed(packed.manifest, "p")
    (d,) = DatasetCatalog.get("p")
    assert d["label_map"] is (case == "labels")
    with h5py.File(d["file_name"]) as file:
        attributes = dict(file[d["sem_seg_key"]].attrs)
    formats = {"bits": 2, "labels": None, "binary": 2, "nothing": 1}
    assert attributes.get("medsegpy_format") == formats[case]
    np.testing.assert_array_equal(load_scan("p", "s")[1], load_scan("d", "s")[1])
    for background in (False, True):
        for mode in ("edge", "constant"):
            one, other = (
                loader_of(
                    name, size=(8, 5, 7), CATEGORIES=[0, 1, (0, 2)], INCLUDE_BACKGROUND=background, IMG_PAD_MODE=mode
                )[0]
                for name in ("d", "p")
            )
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    if case != "nothing":
        with pytest.raises(RecordError, match="keep_unlabelled"):
            loader_of("p", keep_unlabelled=False)
    assert not check_dataset("p").findings


def test_counting_does_not_depend_on_how_large_the_values_are(tmp_path):
    labels = np.where(np.isin(LABELS, IGNORED), 0, LABELS)
    ids = [16, 2034, (1000, 9169)]
    categories = {
        "category_ids": ids,
        "categories": NAMES,
        "category_id_to_contiguous_id": {c: i for i, c in enumerate(ids)},
    }
    register("d", tmp_path, labels, label_map=True, metadata=categories)
    result = CliRunner().invoke(cli, ["datasets", "show", "d", "--json"])
    assert result.exit_code == 0
    counts = [np.count_nonzero(labels == value) for value in (17, 2035, 1001)]
    assert json.loads(result.stdout)["voxels"] == dict(zip(NAMES, counts, strict=True))
    np.testing.assert_array_equal(
        loader_of("d")[0][1][0], np.stack([labels == value for value in (17, 2035, 1001)], axis=-1)
    )
