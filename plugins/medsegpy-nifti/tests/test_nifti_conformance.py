"""The reader passes the suite for readers, on files written by nibabel."""

import nibabel as nib
import numpy as np

from medsegpy_core.testing import Example, ReaderTests, example_scan
from medsegpy_nifti import NiftiReader

AFFINE = np.diag([-0.5, -0.5, 2.0, 1.0])


def save(path, array, kind=nib.Nifti1Image):
    nib.save(kind(array, AFFINE), path)
    return str(path)


def as_labels(mask):
    return (mask * np.arange(1, mask.shape[-1] + 1)).sum(-1).astype(np.uint8)


class TestPlain(ReaderTests):
    reader = NiftiReader()
    suffix = ".nii"

    def examples(self, folder):
        image, mask = example_scan((64, 64, 32), channels=3)
        d = {
            "file_name": save(folder / f"0000001_V00{self.suffix}", image),
            "sem_seg_file": save(folder / f"0000001_V00_seg{self.suffix}", as_labels(mask)),
            "scan_id": "0000001_V00",
        }
        small, classes = example_scan((9, 7, 5), dtype="int16", seed=1)
        other = {
            "file_name": save(folder / f"0000002_V00{self.suffix}", small, nib.Nifti2Image),
            "sem_seg_file": save(folder / f"0000002_V00_seg{self.suffix}", classes),
            "scan_id": "0000002_V00",
        }
        return [Example(d | {"label_map": True}, image, mask), Example(other, small, classes)]


class TestCompressed(TestPlain):
    suffix = ".nii.gz"


class TestCompressedWithoutMemory(TestCompressed):
    """Decompressed for each read."""

    reader = NiftiReader(cache_bytes=0)


class TestOneFile(ReaderTests):
    """Image channels and classes along the axis after a fourth axis of size 1."""

    reader = NiftiReader()

    def examples(self, folder):
        image, mask = example_scan((48, 40, 36), channels=2)
        stacked = np.concatenate([image[..., None], image[..., None] + 1, mask.astype("f4")], axis=-1)
        path = save(folder / "one.nii", stacked)
        d = {"file_name": path, "sem_seg_file": path, "scan_id": "one", "image_key": "0", "sem_seg_key": "2:4"}
        channels = d | {"image_key": ("0", "1"), "scan_id": "channels"}
        return [Example(d, image, mask), Example(channels, np.stack([image, image + 1], -1), mask)]

    def test_listing(self, tmp_path):
        """`scan` cannot know the meaning of the volumes."""
        self.examples(tmp_path)
        (d,) = self.reader.scan(tmp_path)
        assert "sem_seg_file" not in d
