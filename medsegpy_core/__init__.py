"""Data sets of medical images, from a pip-installed plugin to batches, scans and tables.

The public names are loaded when they are first used, so that ``import medsegpy_core`` costs next to nothing. It lists
the installed plugins, and imports none of them.

For pytest, which would compile each module anew for want of this word, though none has assertions: PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medsegpy_core import discovery

if TYPE_CHECKING:
    from medsegpy_core.catalog import DatasetCatalog, MetadataCatalog
    from medsegpy_core.config import Config
    from medsegpy_core.datasets import open_scan, scan_directory
    from medsegpy_core.errors import (
        AmbiguousReaderError,
        AugmentationError,
        CategoryError,
        ConfigError,
        ConfigWarning,
        DataWarning,
        DuplicateNameError,
        GeometryError,
        LeakageError,
        MedSegPyError,
        MedSegPyWarning,
        MemoryLimitError,
        MetadataConflictError,
        MetadataError,
        PluginError,
        PluginWarning,
        ReadError,
        RecordError,
        ShapeError,
        UnknownNameError,
    )
    from medsegpy_core.hdf5 import Access, accessing, write_slices, write_volume
    from medsegpy_core.hookspecs import hookimpl
    from medsegpy_core.loading import (
        DefaultDataLoader,
        N5dDataLoader,
        PatchDataLoader,
        RandomPatchDataLoader,
        S25dDataLoader,
        build_loader,
        compute_patches,
        filter_dicts,
        load_scan,
    )
    from medsegpy_core.metadata import Metadata
    from medsegpy_core.naming import SliceName, parse_slice_name
    from medsegpy_core.packing import pack_dataset, packed_dicts, packed_metadata, register_packed
    from medsegpy_core.readers import register_reader
    from medsegpy_core.records import Record
    from medsegpy_core.specs import (
        Augmentation,
        DatasetSpec,
        EvaluatorSpec,
        LoaderOptions,
        LoaderRequest,
        LoaderSpec,
        MetricSpec,
        TransformSpec,
    )
    from medsegpy_core.splits import split_by_subject
    from medsegpy_core.transform_registry import register_transform
    from medsegpy_core.transforms import AffineNormalization, Windowing, ZeroMeanNormalization
    from medsegpy_core.typing import OpenScan, Reader
    from medsegpy_core.version import API_VERSION, __version__

__all__ = [
    "API_VERSION",
    "Access",
    "AffineNormalization",
    "AmbiguousReaderError",
    "Augmentation",
    "AugmentationError",
    "CategoryError",
    "Config",
    "ConfigError",
    "ConfigWarning",
    "DataWarning",
    "DatasetCatalog",
    "DatasetSpec",
    "DefaultDataLoader",
    "DuplicateNameError",
    "EvaluatorSpec",
    "GeometryError",
    "LeakageError",
    "LoaderOptions",
    "LoaderRequest",
    "LoaderSpec",
    "MedSegPyError",
    "MedSegPyWarning",
    "MemoryLimitError",
    "Metadata",
    "MetadataCatalog",
    "MetadataConflictError",
    "MetadataError",
    "MetricSpec",
    "N5dDataLoader",
    "OpenScan",
    "PatchDataLoader",
    "PluginError",
    "PluginWarning",
    "RandomPatchDataLoader",
    "ReadError",
    "Reader",
    "Record",
    "RecordError",
    "S25dDataLoader",
    "ShapeError",
    "SliceName",
    "TransformSpec",
    "UnknownNameError",
    "Windowing",
    "ZeroMeanNormalization",
    "__version__",
    "accessing",
    "build_loader",
    "compute_patches",
    "filter_dicts",
    "hookimpl",
    "load_scan",
    "open_scan",
    "pack_dataset",
    "packed_dicts",
    "packed_metadata",
    "parse_slice_name",
    "register_packed",
    "register_reader",
    "register_transform",
    "scan_directory",
    "split_by_subject",
    "write_slices",
    "write_volume",
]

# module -> the public names that it has; the same table as the imports above, which only type checkers read.
_MODULES = {
    "catalog": "DatasetCatalog MetadataCatalog",
    "config": "Config",
    "datasets": "open_scan scan_directory",
    "errors": "AmbiguousReaderError AugmentationError CategoryError ConfigError ConfigWarning DataWarning "
    "DuplicateNameError GeometryError LeakageError MedSegPyError MedSegPyWarning MemoryLimitError "
    "MetadataConflictError MetadataError PluginError PluginWarning ReadError RecordError ShapeError UnknownNameError",
    "hdf5": "Access accessing write_slices write_volume",
    "hookspecs": "hookimpl",
    "loading": "DefaultDataLoader N5dDataLoader PatchDataLoader RandomPatchDataLoader S25dDataLoader build_loader "
    "compute_patches filter_dicts load_scan",
    "metadata": "Metadata",
    "naming": "SliceName parse_slice_name",
    "packing": "pack_dataset packed_dicts packed_metadata register_packed",
    "readers": "register_reader",
    "records": "Record",
    "specs": "Augmentation DatasetSpec EvaluatorSpec LoaderOptions LoaderRequest LoaderSpec MetricSpec TransformSpec",
    "splits": "split_by_subject",
    "transform_registry": "register_transform",
    "transforms": "AffineNormalization Windowing ZeroMeanNormalization",
    "typing": "OpenScan Reader",
    "version": "API_VERSION __version__",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}

discovery.installed()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medsegpy_core' has no attribute {name!r}", name=name, obj=None)
    value = getattr(importlib.import_module(f"medsegpy_core.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
