"""`profile`: a loader measured on a sample, and what changes would gain, measured too."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from medsegpy_core.config import Config
from medsegpy_core.datasets import list_dataset
from medsegpy_core.diagnostics.stages import STAGES, access_costs, stage_seconds
from medsegpy_core.errors import MedSegPyError, RecordError
from medsegpy_core.hdf5.backend import NUMPY, current_backend
from medsegpy_core.loading import DataLoader, build_loader
from medsegpy_core.loading.scans import Opener, Scan
from medsegpy_core.packing.manifest import decoded
from medsegpy_core.packing.scans import Compression, PackLayout, Task, write_scan

if TYPE_CHECKING:
    from medsegpy_core.typing import DatasetDict


# A change that gains less is not worth a word.
_WORTH_IT: Final = 1.1
_ROUNDS: Final = 5
_STAGE_ROUNDS: Final = 5
_SHORTEST: Final = 0.03  # seconds of one measurement
_PREFETCHED, _DELIVERED = 1, 2
_RECORD_BYTES: Final = 1200  # measured: what a slice costs in records, plan and layouts
_PATCH_TAGS: Final = ("PatchDataLoader", "RandomPatchDataLoader")
_WINDOW_TAGS: Final = ("S25dDataLoader", "N5dDataLoader")
_PATCH: Final = (128, 128, 64)
_AGAIN: Final = "the same again"


@frozen
class Trial:
    """A change that was tried, and what it gained on the sample.

    Attributes:
        change: What to do.
        rate: Elements a second with it: the median of the rounds.
        gain: That, in proportion to the rate without: the median of the rounds.
        low: The smallest gain of a round; the most extreme round on each side counts for nothing.
        high: The largest.
        noise: The largest "gain" of one and the same loader over itself, with the same exception.
    """

    change: str
    rate: float
    gain: float
    low: float
    high: float
    noise: float

    @property
    def helps(self) -> bool:
        """Whether it gains a tenth, and in every round more than one and the same loader differs from itself."""
        return self.gain >= _WORTH_IT and self.low > self.noise


@frozen
class Profile:
    """Where a loader's time goes.

    Attributes:
        dataset: The name.
        tag: The loader.
        size: The `IMG_SIZE` that was used.
        padded: Whether slices differ in size, and smaller ones are padded to it.
        batch_size: Elements a batch.
        batches: How many were made for each figure, at least.
        threads: The threads that the config asks for.
        rate: Elements a second, with these threads: the median of the rounds.
        rate_range: The lowest and the highest of the rounds, without the most extreme ones.
        noise: See `Trial`: a gain that is not larger says nothing.
        kernels: Whether the compiled kernels of `medsegpy-native` are there to read uncompressed files.
        stages: Seconds a batch in one thread, by stage, the median of several rounds; see `stage_seconds`. Empty for a
            loader of a plugin, which cannot be looked into.
        stage_ranges: The lowest and the highest of the rounds, without the most extreme ones.
        batch_bytes: The memory of a batch.
        memory: Bytes that the loader will take: batches in flight, and what is known of every element. None for a
            loader of a plugin, as `preload_memory` is.
        preload_memory: Bytes that `PRELOAD_DATA` would take.
        advice: What the layout of the files costs.
        trials: What was tried, the best first.
        not_tried: What could not be tried, and why.
    """

    dataset: str
    tag: str
    size: tuple[int, ...]
    padded: bool
    batch_size: int
    batches: int
    threads: int
    rate: float
    rate_range: tuple[float, float]
    noise: float
    kernels: bool
    stages: dict[str, float]
    stage_ranges: dict[str, tuple[float, float]]
    batch_bytes: int
    memory: int | None
    preload_memory: int | None
    advice: list[str]
    trials: list[Trial]
    not_tried: list[str] = field(factory=list)

    @property
    def suggestions(self) -> list[Trial]:
        """What was tried and helped, the best first."""
        return [trial for trial in self.trials if trial.helps]


def profile(cfg: Config, dataset: str, batch_size: int, batches: int = 8) -> Profile:
    """Measure the loader that a config names on a sample of a dataset, and what changes gain.

    Threads, kept buffers, mapped files and uint8 masks are tried on the dataset itself, packed layouts on one scan,
    which is really packed, into a temporary folder. Rates are medians of rounds in which the candidates take turns;
    the loader itself takes two turns, which says how much a measurement is worth. The files are in the system's cache
    by then. Of a loader that a plugin brings, only the rate is measured, with other numbers of threads too.

    Args:
        cfg: The config. An empty `IMG_SIZE` becomes one that fits the scans, where the loader needs one.
        dataset: The name of a dataset.
        batch_size: Elements a batch.
        batches: How many batches a measurement takes at least; fewer where the dataset has no more.

    Raises:
        MedSegPyError: The dataset cannot be read, or is empty.
    """
    cfg = cfg.copy()
    if cfg.SEED is None:
        cfg.SEED = 0
    dicts = list_dataset(dataset)
    if not dicts:
        raise RecordError(f"Dataset {dataset!r} is empty: there is nothing to measure.")
    padded = _fit_size(cfg, dataset, dicts, batch_size)
    loader = _build(cfg, dataset, dicts, batch_size)
    batches = max(1, min(batches, len(loader)))
    rounds = _stage_rounds(loader, batches)
    now, not_tried = _now(cfg), list[str]()
    changes = _trials(cfg, dataset, dicts, batch_size, isinstance(loader, DataLoader), not_tried)
    rates = _rates({now: loader, _AGAIN: loader, **changes}, batches)
    tried = compared(rates, now, _AGAIN)
    advice = []
    if isinstance(loader, DataLoader):
        source = loader.setup.files[0]
        tried += _packed(cfg, dataset, dicts, source.scan, source.opener, batch_size, batches, not_tried)
        advice = _layout_advice(dataset, cfg.TAG, source.scan, source.opener, tried)
    batch_bytes = sum(int(getattr(array, "nbytes", 0)) for array in next(iter(loader)))
    in_flight = cfg.NUM_WORKERS + _PREFETCHED + _DELIVERED if cfg.NUM_WORKERS else _DELIVERED
    built_in = isinstance(loader, DataLoader)
    return Profile(
        dataset=dataset,
        tag=cfg.TAG,
        size=tuple(cfg.IMG_SIZE),
        padded=padded,
        batch_size=batch_size,
        batches=batches,
        threads=cfg.NUM_WORKERS,
        rate=median(rates[now] + rates[_AGAIN]),
        rate_range=_range(rates[now] + rates[_AGAIN]),
        noise=_noise(rates, now, _AGAIN),
        kernels=current_backend() is not NUMPY,
        stages={stage: median(seen[stage] for seen in rounds) for stage in STAGES} if rounds else {},
        stage_ranges={stage: _range([seen[stage] for seen in rounds]) for stage in STAGES} if rounds else {},
        batch_bytes=batch_bytes,
        memory=in_flight * batch_bytes + _RECORD_BYTES * len(dicts) if built_in else None,
        preload_memory=_preload_memory(loader) if isinstance(loader, DataLoader) else None,
        advice=advice,
        trials=sorted(tried, key=lambda trial: trial.gain, reverse=True),
        not_tried=not_tried,
    )


def compared(rates: Mapping[str, Sequence[float]], base: str, again: str) -> list[Trial]:
    """Return what each candidate gains over `base`.

    Candidates are compared round by round, so that what slows down a whole round counts for nothing.

    Args:
        rates: Candidate to its rate in each round; the same number of rounds for all.
        base: The candidate that is compared with.
        again: The same once more: how it differs from `base` is the noise.
    """
    noise = _noise(rates, base, again)
    before = [math.sqrt(one * other) for one, other in zip(rates[base], rates[again], strict=True)]
    trials = []
    for change, measured in rates.items():
        if change not in (base, again):
            gains = [rate / usual for rate, usual in zip(measured, before, strict=True)]
            trials.append(Trial(change, median(measured), median(gains), *_range(gains), noise))
    return trials


def _noise(rates: Mapping[str, Sequence[float]], base: str, again: str) -> float:
    pairs = zip(rates[base], rates[again], strict=True)
    return _range([max(one, other) / min(one, other) for one, other in pairs])[1]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the second smallest and the second largest value: the machine may have been busy for one round."""
    ordered = sorted(values)
    return (ordered[1], ordered[-2]) if len(ordered) > 2 else (ordered[0], ordered[-1])


def _fit_size(cfg: Config, dataset: str, dicts: Sequence[DatasetDict], batch_size: int) -> bool:
    """Give a config without `IMG_SIZE` one that all scans fit, if its loader needs one.

    Returns:
        Whether slices differ in size, and smaller ones are padded.
    """
    if cfg.TAG not in (*_PATCH_TAGS, *_WINDOW_TAGS, "DefaultDataLoader"):
        return False
    plain = cfg.copy()
    plain.TAG, plain.IMG_SIZE, plain.PRELOAD_DATA = "DefaultDataLoader", (), False
    slices = _build(plain, dataset, dicts, batch_size)
    shapes = [source.geometry.shape for source in slices.setup.files]
    largest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    differ = len({shape[:2] for shape in shapes}) > 1
    if not cfg.IMG_SIZE and cfg.TAG in _PATCH_TAGS:
        cfg.IMG_SIZE = tuple(min(n, p) for n, p in zip(largest, _PATCH, strict=True))
    elif not cfg.IMG_SIZE and cfg.TAG in _WINDOW_TAGS:
        cfg.IMG_SIZE = (*largest[:2], 3)
    elif not cfg.IMG_SIZE and differ:
        cfg.IMG_SIZE = (*largest[:2], 1)
    return differ and cfg.TAG not in _PATCH_TAGS


def _stage_rounds(loader: Any, batches: int) -> list[dict[str, float]]:
    """Return the seconds of each stage in several rounds; none for a loader of a plugin."""
    if not isinstance(loader, DataLoader):
        return []
    return [stage_seconds(loader, batches) for _ in range(_STAGE_ROUNDS)]


def _layout_advice(dataset: str, tag: str, scan: Scan, opener: Opener, tried: Sequence[Trial]) -> list[str]:
    """Say what the layout of the files costs; where packing was measured and did not help, say that too."""
    packing = [trial for trial in tried if trial.change.startswith("medsegpy pack")]
    useless = bool(packing) and not any(trial.helps for trial in packing)
    doubt = ", but made no measurable difference to this sample" if useless else ""
    return [
        cost.advice(dataset) + doubt
        for cost in access_costs(scan, opener)
        if cost.wasteful and (cost.what == "patch") == (tag in _PATCH_TAGS)
    ]


def _build(cfg: Config, dataset: str, dicts: Sequence[DatasetDict], batch_size: int, **options: Any) -> Any:
    cfg = cfg.copy()
    cfg.TRAIN_DATASET, cfg.VAL_DATASET, cfg.TEST_DATASET = dataset, "", ""
    # By dicts: a part of a dataset, and packed files, are listed the same way.
    return build_loader(cfg, dicts, batch_size=batch_size, shuffle=True, drop_last=False, allow_leakage=True, **options)


def _now(cfg: Config) -> str:
    return f"NUM_WORKERS={cfg.NUM_WORKERS}"


def _trials(
    cfg: Config,
    dataset: str,
    dicts: Sequence[DatasetDict],
    batch_size: int,
    built_in: bool,
    not_tried: list[str],
) -> dict[str, Any]:
    """Return the loaders that are tried on the dataset as it is."""
    found = {}
    for change, threads, options in _changes(cfg.NUM_WORKERS, built_in):
        other = cfg.copy()
        other.NUM_WORKERS = threads
        try:
            found[change] = _build(other, dataset, dicts, batch_size, **options)
        except MedSegPyError as error:
            not_tried.append(f"{change}: {error}")
    return found


def _changes(threads: int, built_in: bool) -> Iterator[tuple[str, int, dict[str, Any]]]:
    cores = os.cpu_count() or 1
    for other in sorted({1, 2, cores, 2 * cores} - {threads}):
        yield f"NUM_WORKERS={other}", other, {}
    if built_in:
        yield "reuse_buffers=True", threads, {"reuse_buffers": True}
        yield "mmap=True", threads, {"mmap": True}
        yield 'mask_dtype="uint8"', threads, {"mask_dtype": "uint8"}


def _packed(
    cfg: Config,
    dataset: str,
    dicts: Sequence[DatasetDict],
    scan: Scan,
    opener: Opener,
    batch_size: int,
    batches: int,
    not_tried: list[str],
) -> list[Trial]:
    """Pack one scan in each layout that suits the loader, and measure it against the same scan as it is."""
    layout = "patches" if cfg.TAG in _PATCH_TAGS else "slices"
    own = [d for d in dicts if d["scan_id"] == scan.key[1] and (d.get("augmentation") or scan.key[2]) == scan.key[2]]
    compressions: tuple[Compression, ...] = ("none", "gzip")
    with tempfile.TemporaryDirectory(prefix="medsegpy-profile-") as folder:
        as_it_is = "as it is"
        loader = _build(cfg, dataset, own, batch_size)
        loaders = {as_it_is: loader, _AGAIN: loader}
        for compression in compressions:
            packed = PackLayout("patches" if layout == "patches" else "slices", compression)
            path = str(Path(folder) / f"{compression}.h5")
            command = f"medsegpy pack {dataset} --layout {layout}"
            command += "" if compression == "none" else f" --compression {compression}"
            try:
                made = write_scan(Task(scan, "scan", opener, packed), path)
                files = [{"file_name": path} | ({"sem_seg_file": path} if unit["labelled"] else {}) for unit in made]
                units = [
                    {**file, **decoded(unit["dict"]), "reader": "h5-volumes"}
                    for file, unit in zip(files, made, strict=True)
                ]
                loaders[command] = _build(cfg, dataset, units, batch_size)
            except MedSegPyError as error:
                not_tried.append(f"{command}: {error}")
        return compared(_rates(loaders, batches), as_it_is, _AGAIN)


def _rates(loaders: Mapping[str, Any], batches: int) -> dict[str, list[float]]:
    """Return the rates, elements a second, of loaders that take turns, for each round."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for number in range(_ROUNDS + 1):
        # Another begins each time: what runs after what must not matter.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            rate = _rate(loaders[name], batches)
            if number:  # the first round warms up
                found[name].append(rate)
    return found


def _rate(loader: Any, batches: int) -> float:
    elements, made, seconds = 0, 0, 0.0
    began = time.perf_counter()
    while made < batches or seconds < _SHORTEST:
        before = made
        for found in loader:
            elements += len(found[0])
            made += 1
            seconds = time.perf_counter() - began
            if made >= batches and seconds >= _SHORTEST:
                break
        if made == before:
            raise RecordError("The loader makes no batch: there is nothing to measure.")
    return elements / seconds


def _preload_memory(loader: DataLoader) -> int:
    channels = loader.setup.maker.channels
    shapes = [source.geometry for source in loader.setup.files]
    return sum(g.shape[0] * g.shape[1] * g.shape[2] * (4 * (g.channels or 1) + channels) for g in shapes)
