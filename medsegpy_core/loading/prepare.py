"""The setup of a loader: everything that is computed once, when the loader is built."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from medsegpy_core._util.limits import check_memory
from medsegpy_core.catalog import MetadataCatalog
from medsegpy_core.data.categories import normalize_category_ids
from medsegpy_core.errors import CategoryError, DataWarning, RecordError
from medsegpy_core.hdf5.options import Access, current_access
from medsegpy_core.loading.batches import BatchMaker, Plan
from medsegpy_core.loading.collate import Collation
from medsegpy_core.loading.evaluation_guards import check_augmentation, check_preprocessing, role_names
from medsegpy_core.loading.scans import Opener, group_scans
from medsegpy_core.loading.sources import ForegroundIndex, MemorySource, ScanSource, Source
from medsegpy_core.loading.windows import Windows
from medsegpy_core.plugins.specs import LoaderOptions, LoaderRequest
from medsegpy_core.reading.masks import annotated_channels
from medsegpy_core.text import some
from medsegpy_core.transforms import build_transforms
from medsegpy_core.typing import CategoryId

if TYPE_CHECKING:
    from medsegpy_core.config import Config
    from medsegpy_core.data.metadata import MetadataView
    from medsegpy_core.data.records import Record


def role_dataset(cfg: Config, is_test: bool) -> str:
    """Return the dataset to which dicts without a dataset name belong: the one with this role in the config."""
    keys = ("TEST_DATASET", "VAL_DATASET", "TRAIN_DATASET") if is_test else ("TRAIN_DATASET",)
    return next((name for key in keys for name in role_names(cfg, key)), "")


@frozen(eq=False)
class Setup:
    """The immutable part of a loader.

    Attributes:
        cfg: The config.
        options: The options of `build_loader`.
        files: The scans, read from files.
        sources: The scans to read from: in memory if the config sets `PRELOAD_DATA`, else `files`.
        metadata: A copy of the datasets' metadata, so that another process needs no registration.
        maker: Makes batches.
        is_test: Whether this is for evaluation.
        random_preprocessing: The names in ``PREPROCESSING`` whose transforms take random numbers.
    """

    cfg: Config
    options: LoaderOptions
    files: Sequence[ScanSource]
    sources: Sequence[Source]
    metadata: dict[str, MetadataView]
    maker: BatchMaker
    is_test: bool
    random_preprocessing: tuple[str, ...]

    @classmethod
    def of(cls, request: LoaderRequest, windows: Windows, seed: int) -> Setup:
        """Check the records and plan the elements."""
        cfg, options, records = request.cfg, request.options, request.records
        names = sorted({record.dataset for record in records} | set(request.datasets))
        if not records:
            raise RecordError(f"{_named(names)} no elements. Check its dataset function and its scan_root.")
        if not options.allow_augmented:
            check_augmentation(records, cfg, request.is_test)
        pipeline = build_transforms(cfg, request.transform)
        random = tuple(name for name, takes_rng in zip(cfg.PREPROCESSING, pipeline.random, strict=False) if takes_rng)
        check_preprocessing(random, names, cfg, request.is_test)
        opener = Opener.of(records, _access(options))
        may_be_unknown = request.is_test or options.keep_unlabelled
        collation = Collation(_category_ids(cfg, names, records, opener), cfg.INCLUDE_BACKGROUND, may_be_unknown)
        if not may_be_unknown:
            _refuse_unknown(records, collation)
        files = [ScanSource(scan, opener, collation) for scan in group_scans(records)]
        opener.prepare(source.scan.records[0] for source in files)
        if not _is_single_slice(windows):
            _warn_of_gaps(files)
        sources = _preloaded(files, collation.channels) if cfg.PRELOAD_DATA else files
        maker = BatchMaker(
            sources=sources,
            plan=Plan.of(windows, sources, options.keep_unlabelled),
            windows=windows,
            foreground=ForegroundIndex(sources, collation.channels, collation.background),
            collation=collation,
            pad_mode=cfg.IMG_PAD_MODE,
            mask_dtype=options.mask_dtype,
            seed=seed,
            pipeline=pipeline if len(pipeline) else None,
            keeps_raw=request.is_test,
        )
        for source in files:
            source.keep_planned()
        metadata = {name: MetadataCatalog.get(name).view() for name in names if name}
        setup = cls(cfg, options, files, sources, metadata, maker, request.is_test, random)
        if not request.is_test:
            setup.require_elements()
        return setup

    def with_seed(self, seed: int) -> Setup:
        """Return the same with another seed."""
        return evolve(self, maker=evolve(self.maker, seed=seed))

    def require_elements(self) -> None:
        """Raise `RecordError` if there are no elements; the message gives the reason."""
        if len(self.maker.plan):
            return
        names = sorted({source.scan.key[0] for source in self.sources})
        if not any(record.labelled for source in self.sources for record in source.scan.records):
            raise RecordError(
                f"{_named(names)} no labels: none of its elements has a 'sem_seg_file'. Batches need labels; "
                "build_loader(..., keep_unlabelled=True) delivers images with masks of -1, and inference(model) needs "
                "no labels."
            )
        raise RecordError(
            f"{_named(names)} no elements: no window of IMG_SIZE {self.cfg.IMG_SIZE} fits into the labelled part of a "
            f"scan (the first scan is {self.sources[0].geometry.shape}). Reduce IMG_SIZE, set IMG_PAD_SIZE, or pass "
            "keep_unlabelled=True."
        )


def _access(options: LoaderOptions) -> Access | None:
    """Return how a loader reads files, by its options; None: the options do not set it."""
    here = current_access()
    if options.isolate is None and not options.mmap:
        return None
    isolate = here.isolate if options.isolate is None else options.isolate
    return evolve(here, mmap=options.mmap or here.mmap, isolate=isolate)


def _named(names: Sequence[str]) -> str:
    known = [repr(name) for name in names if name]
    if not known:
        return "The list of dataset dicts has"
    return f"Dataset {known[0]} has" if len(known) == 1 else f"The datasets {', '.join(known)} have"


def _category_ids(
    cfg: Config, names: Sequence[str], records: Sequence[Record], opener: Opener
) -> tuple[CategoryId, ...]:
    """Return the categories to load: the config's, else the metadata's, else every channel of the files."""
    known = {name: MetadataCatalog.get(name).view() for name in names if name}
    _check_agreement(known)
    if cfg.CATEGORIES:
        return normalize_category_ids(cfg.CATEGORIES)
    if known:
        first = next(iter(known.values()))
        return normalize_category_ids(first.require("category_ids").get("category_ids"))
    for record in records:
        # The first label map need not contain all labels of the dataset.
        if record.labelled and (not record.extra.get("label_map") or record.extra.get("label_values")):
            with opener.open(record) as opened:
                if opened.mask is not None:
                    return tuple(range(opened.mask.shape[-1]))
    raise CategoryError(
        "There are no categories to load: the config's CATEGORIES is empty, the dicts belong to no dataset with "
        "metadata, and none of them has a mask with one channel per category. Set CATEGORIES, as in cfg.CATEGORIES "
        "= [0, 1]."
    )


def _refuse_unknown(records: Sequence[Record], collation: Collation) -> None:
    """Raise `RecordError` if the elements may contain unknown voxels, which the loss must ignore."""
    for record in records:
        if not record.labelled or not record.extra:
            continue
        ignored = record.extra.get("ignore_values")
        annotated = None if ignored else annotated_channels(record)
        if ignored or (annotated is not None and collation.partly_annotated(annotated).any()):
            key = "ignore_values" if ignored else "annotated"
            raise RecordError(
                f"{record.where()} has {key}={record.extra[key]!r}: unknown voxels are -1 (uint8: 255) in masks. "
                "Train with build_loader(..., keep_unlabelled=True) and a loss that ignores these voxels"
                f"{'' if ignored else ', or on the annotated categories alone: set CATEGORIES'}."
            )


def _check_agreement(known: dict[str, MetadataView]) -> None:
    described = {
        name: (normalize_category_ids(view.get("category_ids")), tuple(view.get("categories") or ()))
        for name, view in known.items()
        if view.get("category_ids") is not None
    }
    for (one, first), (other, second) in itertools.pairwise(described.items()):
        if first != second:
            raise CategoryError(
                f"Datasets {one!r} and {other!r} cannot be loaded together: their categories differ, {first[0]} named "
                f"{first[1]} against {second[0]} named {second[1]}. Set the same category_ids and categories for both."
            )


def _is_single_slice(windows: Windows) -> bool:
    return windows.depth_is_channel and getattr(windows, "depth", None) == 1


def _warn_of_gaps(files: Sequence[ScanSource]) -> None:
    gaps = [(source.scan, source.scan.missing) for source in files if source.scan.missing]
    if gaps:
        scan, missing = gaps[0]
        warnings.warn(
            f"{len(gaps)} scan{'s have' if len(gaps) > 1 else ' has'} gaps (scan {scan.key[1]!r} of {scan.key[0]!r} "
            f"lacks slices {some(missing, 10)}); in windows, "
            "the nearest existing slice replaces a missing one.",
            DataWarning,
            stacklevel=2,
        )


def _preloaded(files: Sequence[ScanSource], channels: int) -> list[Source]:
    voxels = [source.geometry.shape[0] * source.geometry.shape[1] * source.geometry.shape[2] for source in files]
    images = [n * 4 * (source.geometry.channels or 1) for n, source in zip(voxels, files, strict=True)]
    check_memory(sum(images) + sum(voxels) * channels, "PRELOAD_DATA")
    return [MemorySource.load(source, channels) for source in files]
