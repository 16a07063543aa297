"""`medsegpy pack`: the packed set equals the dataset for all loaders; the manifest is read as untrusted input."""

import itertools
import json
import os
import pickle
import subprocess
import sys
from contextlib import suppress

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import make_scan, save, save_slices, save_volume

from medsegpy_core import (
    Config,
    DatasetCatalog,
    DataWarning,
    DuplicateNameError,
    MedSegPyError,
    MetadataCatalog,
    ReadError,
    build_loader,
    load_scan,
    open_scan,
    pack_dataset,
    packed_dicts,
    packed_metadata,
    register_packed,
)
from medsegpy_core.catalog import dataset_spec
from medsegpy_core.cli.app import cli
from medsegpy_core.hdf5 import unpack_bitfield
from medsegpy_core.packing import verify_packed
from medsegpy_core.packing.manifest import decoded, encoded

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (12, 10, 7)
METADATA = {
    "category_ids": [0, (1, 2)],
    "categories": ["a", "b"],
    "category_id_to_contiguous_id": {0: 0, (1, 2): 1},
    "evaluator_type": "SemSegEvaluator",
    "scan_root": "somewhere",
    "spacing": (1.0, 1.5, 3.0),
}
LOADERS = {
    "DefaultDataLoader": (),
    "S25dDataLoader": (12, 10, 3),
    "N5dDataLoader": (12, 10, 3),
    "PatchDataLoader": (5, 4, 3),
    "RandomPatchDataLoader": (5, 4, 3),
}
LAYOUTS = list(itertools.product(["slices", "patches"], ["none", "gzip"]))


def register(name, dicts, **metadata):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**{**METADATA, **metadata})
    return name


def slices_and_volumes(folder, channels=3):
    """The same two scans as slices and as volumes."""
    slices, volumes = [], []
    for subject in (1, 2):
        image, mask = make_scan(SHAPE, channels, seed=subject)
        slices += save_slices(folder / "slices", image, mask, subject)
        volumes.append(save_volume(folder / "volumes", image, mask, subject))
    return {"slices": slices, "volumes": volumes}


def batches(name, tag, **options):
    cfg = Config(TRAIN_DATASET=name, TAG=tag, IMG_SIZE=LOADERS[tag], SEED=3, NUM_WORKERS=0, PATCHES_PER_SCAN=5)
    return list(build_loader(cfg, name, batch_size=4, drop_last=False, **options))


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        for left, right in zip(a, b, strict=True):
            assert left.dtype == right.dtype
            assert left.shape == right.shape
            assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize(("layout", "compression"), LAYOUTS)
@pytest.mark.parametrize("kind", ["slices", "volumes"])
def test_all_loaders_deliver_the_same_batches(tmp_path, kind, layout, compression):
    register("original", slices_and_volumes(tmp_path)[kind])
    patch = (5, 4, 3) if layout == "patches" else None
    packed = pack_dataset("original", tmp_path / "out", layout=layout, compression=compression, patch=patch)
    register_packed(packed.manifest, "packed")
    for tag in LOADERS:
        assert_same(batches("original", tag), batches("packed", tag))


def test_inference_covers_the_same_scans(tmp_path):
    register("original", slices_and_volumes(tmp_path)["slices"])
    register_packed(pack_dataset("original", tmp_path / "out").manifest, "packed")

    def scans(name):
        cfg = Config(TEST_DATASET=name, NUM_WORKERS=0)
        loader = build_loader(cfg, name, batch_size=3, is_test=True)
        return list(loader.inference(lambda images: np.repeat(images, 2, axis=-1)))

    for (inputs, outputs), (others, results) in zip(scans("original"), scans("packed"), strict=True):
        assert (inputs["scan_id"], inputs["subject_id"]) == (others["scan_id"], others["subject_id"])
        assert np.array_equal(inputs["x"], others["x"])
        assert np.array_equal(outputs["y_true"], results["y_true"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "u1", "<u2", ">i2", "<i4"]),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    channels=st.integers(1, 17),
    layout=st.sampled_from(["slices", "patches"]),
    compression=st.sampled_from(["none", "gzip"]),
    patch=st.tuples(*[st.integers(1, 5)] * 3),
    volume=st.booleans(),
    image_channels=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 2**16),
)
def test_packed_arrays_equal_the_source(
    tmp_path_factory, dtype, shape, channels, layout, compression, patch, volume, image_channels, seed
):
    folder = tmp_path_factory.mktemp("pack")
    rng = np.random.default_rng(seed)
    full = shape if image_channels is None else (*shape, image_channels)
    image = rng.integers(0, 200, full).astype(dtype)
    mask = rng.integers(0, 2, (*shape, channels), dtype=np.uint8)
    axes = {} if image_channels is None else {"image_axes": "HWDC"}
    if volume:
        path = save(folder / "a.h5", volume=image, seg=mask)
        dicts = [{"file_name": path, "sem_seg_file": path, "scan_id": "a", **axes}]
    else:
        axes = {} if image_channels is None else {"image_axes": "HWC"}
        dicts = [
            {
                "file_name": save(folder / f"{k}.im", data=image[:, :, k]),
                "sem_seg_file": save(folder / f"{k}.seg", data=mask[:, :, k]),
                "scan_id": "a",
                "slice_id": k + 1,
                "scan_num_slices": shape[2],
                **axes,
            }
            for k in range(shape[2])
        ]
    name = f"set-{folder.name}"
    DatasetCatalog.register(name, lambda: dicts)
    try:
        packed = pack_dataset(
            name, folder / "out", layout=layout, compression=compression, patch=patch if layout == "patches" else None
        )
    finally:
        DatasetCatalog.remove(name)
    (d,) = packed_dicts(packed.manifest)
    with open_scan(d) as scan:
        assert scan.image.dtype == image.dtype.newbyteorder("=")
        assert np.array_equal(scan.image[...], image)
        assert np.array_equal(scan.mask[...], mask)
    assert verify_packed(packed.manifest) == []


def test_the_file_follows_the_format(tmp_path):
    image, mask = make_scan((6, 5, 4), 10)
    register("one", [save_volume(tmp_path, image, mask)], category_ids=[0], categories=["a"],
             category_id_to_contiguous_id={0: 0})  # fmt: skip
    pack_dataset("one", tmp_path / "by_slices.h5")
    pack_dataset("one", tmp_path / "by_patches.h5", layout="patches", patch=(2, 3, 4), compression="gzip")
    with h5py.File(tmp_path / "by_slices.h5") as file:
        group = file["0000001_V00"]
        assert group["volume"].chunks is None
        assert group["volume"].dtype == image.dtype
        assert np.array_equal(group["volume"][:], image.transpose(2, 0, 1))
        assert group["seg"].dtype == np.uint8
        assert dict(group["seg"].attrs) == {"medsegpy_bitfield": 10, "medsegpy_format": 1}
        expanded = unpack_bitfield(group["seg"][:], 10)
        assert np.array_equal(expanded, mask.transpose(2, 0, 1, 3))
        assert np.array_equal(expanded[..., 9], group["seg"][..., 1] >> 1 & 1)
    with h5py.File(tmp_path / "by_patches.h5") as file:
        group = file["0000001_V00"]
        assert group["volume"].chunks == (2, 3, 4)
        assert group["seg"].chunks == (2, 3, 4, 2)
        assert group["volume"].compression == "gzip"
        assert np.array_equal(group["volume"][:], image)


def test_several_files_and_processes_make_the_same_set(tmp_path):
    register("original", slices_and_volumes(tmp_path)["slices"])
    one = pack_dataset("original", tmp_path / "one")
    two = pack_dataset("original", tmp_path / "two", shards=2, jobs=2)
    assert [path.name for path in two.files] == ["original-001-of-002.h5", "original-002-of-002.h5"]
    assert (one.scans, one.scans_packed, two.scans_packed) == (2, 2, 2)
    register_packed(one.manifest, "one")
    register_packed(two.manifest, "two")
    assert_same(batches("one", "DefaultDataLoader"), batches("two", "DefaultDataLoader"))
    with pytest.raises(ValueError, match="2 scans can be packed into 1 to 2 files, not 3"):
        pack_dataset("original", tmp_path / "three", shards=3)


def test_metadata_and_keys_are_packed(tmp_path):
    image, mask = make_scan(SHAPE)
    d = save_volume(tmp_path, image, mask, subject=5, scan_spacing=(1, 2, 3), site="north", time_point=2,
                    augmentation=4)  # fmt: skip
    register("original", [d, save_volume(tmp_path, image, None, subject=6)], collection="knees", remark={1: "x"})
    packed = pack_dataset("original", tmp_path / "out")
    with pytest.raises(DuplicateNameError):
        register_packed(packed.manifest)
    assert register_packed(packed.manifest, replace=True) == "original"
    register_packed(packed.manifest, "packed")
    metadata = MetadataCatalog.get("packed")
    assert metadata.category_ids == [0, (1, 2)]
    assert metadata.category_id_to_contiguous_id == {0: 0, (1, 2): 1}
    assert metadata.spacing == (1.0, 1.5, 3.0)
    assert metadata.collection == "knees"
    assert metadata.remark == {1: "x"}
    assert metadata.scan_root == str(tmp_path / "out")
    assert metadata.require()
    first, second = DatasetCatalog.get("packed")
    assert (first["subject_id"], first["time_point"], first["augmentation"]) == (5, 2, 4)
    assert (first["site"], first["scan_spacing"]) == ("north", (1, 2, 3))
    assert "sem_seg_file" in first
    assert "sem_seg_file" not in second
    assert packed_metadata(packed.manifest)["categories"] == ["a", "b"]


def test_a_packed_set_keeps_its_split_and_its_collection(tmp_path):
    packed = pack_dataset("abdomen_slices_test", tmp_path)
    register_packed(packed.manifest, "packed_test")
    assert dataset_spec("packed_test").split == "test"
    assert MetadataCatalog.get("packed_test").collection == MetadataCatalog.get("abdomen_slices_test").collection


def test_metadata_of_the_file_are_packed(tmp_path):
    image, mask = make_scan(SHAPE)
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["volume"], file["seg"] = image, mask
        file["volume"].attrs["spacing"] = [0.5, 0.6, 0.7]
        file.attrs["affine"] = np.diag([0.5, 0.6, 0.7, 1])
    DatasetCatalog.register("said", lambda: [{"file_name": path, "sem_seg_file": path, "scan_id": "a"}])
    (d,) = packed_dicts(pack_dataset("said", tmp_path / "out").manifest)
    with open_scan(d) as scan:
        assert scan.metadata["spacing"] == (0.5, 0.6, 0.7)
        assert np.array_equal(scan.metadata["affine"], np.diag([0.5, 0.6, 0.7, 1]))


def test_label_maps_become_bits_unless_labels_are_smaller(tmp_path):
    labels = np.random.default_rng(0).integers(0, 31, (6, 5, 4)).astype(np.uint8)
    image = make_scan((6, 5, 4))[0]
    for channels in (8, 30):
        path = save(tmp_path / f"{channels}.h5", volume=image, seg=np.minimum(labels, channels))
        register(f"labels{channels}", [{"file_name": path, "sem_seg_file": path, "scan_id": "a", "label_map": True}],
                 category_ids=list(range(channels)), categories=[str(c) for c in range(channels)],
                 category_id_to_contiguous_id={c: c for c in range(channels)})  # fmt: skip
        packed = pack_dataset(f"labels{channels}", tmp_path / "out")
        register_packed(packed.manifest, f"packed{channels}")
        assert_same(batches(f"labels{channels}", "PatchDataLoader"), batches(f"packed{channels}", "PatchDataLoader"))
        (d,) = packed_dicts(packed.manifest)
        assert d.get("label_map", False) is (channels == 30)


def test_an_incomplete_scan_keeps_its_slices(tmp_path):
    image, mask = make_scan(SHAPE)
    dicts = save_slices(tmp_path / "gaps", image, mask, 1, present={1, 2, 5, 7})
    dicts += save_slices(tmp_path / "gaps", image, mask, 2, labelled={2, 3})
    register("partly", dicts)
    register_packed(pack_dataset("partly", tmp_path / "out").manifest, "packed")
    found = DatasetCatalog.get("packed")
    assert [d["slice_id"] for d in found] == [1, 2, 5, 7, *range(1, 8)]
    assert ["sem_seg_file" in d for d in found] == ["sem_seg_file" in d for d in dicts]
    assert_same(batches("partly", "DefaultDataLoader"), batches("packed", "DefaultDataLoader"))
    with pytest.warns(DataWarning, match="gaps"):
        window = batches("partly", "S25dDataLoader", keep_unlabelled=True)
    with pytest.warns(DataWarning, match="gaps"):
        assert_same(window, batches("packed", "S25dDataLoader", keep_unlabelled=True))


def test_unsupported_metadata_are_left_out_with_a_warning(tmp_path):
    image, mask = make_scan(SHAPE)
    dicts = save_slices(tmp_path / "s", image, mask)
    for d in dicts:
        d["noise"] = d["slice_id"]
        d["handle"] = object
    register("odd", dicts)
    with pytest.warns(DataWarning) as caught:
        packed = pack_dataset("odd", tmp_path / "out")
    assert any("'noise' differ between slices" in str(w.message) for w in caught)
    assert any("'handle' of scan '0000001_V00' is type" in str(w.message) for w in caught)
    assert not {"noise", "handle"} & set(packed_dicts(packed.manifest)[0])


def test_augmented_copies_and_unusual_ids_have_separate_groups(tmp_path):
    image, mask = make_scan((3, 3, 2))
    ids = [("a/b", 0), ("a_b", 0), ("a_b", 2), ("0000001_V00-Aug03", 3), ("..", 0)]
    dicts = [
        save_volume(tmp_path, image + i, mask, scan_id=f"f{i}") | {"scan_id": scan_id, "augmentation": augmentation}
        for i, (scan_id, augmentation) in enumerate(ids)
    ]
    register("odd", dicts)
    found = packed_dicts(pack_dataset("odd", tmp_path / "out").manifest)
    groups = [d["image_key"].removesuffix("/volume") for d in found]
    assert groups == ["a_b", "a_b_2", "a_b-Aug02", "0000001_V00-Aug03", "scan"]
    assert [(d["scan_id"], d["augmentation"]) for d in found] == ids
    for i, d in enumerate(found):
        with open_scan(d) as scan:
            assert np.array_equal(scan.image[...], image + i)


def test_a_mask_that_is_not_binary_is_rejected_and_named(tmp_path):
    image, mask = make_scan((3, 3, 2))
    register("bad", [save_volume(tmp_path, image, mask * 255)])
    with pytest.raises(ReadError, match=r"0000001_V00\.h5.*0 and 255"):
        pack_dataset("bad", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.h5"))


def test_complete_sets_are_kept_and_other_sets_not_replaced(tmp_path):
    register("original", slices_and_volumes(tmp_path)["volumes"])
    packed = pack_dataset("original", tmp_path / "out")
    before = packed.files[0].stat()
    again = pack_dataset("original", tmp_path / "out")
    assert again.scans_packed == 0
    assert packed.files[0].stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(OSError, match="made with other settings or from files that have changed"):
        pack_dataset("original", tmp_path / "out", layout="patches")
    other = pack_dataset("original", tmp_path / "out", layout="patches", shards=2, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == sorted(
        ["original.json", *(path.name for path in other.files)]
    )
    source = DatasetCatalog.get("original")[0]["file_name"]
    image, mask = make_scan(SHAPE, seed=9)
    save(source, volume=image, seg=mask)
    with pytest.raises(OSError, match="files that have changed"):
        pack_dataset("original", tmp_path / "out", layout="patches", shards=2)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.sampled_from(["__pairs__", "__tuple__"]), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(st.integers(), st.integers()), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(values=st.dictionaries(st.text(min_size=1, max_size=5), PLAIN, max_size=4))
def test_values_round_trip(values):
    found = decoded(json.loads(json.dumps(encoded(values, "a test"))))
    assert repr(found) == repr(values)


@pytest.mark.parametrize("values", [
    {"spacing": (1, 1.5, 3.0), "category_colors": [(255, 0, 0), (0, 255, 0)], "remark": {"a": (1, [2, (3,)]), 5: ()}},
    {"spacing": [1, 1.5, 3.0], "category_colors": ((255, 0, 0), (0, 255, 0)), "remark": [{"__tuple__": [1]}]},
])  # fmt: skip
def test_metadata_keep_their_types(tmp_path, values):
    register("original", [save_volume(tmp_path, *make_scan(SHAPE), scan_spacing=values["spacing"])], **values)
    register_packed(pack_dataset("original", tmp_path / "out").manifest, "packed")
    found = {key: MetadataCatalog.get("packed").get(key) for key in values}
    assert repr(found) == repr(values)
    assert repr(DatasetCatalog.get("packed")[0]["scan_spacing"]) == repr(values["spacing"])
    MetadataCatalog.get("original").set(replace=True, spacing=(9, 9, 9))
    assert pack_dataset("original", tmp_path / "out").scans_packed == 0
    assert packed_metadata(tmp_path / "out")["spacing"] == (9, 9, 9)


def test_an_unrelated_file_is_not_replaced(tmp_path):
    register("original", slices_and_volumes(tmp_path)["volumes"])
    save(tmp_path / "original.h5", volume=np.zeros(3))
    with pytest.raises(OSError, match="does not belong here"):
        pack_dataset("original", tmp_path)
    with h5py.File(tmp_path / "original.h5") as file:
        assert list(file) == ["volume"]


def test_verify_detects_a_flipped_byte(tmp_path):
    register("original", slices_and_volumes(tmp_path)["volumes"])
    packed = pack_dataset("original", tmp_path / "out")
    with h5py.File(packed.files[0]) as file:
        offset = file["0000002_V00/seg"].id.get_offset()
    with packed.files[0].open("r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)
        file.seek(offset + 5)
        file.write(bytes([byte[0] ^ 2]))
    (wrong,) = verify_packed(packed.manifest)
    assert "0000002_V00/seg" in wrong
    assert "has changed since it was written" in wrong


@pytest.fixture
def manifest(tmp_path):
    register("original", slices_and_volumes(tmp_path)["volumes"])
    return pack_dataset("original", tmp_path / "out").manifest


def changed(manifest, **values):
    said = json.loads(manifest.read_text())
    for key, value in values.items():
        said["dicts"][0][key] = value
    manifest.write_text(json.dumps(said))
    return manifest


@pytest.mark.parametrize("path", ["../volumes/0000001_V00.h5", "/etc/passwd", "a/../../b.h5", "", "x\0", 7])
def test_paths_out_of_the_folder_of_the_set_are_rejected(manifest, path):
    with pytest.raises(ReadError, match="only files in its own folder are read"):
        packed_dicts(changed(manifest, file_name=path))


def test_links_out_of_the_folder_of_the_set_are_rejected(manifest, tmp_path):
    (manifest.parent / "link.h5").symlink_to(tmp_path / "volumes" / "0000001_V00.h5")
    with pytest.raises(ReadError, match="a link that leaves its folder"):
        packed_dicts(changed(manifest, sem_seg_file="link.h5"))
    (manifest.parent / "inside.h5").symlink_to(manifest.parent / "original.h5")
    assert packed_dicts(changed(manifest, sem_seg_file="inside.h5"))


def test_a_set_may_be_moved(manifest, tmp_path):
    before = np.array(load_scan(register_packed(manifest, "before"), "0000001_V00")[0])
    manifest.parent.rename(tmp_path / "moved")
    register_packed(tmp_path / "moved", "after")
    assert np.array_equal(load_scan("after", "0000001_V00")[0], before)
    listed = packed_dicts(tmp_path / "moved" / "original.h5")
    assert [{**d, "dataset_name": "after"} for d in listed] == DatasetCatalog.get("after")
    assert not any("dataset_name" in d for d in listed)


def test_invalid_manifests_are_rejected(manifest, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReadError, match="expected one manifest"):
        packed_dicts(tmp_path / "empty")
    with pytest.raises(ReadError, match="cannot be read"):
        packed_dicts(tmp_path / "absent.json")
    for text, message in [
        ("{", "cannot be read"),
        ("[]", "not the manifest"),
        ('{"medsegpy_packed": 3}', "newer medsegpy_core"),
        ('{"medsegpy_packed": 1}', "broken"),
        ('{"medsegpy_packed": 1, "dicts": 3, "arrays": [], "metadata": {}}', "broken"),
        ("[" * 100_000, "cannot be read"),
        ("\udcff", "cannot be read"),
        ('{"medsegpy_packed": 1' + "0" * 5000 + "}", "cannot be read"),
    ]:
        manifest.write_text(text, errors="surrogateescape")
        with pytest.raises(ReadError, match=message) as caught:
            packed_dicts(manifest)
        assert caught.value.path == manifest
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(ReadError, match="not a regular file"):
        packed_dicts(manifest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
TAGGED = st.sampled_from(
    [{"__tuple__": 3}, {"__pairs__": [[1]]}, {"__pairs__": [[{"a": 1}, 2]]}, [[[]]], [1, 2, 3, 4, "5"], [1, 2, 3, 4, 5]]
)
GARBAGE = st.one_of(TAGGED, JSON)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_garbled_manifest_is_one_readable_error(manifest, data):
    whole = manifest.read_text()
    said = json.loads(whole)
    key = data.draw(st.sampled_from(sorted(said)))
    inside = said[key]
    if data.draw(st.booleans()) and isinstance(inside, list | dict) and inside:
        at = data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside))))
        inside[at] = data.draw(GARBAGE)
    else:
        said[key] = data.draw(GARBAGE)
    manifest.write_text(json.dumps(said))
    try:
        with suppress(MedSegPyError):
            register_packed(manifest, "garbled")
            DatasetCatalog.get("garbled")
        with suppress(MedSegPyError):
            pack_dataset("original", manifest.parent)
    finally:
        manifest.write_text(whole)
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "garbled" in catalog.list():
                catalog.remove("garbled")


def test_a_loader_of_a_packed_set_can_be_pickled(manifest):
    register_packed(manifest, "packed")
    loader = build_loader(Config(TRAIN_DATASET="packed", SEED=0, NUM_WORKERS=0), "packed", batch_size=2)
    other = pickle.loads(pickle.dumps(loader))
    assert_same([loader[0]], [other[0]])


def test_the_command(tmp_path):
    run = CliRunner().invoke
    asked = ["pack", "abdomen_volumes_train", "--out", str(tmp_path), "--layout", "patches", "--patch", "32,32,8"]
    first = run(cli, asked)
    assert first.exit_code == 0, first.output
    assert "1 scan, " in first.output
    assert "register_packed(" in first.output
    said = json.loads(run(cli, [*asked, "--json"]).stdout)
    assert (said["scans"], said["scans_packed"]) == (1, 0)
    register_packed(said["manifest"], "packed")
    assert np.array_equal(load_scan("packed", "0000001_V00")[1], load_scan("abdomen_volumes_train", "0000001_V00")[1])
    for wrong in (["--patch", "1,2"], ["--patch", "0,1,1"], ["--layout", "rows"], ["--shards", "0"]):
        assert run(cli, [*asked, *wrong]).exit_code == 2
    assert run(cli, ["pack", "abdomen_volumes_train", "--patch", "1,1,1"]).exit_code == 2
    unknown = run(cli, ["pack", "abdomen_volumes_trian"])
    assert unknown.exit_code == 1
    assert "Did you mean" in unknown.output
    refused = run(cli, [*asked, "--compression", "gzip"])
    assert refused.exit_code == 1
    assert "--overwrite" in refused.output


def test_the_default_folder_is_next_to_the_datasets(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "medsegpy_core", "pack", "abdomen_volumes_test"],
        env={**os.environ, "MEDSEGPY_DATASETS": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "packed" / "abdomen_volumes_test.h5").is_file()
