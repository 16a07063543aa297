"""From a record to open arrays: readers, and what readers are made with."""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "foreign_files": "foreign_kind",
        "lazy_arrays": "AxesView basic_selection full_selection read_into",
        "masks": "UNLABELLED UNLABELLED_UINT8 value_codes",
        "canonical_scan": "CanonicalScan open_record",
        "readers": "all_readers find_reader named_reader register_reader",
    },
)
