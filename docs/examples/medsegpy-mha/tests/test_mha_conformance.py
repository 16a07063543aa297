"""The reader of the tutorial passes the suite for readers."""

import sys
from pathlib import Path

import numpy as np

from medsegpy_core.testing import Example, ReaderTests, example_scan

sys.path.append(str(Path(__file__).parents[1]))
from medsegpy_mha import MhaReader

NAMES = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}


def write(path, array):
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {' '.join(map(str, array.shape))}\n"
        f"ElementSpacing = 1 1 2\nElementType = {NAMES[array.dtype.name]}\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + array.tobytes(order="F"))
    return str(path)


class TestMhaReader(ReaderTests):
    reader = MhaReader()

    def examples(self, folder):
        image, mask = example_scan((64, 64, 32), channels=2)
        labels = (mask * np.array([1, 2], np.uint8)).sum(-1, dtype=np.uint8)
        d = {"file_name": write(folder / "a.mha", image), "sem_seg_file": write(folder / "a_seg.mha", labels)}
        return [Example(d | {"scan_id": "a", "label_map": True}, image, mask)]
