"""Datasets of medical images, from a pip-installed plugin to batches, scans and tables.

The public names are loaded when they are first used, so that ``import medsegpy_core`` costs next to nothing. It lists
the installed plugins, and imports none of them.

PYTEST_DONT_REWRITE: no asserts here
"""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports
from medsegpy_core.plugins import discovery

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "catalog": "DatasetCatalog MetadataCatalog",
        "config": "Config",
        "data.metadata": "Metadata",
        "data.naming": "SliceName parse_slice_name",
        "data.records": "Record",
        "datasets": "open_scan scan_directory",
        "errors": "AmbiguousReaderError AugmentationError CategoryError ConfigError ConfigWarning DataWarning "
        "DuplicateNameError GeometryError LeakageError MedSegPyError MedSegPyWarning "
        "MemoryLimitError MetadataConflictError MetadataError PluginError PluginWarning ReadError "
        "RecordError ShapeError UnknownNameError",
        "hdf5": "Access accessing write_slices write_volume",
        "loading": "DefaultDataLoader N5dDataLoader PatchDataLoader RandomPatchDataLoader S25dDataLoader "
        "build_loader compute_patches filter_dicts load_scan",
        "packing": "pack_dataset packed_dicts packed_metadata register_packed",
        "plugins.hookspecs": "hookimpl",
        "plugins.specs": "Augmentation DatasetSpec EvaluatorSpec LoaderOptions LoaderRequest LoaderSpec "
        "MetricSpec TransformSpec",
        "reading.readers": "register_reader",
        "splits": "split_by_subject",
        "transforms": "AffineNormalization Windowing ZeroMeanNormalization register_transform",
        "typing": "OpenScan Reader",
        "version": "API_VERSION __version__",
    },
)

discovery.installed()
