from medsegpy_core.catalog import (
    DatasetCatalog as DatasetCatalog,
)
from medsegpy_core.catalog import (
    MetadataCatalog as MetadataCatalog,
)
from medsegpy_core.config import (
    Config as Config,
)
from medsegpy_core.data.metadata import (
    Metadata as Metadata,
)
from medsegpy_core.data.naming import (
    SliceName as SliceName,
)
from medsegpy_core.data.naming import (
    parse_slice_name as parse_slice_name,
)
from medsegpy_core.data.records import (
    Record as Record,
)
from medsegpy_core.datasets import (
    open_scan as open_scan,
)
from medsegpy_core.datasets import (
    scan_directory as scan_directory,
)
from medsegpy_core.errors import (
    AmbiguousReaderError as AmbiguousReaderError,
)
from medsegpy_core.errors import (
    AugmentationError as AugmentationError,
)
from medsegpy_core.errors import (
    CategoryError as CategoryError,
)
from medsegpy_core.errors import (
    ConfigError as ConfigError,
)
from medsegpy_core.errors import (
    ConfigWarning as ConfigWarning,
)
from medsegpy_core.errors import (
    DataWarning as DataWarning,
)
from medsegpy_core.errors import (
    DuplicateNameError as DuplicateNameError,
)
from medsegpy_core.errors import (
    GeometryError as GeometryError,
)
from medsegpy_core.errors import (
    LeakageError as LeakageError,
)
from medsegpy_core.errors import (
    MedSegPyError as MedSegPyError,
)
from medsegpy_core.errors import (
    MedSegPyWarning as MedSegPyWarning,
)
from medsegpy_core.errors import (
    MemoryLimitError as MemoryLimitError,
)
from medsegpy_core.errors import (
    MetadataConflictError as MetadataConflictError,
)
from medsegpy_core.errors import (
    MetadataError as MetadataError,
)
from medsegpy_core.errors import (
    PluginError as PluginError,
)
from medsegpy_core.errors import (
    PluginWarning as PluginWarning,
)
from medsegpy_core.errors import (
    ReadError as ReadError,
)
from medsegpy_core.errors import (
    RecordError as RecordError,
)
from medsegpy_core.errors import (
    ShapeError as ShapeError,
)
from medsegpy_core.errors import (
    UnknownNameError as UnknownNameError,
)
from medsegpy_core.hdf5 import (
    Access as Access,
)
from medsegpy_core.hdf5 import (
    accessing as accessing,
)
from medsegpy_core.hdf5 import (
    write_slices as write_slices,
)
from medsegpy_core.hdf5 import (
    write_volume as write_volume,
)
from medsegpy_core.loading import (
    DefaultDataLoader as DefaultDataLoader,
)
from medsegpy_core.loading import (
    N5dDataLoader as N5dDataLoader,
)
from medsegpy_core.loading import (
    PatchDataLoader as PatchDataLoader,
)
from medsegpy_core.loading import (
    RandomPatchDataLoader as RandomPatchDataLoader,
)
from medsegpy_core.loading import (
    S25dDataLoader as S25dDataLoader,
)
from medsegpy_core.loading import (
    build_loader as build_loader,
)
from medsegpy_core.loading import (
    compute_patches as compute_patches,
)
from medsegpy_core.loading import (
    filter_dicts as filter_dicts,
)
from medsegpy_core.loading import (
    load_scan as load_scan,
)
from medsegpy_core.packing import (
    pack_dataset as pack_dataset,
)
from medsegpy_core.packing import (
    packed_dicts as packed_dicts,
)
from medsegpy_core.packing import (
    packed_metadata as packed_metadata,
)
from medsegpy_core.packing import (
    register_packed as register_packed,
)
from medsegpy_core.plugins.hookspecs import (
    hookimpl as hookimpl,
)
from medsegpy_core.plugins.specs import (
    Augmentation as Augmentation,
)
from medsegpy_core.plugins.specs import (
    DatasetSpec as DatasetSpec,
)
from medsegpy_core.plugins.specs import (
    EvaluatorSpec as EvaluatorSpec,
)
from medsegpy_core.plugins.specs import (
    LoaderOptions as LoaderOptions,
)
from medsegpy_core.plugins.specs import (
    LoaderRequest as LoaderRequest,
)
from medsegpy_core.plugins.specs import (
    LoaderSpec as LoaderSpec,
)
from medsegpy_core.plugins.specs import (
    MetricSpec as MetricSpec,
)
from medsegpy_core.plugins.specs import (
    TransformSpec as TransformSpec,
)
from medsegpy_core.reading.readers import (
    register_reader as register_reader,
)
from medsegpy_core.splits import (
    split_by_subject as split_by_subject,
)
from medsegpy_core.transforms import (
    AffineNormalization as AffineNormalization,
)
from medsegpy_core.transforms import (
    Windowing as Windowing,
)
from medsegpy_core.transforms import (
    ZeroMeanNormalization as ZeroMeanNormalization,
)
from medsegpy_core.transforms import (
    register_transform as register_transform,
)
from medsegpy_core.typing import (
    OpenScan as OpenScan,
)
from medsegpy_core.typing import (
    Reader as Reader,
)
from medsegpy_core.version import (
    API_VERSION as API_VERSION,
)
from medsegpy_core.version import (
    __version__ as __version__,
)
