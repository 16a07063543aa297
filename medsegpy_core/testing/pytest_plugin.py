"""The pytest plugin ``medsegpy``: fixtures for the tests of plugins. It is installed with medsegpy_core.

Nothing heavy is imported until a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from medsegpy_core.plugins.manager import PluginManager
    from medsegpy_core.typing import DatasetDict


@pytest.fixture
def medsegpy_plugins() -> Iterator[PluginManager]:
    """An empty plugin manager, which all of medsegpy_core uses during the test.

    ``medsegpy_plugins.register_plugin(module, "name")`` adds a plugin.
    """
    from medsegpy_core.plugins.manager import PluginManager, use_manager

    with use_manager(PluginManager(())) as manager:
        yield manager


@pytest.fixture
def medsegpy_slices(tmp_path: Path) -> Callable[..., list[DatasetDict]]:
    """A function that writes a small scan as slices; see `medsegpy_core.testing.write_slice_files`.

    A relative `root` is in the test's own folder; the default is ``slices``.
    """
    from medsegpy_core.testing.example_files import write_slice_files

    def write(root: str | Path = "slices", **options: Any) -> list[DatasetDict]:
        return write_slice_files(tmp_path / root, **options)

    return write


@pytest.fixture
def medsegpy_volume(tmp_path: Path) -> Callable[..., DatasetDict]:
    """A function that writes a small scan as a volume; see `medsegpy_core.testing.write_volume_file`.

    A relative `path` is in the test's own folder; the default is ``volumes/0000001_V00.h5``.
    """
    from medsegpy_core.testing.example_files import write_volume_file

    def write(path: str | Path = "volumes/0000001_V00.h5", **options: Any) -> DatasetDict:
        return write_volume_file(tmp_path / path, **options)

    return write
