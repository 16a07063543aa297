from medsegpy_core.data.categories import (
    channels_of as channels_of,
)
from medsegpy_core.data.categories import (
    normalize_category_ids as normalize_category_ids,
)
from medsegpy_core.data.categories import (
    required_channels as required_channels,
)
from medsegpy_core.data.geometry import (
    ERROR_VOXELS as ERROR_VOXELS,
)
from medsegpy_core.data.geometry import (
    Affine as Affine,
)
from medsegpy_core.data.geometry import (
    Alignment as Alignment,
)
from medsegpy_core.data.geometry import (
    Grid as Grid,
)
from medsegpy_core.data.geometry import (
    align as align,
)
from medsegpy_core.data.geometry import (
    alignment as alignment,
)
from medsegpy_core.data.geometry import (
    checked_affine as checked_affine,
)
from medsegpy_core.data.geometry import (
    corner_offset as corner_offset,
)
from medsegpy_core.data.geometry import (
    describe as describe,
)
from medsegpy_core.data.geometry import (
    reordered as reordered,
)
from medsegpy_core.data.geometry import (
    same_spacing as same_spacing,
)
from medsegpy_core.data.metadata import (
    Metadata as Metadata,
)
from medsegpy_core.data.metadata import (
    MetadataView as MetadataView,
)
from medsegpy_core.data.naming import (
    SliceName as SliceName,
)
from medsegpy_core.data.naming import (
    parse_scan_name as parse_scan_name,
)
from medsegpy_core.data.naming import (
    parse_slice_name as parse_slice_name,
)
from medsegpy_core.data.naming import (
    scan_name as scan_name,
)
from medsegpy_core.data.records import (
    Record as Record,
)
from medsegpy_core.data.records import (
    ScanKey as ScanKey,
)
