"""Values and header metadata equal those of nibabel."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegpy_core import DataWarning, ReadError, RecordError, open_scan, scan_directory
from medsegpy_nifti import NiftiReader
from medsegpy_nifti.data import clear_cache

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(-1000, 1000, (11, 9, 7)).astype(np.int16)
LABELS = RNG.integers(0, 4, IMAGE.shape).astype(np.uint8)


def save(path, array, affine=None, kind=nib.Nifti1Image, **header):
    made = kind(array, np.eye(4) if affine is None else affine)
    for name, value in header.items():
        getattr(made.header, f"set_{name}")(*value)
    nib.save(made, path)
    return {"file_name": str(path), "scan_id": path.name.partition(".")[0]}


def opened(d):
    return open_scan({"reader": "nifti", **d})


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "u2", "<i4", "f4", ">f4", "<f8", "i8"])
def test_values_and_types_equal_those_of_nibabel(tmp_path, suffix, kind, dtype):
    array = IMAGE.astype(dtype)
    made = kind(array, np.eye(4), dtype=dtype)
    made.header.set_data_dtype(dtype)
    if dtype.startswith(">"):
        made = kind(array, np.eye(4), made.header.as_byteswapped(">"), dtype=dtype)
    nib.save(made, tmp_path / f"a{suffix}")
    with opened({"file_name": str(tmp_path / f"a{suffix}"), "scan_id": "a"}) as scan:
        assert scan.image.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(scan.image[...], array)
        assert np.array_equal(scan.image[2:9:3, -1, 1:], array[2:9:3, -1, 1:])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
@pytest.mark.parametrize(("slope", "inter"), [(0.1, -3.0), (1.0, 5.0), (-2.5, 0.0)])
def test_scaled_values_equal_those_of_nibabel(tmp_path, suffix, dtype, slope, inter):
    path = tmp_path / f"a{suffix}"
    array = RNG.integers(0, 100, (6, 5, 4)).astype(dtype)
    made = nib.Nifti1Image(array, np.eye(4))
    made.header.set_slope_inter(slope, inter)
    made.to_filename(path)  # divides by the slope; what is stored then is multiplied again
    raw = bytearray(gzip.decompress(path.read_bytes()) if suffix == ".nii.gz" else path.read_bytes())
    raw[112:120] = struct.pack("<ff", slope, inter)
    path.write_bytes(gzip.compress(bytes(raw)) if suffix == ".nii.gz" else bytes(raw))
    expected = np.asarray(nib.load(path).dataobj)
    with opened({"file_name": str(path), "scan_id": "a"}) as scan:
        assert scan.image.dtype == expected.dtype == np.float64
        assert np.array_equal(scan.image[...], expected)
        out = np.empty((2, 5, 4), np.float32)
        scan.image.read_into((slice(1, 3), slice(0, 5), slice(0, 4)), out)
        assert np.array_equal(out, expected[1:3].astype(np.float32))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), cache=st.sampled_from([0, 1 << 20]), rank=st.integers(2, 5), compressed=st.booleans())
def test_any_box_of_any_rank(tmp_path, data, cache, rank, compressed):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank)))
    array = np.arange(np.prod(shape), dtype="i4").reshape(shape)
    path = tmp_path / ("a.nii.gz" if compressed else "a.nii")
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype="i4"), path)
    stored = np.asarray(nib.load(path).dataobj)
    from medsegpy_nifti.arrays import NiftiArray
    from medsegpy_nifti.header import read_header

    header = read_header(path)
    lazy = NiftiArray(header, [slice(0, n) for n in header.shape], [], cache)
    parts = []
    for n in header.shape:
        start = data.draw(st.integers(0, n))
        parts.append(slice(start, data.draw(st.integers(start, n)), data.draw(st.integers(1, 3))))
    assert np.array_equal(lazy[tuple(parts)], stored[tuple(parts)])


def test_the_unit_and_the_size_of_voxels(tmp_path):
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    for unit, factor in (("mm", 1.0), ("meter", 1000.0), ("micron", 0.001), ("unknown", 1.0)):
        d = save(tmp_path / f"{unit}.nii", IMAGE, affine, xyzt_units=(unit,))
        with opened(d) as scan:
            assert scan.metadata["spacing"] == pytest.approx((2 * factor, 3 * factor, 4 * factor), rel=1e-6)
            expected = affine.copy()
            expected[:3] *= factor
            assert np.allclose(scan.metadata["affine"], expected, rtol=1e-6)
    with opened(save(tmp_path / "decimal.nii", IMAGE, np.diag([0.31, 0.31, 0.7, 1]), xyzt_units=("mm",))) as scan:
        assert scan.metadata["spacing"] == (0.31, 0.31, 0.7)


def test_a_header_without_a_space_declares_nothing(tmp_path):
    d = save(tmp_path / "a.nii", IMAGE, sform=(None, 0), qform=(None, 0))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[252:256] = bytes(4)  # both codes: unknown
    (tmp_path / "a.nii").write_bytes(content)
    with opened(d) as scan:
        assert "affine" not in scan.metadata
        assert dict(scan.metadata) == {}  # 1 mm is what programs write that know no spacing
    content[80:92] = struct.pack("<3f", 2, 1, 1)
    (tmp_path / "a.nii").write_bytes(content)
    with opened(d) as scan:
        assert dict(scan.metadata) == {"spacing": (2.0, 1.0, 1.0)}
    content[80:84] = struct.pack("<f", 0.0)
    (tmp_path / "a.nii").write_bytes(content)
    with opened(d) as scan:
        assert dict(scan.metadata) == {}
        assert np.array_equal(scan.image[...], IMAGE)


def test_spacing_and_affine_follow_the_axes_of_the_dict(tmp_path):
    affine = np.array([[0, 0, 5, 1], [3, 0, 0, 2], [0, 4, 0, 3], [0, 0, 0, 1.0]])
    d = save(tmp_path / "a.nii", IMAGE.transpose(2, 0, 1), affine, xyzt_units=("mm",))
    with opened(d | {"image_axes": "DHW"}) as scan:
        assert np.array_equal(scan.image[...], IMAGE)
        assert scan.metadata["spacing"] == (4.0, 5.0, 3.0)
        # Voxel (h, w, d) lies where stored voxel (d, h, w) does.
        assert np.allclose(scan.metadata["affine"] @ [1, 2, 3, 1], affine @ [3, 1, 2, 1])


def test_labels_with_a_scale_factor(tmp_path):
    d = save(tmp_path / "a.nii", IMAGE)
    save(tmp_path / "a_seg.nii", LABELS.astype("u1"))
    with (tmp_path / "a_seg.nii").open("r+b") as file:
        file.seek(112)
        file.write(struct.pack("<f", np.nextafter(np.float32(1), np.float32(0))))
    assert 0 < 1 - np.asanyarray(nib.load(tmp_path / "a_seg.nii").dataobj).max() / LABELS.max() < 1e-7
    d |= {"sem_seg_file": str(tmp_path / "a_seg.nii"), "label_map": True, "label_values": (1, 3), "ignore_values": [2]}
    with opened(d) as scan:
        for channel, value in enumerate((1, 3)):
            assert np.array_equal(scan.mask[..., channel], np.where(LABELS == 2, 255, value == LABELS))


def test_label_maps(tmp_path):
    d = save(tmp_path / "a.nii.gz", IMAGE)
    save(tmp_path / "a_seg.nii", LABELS)
    (listed,) = scan_directory(tmp_path, reader="nifti")
    with opened(listed) as scan:
        assert scan.mask.shape == (*IMAGE.shape, 3)
        for channel in range(3):
            assert np.array_equal(scan.mask[..., channel], channel + 1 == LABELS)
    save(tmp_path / "a_seg.nii", LABELS.astype("f4"))
    with opened(listed) as scan:
        assert scan.mask.dtype == np.uint8
        assert np.array_equal(scan.mask[2:5, 3, :, 1], LABELS[2:5, 3] == 2)
    save(tmp_path / "a_seg.nii", LABELS + np.float32(0.5))
    # The channels are counted, since no metadata say how many there are.
    with opened(listed) as scan, pytest.raises(ReadError, match=r"a_seg\.nii: the label map holds \d\.5"):
        assert scan.mask.shape
    save(tmp_path / "a_seg.nii", np.where(LABELS == 2, np.nan, 0).astype("f4"))
    with opened(listed) as scan, pytest.raises(ReadError, match="the label map holds nan"):
        assert scan.mask.shape
    binary = d | {"sem_seg_file": str(tmp_path / "b.nii")}
    save(tmp_path / "b.nii", (LABELS == 1).astype("u1"))
    with opened(binary) as scan:
        assert np.array_equal(scan.mask[...], (LABELS == 1)[..., None])


def test_axes_of_size_one_are_removed(tmp_path):
    for shape in ((11, 9, 7, 1), (11, 9, 7, 1, 1)):
        with opened(save(tmp_path / "a.nii", IMAGE.reshape(shape))) as scan:
            assert np.array_equal(scan.image[...], IMAGE)
    vectors = RNG.normal(size=(5, 4, 3, 1, 2)).astype("f4")
    with opened(save(tmp_path / "v.nii", vectors) | {"image_axes": "HWDC"}) as scan:
        assert np.array_equal(scan.image[...], vectors[:, :, :, 0])
    # A scan one slice deep, one row high.
    for shape in ((5, 4, 1), (1, 4, 3)):
        small = RNG.normal(size=shape).astype("f4")
        with opened(save(tmp_path / "s.nii", small)) as scan:
            assert np.array_equal(scan.image[...], small)


def test_four_axes_need_a_declaration(tmp_path):
    array = RNG.normal(size=(5, 4, 3, 2)).astype("f4")
    d = save(tmp_path / "a.nii", array)
    with pytest.raises(ReadError, match=r"3 axes, found 5 x 4 x 3 x 2.*image_axes='HWDC'"), opened(d):
        pass
    with opened(d | {"image_axes": "HWDC"}) as scan:
        assert np.array_equal(scan.image[...], array)
    with opened(d | {"image_key": "1"}) as scan:
        assert np.array_equal(scan.image[1:3], array[1:3, ..., 1])
    both = d | {"sem_seg_file": d["file_name"]}
    with pytest.raises(ReadError, match="image and mask are in one file: select their volumes"), opened(both):
        pass
    for key in ("2", "x", "1:1", "0:3", "-1", "", "\N{SUPERSCRIPT TWO}"):
        with pytest.raises((ReadError, RecordError)), opened(d | {"image_key": key}):
            pass
    none = save(tmp_path / "b.nii", IMAGE) | {"image_key": "0"}
    with pytest.raises(ReadError, match="no volumes '0' along the fourth axis, which has 1"), opened(none):
        pass


def test_slices(tmp_path):
    whole = save(tmp_path / "whole.nii.gz", IMAGE) | {"scan_num_slices": 7}
    save(tmp_path / "labels.nii", LABELS)
    whole |= {"sem_seg_file": str(tmp_path / "labels.nii"), "label_map": True}
    for number in (1, 4, 7):
        with opened(whole | {"slice_id": number}) as scan:
            assert np.array_equal(scan.image[...], IMAGE[:, :, number - 1])
            assert np.array_equal(scan.mask[..., 0], LABELS[:, :, number - 1] == 1)
            assert scan.metadata["spacing"] == (1, 1, 1)
    for stored in (IMAGE[:, :, 0], IMAGE[:, :, :1]):
        alone = save(tmp_path / "alone.nii", stored) | {"slice_id": 3, "scan_num_slices": 5}
        with opened(alone) as scan:
            assert np.array_equal(scan.image[...], IMAGE[:, :, 0])


def test_listing(tmp_path):
    for name in ("b.nii", "0000007_V01-Aug02.nii.gz", "c.nii", "c_seg.nii.gz", "d_seg.nii", ".hidden.nii"):
        save(tmp_path / name, LABELS)
    save(tmp_path / "0000007_V01-Aug02_seg.nii", np.stack([LABELS == 1, LABELS == 2], -1).astype("u1"))
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.warns(DataWarning, match=r"masks that have no image \(1\): d_seg\.nii\. The mask of X"):
        dicts = scan_directory(tmp_path)
    assert [d["scan_id"] for d in dicts] == ["0000007_V01-Aug02", "b", "c"]
    assert dicts[0] == {
        "file_name": str(tmp_path / "0000007_V01-Aug02.nii.gz"),
        "sem_seg_file": str(tmp_path / "0000007_V01-Aug02_seg.nii"),
        "scan_id": "0000007_V01-Aug02",
        "subject_id": 7,
        "time_point": 1,
        "augmentation": 2,
        "reader": "nifti",
    }
    assert dicts[2]["label_map"]
    assert "sem_seg_file" not in dicts[1]
    save(tmp_path / "b.nii.gz", LABELS)
    with pytest.raises(RecordError, match=r"b\.nii and b\.nii\.gz have the same name"):
        scan_directory(tmp_path, reader="nifti")
    with pytest.raises(ReadError, match="cannot be listed"):
        NiftiReader().scan(tmp_path / "absent")


def damaged(content, at, form, *values):
    made = bytearray(content)
    struct.pack_into(form, made, at, *values)
    return bytes(made)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda c: damaged(c, 40, "<h", 0), "its header", id="no axes"),
        pytest.param(lambda c: damaged(c, 40, "<h", 9), "its header", id="nine axes"),
        pytest.param(lambda c: damaged(c, 42, "<h", -3), "its header declares", id="a negative size"),
        pytest.param(lambda c: damaged(c, 42, "<h", 0), "its header declares", id="no size"),
        pytest.param(lambda c: damaged(c, 70, "<h", 32), "its voxels have the type complex64", id="complex"),
        pytest.param(lambda c: damaged(c, 70, "<h", 128), "its voxels have the type", id="rgb"),
        pytest.param(lambda c: damaged(c, 70, "<h", 999), "its header is invalid", id="an unknown type"),
        pytest.param(lambda c: damaged(c, 42, "<hhh", 32000, 32000, 32000), "its header declares", id="terabytes"),
        pytest.param(lambda c: damaged(c, 108, "<f", 1e9), "its header declares", id="an offset beyond the end"),
        pytest.param(lambda c: damaged(c, 108, "<f", -8.0), "header", id="a negative offset"),
        pytest.param(lambda c: damaged(c, 344, "4s", b"ni1"), "this is the header of a pair of files", id="a pair"),
        pytest.param(lambda c: damaged(c, 344, "4s", b"abcd"), "this is not a NIfTI file", id="another magic"),
        pytest.param(lambda c: c[:100], "this is not a NIfTI file, or it is truncated", id="short"),
    ],
)
def test_an_invalid_header_is_a_read_error(tmp_path, damage, reason, compressed):
    d = save(tmp_path / "a.nii", IMAGE)
    content = damage((tmp_path / "a.nii").read_bytes())
    (tmp_path / "a.nii").write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ReadError) as caught, opened(d) as scan:
        scan.image[...]
    assert caught.value.path == tmp_path / "a.nii"
    assert reason in caught.value.reason


def test_nothing_is_printed_about_odd_headers(tmp_path, capfd):
    d = save(tmp_path / "a.nii", IMAGE)
    content = damaged((tmp_path / "a.nii").read_bytes(), 76, "<f", 7.0)  # qfac, which is 1 or -1
    (tmp_path / "a.nii").write_bytes(content)
    with opened(d) as scan:
        assert np.array_equal(scan.image[...], IMAGE)
    assert capfd.readouterr() == ("", "")


def test_a_replaced_file_is_detected(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        d = save(tmp_path / name, IMAGE)
        with opened(d) as scan:
            assert np.array_equal(scan.image[...], IMAGE)
            save(tmp_path / name, IMAGE[:5] + 1)
            with pytest.raises(ReadError, match="it had 11 x 9 x 7 voxels of int16 and now has 5 x 9 x 7"):
                scan.image[...]
            save(tmp_path / name, IMAGE + 2)
            assert np.array_equal(scan.image[...], IMAGE + 2)
            save(tmp_path / name, IMAGE, np.diag([2.0, 2.0, 2.0, 1.0]))
            with pytest.raises(ReadError, match="its header is different"):
                scan.image[...]


def test_too_large_reads_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEGPY_MAX_READ", "1000")
    with opened(save(tmp_path / "a.nii", IMAGE)) as scan:
        assert np.array_equal(scan.image[:5, 0], IMAGE[:5, 0])
        with pytest.raises(ReadError, match="more than the 1000 bytes that MEDSEGPY_MAX_READ allows"):
            scan.image[...]


def test_memory_of_decompressed_files_is_bounded(tmp_path):
    import tracemalloc

    noise = RNG.integers(0, 2**15, (128, 128, 64)).astype("i2")  # 2 MiB
    for number in range(6):
        save(tmp_path / f"{number}.nii.gz", noise)
    for cache, bound in ((5 << 20, 7 << 20), (0, 3 << 19)):
        reader = NiftiReader(cache_bytes=cache)
        clear_cache()
        tracemalloc.start()
        try:
            for d in reader.scan(tmp_path):
                from medsegpy_core import Record

                with reader.open(Record.from_dict(d)) as scan:
                    assert np.array_equal(scan.image[5, 5:7, 60:], noise[5, 5:7, 60:])
            assert tracemalloc.get_traced_memory()[1] < bound
        finally:
            tracemalloc.stop()
            clear_cache()
