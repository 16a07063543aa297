"""`profile`: measure a loader on a sample, and the gain of possible changes."""

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


# Changes with a smaller gain are not suggested.
_WORTH_IT: Final = 1.1
_ROUNDS: Final = 5
_STAGE_ROUNDS: Final = 5
_SHORTEST: Final = 0.03  # seconds of one measurement
_PREFETCHED, _DELIVERED = 1, 2
_RECORD_BYTES: Final = 1200  # measured: record, plan and layout of a slice
_PATCH_TAGS: Final = ("PatchDataLoader", "RandomPatchDataLoader")
_WINDOW_TAGS: Final = ("S25dDataLoader", "N5dDataLoader")
_PATCH: Final = (128, 128, 64)
_AGAIN: Final = "the same again"


@frozen
class Trial:
    """A change that was tried, and its gain on the sample.

    Attributes:
        change: The change.
        rate: Elements per second with the change: the median of the rounds.
        gain: The ratio to the rate without the change: the median of the rounds.
        low: The smallest gain of a round; the most extreme round on each side is ignored.
        high: The largest gain of a round, likewise.
        noise: The largest gain of the unchanged loader over itself, likewise.
    """

    change: str
    rate: float
    gain: float
    low: float
    high: float
    noise: float

    @property
    def helps(self) -> bool:
        """Whether the gain is at least 10 %, and larger than the noise in every round."""
        return self.gain >= _WORTH_IT and self.low > self.noise


@frozen
class Profile:
    """Where a loader spends its time.

    Attributes:
        dataset: The name.
        tag: The loader.
        size: The `IMG_SIZE` that was used.
        padded: Whether slices differ in size, and smaller ones are padded to it.
        batch_size: Elements per batch.
        batches: The smallest number of batches per measurement.
        threads: The number of threads in the config.
        rate: Elements per second with these threads: the median of the rounds.
        rate_range: The lowest and the highest rate of the rounds, without the most extreme ones.
        noise: See `Trial`: a smaller gain is not significant.
        kernels: Whether the compiled kernels of `medsegpy-native` are available to read uncompressed files.
        stages: Seconds per batch in one thread, by stage, the median of several rounds; see `stage_seconds`. Empty for
            loaders of plugins, which cannot be instrumented.
        stage_ranges: The lowest and the highest time of the rounds, without the most extreme ones.
        batch_bytes: The memory of a batch.
        memory: The memory of the loader in bytes: batches in flight, and the records of all elements. None for loaders
            of plugins, as is `preload_memory`.
        preload_memory: The memory of `PRELOAD_DATA` in bytes.
        advice: What the layout of the files costs.
        trials: The changes that were tried, the best first.
        not_tried: The changes that could not be tried, and why.
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
        """The changes that helped, the best first."""
        return [trial for trial in self.trials if trial.helps]


def profile(cfg: Config, dataset: str, batch_size: int, batches: int = 8) -> Profile:
    """Measure the loader of a config on a sample of a dataset, and the gain of possible changes.

    Threads, reused buffers, mapped files and uint8 masks are tried on the dataset itself; packed layouts on one scan,
    which is packed into a temporary folder. Rates are medians of rounds in which the candidates take turns. The
    unchanged loader takes two turns per round, which measures the noise. The files are in the page cache by then. For
    loaders of plugins, only the rate is measured, with several numbers of threads.

    Args:
        cfg: The config. If the loader needs an `IMG_SIZE` and the config has none, one that fits the scans is used.
        dataset: The name of a dataset.
        batch_size: Elements per batch.
        batches: The smallest number of batches per measurement; fewer if the dataset has fewer.

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
    """Return the gain of each candidate over `base`.

    Candidates are compared within each round, so that a load that slows down a whole round has no effect.

    Args:
        rates: Candidate to its rate in each round; all have the same number of rounds.
        base: The candidate to compare with.
        again: The same loader as `base`: the difference is the noise.
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
    """Return the second smallest and the second largest value: the machine may have been busy in one round."""
    ordered = sorted(values)
    return (ordered[1], ordered[-2]) if len(ordered) > 2 else (ordered[0], ordered[-1])


def _fit_size(cfg: Config, dataset: str, dicts: Sequence[DatasetDict], batch_size: int) -> bool:
    """Set an `IMG_SIZE` that fits all scans, if the config has none and its loader needs one.

    Returns:
        Whether slices differ in size, so that smaller ones are padded.
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
    """Return the seconds of each stage in several rounds; an empty list for loaders of plugins."""
    if not isinstance(loader, DataLoader):
        return []
    return [stage_seconds(loader, batches) for _ in range(_STAGE_ROUNDS)]


def _layout_advice(dataset: str, tag: str, scan: Scan, opener: Opener, tried: Sequence[Trial]) -> list[str]:
    """Return what the layout of the files costs, and whether packing was measured and did not help."""
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
    # Pass dicts, because a part of a dataset and packed files have no name.
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
    """Return the loaders to try on the unchanged dataset."""
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
    """Pack one scan in each layout that suits the loader, and compare it with the unchanged scan."""
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
    """Let loaders take turns, and return their rates (elements per second) in each round."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    names = list(loaders)
    for number in range(_ROUNDS + 1):
        # Start with another loader in each round, so that the order has no effect.
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
            raise RecordError("The loader makes no batches: there is nothing to measure.")
    return elements / seconds


def _preload_memory(loader: DataLoader) -> int:
    channels = loader.setup.maker.channels
    shapes = [source.geometry for source in loader.setup.files]
    return sum(g.shape[0] * g.shape[1] * g.shape[2] * (4 * (g.channels or 1) + channels) for g in shapes)
