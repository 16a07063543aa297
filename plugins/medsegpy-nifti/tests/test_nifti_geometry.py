"""Spacing, affines and grids of NIfTI files, compared with nibabel."""

import itertools
import struct
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core import (
    Config,
    DataWarning,
    GeometryError,
    MetadataCatalog,
    build_loader,
    load_scan,
    open_scan,
    scan_directory,
)
from medsegpy_core.catalog import DatasetCatalog
from medsegpy_core.data.geometry import Grid, align, alignment, axis_codes, spacing_of
from medsegpy_core.diagnostics import check_dataset

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
MASK = (RNG.random(IMAGE.shape) < 0.4).astype(np.uint8)
AFFINE = np.array([[0, -0.6, 0, 10], [-0.5, 0, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
ONCE = [HealthCheck.function_scoped_fixture]


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def pair(folder, image_affine=AFFINE, mask_affine=AFFINE, image=IMAGE, mask=MASK):
    """Write an image and its mask, and return the dict."""
    folder.mkdir(exist_ok=True)
    save(folder / "a.nii.gz", image, image_affine)
    save(folder / "a_seg.nii.gz", mask, mask_affine)
    (d,) = scan_directory(folder, reader="nifti")
    return d


@st.composite
def affines(draw):
    """Affines that a NIfTI file can store: oblique, of either handedness, in float32."""
    angles = [draw(st.floats(-0.7, 0.7)) for _ in range(3)]
    mirrored = draw(st.sampled_from([1, -1]))
    matrix = np.eye(4)
    matrix[:3, :3] = nib.eulerangles.euler2mat(*angles) * [draw(st.floats(0.2, 9)) for _ in range(3)] * [mirrored, 1, 1]
    matrix[:3, 3] = [draw(st.floats(-200, 200)) for _ in range(3)]
    return matrix


@given(affines())
def test_spacing_and_directions_equal_those_of_nibabel(affine):
    assert spacing_of(affine) == pytest.approx(nib.affines.voxel_sizes(affine), rel=1e-6)
    assert axis_codes(affine) == nib.aff2axcodes(affine)


@given(affines(), st.permutations(range(3)), st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_reorientation_by_nibabel_is_undone(affine, order, signs):
    source = nib.Nifti1Image(IMAGE, affine)
    turned = source.as_reoriented(np.array(list(zip(order, signs, strict=True))))
    how = alignment(Grid(turned.shape, turned.affine), Grid(IMAGE.shape, affine))
    assert np.array_equal(align(np.asarray(turned.dataobj), how), IMAGE)


@given(affine=affines(), axes=st.sampled_from(["".join(order) for order in itertools.permutations("HWD")]))
@settings(max_examples=25, deadline=None, suppress_health_check=ONCE)
def test_geometry_follows_the_axes_of_the_dict(tmp_path, affine, axes):
    order = ["HWD".index(letter) for letter in axes]
    path = save(tmp_path / "a.nii", IMAGE.transpose(order), affine)
    with open_scan({"file_name": path, "scan_id": "a", "image_axes": axes}) as scan:
        stored = nib.load(path)
        assert np.array_equal(scan.image[...], IMAGE)
        sizes = nib.affines.voxel_sizes(stored.affine)
        assert scan.metadata["spacing"] == pytest.approx([sizes[axes.index(letter)] for letter in "HWD"], rel=1e-5)
        here = nib.affines.apply_affine(scan.metadata["affine"], [2, 3, 1])
        there = nib.affines.apply_affine(stored.affine, [(2, 3, 1)[axis] for axis in order])
        assert np.allclose(here, there, atol=1e-3)


@given(shift=st.floats(0, 2), axis=st.integers(0, 2), flips=st.sets(st.integers(0, 2)))
@settings(max_examples=25, deadline=None, suppress_health_check=ONCE)
def test_grids_are_compared(tmp_path, shift, axis, flips):
    affine = AFFINE.copy()
    affine[:3, 3] += shift * affine[:3, axis]
    for flip in flips:
        affine[:, flip] *= -1
    d = pair(tmp_path / "set", AFFINE, affine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with open_scan(d):
                pass
            refused = False
        except GeometryError:
            refused = True
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in IMAGE.shape])))
    there = nib.affines.apply_affine(affine.astype("f4"), corners)
    offset = np.linalg.norm(nib.affines.apply_affine(np.linalg.inv(AFFINE), there) - corners, axis=1).max()
    if min(abs(offset - 0.1), abs(offset - 0.5)) > 1e-3:
        assert refused == (offset > 0.5)
        assert len(caught) == (0.1 < offset < 0.5)


@pytest.mark.parametrize("tag", ["DefaultDataLoader", "PatchDataLoader"])
def test_loaders_and_check_reject_a_mask_on_another_grid(tmp_path, tag):
    mirrored = AFFINE * [-1, 1, 1, 1]
    whole = pair(tmp_path / "set", AFFINE, mirrored)
    slices = [whole | {"slice_id": i, "scan_num_slices": 4} for i in range(1, 5)]
    for number, dicts in enumerate(([whole], slices)):
        cfg = Config(CATEGORIES=[0], TAG=tag, IMG_SIZE=(6, 5, 1) if tag == "PatchDataLoader" else ())
        with pytest.raises(GeometryError, match=r"a_seg\.nii\.gz: the mask does not lie.*Image \(.*a\.nii\.gz\)"):
            build_loader(cfg, dicts, batch_size=1)[0]
        assert build_loader(cfg, [d | {"trust_geometry": True} for d in dicts], batch_size=1)[0][0].shape[0] == 1
        DatasetCatalog.register(f"other{number}", lambda dicts=dicts: dicts)
        with pytest.raises(GeometryError):
            load_scan(f"other{number}", "a")
    (finding,) = check_dataset(tmp_path / "set").findings
    assert (finding.kind, finding.file) == ("geometry", whole["sem_seg_file"])


def test_a_mask_without_geometry_is_compared_by_index(tmp_path):
    d = pair(tmp_path / "set")
    plain = tmp_path / "set" / "plain.nii"
    save(plain, MASK, np.eye(4))
    edited(plain, (252, "<2h", [0, 0]), (80, "<3f", [0, 0, 0]))
    with open_scan(d | {"sem_seg_file": str(plain)}) as scan:
        assert np.array_equal(scan.mask[..., 0], MASK)


def edited(path, *parts):
    """Change values in a header: (offset, format, values)."""
    content = bytearray(path.read_bytes())
    for offset, form, values in parts:
        content[offset : offset + struct.calcsize(form)] = struct.pack(form, *values)
    path.write_bytes(content)
    return {"file_name": str(path), "scan_id": "a"}


def test_an_sform_that_contradicts_pixdim_is_reported(tmp_path):
    path = tmp_path / "a.nii"
    save(path, IMAGE)
    d = edited(path, (252, "<h", [0]), (80, "<3f", [0.5, 0.6, 5.0]))
    told = r"its spacing is 0\.5 x 0\.6 x 5 mm, but the columns of its affine are 0\.5 x 0\.6 x 3"
    with pytest.warns(DataWarning, match=told), open_scan(d) as scan:
        assert scan.metadata["spacing"] == (0.5, 0.6, 3.0)
    (finding,) = check_dataset(tmp_path).findings
    assert (finding.kind, finding.file) == ("geometry", str(path))


@pytest.mark.parametrize(("codes", "reported"), [((1, 1), True), ((2, 1), True), ((4, 1), False), ((1, 0), False)])
def test_an_sform_that_contradicts_the_qform_is_reported(tmp_path, codes, reported):
    path = tmp_path / "a.nii"
    made = nib.Nifti1Image(IMAGE, AFFINE)
    other = AFFINE.copy()
    other[:3, 3] += 2
    made.set_qform(other, codes[1])
    made.set_sform(AFFINE, codes[0])
    nib.save(made, path)
    found = check_dataset(tmp_path).findings
    assert [finding.kind for finding in found] == ["geometry"] * reported
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open_scan({"file_name": str(path), "scan_id": "a"}) as scan:
            assert np.allclose(scan.metadata["affine"], AFFINE)
    assert [("its sform (which is used) and its qform" in str(warning.message)) for warning in caught] == [
        True
    ] * reported


@pytest.mark.parametrize(("third", "known"), [(1.0, False), (3.0, True)])
def test_files_with_two_axes(tmp_path, third, known):
    affine = np.diag([0.5, 0.6, third, 1])
    dicts = [
        {"file_name": save(tmp_path / f"{i}.nii", IMAGE[:, :, i], affine), "scan_id": "s", "slice_id": i + 1,
         "sem_seg_file": save(tmp_path / f"{i}_seg.nii", MASK[:, :, i], affine), "scan_num_slices": 4}
        for i in range(4)
    ]  # fmt: skip
    DatasetCatalog.register("flat", lambda: dicts)
    MetadataCatalog.get("flat").set(spacing=(0.5, 0.6, 3.0))
    assert MetadataCatalog.get("flat").for_scan(dicts[0]).spacing == (0.5, 0.6, 3.0)
    loader = build_loader(Config(CATEGORIES=[0]), dicts, is_test=True)
    ((inputs, _),) = loader.inference(lambda images: np.zeros((*images.shape[:3], 1)))
    assert inputs.get("scan_spacing") == ((0.5, 0.6, 3.0) if known else None)
    mirrored = dicts[0] | {"sem_seg_file": save(tmp_path / "x.nii", MASK[:, :, 0], affine * [-1, 1, 1, 1])}
    with pytest.raises(GeometryError), open_scan(mirrored):
        pass


def test_slices_of_a_file_in_any_axis_order(tmp_path):
    for axes in map("".join, itertools.permutations("HWD")):
        order = ["HWD".index(letter) for letter in axes]
        moved = AFFINE[:, [*order, 3]]
        d = pair(tmp_path / axes, moved, moved, IMAGE.transpose(order), MASK.transpose(order))
        d |= {"image_axes": axes, "sem_seg_axes": axes, "scan_num_slices": 4}
        for number in range(1, 5):
            with open_scan(d | {"slice_id": number}) as scan:
                assert scan.metadata["spacing"] == (0.5, 0.6, 3.0)
                assert np.array_equal(scan.image[...], IMAGE[:, :, number - 1])
                assert np.array_equal(scan.mask[..., 0], MASK[:, :, number - 1])
