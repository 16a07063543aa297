"""Spacing and affine of files refer to the axes H, W, D; image, mask and metadata are compared."""

import itertools
import json
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scans import everything, make_scan, save_slices

from medsegpy_core import (
    Config,
    DatasetCatalog,
    DataWarning,
    GeometryError,
    MetadataCatalog,
    ReadError,
    RecordError,
    build_loader,
    load_scan,
    open_scan,
    pack_dataset,
    packed_dicts,
    register_packed,
    write_slices,
    write_volume,
)
from medsegpy_core.diagnostics import check_dataset
from medsegpy_core.errors import MetadataError

IMAGE, MASK = make_scan((6, 5, 4), channels=2)
AFFINE = np.array([[0, -0.6, 0, 10], [-0.5, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
SPACING = (0.5, 0.6, 3.0)
ORDERS = ["".join(order) for order in itertools.permutations("HWD")]
METADATA = {
    "scan_root": ".",
    "category_ids": [0, 1],
    "categories": ["a", "b"],
    "category_id_to_contiguous_id": {0: 0, 1: 1},
    "evaluator_type": "SemSegEvaluator",
}


def stored(array, axes):
    """Return an array H x W x D [x C] with its axes in another order."""
    return array.transpose(["HWDC".index(letter) for letter in axes])


def of_stored(axes):
    """Return spacing and affine for stored axes."""
    order = ["HWD".index(letter) for letter in axes if letter != "C"]
    return [SPACING[axis] for axis in order], AFFINE[:, [*order, 3]]


def write(path, image, mask, image_attrs=None, mask_attrs=None, root=None):
    with h5py.File(path, "w") as file:
        file["volume"], file["seg"] = image, mask
        for place, attrs in ((file["volume"], image_attrs), (file["seg"], mask_attrs), (file, root)):
            for key, value in (attrs or {}).items():
                place.attrs[key] = value
    return {"file_name": str(path), "sem_seg_file": str(path), "scan_id": path.stem}


def register(name, dicts, **metadata):
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**METADATA | metadata)
    return name


def inputs_of(name):
    cfg = Config(TEST_DATASET=name)
    ((inputs, _),) = build_loader(cfg, name, is_test=True).inference(lambda images: np.zeros((*images.shape[:3], 2)))
    return inputs


@pytest.mark.parametrize("place", ["image", "root"])
@pytest.mark.parametrize("said", ["spacing", "affine", "both"])
@pytest.mark.parametrize("axes", [*ORDERS, "CDHW", "WCHD"])
def test_attributes_are_for_the_stored_axes(tmp_path, axes, said, place):
    spacing, affine = of_stored(axes)
    attrs = {"spacing": spacing, "affine": affine}
    attrs = attrs if said == "both" else {said: attrs[said]}
    image = np.stack([IMAGE, -IMAGE], axis=-1) if "C" in axes else IMAGE
    where = {"image_attrs": attrs} if place == "image" else {"root": attrs}
    d = write(tmp_path / "a.h5", stored(image, axes), MASK, **where)
    name = register("turned", [d], image_axes=axes)
    with open_scan(DatasetCatalog.get(name)[0], name) as scan:
        assert scan.metadata["spacing"] == SPACING
        assert "affine" not in scan.metadata or np.array_equal(scan.metadata["affine"], AFFINE)
    inputs = inputs_of(name)
    assert inputs["scan_spacing"] == SPACING
    assert np.array_equal(inputs.get("scan_affine", AFFINE), AFFINE)
    # The dict does not say how the file is laid out: the metadata do.
    assert MetadataCatalog.get(name).for_scan(d).spacing == SPACING
    assert MetadataCatalog.get(name).for_scan(inputs).spacing == SPACING


def test_slices_declare_the_geometry_of_their_scan(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    for d in dicts:
        with h5py.File(d["file_name"], "a") as file:
            file["data"].attrs["affine"] = AFFINE
    name = register("slices", dicts)
    assert inputs_of(name)["scan_spacing"] == SPACING
    assert MetadataCatalog.get(name).for_scan(dicts[0]).spacing == SPACING


@pytest.mark.parametrize("axes", [None, "HW", "WH"])
def test_two_values_count_as_absent_in_a_scan_of_several_slices(tmp_path, axes):
    keys = {} if axes is None else {"image_axes": axes, "sem_seg_axes": axes + "C"}
    dicts = []
    for i in range(4):
        image, mask = IMAGE[:, :, i], MASK[:, :, i]
        paths = tmp_path / f"{i}.im", tmp_path / f"{i}.seg"
        for path, array in zip(paths, (image, mask), strict=True):
            with h5py.File(path, "w") as file:
                file["data"] = array.swapaxes(0, 1) if axes == "WH" else array
                file["data"].attrs["spacing"] = (9.0, 8.0)
        d = {"file_name": str(paths[0]), "sem_seg_file": str(paths[1]), "scan_id": "s", **keys}
        dicts.append(d | {"slice_id": i + 1, "scan_num_slices": 4})
    name = register("flat", dicts, spacing=SPACING)
    assert inputs_of(name).get("scan_spacing") is None
    view = MetadataCatalog.get(name).for_scan(dicts[0])
    assert view.spacing == SPACING
    assert MetadataCatalog.get(name).for_scan(dicts[0] | {"scan_spacing": (1, 2)}).spacing == SPACING
    register("unknown", dicts)
    assert MetadataCatalog.get("unknown").for_scan(dicts[0]).get("spacing") is None
    alone = dicts[0] | {"scan_num_slices": 1, "slice_id": 1}
    found = MetadataCatalog.get("unknown").for_scan(alone).spacing
    assert found == ((8.0, 9.0) if axes == "WH" else (9.0, 8.0))


def test_a_value_of_the_wrong_length_falls_through_to_the_next_source(tmp_path):
    d = write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING})
    name = register("a", [d | {"scan_spacing": (1, 2)}])
    assert inputs_of(name)["scan_spacing"] == SPACING
    metadata = MetadataCatalog.get(name)
    assert metadata.for_scan(d | {"scan_spacing": (1, 2)}).spacing == SPACING
    assert (
        metadata.for_scan({"scan_id": "a", "x": IMAGE, "scan_spacing": (1, 2)}, {"spacing": (4, 5)}).get("spacing")
        is None
    )
    metadata.set(spacing=(7, 8))
    assert metadata.for_scan(d, {}).get("spacing") is None
    assert metadata.for_scan(d, {}, axes=(2,)).spacing == (7, 8)
    with pytest.raises(MetadataError, match="spacing"):
        metadata.for_scan(d | {"scan_spacing": (1, 0)})
    # An affine says the spacing where it comes without.
    assert metadata.for_scan(d | {"scan_affine": AFFINE}).spacing == SPACING
    assert metadata.for_scan(d | {"scan_affine": AFFINE, "scan_spacing": (1, 1, 2)}).spacing == (1, 1, 2)
    assert metadata.for_scan(d, {"affine": AFFINE}).spacing == SPACING


def test_a_file_that_contradicts_the_metadata_is_reported_once(tmp_path):
    dicts = [
        write(tmp_path / f"{i}.h5", IMAGE, MASK, {"spacing": (0.5, 0.6, 2.0 + i)}) | {"scan_id": str(i)}
        for i in range(3)
    ]
    name = register("other", dicts, spacing=SPACING)
    cfg = Config(CATEGORIES=[0, 1], TRAIN_DATASET=name, NUM_WORKERS=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        everything(build_loader(cfg, name, batch_size=4))
    (warning,) = caught
    assert issubclass(warning.category, DataWarning)
    assert "a spacing of 0.5 x 0.6 x " in str(warning.message)
    assert "metadata state 0.5 x 0.6 x 3 mm" in str(warning.message)
    found = [finding for finding in check_dataset(name).findings if finding.kind == "geometry"]
    assert sorted(finding.file for finding in found) == [dicts[0]["file_name"], dicts[2]["file_name"]]
    # A value that a dict gives to override the file is meant.
    meant = [d | {"scan_spacing": (1, 1, 1)} for d in dicts]
    everything(build_loader(Config(CATEGORIES=[0, 1]), register("meant", meant, spacing=SPACING), batch_size=4))
    close = write(tmp_path / "close.h5", IMAGE, MASK, {"spacing": (0.5, 0.6, 3.02)})
    everything(build_loader(Config(CATEGORIES=[0, 1]), register("close", [close], spacing=SPACING), batch_size=4))


def test_a_file_that_contradicts_itself_is_reported(tmp_path):
    d = write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": (0.5, 0.6, 5.0), "affine": AFFINE})
    with (
        pytest.warns(DataWarning, match=r"its spacing is 0\.5 x 0\.6 x 5 mm, but the columns of its affine"),
        open_scan(d) as scan,
    ):
        assert scan.metadata["spacing"] == SPACING
    (finding,) = check_dataset(register("itself", [d])).findings
    assert (finding.kind, finding.file) == ("geometry", d["file_name"])
    d = write(tmp_path / "b.h5", IMAGE, MASK, None, {"spacing": (0.5, 0.6, 5.0), "affine": AFFINE})
    (finding,) = check_dataset(register("mask", [d])).findings
    assert "the file contradicts itself: its spacing is" in finding.message


def moved(shift, axis=2):
    affine = AFFINE.copy()
    affine[:3, 3] += shift * affine[:3, axis]
    return affine


def mirrored(axis=0):
    affine = AFFINE.copy()
    affine[:, axis] *= -1
    return affine


OTHER_GRIDS = {
    "mirrored": (AFFINE, mirrored()),
    "moved": (AFFINE, moved(40)),
    "swapped": (AFFINE, AFFINE[:, [1, 0, 2, 3]]),
    "coarser": (AFFINE, AFFINE * [2, 2, 2, 1]),
    "three quarters of a voxel": (AFFINE, moved(0.75)),
}


def volume_and_slices(folder, image_affine, mask_affine, **keys):
    """Return the dicts of a scan in one file, in two files, and in slices, with affines on image and mask."""
    one = write(folder / "one.h5", IMAGE, MASK, {"affine": image_affine}, {"affine": mask_affine})
    two = [folder / "image.h5", folder / "mask.h5"]
    for path, array, affine in zip(two, (IMAGE, MASK), (image_affine, mask_affine), strict=True):
        with h5py.File(path, "w") as file:
            file["data"] = array
            file.attrs["affine"] = affine  # of the file, not of the array
    slices = save_slices(folder, IMAGE, MASK, scan_id="slices", **keys)
    for d in slices:
        for key, affine in (("file_name", image_affine), ("sem_seg_file", mask_affine)):
            with h5py.File(d[key], "a") as file:
                file["data"].attrs["affine"] = affine
    separate = {"file_name": str(two[0]), "sem_seg_file": str(two[1]), "scan_id": "two"}
    return [[one | keys], [separate | keys], slices]


@pytest.mark.parametrize("kind", OTHER_GRIDS)
def test_a_mask_on_another_grid_is_an_error(tmp_path, kind):
    for number, dicts in enumerate(volume_and_slices(tmp_path, *OTHER_GRIDS[kind])):
        with (
            pytest.raises(GeometryError, match=r"voxels off\. Image \(.*trust_geometry=True") as caught,
            open_scan(dicts[0]),
        ):
            pass
        assert isinstance(caught.value, ReadError)
        assert str(caught.value).count("the first voxel at") == 2
        name = register(f"a{number}", dicts)
        for tag in ("DefaultDataLoader", "PatchDataLoader"):
            cfg = Config(TAG=tag, IMG_SIZE=(6, 5, 1) if tag == "PatchDataLoader" else ())
            with pytest.raises(GeometryError, match="the mask does not lie where its image does"):
                build_loader(cfg, name, batch_size=1)[0]
        with pytest.raises(GeometryError):
            load_scan(name, dicts[0]["scan_id"])
        with pytest.raises(GeometryError):
            inputs_of(name)
        found = check_dataset(name).findings
        assert {finding.kind for finding in found} == {"geometry"}
        assert sum(finding.elements for finding in found) == len(dicts)


@pytest.mark.parametrize("where", ["dict", "metadata"])
def test_trust_geometry_disables_the_check(tmp_path, where):
    keys = {"trust_geometry": True} if where == "dict" else {}
    for number, dicts in enumerate(volume_and_slices(tmp_path, AFFINE, mirrored(), **keys)):
        name = register(f"a{number}", dicts, **({} if keys else {"trust_geometry": True}))
        assert len(build_loader(Config(CATEGORIES=[0]), name, batch_size=1)[0][0])
        assert check_dataset(name).findings == []
        with open_scan(DatasetCatalog.get(name)[0], name) as scan:
            assert scan.metadata["spacing"] == SPACING
        assert MetadataCatalog.get(name).for_scan(dicts[0]).trust_geometry is True
    with pytest.raises(RecordError, match="'trust_geometry' is 1"):
        build_loader(Config(CATEGORIES=[0]), [dicts[0] | {"trust_geometry": 1}], batch_size=1)
    with pytest.raises(MetadataError, match="trust_geometry"):
        MetadataCatalog.get("x").set(trust_geometry="yes")


def test_a_slightly_shifted_mask_is_reported_once(tmp_path):
    for number, dicts in enumerate(volume_and_slices(tmp_path, AFFINE, moved(0.3))):
        name = register(f"a{number}", dicts)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loader = build_loader(Config(CATEGORIES=[0], NUM_WORKERS=0), name, batch_size=1)
            everything(loader)
            loader[0]
        (warning,) = caught
        assert "up to 0.3 voxels off" in str(warning.message)
        assert {finding.kind for finding in check_dataset(name).findings} == {"geometry"}
    for dicts in volume_and_slices(tmp_path, AFFINE, moved(0.09)):
        everything(build_loader(Config(CATEGORIES=[0]), dicts, batch_size=1))


@given(shift=st.floats(0, 2), axis=st.integers(0, 2), axes=st.sampled_from(ORDERS), mask_axes=st.sampled_from(ORDERS))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_grids_are_compared_in_any_stored_order(tmp_path, shift, axis, axes, mask_axes):
    order, mask_order = (["HWD".index(letter) for letter in letters] for letters in (axes, mask_axes))
    d = write(
        tmp_path / "a.h5",
        stored(IMAGE, axes),
        stored(MASK[..., 0], mask_axes),
        {"affine": AFFINE[:, [*order, 3]]},
        {"affine": moved(shift, axis)[:, [*mask_order, 3]]},
    )
    d |= {"image_axes": axes, "sem_seg_axes": mask_axes}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with open_scan(d) as scan:
                np.testing.assert_array_equal(scan.image[...], IMAGE)
            refused = False
        except GeometryError:
            refused = True
    if min(abs(shift - 0.1), abs(shift - 0.5)) > 1e-6:
        assert refused == (shift > 0.5)
        assert len(caught) == (0.1 < shift < 0.5)


def test_spacings_are_compared_without_affines(tmp_path):
    for mask in ({"spacing": (0.5, 0.6, 6.0)}, {"affine": AFFINE * [1, 1, 2, 1]}):
        with pytest.raises(GeometryError), open_scan(write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING}, mask)):
            pass
    with open_scan(write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING}, {"affine": AFFINE})):
        pass
    # What the file says as a whole, the image may say otherwise; the mask says nothing of its own.
    with open_scan(write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING}, None, {"spacing": (1, 1, 1)})) as scan:
        assert scan.metadata["spacing"] == SPACING


def test_mixed_orientations_are_a_finding(tmp_path):
    dicts = [
        write(tmp_path / f"{i}.h5", IMAGE, MASK, {"affine": affine}) | {"scan_id": str(i)}
        for i, affine in enumerate((AFFINE, AFFINE, mirrored(2)))
    ]
    (finding,) = check_dataset(register("mixed", dicts)).findings
    assert finding.kind == "orientation"
    assert "2 scans towards PLS ('0', ...), 1 scan towards PLI ('2')" in finding.message
    assert check_dataset(register("alike", dicts[:2])).findings == []


def test_contradictory_slices_of_a_scan_are_findings(tmp_path):
    dicts = save_slices(tmp_path, IMAGE, MASK)
    for i, d in enumerate(dicts):
        with h5py.File(d["file_name"], "a") as file:
            affine = AFFINE.copy()
            affine[2, 3] += 3 * i  # each slice may say where it lies itself
            file["data"].attrs["affine"] = affine
    assert check_dataset(register("own", dicts)).findings == []
    with h5py.File(dicts[2]["file_name"], "a") as file:
        file["data"].attrs["affine"] = mirrored() * [2, 1, 1, 1]
    found = check_dataset("own").findings
    assert [(finding.kind, finding.file) for finding in found] == [("geometry", dicts[2]["file_name"])] * 2


@pytest.mark.parametrize("label_map", [False, True])
@pytest.mark.parametrize("axes", ORDERS)
def test_slices_of_a_volume_in_any_order(tmp_path, axes, label_map):
    mask, mask_axes = ((MASK * [1, 2]).max(axis=-1), axes) if label_map else (MASK, "C" + axes)
    whole = write(tmp_path / "a.h5", stored(IMAGE, axes), stored(mask, mask_axes), {"spacing": of_stored(axes)[0]})
    whole |= {"image_axes": axes, "sem_seg_axes": mask_axes, "label_map": label_map}
    dicts = [whole | {"slice_id": i, "scan_num_slices": 4} for i in range(1, 5)]
    with open_scan(whole) as scan:
        image, truth = scan.image[...], scan.mask[...]
    for i, d in enumerate(dicts):
        with open_scan(d) as scan:
            assert scan.metadata["spacing"] == SPACING
            np.testing.assert_array_equal(scan.image[...], image[:, :, i])
            np.testing.assert_array_equal(scan.image[1:3, 2], image[1:3, 2, i])
            np.testing.assert_array_equal(scan.mask[...], truth[:, :, i, : scan.mask.shape[-1]])
    batches = [
        everything(build_loader(Config(), register(name, listed), batch_size=2, shuffle=False, drop_last=False))
        for name, listed in (("slices", dicts), ("volume", [whole]))
    ]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)
    # The mask is in the default order, the image is not.
    del whole["sem_seg_axes"]
    write(tmp_path / "a.h5", stored(IMAGE, axes), mask)
    with open_scan(whole | {"slice_id": 2, "scan_num_slices": 4}) as scan:
        np.testing.assert_array_equal(scan.mask[...], truth[:, :, 1, : scan.mask.shape[-1]])
    with (
        pytest.raises(ReadError, match=r"holds 1 slice, or the 9 of its scan"),
        open_scan(dicts[0] | {"scan_num_slices": 9}),
    ):
        pass


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("given", ["spacing", "affine", "both", "neither"])
def test_writers_store_geometry(tmp_path, given, channels):
    values = {"spacing": SPACING, "affine": AFFINE.tolist()}
    values = {"both": values, "neither": {}}.get(given) or {key: values[key] for key in values if key == given}
    image = np.stack([IMAGE, -IMAGE], axis=-1) if channels else IMAGE
    volume = write_volume(tmp_path / "a.h5", image, MASK, **values)
    slices = write_slices(tmp_path, image, MASK, subject_id=1, **values)
    for d in (volume, *slices):
        with open_scan(d) as scan:
            assert scan.metadata.get("spacing") == (None if given == "neither" else SPACING)
            assert ("affine" in scan.metadata) == (given in ("affine", "both"))
            assert np.array_equal(scan.metadata.get("affine", AFFINE), AFFINE)
        with h5py.File(d["file_name"]) as file:
            (stated,) = [dict(dataset.attrs) for key, dataset in file.items() if key in ("volume", "data")]
        assert stated.keys() == values.keys()
        assert all(np.array_equal(stated[key], values[key]) for key in values)
    if not channels:
        assert inputs_of(register("slices", slices)).get("scan_spacing") == (None if given == "neither" else SPACING)


@pytest.mark.parametrize(
    "values",
    [
        {"spacing": (1, 2)},
        {"spacing": (1, 2, 0)},
        {"spacing": (1, 2, np.inf)},
        {"spacing": "abc"},
        {"affine": np.eye(3)},
        {"affine": np.zeros((4, 4))},
        {"affine": np.eye(4) * np.nan},
        {"affine": np.ones((4, 4))},
        {"spacing": (0.5, 0.6, 3.1), "affine": AFFINE},
    ],
    ids=str,
)
def test_writers_reject_invalid_geometry(tmp_path, values):
    with pytest.raises(ValueError, match=r"spacing|affine"):
        write_volume(tmp_path / "a.h5", IMAGE, MASK, **values)
    with pytest.raises(ValueError, match=r"spacing|affine"):
        write_slices(tmp_path, IMAGE, MASK, subject_id=1, **values)
    assert list(tmp_path.iterdir()) == []


def test_manifests_of_the_first_format_are_read(tmp_path):
    d = write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING, "affine": AFFINE})
    manifest = pack_dataset(register("a", [d], spacing=SPACING), tmp_path / "out").manifest
    said = json.loads(manifest.read_text())
    assert said["medsegpy_packed"] == 2
    said["medsegpy_packed"] = 1
    said["metadata"]["spacing"] = list(SPACING)
    manifest.write_text(json.dumps(said))
    (old,) = packed_dicts(manifest)
    with h5py.File(old["file_name"], "a") as file:  # for H, W, D, though stored depth first
        file[old["image_key"]].attrs["spacing"] = SPACING
        file[old["image_key"]].attrs["affine"] = AFFINE
    register_packed(manifest, "old")
    assert MetadataCatalog.get("old").spacing == SPACING
    inputs = inputs_of("old")
    assert inputs["scan_spacing"] == SPACING
    assert np.array_equal(inputs["scan_affine"], AFFINE)


@pytest.mark.parametrize("layout", ["slices", "patches"])
def test_packed_files_keep_geometry(tmp_path, layout):
    affine = AFFINE.tolist()
    dicts = [write(tmp_path / "a.h5", IMAGE, MASK, {"spacing": SPACING, "affine": AFFINE})]
    slices = save_slices(tmp_path / "slices", IMAGE, MASK, scan_id="b", scan_spacing=(1, 2, 3), scan_affine=affine)
    name = register("a", [*dicts, *slices], spacing=SPACING)
    packed = packed_dicts(pack_dataset(name, tmp_path / "out", layout=layout).manifest)
    with open_scan(packed[0]) as scan:
        assert scan.metadata["spacing"] == SPACING
        np.testing.assert_array_equal(scan.metadata["affine"], AFFINE)
    assert packed[1]["scan_spacing"] == (1, 2, 3)
    assert packed[1]["scan_affine"] == affine
    with h5py.File(packed[0]["file_name"]) as file:
        written = file[packed[0]["image_key"]].attrs["spacing"]
    assert tuple(written) == ((3.0, 0.5, 0.6) if layout == "slices" else SPACING)
