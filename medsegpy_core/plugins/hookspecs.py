"""All hook specs, in one file. A plugin implements those it needs as functions of a module, marked ``@hookimpl``.

There are two kinds. *Register hooks* take no argument and return records with a `name`. *Queries* are about one
dataset; the plugin that owns it is called first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    import click

    from medsegpy_core.data.records import Record
    from medsegpy_core.plugins.specs import (
        Augmentation,
        DatasetSpec,
        EvaluatorSpec,
        LoaderSpec,
        MetricSpec,
        TransformSpec,
    )
    from medsegpy_core.typing import Reader


PROJECT: Final = "medsegpy"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HookSpecs:
    """The hooks of medsegpy_core. A plugin's functions are written without `self`."""

    @hookspec
    def medsegpy_register_datasets(self) -> Iterable[DatasetSpec]:
        """Return the datasets that this plugin provides.

        Example:
            ```python
            from medsegpy_core import DatasetSpec, hookimpl, scan_directory

            def load_train():
                return scan_directory("/data/knee/train")

            @hookimpl
            def medsegpy_register_datasets():
                return [
                    DatasetSpec(
                        name="knee_train",
                        load=load_train,
                        split="train",
                        metadata={
                            "scan_root": "/data/knee/train",
                            "category_ids": [0, 1],
                            "categories": ["femoral cartilage", "meniscus"],
                            "category_id_to_contiguous_id": {0: 0, 1: 1},
                            "evaluator_type": "SemSegEvaluator",
                        },
                    )
                ]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_readers(self) -> Iterable[Reader]:
        """Return the readers that this plugin provides. A `Reader` is an object, not a class.

        Example:
            ```python
            from contextlib import contextmanager

            import numpy as np
            from attrs import field, frozen

            from medsegpy_core import ReadError, hookimpl

            @frozen
            class NpyScan:
                image: np.ndarray
                mask: np.ndarray | None
                metadata: dict = field(factory=dict)

            @frozen
            class NpyReader:
                name: str = "npy"
                suffixes: tuple[str, ...] = (".npy",)

                def probe(self, path):
                    with open(path, "rb") as f:
                        return f.read(6) == b"\\x93NUMPY"

                @contextmanager
                def open(self, record):
                    mask = None
                    if record.sem_seg_file is not None:
                        mask = self.load(record.sem_seg_file)
                    yield NpyScan(self.load(record.file_name), mask)

                def load(self, path):
                    try:
                        return np.load(path, mmap_mode="r", allow_pickle=False)
                    except (OSError, ValueError) as error:
                        raise ReadError(str(error), path) from error

            @hookimpl
            def medsegpy_register_readers():
                return [NpyReader()]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_augmentations(self) -> Iterable[Augmentation]:
        """Return the meanings of the augmentation numbers in this plugin's datasets.

        Example:
            ```python
            from medsegpy_core import Augmentation, hookimpl

            @hookimpl
            def medsegpy_register_augmentations():
                return [Augmentation(1, "left-right flip"), Augmentation(2, "gamma", {"gamma": 0.8})]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_loaders(self) -> Iterable[LoaderSpec]:
        """Return loaders. The config's `TAG` selects one by name.

        Example:
            ```python
            from medsegpy_core import LoaderSpec, hookimpl

            class FileNames:
                def __init__(self, request):
                    self.names = [d["file_name"] for d in request.dicts]

                def __iter__(self):
                    return iter(self.names)

            @hookimpl
            def medsegpy_register_loaders():
                return [LoaderSpec("FileNames", FileNames)]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_transforms(self) -> Iterable[TransformSpec]:
        """Return transforms. The config's `PREPROCESSING` selects them by name.

        Example:
            ```python
            from medsegpy_core import TransformSpec, hookimpl

            class Scale:
                def __init__(self, factor=1.0):
                    self.factor = factor

                def __call__(self, image, mask):
                    return image * self.factor, mask

            @hookimpl
            def medsegpy_register_transforms():
                return [TransformSpec("Scale", Scale)]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_evaluators(self) -> Iterable[EvaluatorSpec]:
        """Return evaluators. The metadata's `evaluator_type` selects one by name.

        Example:
            ```python
            from medsegpy_core import EvaluatorSpec, hookimpl

            class Count:
                def __init__(self, dataset_name, cfg, output_folder):
                    self.reset()

                def reset(self):
                    self.scans = 0

                def process(self, inputs, outputs):
                    self.scans += len(inputs)

                def evaluate(self):
                    return {"scans": self.scans}

            @hookimpl
            def medsegpy_register_evaluators():
                return [EvaluatorSpec("Count", Count)]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_metrics(self) -> Iterable[MetricSpec]:
        """Return metrics. The config's `TEST_METRICS` selects them by name.

        Example:
            ```python
            import numpy as np

            from medsegpy_core import MetricSpec, hookimpl

            def volume_difference(pred, truth, spacing):
                return abs(int(pred.sum()) - int(truth.sum())) * float(np.prod(spacing))

            @hookimpl
            def medsegpy_register_metrics():
                return [MetricSpec("AVD", volume_difference, unit="mm3", higher_is_better=False)]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_register_commands(self) -> Iterable[click.Command]:
        """Return commands for the ``medsegpy`` program.

        Example:
            ```python
            import click

            from medsegpy_core import hookimpl

            @click.command("hello")
            def hello():
                \"\"\"Say hello.\"\"\"
                click.echo("hello")

            @hookimpl
            def medsegpy_register_commands():
                return [hello]
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_dataset_metadata(self, dataset: str) -> Mapping[str, Any] | None:
        """Return metadata of a dataset, instead of or in addition to `DatasetSpec.metadata`.

        The plugin that owns the dataset is called first. The others are called only if it returns None.

        Args:
            dataset: The name of the dataset.

        Returns:
            Metadata keys and values, or None for a dataset of another plugin.

        Example:
            ```python
            from medsegpy_core import hookimpl

            @hookimpl
            def medsegpy_dataset_metadata(dataset):
                return {"spacing": (0.31, 0.31, 0.7)} if dataset.startswith("knee_") else None
            ```
        """
        raise AssertionError("hook specs are never called")

    @hookspec
    def medsegpy_tag_augmentation(self, dataset: str, record: Record) -> int | None:
        """Return the augmentation number of an element if neither its file name nor its dict states it.

        The plugin that owns the dataset is called first. The others are called only if it returns None.

        Args:
            dataset: The name of the dataset.
            record: The element; its `augmentation` is 0 by default.

        Returns:
            0 for an original, 1 to 99 for an augmented copy, None if the plugin does not know.

        Example:
            ```python
            from medsegpy_core import hookimpl

            @hookimpl
            def medsegpy_tag_augmentation(dataset, record):
                return 1 if record.file_name.stem.endswith("_flipped") else None
            ```
        """
        raise AssertionError("hook specs are never called")
