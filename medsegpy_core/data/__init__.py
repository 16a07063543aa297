"""The data model: records, metadata, categories, file names, and voxel grids."""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "categories": "channels_of normalize_category_ids required_channels",
        "geometry": "Affine Alignment ERROR_VOXELS Grid align alignment checked_affine corner_offset describe "
        "reordered same_spacing",
        "metadata": "Metadata MetadataView",
        "naming": "SliceName parse_scan_name parse_slice_name scan_name",
        "records": "Record ScanKey",
    },
)
