"""`DatasetTests`: the conformance suite of dataset plugins, to subclass."""

from __future__ import annotations

from collections.abc import Sequence

from medsegpy_core.testing import dataset_checks
from medsegpy_core.testing.light_import import check_light_import
from medsegpy_core.testing.outcome import NotCheckableError, UndecidedError

__all__ = ["DatasetTests"]


class DatasetTests:
    """The tests that every dataset must pass. Subclass it under a name that begins with ``Test``, and say the names.

    The files must be there: small ones that a fixture writes will do, with ``MEDSEGPY_DATASETS`` set to their folder.

    Attributes:
        names: The datasets: all splits together, so that subjects can be compared.
        module: The module of the plugin; empty: whether its import is light is not tested.

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
        """There are datasets of these names, and nobody else claims them."""
        if not self.names:
            raise NotImplementedError(f"{type(self).__name__} needs `names`, the names of the datasets to test.")
        for name in self.names:
            dataset_checks.check_registered(name)

    def test_listing(self) -> None:
        """Two calls list the same."""
        for name in self.names:
            dataset_checks.check_listing(name)

    def test_new_process(self) -> None:
        """A spawned process lists the same."""
        import pytest

        try:
            dataset_checks.check_new_process(self.names)
        except NotCheckableError as reason:
            pytest.skip(str(reason))

    def test_records(self) -> None:
        """Each dict is a standard one, no slice is there twice, and none is missing."""
        for name in self.names:
            dataset_checks.check_records(name)

    def test_metadata(self) -> None:
        """Metadata are complete and consistent."""
        for name in self.names:
            dataset_checks.check_metadata(name)

    def test_splits(self) -> None:
        """No subject is in two splits; skipped if nothing says whose the scans are."""
        import pytest

        try:
            dataset_checks.check_splits(self.names)
        except UndecidedError as reason:
            pytest.skip(str(reason))

    def test_augmentation(self) -> None:
        """No augmented element is in an evaluation split."""
        for name in self.names:
            dataset_checks.check_augmentation(name)

    def test_files(self) -> None:
        """Files can be opened, and are what the metadata say."""
        for name in self.names:
            dataset_checks.check_files(name)

    def test_light_import(self) -> None:
        """The plugin's module imports nothing heavy."""
        if self.module:
            check_light_import(self.module)
