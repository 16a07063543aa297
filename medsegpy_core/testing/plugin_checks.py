"""`check_plugin`: all checks of one installed plugin, without pytest."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from medsegpy_core.catalog import DatasetCatalog
from medsegpy_core.data.records import Record
from medsegpy_core.datasets import load_records
from medsegpy_core.errors import MedSegPyError, PluginWarning, UnknownNameError, closest_match
from medsegpy_core.plugins.discovery import installed, normalize_distribution
from medsegpy_core.plugins.kinds import PluginInfo
from medsegpy_core.plugins.manager import default_manager
from medsegpy_core.reading.readers import find_reader
from medsegpy_core.testing import dataset_checks, reader_checks
from medsegpy_core.testing.example_files import record_of
from medsegpy_core.testing.outcome import Finding, NotCheckableError, UndecidedError, require
from medsegpy_core.testing.processes import check_light_import
from medsegpy_core.typing import ListingReader, Reader

Checks = Mapping[str, Callable[[], Any]]


def check_plugin(name: str, data: Path | None = None) -> Iterator[Finding]:
    """Check an installed plugin: its datasets, its readers, its metrics, and that its import is light.

    Args:
        name: The name of the plugin, or of its distribution.
        data: A folder with files for the plugin's readers. None: readers are tested on a file of any installed dataset
            that uses them.

    Yields:
        The outcome of each check, as soon as it has ended.

    Raises:
        UnknownNameError: There is no such plugin.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)  # reported as a finding
        info = _info(name)
    subject = f"plugin {info.name!r}"
    if info.status != "active":
        yield Finding(subject, "loads", "failed", info.error or f"it is {info.status}")
        return
    yield Finding(subject, "loads", "passed")
    yield from _findings(subject, {"imports nothing heavy": lambda: check_light_import(_module(info))})
    for reader in info.provides.get("readers", ()):
        yield from _reader_findings(reader, data)
    datasets = info.provides.get("datasets", ())
    for dataset in datasets:
        yield from _findings(f"dataset {dataset!r}", _dataset_checks(dataset))
    if datasets:
        yield from _findings(subject, {"no subject is in two splits": partial(dataset_checks.check_splits, datasets)})
    for metric in info.provides.get("metrics", ()):
        yield from _findings(f"metric {metric!r}", {"is a number": partial(_check_metric, metric)})


def _info(name: str) -> PluginInfo:
    infos = default_manager().infos()
    for info in infos:
        if info.name == name or normalize_distribution(info.distribution) == normalize_distribution(name):
            return info
    known = [info.name for info in infos]
    raise UnknownNameError(
        f"There is no plugin {name!r}. Installed: {', '.join(known) or 'none'}.{closest_match(name, known)}"
    )


def _module(info: PluginInfo) -> str:
    for entry_point in installed():
        if (entry_point.name, entry_point.distribution) == (info.name, info.distribution):
            return entry_point.value.partition("[")[0].partition(":")[0].strip()
    raise NotCheckableError("it is registered in this process and has no entry point")


def _findings(subject: str, checks: Checks) -> Iterator[Finding]:
    for check, run in checks.items():
        try:
            run()
        except NotCheckableError as reason:
            yield Finding(subject, check, "skipped", str(reason))
        except UndecidedError as reason:
            yield Finding(subject, check, "unknown", str(reason))
        except MedSegPyError as error:
            yield Finding(subject, check, "failed", str(error))
        except Exception as error:  # noqa: BLE001 -- any exception in the plugin is a finding
            yield Finding(subject, check, "failed", f"{type(error).__name__}: {error}")
        else:
            yield Finding(subject, check, "passed")


def _dataset_checks(name: str) -> Checks:
    return {
        "is registered once": partial(dataset_checks.check_registered, name),
        "is listed the same way twice": partial(dataset_checks.check_listing, name),
        "is listed the same way in a new process": partial(dataset_checks.check_new_process, [name]),
        "has standard dicts without duplicates": partial(dataset_checks.check_records, name),
        "has all metadata": partial(dataset_checks.check_metadata, name),
        "has no augmented elements for evaluation": partial(dataset_checks.check_augmentation, name),
        "has files that fit the metadata": partial(dataset_checks.check_files, name),
    }


def _reader_findings(name: str, data: Path | None) -> Iterator[Finding]:
    subject = f"reader {name!r}"
    reader: Reader = default_manager().lookup("readers", name).record
    alone = {
        "implements the protocol": partial(reader_checks.check_protocol, reader),
        "pickles": partial(reader_checks.check_pickling, reader),
    }
    yield from _findings(subject, alone)
    found: list[Record] = []

    def find() -> None:
        found.append(_example(reader, data))

    yield from (finding for finding in _findings(subject, {"has a file to try": find}) if not found)
    if found:
        with tempfile.TemporaryDirectory() as folder:
            yield from _findings(subject, _file_checks(reader, found[0], Path(folder)))
        if data is not None:
            yield from _findings(subject, {"lists a folder": partial(reader_checks.check_listing, reader, data)})


def _file_checks(reader: Reader, record: Record, folder: Path) -> Checks:
    of = (reader, record)
    return {
        "opens image and mask": partial(reader_checks.check_arrays, *of),
        "reads any part": partial(reader_checks.check_partial_reads, *of),
        "opens without reading data": partial(reader_checks.check_headers_only, *of, folder / "headers"),
        "reads in threads": partial(reader_checks.check_threads, *of),
        "pickles after use": partial(reader_checks.check_pickling, *of),
        "reads in a new process": partial(reader_checks.check_new_process, *of),
        "reads in a fork": partial(reader_checks.check_forked_process, *of),
        "closes its files": partial(reader_checks.check_released_files, *of),
        "refuses missing files": partial(reader_checks.check_missing_files, *of, folder / "missing"),
        "refuses damaged files": partial(reader_checks.check_truncated_files, *of, folder / "damaged"),
        "recognizes its format": partial(reader_checks.check_probe, *of, folder / "others"),
    }


def _example(reader: Reader, data: Path | None) -> Record:
    """Return a record to test a reader on, with a mask if possible."""
    records: list[Record] = []
    if data is not None:
        if not isinstance(reader, ListingReader):
            raise NotCheckableError("the reader has no method scan(root), so it cannot list a folder")
        records = [record_of({"reader": reader.name, **d}) for d in reader.scan(data)]
        require(records, f"it finds none of its files in {data}")
    else:
        for name in DatasetCatalog.list():
            records += _some_of(name, reader)
    if not records:
        raise NotCheckableError(
            "no installed dataset has a file of this format; name a folder with such files: --data FOLDER"
        )
    return max(records, key=lambda record: (record.labelled, _size(record)))


def _some_of(name: str, reader: Reader) -> list[Record]:
    try:
        return [record for record in load_records(name)[:3] if find_reader(record).name == reader.name]
    except Exception:  # noqa: BLE001 -- a dataset of another plugin, whose files may not be on this machine
        return []


def _size(record: Record) -> int:
    # Prefer the largest of small files, in which reads of data can be told from reads of headers.
    return min(record.file_name.stat().st_size, 16 << 20) if record.file_name.is_file() else 0


def _check_metric(name: str) -> None:
    import numpy as np

    function = default_manager().lookup("metrics", name).record.function
    truth = np.zeros((6, 5, 4), bool)
    truth[1:4, 1:4, 1:3] = True
    for pred in (truth, np.roll(truth, 1, axis=0)):
        value = function(pred, truth, (1.0, 1.0, 2.0))
        require(np.ndim(value) == 0 and np.isfinite(float(value)), f"{name} of two small boxes is {value!r}, no number")
