"""`DatasetTests` and `ReaderTests`: the conformance suites that plugin authors subclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medsegpy_core.data.records import Record
from medsegpy_core.testing import dataset_checks, reader_checks
from medsegpy_core.testing.example_files import Example, record_of
from medsegpy_core.testing.outcome import NotCheckableError, UndecidedError
from medsegpy_core.testing.processes import check_light_import
from medsegpy_core.typing import Reader


class DatasetTests:
    """The tests that every dataset must pass. Subclass it with a name that begins with ``Test``, and set `names`.

    The files must exist. A fixture may write small ones and set ``MEDSEGPY_DATASETS`` to their folder.

    Attributes:
        names: The datasets: all splits together, so that subjects can be compared.
        module: The module of the plugin. If empty, its import is not tested.

    Example:
        ```python
        class TestKnee(DatasetTests):
            names = ("knee_train", "knee_val", "knee_test")
            module = "medsegpy_knee"
        ```
    """

    names: Sequence[str] = ()
    module: str = ""

    def test_registered(self) -> None:
        """The datasets exist, and no other plugin claims their names."""
        if not self.names:
            raise NotImplementedError(f"{type(self).__name__} needs `names`, the names of the datasets to test.")
        for name in self.names:
            dataset_checks.check_registered(name)

    def test_listing(self) -> None:
        """Two calls list the same dicts."""
        for name in self.names:
            dataset_checks.check_listing(name)

    def test_new_process(self) -> None:
        """A spawned process lists the same dicts."""
        import pytest

        try:
            dataset_checks.check_new_process(self.names)
        except NotCheckableError as reason:
            pytest.skip(str(reason))

    def test_records(self) -> None:
        """Each dict is a standard dataset dict, without duplicate or missing slices."""
        for name in self.names:
            dataset_checks.check_records(name)

    def test_metadata(self) -> None:
        """Metadata are complete and consistent."""
        for name in self.names:
            dataset_checks.check_metadata(name)

    def test_splits(self) -> None:
        """No subject is in two splits. Skipped if subjects are unknown."""
        import pytest

        try:
            dataset_checks.check_splits(self.names)
        except UndecidedError as reason:
            pytest.skip(str(reason))

    def test_augmentation(self) -> None:
        """Evaluation splits have no augmented elements."""
        for name in self.names:
            dataset_checks.check_augmentation(name)

    def test_files(self) -> None:
        """Files can be opened and fit the metadata."""
        for name in self.names:
            dataset_checks.check_files(name)

    def test_light_import(self) -> None:
        """The plugin's module imports no heavy packages."""
        if self.module:
            check_light_import(self.module)


class ReaderTests:
    """The tests that every reader must pass. Subclass it with a name that begins with ``Test``, set `reader`, and
    write `examples`.

    Attributes:
        reader: The reader, an object.
        module: The module of the plugin; default: the package of the reader's class.

    Example:
        ```python
        class TestMyReader(ReaderTests):
            reader = MyReader()

            def examples(self, folder):
                image, mask = example_scan((64, 64, 32))
                write_my_format(folder / "a.my", image)
                write_my_format(folder / "a_seg.my", mask)
                d = {"file_name": str(folder / "a.my"), "sem_seg_file": str(folder / "a_seg.my"), "scan_id": "a"}
                return [Example(d, image, mask)]
        ```
    """

    reader: Reader
    module: str = ""

    def examples(self, folder: Path) -> Sequence[Example]:
        """Write small files into a folder, and return their expected content.

        The first must have a mask, and an image of at least 256 KiB. The others should cover the rest of the format:
        types, channels, label maps, image and mask in one file.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method `examples(folder)`; see ReaderTests.examples.")

    def test_protocol(self) -> None:
        """The reader implements the protocol."""
        reader_checks.check_protocol(self.reader)

    def test_arrays(self, tmp_path: Path) -> None:
        """Shapes, types and metadata are valid."""
        self._each(reader_checks.check_arrays, tmp_path)

    def test_values(self, tmp_path: Path) -> None:
        """The values read are the values written."""
        for example in self.examples(tmp_path):
            record = self._record(example)
            reader_checks.check_values(self.reader, record, example.image, example.mask)

    def test_partial_reads(self, tmp_path: Path) -> None:
        """A part equals that part of the whole."""
        self._each(reader_checks.check_partial_reads, tmp_path)

    def test_shape_and_type_need_no_data(self, tmp_path: Path) -> None:
        """Opening reads headers only."""
        reader_checks.check_headers_only(self.reader, self._first(tmp_path), tmp_path / "copies")

    def test_threads(self, tmp_path: Path) -> None:
        """Eight threads read from one open scan."""
        self._each(reader_checks.check_threads, tmp_path)

    def test_pickling(self, tmp_path: Path) -> None:
        """The reader pickles, before and after use."""
        reader_checks.check_pickling(self.reader)
        self._each(reader_checks.check_pickling, tmp_path)

    def test_new_process(self, tmp_path: Path) -> None:
        """A spawned process reads the same values."""
        reader_checks.check_new_process(self.reader, self._first(tmp_path))

    def test_forked_process(self, tmp_path: Path) -> None:
        """A fork reads the same values."""
        self._each_if_possible(reader_checks.check_forked_process, tmp_path)

    def test_files_are_released(self, tmp_path: Path) -> None:
        """No file stays open."""
        self._each_if_possible(reader_checks.check_released_files, tmp_path)

    def test_missing_files(self, tmp_path: Path) -> None:
        """A missing file is a `ReadError`."""
        for number, record in enumerate(self._records(tmp_path)):
            reader_checks.check_missing_files(self.reader, record, tmp_path / f"copies{number}")

    def test_truncated_files(self, tmp_path: Path) -> None:
        """A truncated file is a `ReadError`."""
        for number, record in enumerate(self._records(tmp_path)):
            reader_checks.check_truncated_files(self.reader, record, tmp_path / f"copies{number}")

    def test_probe(self, tmp_path: Path) -> None:
        """First bytes identify the format."""
        reader_checks.check_probe(self.reader, self._first(tmp_path), tmp_path / "others")

    def test_listing(self, tmp_path: Path) -> None:
        """`scan` lists a folder, if the reader has this method."""
        self.examples(tmp_path)
        if hasattr(self.reader, "scan"):
            reader_checks.check_listing(self.reader, tmp_path)

    def test_light_import(self) -> None:
        """The plugin's module imports no heavy packages."""
        check_light_import(self.module or type(self.reader).__module__.partition(".")[0])

    def _record(self, example: Example) -> Record:
        return record_of({"reader": self.reader.name, **example.dataset_dict})

    def _records(self, folder: Path) -> Iterator[Record]:
        return map(self._record, self.examples(folder))

    def _first(self, folder: Path) -> Record:
        return next(self._records(folder))

    def _each(self, check: Callable[[Reader, Record], Any], folder: Path) -> None:
        for record in self._records(folder):
            check(self.reader, record)

    def _each_if_possible(self, check: Callable[[Reader, Record], Any], folder: Path) -> None:
        """Skip a check that is impossible on this operating system."""
        import pytest

        try:
            self._each(check, folder)
        except NotCheckableError as reason:
            pytest.skip(str(reason))
