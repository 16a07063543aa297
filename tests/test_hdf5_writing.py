"""`write_slices`, `write_volume` and `atomic_h5` write complete and correct files, or nothing."""

import os
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest

from medsegpy_core import ReadError, Record, ShapeError, open_scan, scan_directory, write_slices, write_volume
from medsegpy_core.hdf5 import atomic_h5, open_array, open_h5_scan, pack_bitfield, unpack_bitfield

pytestmark = pytest.mark.usefixtures("backend")

RNG = np.random.default_rng(3)
IMAGE = RNG.normal(size=(6, 1, 4)).astype(np.float32)
MASK = RNG.random((6, 1, 4, 3)) > 0.5


@pytest.mark.parametrize("compression", [None, "gzip", "lzf", 0, 9])
def test_slices_as_plain_h5py_reads_them(tmp_path, compression):
    dicts = write_slices(
        tmp_path / "new", IMAGE, MASK, subject_id=42, time_point=1, augmentation=3, compression=compression
    )
    assert len(dicts) == 4
    for k, d in enumerate(dicts):
        stem = str(tmp_path / "new" / f"0000042_V01-Aug03_{k + 1:03d}")
        assert d == {
            "file_name": stem + ".im",
            "sem_seg_file": stem + ".seg",
            "scan_id": "0000042_V01-Aug03",
            "slice_id": k + 1,
            "scan_num_slices": 4,
            "subject_id": 42,
            "time_point": 1,
            "augmentation": 3,
        }
        with h5py.File(d["file_name"]) as f, h5py.File(d["sem_seg_file"]) as g:
            assert f["data"].shape == (6, 1, 1)
            assert g["data"].shape == (6, 1, 1, 3)
            assert (f["data"].dtype, g["data"].dtype) == (np.float32, np.uint8)
            assert f["data"].chunks == (None if compression is None else (6, 1, 1))
            np.testing.assert_array_equal(f["data"][..., 0], IMAGE[..., k])
            np.testing.assert_array_equal(g["data"][:, :, 0], MASK[:, :, k])
    assert len(os.listdir(tmp_path / "new")) == 8


@pytest.mark.parametrize("compression", [None, "gzip", "lzf", 4])
@pytest.mark.parametrize("dtype", ["<f4", ">i2", "u1", "?", "<f8", "<f2"])
def test_a_volume_as_plain_h5py_reads_it(tmp_path, compression, dtype):
    image = (IMAGE * 10).astype(dtype)
    d = write_volume(tmp_path / "0000007_V02-Aug01.h5", image, MASK.astype(float), compression=compression)
    path = str(tmp_path / "0000007_V02-Aug01.h5")
    assert d == {
        "file_name": path,
        "sem_seg_file": path,
        "scan_id": "0000007_V02-Aug01",
        "subject_id": 7,
        "time_point": 2,
        "augmentation": 1,
    }
    with h5py.File(path) as f:
        assert f["volume"].dtype == dtype
        assert f["volume"].chunks == (None if compression is None else (6, 1, 1))
        assert f["seg"].chunks == (None if compression is None else (6, 1, 1, 3))
        np.testing.assert_array_equal(f["volume"][...], image)
        np.testing.assert_array_equal(f["seg"][...], MASK)


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_need_the_axes_in_the_dicts(tmp_path, compression, channels):
    # As many channels as slices: the last axis must not be taken for the depth of the scan.
    image = np.stack([IMAGE + k for k in range(channels)], axis=-1)
    d = write_volume(tmp_path / "knee.h5", image, MASK, compression=compression)
    assert d["image_axes"] == "HWDC"
    with open_scan(d) as scan:
        np.testing.assert_array_equal(scan.image[...], image)
        np.testing.assert_array_equal(scan.mask[...], MASK)
    (listed,) = scan_directory(tmp_path)
    with pytest.raises(ReadError, match="image_axes='HWDC'"), open_scan(listed) as scan:
        pass
    with open_scan({**listed, "image_axes": "HWDC"}) as scan:
        np.testing.assert_array_equal(scan.image[...], image)
    dicts = write_slices(tmp_path / "slices", image, MASK, subject_id=1, compression=compression)
    for k, d in enumerate(dicts):
        assert d["image_axes"] == "HWDC"
        with open_scan(d) as scan:
            np.testing.assert_array_equal(scan.image[...], image[:, :, k])
            np.testing.assert_array_equal(scan.mask[...], MASK[:, :, k])
        with h5py.File(d["file_name"]) as f:
            assert f["data"].shape == (6, 1, 1, channels)
    for listed, d in zip(scan_directory(tmp_path / "slices"), dicts, strict=True):
        with pytest.raises(ReadError, match="image_axes='HWDC'"), open_scan(listed) as scan:
            pass
        with open_scan({**listed, "image_axes": "HWDC"}) as one, open_scan(d) as other:
            np.testing.assert_array_equal(one.image[...], other.image[...])


def test_without_a_mask(tmp_path):
    assert write_volume(tmp_path / "knee.h5", IMAGE) == {"file_name": str(tmp_path / "knee.h5"), "scan_id": "knee"}
    dicts = write_slices(tmp_path / "slices", IMAGE, subject_id=12345678)
    assert "sem_seg_file" not in dicts[0]
    assert min(os.listdir(tmp_path / "slices")) == "12345678_V00-Aug00_001.im"


def test_existing_files_are_kept(tmp_path):
    write_volume(tmp_path / "a.h5", IMAGE)
    with pytest.raises(FileExistsError, match=r"a\.h5"):
        write_volume(tmp_path / "a.h5", IMAGE + 1)
    write_volume(tmp_path / "a.h5", IMAGE + 1, overwrite=True)
    assert np.array_equal(open_array(tmp_path / "a.h5", "volume")[...], IMAGE + 1)
    (tmp_path / "0000001_V00-Aug00_003.seg").write_text("mine")
    with pytest.raises(FileExistsError, match=r"0000001_V00-Aug00_003\.seg"):
        write_slices(tmp_path, IMAGE, MASK, subject_id=1)
    assert sorted(os.listdir(tmp_path)) == ["0000001_V00-Aug00_003.seg", "a.h5"]


@pytest.mark.parametrize(
    ("image", "mask", "error", "match"),
    [
        (IMAGE[0], None, ShapeError, "H x W x D"),
        (IMAGE[:0], None, ShapeError, "without axes of size 0"),
        (IMAGE, MASK[:3], ShapeError, "H x W x D x C"),
        (IMAGE, MASK[..., 0], ShapeError, r"mask\[\.\.\., None\]"),
        (IMAGE, MASK[..., :0], ShapeError, "H x W x D x C"),
        (IMAGE, MASK * 255, ValueError, "Divide it by 255"),
        (IMAGE, MASK * 0.5, ValueError, "only 0 and 1"),
        (IMAGE, MASK * -1, ValueError, "only 0 and 1"),
        (IMAGE, MASK * 256, ValueError, "only 0 and 1"),
        (IMAGE, np.where(MASK, np.nan, 0.0), ValueError, "only 0 and 1"),
        (IMAGE.astype(complex), None, TypeError, "complex128"),
        (IMAGE.astype(object), None, TypeError, "object"),
        (IMAGE, MASK.astype(object), TypeError, "object"),
    ],
)
def test_invalid_arrays_are_rejected(tmp_path, image, mask, error, match):
    with pytest.raises(error, match=match):
        write_slices(tmp_path / "x", image, mask, subject_id=1)
    with pytest.raises(error, match=match):
        write_volume(tmp_path / "x" / "v.h5", image, mask)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("compression", ["zip", 10, -1, True, 4.0])
def test_an_unknown_compression(tmp_path, compression):
    with pytest.raises(ValueError, match="compression is"):
        write_volume(tmp_path / "v.h5", IMAGE, compression=compression)


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), atomic_h5(tmp_path / "a.h5") as file:  # noqa: PT012
        file["data"] = IMAGE
        assert not (tmp_path / "a.h5").exists()
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_file_that_appears_in_the_meantime_is_not_overwritten(tmp_path):
    with pytest.raises(FileExistsError, match="appeared"), atomic_h5(tmp_path / "a.h5") as file:  # noqa: PT012
        file["data"] = IMAGE
        (tmp_path / "a.h5").write_text("theirs")
    assert os.listdir(tmp_path) == ["a.h5"]
    assert (tmp_path / "a.h5").read_text() == "theirs"


@pytest.mark.parametrize("what", ["slices", "volume"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_full_disk_leaves_nothing(tmp_path, what, compression):
    """A limit on the file size replaces a full disk: the system rejects the write in the same way."""
    code = """
        import os, resource, signal, sys
        import numpy as np
        from medsegpy_core import write_slices, write_volume
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder, what, compression = sys.argv[1], sys.argv[2], sys.argv[3] if sys.argv[3] != "None" else None
        image = np.random.default_rng(0).normal(size=(100, 100, 4))
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        try:
            if what == "slices":
                write_slices(folder, image, subject_id=1, compression=compression)
            else:
                write_volume(folder + "/v.h5", image, compression=compression)
        except OSError as error:
            print(error.errno, error.filename, os.listdir(folder))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path), what, str(compression)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = "v.h5" if what == "volume" else "0000001_V00-Aug00_001.im"
    assert done.stdout.split() == ["27", str(tmp_path / name), "[]"]


@pytest.mark.parametrize("ids", [{"subject_id": "sub-01"}, {"subject_id": 1, "time_point": "baseline"}])
def test_slice_files_cannot_have_text_ids(tmp_path, ids):
    with pytest.raises(ValueError, match=r"(sub-01|baseline).*convert.*numbers subjects and stores the table"):
        write_slices(tmp_path, np.zeros((3, 3, 2)), **ids)
    with pytest.raises(TypeError):
        write_slices(tmp_path, np.zeros((3, 3, 2)), subject_id=1.5)
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_no_file_with_that_name(tmp_path):
    code = """
        import os, signal, sys
        import numpy as np
        from medsegpy_core.hdf5 import atomic_h5
        with atomic_h5(sys.argv[1]) as file:
            file["data"] = np.ones((100, 100))
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.h5")], check=False)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".tmp")
    with atomic_h5(tmp_path / "a.h5") as file:
        file["data"] = IMAGE
    assert np.array_equal(open_array(tmp_path / "a.h5", "data")[...], IMAGE)


def test_a_folder_without_write_permission(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_slices(tmp_path / "file", IMAGE, subject_id=1)


def test_bit_fields(tmp_path):
    mask = RNG.random((5, 4, 3, 11)) > 0.5
    packed = pack_bitfield(mask)
    assert packed.shape == (5, 4, 3, 2)
    for c in range(11):
        np.testing.assert_array_equal(packed[..., c // 8] >> c % 8 & 1, mask[..., c])
    np.testing.assert_array_equal(unpack_bitfield(packed, 11), mask)
    with pytest.raises(ValueError, match="other values"):
        pack_bitfield(mask * 2)
    path = tmp_path / "a.h5"
    with atomic_h5(path) as f:
        f["volume"] = np.zeros((5, 4, 3))
        f["seg"] = packed
        f["seg"].attrs["medsegpy_bitfield"] = 11
        f["seg"].attrs["medsegpy_format"] = 1
    with open_h5_scan(Record.from_dict({"file_name": path, "sem_seg_file": path, "scan_id": "a"})) as scan:
        assert scan.mask.shape == (5, 4, 3, 11)
        assert scan.mask.channels == 11
        np.testing.assert_array_equal(scan.mask[...], mask)
        np.testing.assert_array_equal(scan.mask[1:3, :, 2, 7:10], mask[1:3, :, 2, 7:10])
        np.testing.assert_array_equal(scan.mask.packed[2:], packed[2:])


@pytest.mark.parametrize(("channels", "format_"), [(17, 1), (0, 1), (8, 1), (1.5, 1), (11, 2), (11, 3)])
def test_invalid_bit_fields(tmp_path, channels, format_):
    path = tmp_path / "a.h5"
    with atomic_h5(path) as f:
        f["seg"] = np.zeros((5, 4, 2), np.uint8)
        f["seg"].attrs["medsegpy_bitfield"] = channels
        f["seg"].attrs["medsegpy_format"] = format_
    with pytest.raises(ReadError, match="packed in format 3" if format_ == 3 else "medsegpy_bitfield declares"):
        open_array(path, "seg")
