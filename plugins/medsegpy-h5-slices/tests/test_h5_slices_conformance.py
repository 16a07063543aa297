"""The reader passes the suite for readers."""

import h5py
import numpy as np

from medsegpy_core import write_slices
from medsegpy_core.testing import Example, ReaderTests, example_scan
from medsegpy_h5_slices import SlicesReader


class TestSlicesReader(ReaderTests):
    reader = SlicesReader()

    def examples(self, folder):
        image, mask = example_scan((256, 256, 2), channels=3)
        dicts = write_slices(folder, image, mask, subject_id=1)
        examples = [Example(d, image[:, :, k], mask[:, :, k]) for k, d in enumerate(dicts)]
        small, labels = example_scan((9, 7, 2), dtype="int16", seed=1)
        for k, d in enumerate(write_slices(folder, small, labels, subject_id=2, compression="gzip")):
            examples.append(Example(d, small[:, :, k], labels[:, :, k]))
        return examples


class TestOtherLayouts(ReaderTests):
    """Label maps, channels, other axis orders, big-endian numbers, and no mask."""

    reader = SlicesReader()

    def examples(self, folder):
        image, mask = example_scan((256, 256, 1), channels=2, dtype="float64")
        image, mask = image[:, :, 0], mask[:, :, 0]
        path, labels = folder / "0000007_V00-Aug00_001.im", folder / "0000007_V00-Aug00_001.seg"
        with h5py.File(path, "w") as file:
            file.create_dataset("deep", data=np.stack([image, image + 1]), chunks=(1, 100, 60), shuffle=True)
            file["data"] = image[:, :, None]
        with h5py.File(labels, "w") as file:
            file["data"] = (mask * [1, 2]).sum(-1).astype(">i2")
        d = {"file_name": str(path), "scan_id": "0000007_V00", "slice_id": 1, "scan_num_slices": 1}
        labelled = d | {"sem_seg_file": str(labels), "label_map": True}
        channels = d | {"image_key": "deep", "image_axes": "CHW"}
        return [Example(labelled, image, mask), Example(channels, np.stack([image, image + 1], -1)), Example(d, image)]
