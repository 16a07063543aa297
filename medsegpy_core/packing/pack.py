"""`pack_dataset`: rewrite a dataset for fast reading, resume interrupted work, and verify the result."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attrs import frozen

from medsegpy_core._util.atomic import Staging
from medsegpy_core._util.locks import lock_file
from medsegpy_core.catalog import MetadataCatalog, collection_of, dataset_spec
from medsegpy_core.data.metadata import same
from medsegpy_core.data.records import LAYOUT_KEYS
from medsegpy_core.datasets import load_records
from medsegpy_core.errors import MedSegPyError, ReadError, RecordError
from medsegpy_core.hdf5 import open_array
from medsegpy_core.hdf5.isolation_worker import copy_contents
from medsegpy_core.hdf5.write import create_h5
from medsegpy_core.loading.scans import Opener, Scan, group_scans
from medsegpy_core.packing.manifest import (
    Manifest,
    Source,
    all_unchanged,
    decoded,
    hashed,
    manifest_dict,
    read_json,
    read_manifest,
    source_files,
    write_json,
)
from medsegpy_core.packing.scans import (
    Compression,
    LayoutName,
    PackLayout,
    Task,
    content_hash,
    described_scan,
    pack_scan,
)
from medsegpy_core.reading.record_maker import datasets_root
from medsegpy_core.text import counted

# A file, the key of an array in it, and the hash of the array.
Hashed = tuple[Path, str, str]


def verify_packed(
    path: str | os.PathLike[str],
    watch: Callable[[Iterable[Hashed], int], Iterable[Hashed]] = lambda arrays, _: arrays,
) -> list[str]:
    """Read all arrays of a packed dataset and compare them with the hashes in its manifest.

    Args:
        path: The manifest; see `packed_dicts`.
        watch: Called with the arrays and their number, returns them; for a progress bar.

    Returns:
        The problems, one line each. Empty if all arrays are unchanged.

    Raises:
        ReadError: The manifest cannot be read.
    """
    arrays = read_manifest(path).arrays
    return verify_arrays(watch(arrays, len(arrays)))


def verify_arrays(arrays: Iterable[Hashed]) -> list[str]:
    """Compare arrays with their hashes; see `verify_packed`."""
    wrong = []
    for file, key, digest in arrays:
        try:
            if content_hash(open_array(file, key)[...]) != digest:
                wrong.append(f"{file}, dataset {key!r}: its content has changed since it was written")
        except ReadError as error:
            wrong.append(str(error))
    return wrong


_READER = "h5-volumes"
_NO_METADATA = (*LAYOUT_KEYS, "scan_root")

Watch = Callable[[Iterable[str], int], Iterable[str]]


class PackingError(MedSegPyError, OSError):
    """A dataset cannot be packed there: another process is packing, or something else is already there."""


@frozen
class Packed:
    """The result of `pack_dataset`.

    Attributes:
        manifest: The file to pass to `register_packed` and `packed_dicts`.
        files: The packed files.
        scans: The number of scans in them.
        scans_packed: The number of scans packed by this call; the others were already packed.
        source_bytes: The size of the original files.
        packed_bytes: The size of the packed files.
    """

    manifest: Path
    files: tuple[Path, ...]
    scans: int
    scans_packed: int
    source_bytes: int
    packed_bytes: int


def pack_dataset(
    name: str,
    out: str | os.PathLike[str] | None = None,
    *,
    layout: LayoutName = "slices",
    compression: Compression = "none",
    patch: tuple[int, int, int] | None = None,
    shards: int = 1,
    jobs: int = 1,
    overwrite: bool = False,
    watch: Watch = lambda names, _: names,
) -> Packed:
    """Rewrite a dataset into one HDF5 file, or a few, with a layout that suits how it is read.

    Masks become bit fields, images keep their type. Every scan is read back and compared with its source. Interrupted
    work is resumed, and complete work is left unchanged.

    Args:
        name: A registered dataset.
        out: A folder, which will contain ``NAME.h5`` and ``NAME.json``, or the ``.h5`` file itself; None: the folder
            ``packed`` in ``MEDSEGPY_DATASETS``.
        layout: ``"slices"`` or ``"patches"``; see `PackLayout`.
        compression: ``"none"`` or ``"gzip"``.
        patch: H, W and D of the chunks of the layout ``patches``; None: contiguous, or with gzip 32 x 32 x 32.
        shards: The number of files.
        jobs: The number of processes.
        overwrite: Whether to replace a dataset packed from other files or with other settings.
        watch: Called with the names of the scans, as they are finished, and their number; for a progress bar.

    Returns:
        The result. Use it with ``register_packed(packed.manifest, "some_name")``.

    Raises:
        PackingError: Another process is packing to this place, or another dataset is there.
        ReadError: A scan cannot be read, or what was read back differs from what was written.
        OSError: The disk is full. Finished work is kept; no file is half-written.
    """
    chosen = PackLayout(layout, compression, patch)
    folder, stem = _place(name, out)
    scans = group_scans(load_records(name))
    if not scans:
        raise RecordError(f"Dataset {name!r} is empty: there is nothing to pack.")
    if not 1 <= shards <= len(scans):
        raise ValueError(f"{counted(len(scans), 'scan')} can be packed into 1 to {len(scans)} files, not {shards}.")
    opener = Opener.of([record for scan in scans for record in scan.records])
    tasks = [Task(scan, group, opener, chosen) for scan, group in zip(scans, _group_names(scans), strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{stem}.lock"):
        work = _Work(name, folder, stem, tasks, shards, chosen, overwrite)
        done = work.run(jobs, watch)
    return Packed(
        manifest=work.manifest,
        files=tuple(work.files),
        scans=len(scans),
        scans_packed=done,
        source_bytes=_size(path for scan in scans for r in scan.records for path in (r.file_name, r.sem_seg_file)),
        packed_bytes=_size(work.files),
    )


def _place(name: str, out: str | os.PathLike[str] | None) -> tuple[Path, str]:
    path = datasets_root() / "packed" if out is None else Path(out).expanduser().absolute()
    if path.suffix in (".h5", ".hdf5") and not path.is_dir():
        return path.parent, path.stem
    return path, re.sub(r"[^\w.+-]+", "_", name).strip(".") or "packed"


def _group_names(scans: Sequence[Scan]) -> list[str]:
    """Return a unique name for each scan: its id, with ``-AugNN`` for an augmented copy."""
    names: dict[str, None] = {}
    for scan in scans:
        tag = f"-Aug{scan.key[2]:02d}" if scan.key[2] else ""
        base = re.sub(r"[^\w.+-]", "_", scan.key[1].removesuffix(tag)).strip(".") or "scan"
        name, n = base + tag, 1
        while name in names:
            n += 1
            name = f"{base}{tag}_{n}"
        names[name] = None
    return list(names)


def _size(paths: Iterable[Path | None]) -> int:
    return sum(path.stat().st_size for path in set(paths) if path is not None and path.is_file())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other processes. If a process is killed, its lock is released."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(path))
        except BlockingIOError as error:
            raise PackingError(
                f"{path.parent}: another process ({error.strerror}) is packing to this place. Wait until it has "
                "finished, or choose another --out."
            ) from error
        yield


class _Work:
    """The packing of one dataset, with its place locked."""

    def __init__(
        self,
        name: str,
        folder: Path,
        stem: str,
        tasks: Sequence[Task],
        shards: int,
        layout: PackLayout,
        overwrite: bool,
    ):
        self.name = name
        self.manifest = folder / f"{stem}.json"
        self.parts = folder / f".{stem}.parts"
        self.tasks = tasks
        self.overwrite = overwrite
        names = [f"{stem}.h5"] if shards == 1 else [f"{stem}-{i + 1:03d}-of-{shards:03d}.h5" for i in range(shards)]
        self.files = [folder / file for file in names]
        self.replaced: set[Path] = set()
        self.settings = layout.as_dict()
        self.sources = source_files(task.scan for task in tasks)
        self.fingerprints = [task.fingerprint for task in tasks]
        self.fingerprint = _hash([self.settings, shards, self.fingerprints])
        # Consecutive scans per shard, so that reading in order touches one file after the other.
        bounds = [len(tasks) * i // shards for i in range(shards + 1)]
        self.members = [range(first, stop) for first, stop in itertools.pairwise(bounds)]
        # The results of `pack_scan` for finished scans.
        self.done: dict[int, dict[str, Any]] = {}

    def run(self, jobs: int, watch: Watch) -> int:
        """Pack the scans that are not packed yet, and return their number."""
        if self._complete():
            return 0
        self.parts.mkdir(exist_ok=True)
        # Without its manifest, a half-replaced dataset cannot be mistaken for a complete one.
        if self.overwrite:
            self.manifest.unlink(missing_ok=True)
        self.done = {}
        for i, _ in enumerate(self.tasks):
            self._recall(i)
        waiting = [n for n, members in enumerate(self.members) if not self._assembled(n, members)]
        todo = [i for n in waiting for i in self.members[n] if i not in self.done or not self._part(i).is_file()]
        for _ in watch(self._pack(todo, jobs), len(todo)):
            pass
        # Check before merging: a packed file must not combine two versions of its sources.
        sources = self._agreed_sources()
        for number in waiting:
            self._assemble(number)
        self._finish(sources)
        return len(todo)

    def _complete(self) -> bool:
        """Return whether everything is already packed from the current files.

        Raises:
            PackingError: Something else is there.
        """
        if not self.manifest.exists():
            return False
        try:
            there = read_manifest(self.manifest)
        except ReadError:
            there = None
        sources = None if there is None else self._unchanged(there)
        if sources is not None:
            self._renew(sources)
            shutil.rmtree(self.parts, ignore_errors=True)
            return True
        if not self.overwrite:
            what = f"the packed dataset {there.name!r}" if there is not None else "a file that is not a manifest"
            raise PackingError(
                f"{self.manifest} already exists: {what}, made with other settings or from files that have changed. "
                "Use --overwrite to replace it, or another --out."
            )
        self.replaced = {path for path, _, _ in there.arrays} - set(self.files) if there is not None else set()
        return False

    def _unchanged(self, there: Manifest) -> list[Source] | None:
        """Return the current sources, if the dataset was packed from the same content with the same settings."""
        if not all(file.is_file() for file in self.files):
            return None
        if there.sources is None:
            return self._compared(there)
        if there.fingerprint != self.fingerprint or len(there.sources) != len(self.sources):
            return None
        return all_unchanged(self.sources, there.sources)

    def _compared(self, there: Manifest) -> list[Source] | None:
        """Do the same as `_unchanged` for a manifest without sources, by hashing what would be packed now."""
        if dict(there.settings) != self.settings or {path for path, _, _ in there.arrays} != set(self.files):
            return None
        before = [hashed(file) for file in self.sources]
        self.done = {i: {"units": described_scan(task)} for i, task in enumerate(self.tasks)}
        said, made = read_json(self.manifest, "the manifest"), self._contents()
        if said["arrays"] != made["arrays"] or not same(decoded(said["dicts"]), decoded(made["dicts"])):
            return None
        return all_unchanged(self.sources, before)

    def _renew(self, sources: Sequence[Source]) -> None:
        """Update the manifest's description of the sources and of the dataset."""
        said = read_json(self.manifest, "the manifest")
        now = said | self._head(said) | {"sources": [source.as_list() for source in sources]}
        if now != said:
            write_json(self.manifest, now)

    # A scan is finished when its description exists, which is written after its part.

    def _part(self, i: int) -> Path:
        return self.parts / f"{self.fingerprints[i]}.h5"

    def _described(self, i: int) -> Path:
        return self.parts / f"{self.fingerprints[i]}.json"

    def _recall(self, i: int) -> None:
        """Reuse a scan that was packed before, if its files are unchanged."""
        files = source_files([self.tasks[i].scan])
        try:
            said = read_json(self._described(i), "what was packed before")
            units = [{key: unit[key] for key in ("dict", "labelled", "hashes")} for unit in said["units"]]
            sources = all_unchanged(files, [Source.of_list(values) for values in said["sources"]])
            if sources is not None:
                self.done[i] = {"units": units, "sources": [source.as_list() for source in sources]}
        except (ReadError, TypeError, ValueError, KeyError):
            pass  # there is nothing usable

    def _pack(self, todo: Sequence[int], jobs: int) -> Iterator[str]:
        """Pack scans and yield their names."""
        if jobs <= 1 or len(todo) <= 1:
            for i in todo:
                self._note(i, pack_scan(self.tasks[i], str(self._part(i))))
                yield self.tasks[i].group
            return
        # Not forked: threads of this process may hold locks.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(todo)), context, _end_with_parent) as pool:
            futures = {pool.submit(pack_scan, self.tasks[i], str(self._part(i))): i for i in todo}
            try:
                for future in as_completed(futures):
                    i = futures[future]
                    self._note(i, future.result())
                    yield self.tasks[i].group
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _note(self, i: int, done: dict[str, Any]) -> None:
        write_json(self._described(i), done)
        self.done[i] = done

    def _agreed_sources(self) -> list[Source]:
        """Return the sources of all scans.

        Raises:
            ReadError: A file with several scans changed between them.
        """
        found: dict[Path, Source] = {}
        for i, task in enumerate(self.tasks):
            for file, values in zip(source_files([task.scan]), self.done[i]["sources"], strict=True):
                source = Source.of_list(values)
                if found.setdefault(file, source).digest != source.digest:
                    raise ReadError("it changed while it was packed; run it again, to pack it as it is now", file)
        return [found[file] for file in self.sources]

    def _intent(self, members: Iterable[int]) -> Path:
        """Return a file that is written before the packed file appears. It proves that the packed file is ours."""
        return self.parts / f"file-{_hash([self.fingerprints[i] for i in members])}.json"

    def _assembled(self, number: int, members: Sequence[int]) -> bool:
        """Return whether a packed file exists and is complete."""
        file = self.files[number]
        if not (file.exists() and self._intent(members).is_file() and all(i in self.done for i in members)):
            return False
        return not verify_arrays(self._arrays(members, file))

    def _assemble(self, number: int) -> None:
        """Merge the parts of one file."""
        file, members = self.files[number], self.members[number]
        intent = self._intent(members)
        if file.exists() and not (self.overwrite or intent.is_file()):
            raise PackingError(f"{file} already exists and does not belong here. Remove it, or choose another --out.")
        # If the process is killed after the file appears, the next run recognizes it as its own and may replace it.
        write_json(intent, {})
        with Staging(overwrite=True) as staging:
            with create_h5(staging, str(file)) as made:
                copy_contents([str(self._part(i)) for i in members], made)
            if wrong := verify_arrays(self._arrays(members, Path(staging.temporary(str(file))))):
                raise ReadError(f"it was not written correctly: {wrong[0]}", file)
        for i in members:
            self._part(i).unlink()

    def _arrays(self, members: Iterable[int], file: Path) -> Iterator[tuple[Path, str, str]]:
        for i in members:
            for unit in self.done[i]["units"]:
                for key, digest in unit["hashes"].items():
                    yield file, key, digest

    def _head(self, there: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the part of the manifest that describes the dataset, in the format of `there`."""
        metadata = MetadataCatalog.get(self.name).as_dict()
        metadata = {key: value for key, value in metadata.items() if key not in _NO_METADATA}
        metadata.setdefault("collection", collection_of(self.name))
        split = dataset_spec(self.name).split
        return manifest_dict(self.name, split, metadata, self.settings, self.fingerprint, there)

    def _contents(self) -> dict[str, Any]:
        """Return the part of the manifest that describes the packed arrays."""
        dicts, arrays = [], []
        for file, members in zip(self.files, self.members, strict=True):
            for i in members:
                for unit in self.done[i]["units"]:
                    labels = {"sem_seg_file": file.name} if unit["labelled"] else {}
                    dicts.append({"file_name": file.name, **labels, **unit["dict"], "reader": _READER})
            arrays += [[path.name, key, digest] for path, key, digest in self._arrays(members, file)]
        return {"dicts": dicts, "arrays": arrays}

    def _finish(self, sources: Sequence[Source]) -> None:
        """Write the manifest, and remove intermediate files."""
        said = self._head() | self._contents() | {"sources": [source.as_list() for source in sources]}
        write_json(self.manifest, said)
        shutil.rmtree(self.parts)
        for file in self.replaced:
            file.unlink(missing_ok=True)


def _hash(values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def _end_with_parent() -> None:
    """End this worker process when the process that started it is killed: it would wait for tasks forever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
