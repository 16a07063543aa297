"""The reader passes the suite for readers."""

import h5py

from medsegpy_core import write_volume
from medsegpy_core.testing import Example, ReaderTests, example_scan
from medsegpy_h5_volumes import VolumesReader


class TestVolumesReader(ReaderTests):
    reader = VolumesReader()

    def examples(self, folder):
        image, mask = example_scan((64, 64, 32), channels=3)
        small, labels = example_scan((9, 7, 5), dtype="uint16", seed=1)
        return [
            Example(write_volume(folder / "0000001_V00.h5", image, mask), image, mask),
            Example(write_volume(folder / "0000002_V00.h5", small, labels, compression="gzip"), small, labels),
            Example(write_volume(folder / "0000003_V00.hdf5", small), small),
        ]


class TestManyScansInAFile(ReaderTests):
    """One group per scan, depth first, with chunks that do not match slices."""

    reader = VolumesReader()

    def examples(self, folder):
        image, mask = example_scan((64, 48, 40), channels=2)
        path = folder / "all.h5"
        with h5py.File(path, "w") as file:
            for name in ("0000001_V00", "0000002_V01"):
                group = file.create_group(name)
                options = {"chunks": True, "compression": "lzf", "shuffle": True}
                group.create_dataset("volume", data=image.transpose(2, 0, 1), **options)
                group.create_dataset("seg", data=mask.transpose(3, 2, 0, 1), **options)
        axes = {"image_axes": "DHW", "sem_seg_axes": "CDHW"}
        dicts = [d | axes for d in self.reader.scan(folder)]
        return [Example(d, image, mask) for d in dicts]

    def test_listing(self, tmp_path):
        """`scan` cannot know the axes, so only the names are checked."""
        self.examples(tmp_path)
        assert [d["scan_id"] for d in self.reader.scan(tmp_path)] == ["0000001_V00", "0000002_V01"]
