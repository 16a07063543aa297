"""Batches of 2D slices and 3D patches, compared with MedSegPy, other libraries, and memory copies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader, scan_directory
from medsegpy_core.hdf5.backend import NUMPY, current_backend, using_backend
from tests.benchmarks import ancestor, limits, peers
from tests.benchmarks.material import CATEGORIES, Material, drop_from_cache, make_material
from tests.benchmarks.rounds import Case, Target, interleaved, markdown

__all__ = ["run"]

BATCH, PATCH, PATCH_BATCH = peers.BATCH, peers.PATCH, 2
THREADS = 2
_MEDSEGPY = "MedSegPy's way (h5py loop)"


def run(rounds: int, only: Sequence[str] = ()) -> Iterator[str]:
    """Yield the tables, as Markdown."""
    tables: dict[str, Callable[[Material, Path, int], str]] = {
        "slices": _slices,
        "gzip": _gzip,
        "cold": _cold,
        "patches": _patches,
        "order": _order,
    }
    with tempfile.TemporaryDirectory(prefix="medsegpy-bench-") as folder:
        material = make_material(Path(folder) / "sets", scans=2)
        _register("bench_slices", lambda: scan_directory(material.slices))
        _register("bench_gzip", lambda: scan_directory(material.gzip_slices))
        _register("bench_volumes", lambda: scan_directory(material.volumes))
        for name, table in tables.items():
            if not only or name in only:
                yield table(material, Path(folder), rounds)


def _register(name: str, get_dicts: Callable[[], list[dict[str, Any]]]) -> None:
    DatasetCatalog.register(name, get_dicts, replace=True)
    MetadataCatalog.get(name).set(replace=True, category_ids=CATEGORIES, categories=list("abcd"))


def _loader(
    name: str, tag: str = "DefaultDataLoader", threads: int = THREADS, numpy: bool = False, **options: Any
) -> Any:
    size = PATCH if "Patch" in tag else ()
    cfg = Config(
        TRAIN_DATASET=name,
        TAG=tag,
        SEED=0,
        NUM_WORKERS=threads,
        IMG_SIZE=size,
        PATCHES_PER_SCAN=16,
        FOREGROUND_RATIO=0.0,
    )
    with using_backend(NUMPY if numpy else current_backend()):
        return build_loader(cfg, name, batch_size=PATCH_BATCH if size else BATCH, **options)


def _epochs(loader: Any, times: int = 1) -> Callable[[], int]:
    def run_epochs() -> int:
        return sum(len(batch[0]) for _ in range(times) for batch in loader)

    return run_epochs


def _stems(folder: Path) -> list[str]:
    return sorted(str(path.with_suffix("")) for path in folder.glob("*.im"))


def _ancestor_slices(folder: Path, batches: int = 6) -> Case:
    stems, rng = _stems(folder), np.random.default_rng(0)

    def run_batches() -> int:
        for _ in range(batches):
            ancestor.slice_batch(rng.choice(stems, BATCH, replace=False), CATEGORIES)
        return batches * BATCH

    return Case(_MEDSEGPY, run_batches)


def _slices(material: Material, scratch: Path, rounds: int) -> str:
    packed = limits.pack("bench_slices", scratch / "packed-slices", "slices")
    _register("bench_packed_slices", packed)
    others, absent = peers.slice_cases(material.slices, min(material.volumes.iterdir()), scratch)
    cases = [
        _ancestor_slices(material.slices),
        *others,
        Case("files as they are", _epochs(_loader("bench_slices"))),
        Case("files as they are, reused buffers", _epochs(_loader("bench_slices", reuse_buffers=True), 3)),
        Case(
            "files as they are, reused buffers, NumPy alone",
            _epochs(_loader("bench_slices", reuse_buffers=True, numpy=True), 3),
        ),
        Case(
            "files as they are, uint8 masks",
            _epochs(_loader("bench_slices", reuse_buffers=True, mask_dtype="uint8"), 3),
        ),
        Case("packed", _epochs(_loader("bench_packed_slices"), 2)),
        Case("packed, reused buffers", _epochs(_loader("bench_packed_slices", reuse_buffers=True), 6)),
        Case(
            "packed, reused buffers, NumPy alone",
            _epochs(_loader("bench_packed_slices", reuse_buffers=True, numpy=True), 3),
        ),
        Case("packed, mmap, reused buffers", _epochs(_loader("bench_packed_slices", reuse_buffers=True, mmap=True), 6)),
        Case("memcpy, 1 thread", limits.copy_slices(material, 1)),
        Case("memcpy, 2 threads", limits.copy_slices(material, 2)),
    ]
    fast = "files as they are, reused buffers"
    targets = [
        Target(fast, _MEDSEGPY, 13),
        Target(fast, "MONAI Dataset, 2 workers", 5),
        Target(fast, "MONAI CacheDataset, all in RAM", 2),
        Target(fast, "TorchIO Queue, slices", 8),
        Target("packed, reused buffers", _MEDSEGPY, 27),
        Target("packed, reused buffers", "memcpy, 2 threads", 0.6),
    ]
    return markdown(
        "2D slices, batch 16, float32 masks, warm", interleaved(cases, rounds, "slices"), _MEDSEGPY, targets, absent
    )


def _gzip(material: Material, scratch: Path, rounds: int) -> str:
    stems, rng = _stems(material.gzip_slices), np.random.default_rng(0)

    def h5py_alone() -> int:
        for stem in rng.choice(stems, 48, replace=False):
            for suffix in (".im", ".seg"):
                with h5py.File(stem + suffix, "r") as file:
                    file["data"][:]
        return 48

    cases = [
        _ancestor_slices(material.gzip_slices, 3),
        Case("h5py alone: open and read", h5py_alone),
        Case("gzip files", _epochs(_loader("bench_gzip", reuse_buffers=True))),
        Case("gzip files, NumPy alone", _epochs(_loader("bench_gzip", reuse_buffers=True, numpy=True))),
    ]
    targets = [Target("gzip files", _MEDSEGPY, 7), Target("gzip files", "h5py alone: open and read", 3.4)]
    return markdown(
        "2D slices, gzip files with h5py's own chunks, warm",
        interleaved(cases, rounds, "slices"),
        _MEDSEGPY,
        targets,
        (),
    )


def _cold(material: Material, scratch: Path, rounds: int) -> str:
    files = sorted(material.slices.iterdir())

    def forget() -> None:
        drop_from_cache(files)

    cases = [
        _ancestor_slices(material.slices)._replace(before=forget),
        Case("files as they are", _epochs(_loader("bench_slices", reuse_buffers=True)), forget),
        Case("the bytes of the files from the disk", limits.read_files(files), forget),
    ]
    targets = [Target("files as they are", _MEDSEGPY, 7)]
    return markdown(
        "2D slices, cold: the files are not in the page cache",
        interleaved(cases, rounds, "slices"),
        _MEDSEGPY,
        targets,
        (),
    )


def _patches(material: Material, scratch: Path, rounds: int) -> str:
    packed = limits.pack("bench_volumes", scratch / "packed-patches", "patches")
    _register("bench_packed_patches", packed)
    chunked = limits.pack("bench_volumes", scratch / "packed-chunks", "patches", (64, 64, 64))
    _register("bench_packed_chunks", chunked)
    volumes = sorted(material.volumes.iterdir())
    others, absent = peers.patch_cases(volumes, scratch)
    rng = np.random.default_rng(0)

    def medsegpy() -> int:
        for _ in range(4):
            ancestor.patch_batch(
                [(volumes[int(rng.integers(2))], limits.random_box(rng)) for _ in range(2)], CATEGORIES
            )
        return 8

    tag = "RandomPatchDataLoader"
    cases = [Case(_MEDSEGPY, medsegpy), *others]
    for title, name in (
        ("file as it is", "bench_volumes"),
        ("packed", "bench_packed_patches"),
        ("packed in chunks of 64^3", "bench_packed_chunks"),
    ):
        for mapped in (False, True):
            loader = _loader(name, tag, reuse_buffers=True, mmap=mapped)
            cases.append(Case(f"{title}{', mmap' if mapped else ''}, to 4 x float32", _epochs(loader, 2)))
    loader = _loader("bench_packed_patches", tag, reuse_buffers=True, numpy=True)
    cases.append(Case("packed, to 4 x float32, NumPy alone", _epochs(loader, 2)))
    cases += [
        Case("packed, image and bit field", limits.read_stored(packed(), mmap=False)),
        Case("packed, mmap, image and bit field", limits.read_stored(packed(), mmap=True)),
        Case("crop from RAM, image and bit field, 1 thread", limits.crop(material, expand=False)),
        Case("crop from RAM, to 4 x float32, 1 thread", limits.crop(material, expand=True)),
    ]
    ram, mapped = "crop from RAM, image and bit field, 1 thread", "packed, mmap, image and bit field"
    targets = [
        Target("file as it is, to 4 x float32", _MEDSEGPY, 6),
        Target(mapped, ram, 0.9),
        Target("packed, image and bit field", ram, 0.6),
        Target(mapped, "nnU-Net v2 blosc2", 4),
        Target(mapped, "MONAI CacheDataset + random crop", 15),
        Target(mapped, "TorchIO Queue, uniform sampler", 60),
    ]
    return markdown(
        "3D patches of 128 x 128 x 64, batch 2, warm", interleaved(cases, rounds, "patches"), _MEDSEGPY, targets, absent
    )


def _order(material: Material, scratch: Path, rounds: int) -> str:
    # An epoch of more than a hundred batches, as epochs are: in a short one its end counts, where threads run out of
    # work.
    dicts = [d | {"scan_id": f"{d['scan_id']}-{i}"} for i in range(6) for d in scan_directory(material.slices)]
    _register("bench_long", lambda: dicts)
    loader = _loader("bench_long", reuse_buffers=True)
    loaders = {
        "the loader": _epochs(loader),
        "a bare loop over the same reads": limits.bare_loop(loader, THREADS, 1),
    }
    results = interleaved([Case(name, work) for name, work in loaders.items()], 2 * rounds, "slices")
    targets = [Target("the loader", "a bare loop over the same reads", 0.95)]
    return markdown(
        "Order and prefetch against a bare loop, 2 threads", results, "a bare loop over the same reads", targets, ()
    )
