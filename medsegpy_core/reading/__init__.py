"""From a record to open arrays: choosing readers, and tools for writing them."""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "canonical_scan": "CanonicalScan open_record",
        "foreign_files": "foreign_kind",
        "lazy_arrays": "AxesView basic_selection full_selection read_into",
        "masks": "UNLABELLED UNLABELLED_UINT8 value_codes",
        "readers": "all_readers find_reader named_reader register_reader",
        "medsegpy_core._util.atomic": "replace_file",
        "medsegpy_core._util.limits": "environment_bytes",
        "medsegpy_core._util.stamps": "Stamp file_hash is_young read_settled stamp_of wait_for_write",
    },
)
