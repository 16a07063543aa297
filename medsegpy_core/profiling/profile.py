"""`profile`: a loader measured on a sample, and what changes would gain, measured too."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from medsegpy_core.config import Config
from medsegpy_core.datasets import list_dataset
from medsegpy_core.errors import MedSegPyError
from medsegpy_core.hdf5.kernels import kernels
from medsegpy_core.loading import DataLoader, build_loader
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.packing.layout import Compression, PackLayout
from medsegpy_core.packing.manifest import decoded
from medsegpy_core.packing.scans import Task, write_scan
from medsegpy_core.profiling.layouts import access_costs
from medsegpy_core.profiling.stages import stage_seconds

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict

__all__ = ["Profile", "Trial", "profile"]

# A change that gains less is not worth a word.
_WORTH_IT: Final = 1.1
_ROUNDS: Final = 3
_PREFETCHED, _DELIVERED = 1, 2
_RECORD_BYTES: Final = 1200  # measured: what a slice costs in records, plan and layouts
_PATCH_TAGS: Final = ("PatchDataLoader", "RandomPatchDataLoader")

Loaders = Callable[..., DataLoader]


@frozen
class Trial:
    """A change that was tried, and what it gained on the sample.

    Attributes:
        change: What to do.
        rate: Elements a second with it.
        gain: That, in proportion to the rate without.
    """

    change: str
    rate: float
    gain: float


@frozen
class Profile:
    """Where a loader's time goes.

    Attributes:
        dataset: The name.
        tag: The loader.
        batch_size: Elements a batch.
        batches: How many were made for each figure.
        threads: The threads that the config asks for.
        rate: Elements a second, with these threads.
        kernels: Whether the compiled kernels of `medsegpy-native` are there to read uncompressed files.
        stages: Seconds a batch in one thread, by stage; see `stage_seconds`.
        batch_bytes: The memory of a batch.
        memory: Bytes that the loader will take: batches in flight, and what is known of every element.
        preload_memory: Bytes that `PRELOAD_DATA` would take.
        advice: What the layout of the files costs.
        trials: What was tried, the best first.
    """

    dataset: str
    tag: str
    batch_size: int
    batches: int
    threads: int
    rate: float
    kernels: bool
    stages: dict[str, float]
    batch_bytes: int
    memory: int
    preload_memory: int
    advice: list[str]
    trials: list[Trial]

    @property
    def suggestions(self) -> list[Trial]:
        """What was tried and helped, the best first."""
        return [trial for trial in self.trials if trial.gain >= _WORTH_IT]


def profile(cfg: Config, dataset: str, batch_size: int, batches: int = 8) -> Profile:
    """Measure the loader that a config names on a sample of a dataset, and what changes gain.

    Threads, kept buffers, mapped files and uint8 masks are tried on the dataset itself, packed layouts on one scan,
    which is really packed, into a temporary folder. Rates are medians of rounds in which the candidates take turns.

    Args:
        cfg: The config.
        dataset: The name of a dataset.
        batch_size: Elements a batch.
        batches: How many batches a measurement takes; fewer where the dataset has no more.

    Raises:
        MedSegPyError: The loader is not one of the built-in ones, or the dataset cannot be read.
    """
    cfg = cfg.copy()
    if cfg.SEED is None:
        cfg.SEED = 0
    dicts = list_dataset(dataset)
    loader = _build(cfg, dataset, dicts, batch_size)
    batches = min(batches, len(loader))
    stages = stage_seconds(loader, batches)
    trials = dict(_trials(cfg, dataset, dicts, batch_size))
    now = _now(cfg)
    rates = _rates({now: loader} | trials, batches)
    tried = [Trial(change, rates[change], rates[change] / rates[now]) for change in trials]
    scan = loader.setup.files[0].scan
    tried += _packed(cfg, dataset, dicts, scan, loader.setup.files[0].opener, batch_size, batches)
    found = loader[0]
    batch_bytes = sum(array.nbytes for array in found)
    in_flight = cfg.NUM_WORKERS + _PREFETCHED + _DELIVERED if cfg.NUM_WORKERS else _DELIVERED
    return Profile(
        dataset=dataset,
        tag=cfg.TAG,
        batch_size=batch_size,
        batches=batches,
        threads=cfg.NUM_WORKERS,
        rate=rates[now],
        kernels=kernels() is not None,
        stages=stages,
        batch_bytes=batch_bytes,
        memory=in_flight * batch_bytes + _RECORD_BYTES * len(dicts),
        preload_memory=_preload_memory(loader),
        advice=[
            cost.advice(dataset)
            for cost in access_costs(scan, loader.setup.files[0].opener)
            if cost.wasteful and (cost.what == "patch") == (cfg.TAG in _PATCH_TAGS)
        ],
        trials=sorted(tried, key=lambda trial: trial.gain, reverse=True),
    )


def _build(cfg: Config, dataset: str, dicts: Sequence[DatasetDict], batch_size: int, **options: Any) -> DataLoader:
    cfg = cfg.copy()
    cfg.TRAIN_DATASET, cfg.VAL_DATASET, cfg.TEST_DATASET = dataset, "", ""
    # By dicts: a part of a dataset, and packed files, are listed the same way.
    loader = build_loader(
        cfg, dicts, batch_size=batch_size, shuffle=True, drop_last=False, allow_leakage=True, **options
    )
    if not isinstance(loader, DataLoader):
        raise MedSegPyError(f"{cfg.TAG} is a loader of a plugin; only the built-in loaders can be looked into.")
    return loader


def _now(cfg: Config) -> str:
    return f"NUM_WORKERS={cfg.NUM_WORKERS}"


def _trials(
    cfg: Config, dataset: str, dicts: Sequence[DatasetDict], batch_size: int
) -> Iterator[tuple[str, DataLoader]]:
    """Yield the loaders that are tried on the dataset as it is."""
    cores = os.cpu_count() or 1
    for threads in sorted({1, 2, cores, 2 * cores} - {cfg.NUM_WORKERS}):
        other = cfg.copy()
        other.NUM_WORKERS = threads
        yield _now(other), _build(other, dataset, dicts, batch_size)
    yield "reuse_buffers=True", _build(cfg, dataset, dicts, batch_size, reuse_buffers=True)
    yield "mmap=True", _build(cfg, dataset, dicts, batch_size, mmap=True)
    yield 'mask_dtype="uint8"', _build(cfg, dataset, dicts, batch_size, mask_dtype="uint8")


def _packed(
    cfg: Config, dataset: str, dicts: Sequence[DatasetDict], scan: Scan, opener: Opener, batch_size: int, batches: int
) -> list[Trial]:
    """Pack one scan in each layout that suits the loader, and measure it against the same scan as it is."""
    layout = "patches" if cfg.TAG in _PATCH_TAGS else "slices"
    own = [d for d in dicts if d["scan_id"] == scan.key[1] and (d.get("augmentation") or scan.key[2]) == scan.key[2]]
    compressions: tuple[Compression, ...] = ("none", "gzip")
    with tempfile.TemporaryDirectory(prefix="medsegpy-profile-") as folder:
        as_it_is = "as it is"
        loaders = {as_it_is: _build(cfg, dataset, own, batch_size)}
        for compression in compressions:
            packed = PackLayout("patches" if layout == "patches" else "slices", compression)
            path = str(Path(folder) / f"{compression}.h5")
            made = write_scan(Task(scan, "scan", opener, packed), path)
            files = [{"file_name": path} | ({"sem_seg_file": path} if unit["labelled"] else {}) for unit in made]
            units = [
                {**file, **decoded(unit["dict"]), "reader": "h5-volumes"}
                for file, unit in zip(files, made, strict=True)
            ]
            command = f"medsegpy pack {dataset} --layout {layout}"
            command += "" if compression == "none" else f" --compression {compression}"
            loaders[command] = _build(cfg, dataset, units, batch_size)
        rates = _rates(loaders, batches)
    return [Trial(name, rate, rate / rates[as_it_is]) for name, rate in rates.items() if name != as_it_is]


def _rates(loaders: dict[str, DataLoader], batches: int) -> dict[str, float]:
    """Return the median rates, elements a second, of loaders that take turns."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(_ROUNDS + 1):
        for name, loader in loaders.items():
            rate = _rate(loader, batches)
            if number:  # the first round warms up
                found[name].append(rate)
    return {name: sorted(rates)[len(rates) // 2] for name, rates in found.items()}


def _rate(loader: DataLoader, batches: int) -> float:
    elements, made = 0, 0
    began = time.perf_counter()
    while made < batches:
        for found in loader:
            elements += len(found[0])
            made += 1
            if made == batches:
                break
    return elements / (time.perf_counter() - began)


def _preload_memory(loader: DataLoader) -> int:
    channels = loader.setup.maker.channels
    shapes = [source.geometry for source in loader.setup.files[:1]]
    one = sum(g.shape[0] * g.shape[1] * g.shape[2] * (4 * (g.channels or 1) + channels) for g in shapes)
    return one * len(loader.setup.files)
