"""`evaluate_predictions`: score the predictions in a folder, scan by scan, and keep finished scores."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import evolve, field, frozen

from medsegpy_core import DatasetCatalog, MedSegPyError, MetadataCatalog, ReadError
from medsegpy_core.data import Alignment, Grid, MetadataView, align, normalize_category_ids, required_channels
from medsegpy_core.hdf5 import Access, accessing, current_access
from medsegpy_core.loading import DatasetScan, list_scans
from medsegpy_core.reading import Stamp, file_hash, is_young, stamp_of
from medsegpy_core.text import counted
from medsegpy_core.typing import CategoryId
from medsegpy_evaluation.calibration import has_probabilities
from medsegpy_evaluation.evaluator import colors_of, scan_identity
from medsegpy_evaluation.prediction_files import (
    LabelValues,
    decided,
    default_channels,
    file_stem,
    is_label_map,
    labelled,
    list_predictions,
    open_prediction,
    placed,
    problems_of_layout,
    scoring_settings,
)
from medsegpy_evaluation.report import write_report
from medsegpy_evaluation.results import FailedScan, document_of, json_text, save_file, write_tables
from medsegpy_evaluation.scores import ScanScores, StructureScores
from medsegpy_evaluation.scoring import score_scan, workers
from medsegpy_evaluation.settings import MissingPolicy, ScoreSettings, make_settings, selected_categories
from medsegpy_evaluation.statistics import Bootstrap

if TYPE_CHECKING:
    from medsegpy_core import Config

__all__ = [
    "Content",
    "PredictionsError",
    "ScanStore",
    "contents_of",
    "evaluate_predictions",
    "fingerprint",
    "is_content",
]


_FORMAT: Final = 4


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return a short text that differs where the values (plain ones) differ."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:32]


@frozen
class Content:
    """What a file held.

    Attributes:
        hash: Of all its bytes.
        stamp: As long as the file has this stamp, it holds the same; None: only the hash tells.
    """

    hash: str
    stamp: Stamp | None


def contents_of(paths: Iterable[Path]) -> dict[str, Content]:
    """Read files, and return what they hold.

    Raises:
        ReadError: A file cannot be read.
    """
    found = {}
    for path in paths:
        before, young = _stamp(path)
        digest = file_hash(path)
        # A file that changes may keep its stamp while it is young; and what was read may be older than the stamp.
        found[str(path)] = Content(digest, before if not young and _stamp(path)[0] == before else None)
    return found


def is_content(path: str, content: Content) -> bool:
    """Say whether a file still holds the same; it is read only if its stamp differs.

    Raises:
        ReadError: It cannot be read.
    """
    return _stamp(path)[0] == content.stamp or file_hash(path) == content.hash


def _stamp(path: str | Path) -> tuple[Stamp, bool]:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        raise ReadError(f"the file cannot be opened: {error.strerror}", path) from error
    return stamp_of(status), is_young(status)


class ScanStore:
    """A folder of results.

    A result counts only for what it was kept with: the same settings, and files with the same content. Files whose
    size, times and inode are as they were are not read.

    Args:
        folder: Made when the first result is kept.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, scan: str, mark: str, paths: Iterable[Path]) -> ScanScores | None:
        """Return the result of a scan, or None if there is none that still holds.

        Args:
            scan: Its id.
            mark: The fingerprint of the settings.
            paths: The files of prediction and truth.
        """
        try:
            kept = json.loads(self._path(scan).read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT or kept["fingerprint"] != mark:
                return None
            scores, files = _scores(kept["scores"]), {path: _content(*item) for path, item in kept["files"].items()}
            if files.keys() != {str(path) for path in paths}:
                return None
            touched = [path for path, content in files.items() if _stamp(path)[0] != content.stamp]
            again = contents_of(map(Path, touched))
            if any(again[path].hash != files[path].hash for path in touched):
                return None
        # Whatever is wrong with the file, the scan can be scored again.
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if touched:
            self.put(scores, mark, {**files, **again})  # so that they are not read next time
        return scores

    def put(self, scores: ScanScores, mark: str, files: Mapping[str, Content]) -> None:
        """Keep the result of a scan.

        Args:
            scores: The result.
            mark: The fingerprint of the settings.
            files: What the files of prediction and truth held when it was made.
        """
        states = {path: [c.hash, None if c.stamp is None else c.stamp.fields] for path, c in files.items()}
        kept = {"format": _FORMAT, "fingerprint": mark, "files": states, "scores": _plain(scores)}
        save_file(self._path(scores.scan), json_text(kept))

    def _path(self, scan: str) -> Path:
        return self._folder / f"{file_stem(scan)}.json"


def _content(digest: str, fields: list[int] | None) -> Content:
    return Content(digest, None if fields is None else Stamp.of_fields(*fields))


def _plain(scores: ScanScores) -> dict[str, Any]:
    return {
        "scan": scores.scan,
        "subject": scores.subject,
        "time_point": scores.time_point,
        "spacing": scores.spacing,
        "shape": scores.shape,
        "structures": [
            {
                "category": s.category,
                "status": s.status,
                "values": dict(s.values),
                "voxels": s.voxels,
                "unknown": s.unknown,
                "truth": s.truth,
                "undefined": dict(s.undefined),
            }
            for s in scores.structures
        ],
        "picture": None if scores.picture is None else base64.b64encode(scores.picture).decode(),
    }


def _scores(plain: Mapping[str, Any]) -> ScanScores:
    return ScanScores(
        scan=plain["scan"],
        subject=plain["subject"],
        time_point=plain["time_point"],
        spacing=None if plain["spacing"] is None else tuple(plain["spacing"]),
        shape=tuple(plain["shape"]),
        structures=tuple(
            StructureScores(
                s["category"],
                s["status"],
                s["values"],
                tuple(s["voxels"]),
                s["unknown"],
                truth=s["truth"],
                undefined=dict(s["undefined"]),
            )
            for s in plain["structures"]
        ),
        picture=None if plain["picture"] is None else base64.b64decode(plain["picture"]),
    )


class PredictionsError(MedSegPyError, ValueError):
    """Predictions that cannot be scored. The message lists all of them."""


@frozen
class Job:
    """A scan with its prediction, and all that it takes to score it in another process.

    Attributes:
        scan: Its id.
        truth: The scan of the dataset.
        path: The file of the prediction.
        settings: What is to be scored.
        category_ids: The channels of the truth, category by category.
        metadata: Of the dataset.
        label_channels: How many channels the label maps of the dataset have.
        channels: The names of the prediction's channels; None: what the file says, or the default.
        colors: For the picture; None: no picture.
        access: How files are read, which a worker does not know by itself.
    """

    scan: str
    truth: DatasetScan
    path: Path
    settings: ScoreSettings
    category_ids: tuple[CategoryId, ...]
    metadata: MetadataView
    label_channels: int
    channels: tuple[str, ...] | None = None
    colors: tuple[tuple[int, int, int], ...] | None = field(default=None, repr=False)
    access: Access = field(factory=current_access)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of prediction and truth."""
        return tuple(sorted({self.path, *self.truth.files}))

    @property
    def mark(self) -> str:
        """The settings that a kept result of this job has to be of."""
        said = [repr(record) for record in self.truth.records]
        # A new version may measure otherwise.
        code = version("medsegpy-evaluation")
        return fingerprint(
            {
                "version": code,
                "records": said,
                "settings": repr(evolve(self.settings, metrics=())),
                "metrics": [(metric.name, metric.owner) for metric in self.settings.metrics],
                "categories": self.category_ids,
                "metadata": repr(self.metadata.as_dict()),
                "channels": self.channels,
                "pictures": self.colors,
            }
        )


def evaluate_predictions(
    dataset: str,
    predictions: str | os.PathLike[str],
    cfg: Config,
    output_folder: str | os.PathLike[str] | None,
    *,
    channels: Sequence[str] | None = None,
    thresholds: float | Mapping[str, float] = 0.5,
    policy: MissingPolicy | None = None,
    executor: Executor | None = None,
    keep_going: bool = False,
    fresh: bool = False,
    pictures: bool = True,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> dict[str, Any]:
    """Score predictions that lie in a folder, one file a scan, named by the scan's id.

    HDF5 files hold ``probs`` (H x W x D x C; H x W x D where one category is evaluated) or ``labels``: H x W x D, with
    the values of the dataset's own label maps, or H x W x D x C, binary. Other formats are read by the installed
    readers; without channels they are label maps if they hold whole numbers. Predictions are compared on the grid of
    the scan: axes that are permuted or flipped are put right. Scans are scored side by side, each worker holding one.
    Without `keep_going`, everything is checked before anything is scored.

    Args:
        dataset: A registered dataset.
        predictions: The folder.
        cfg: As for `SemSegEvaluator`.
        output_folder: Where tables, report and the results of scans (``scans/``) go; None: nowhere.
        channels: The names of the predictions' channels, in their order, ``"background"`` for none of the categories;
            None: the attribute ``categories`` of the HDF5 dataset, else the config's order.
        thresholds: A voxel belongs to a category where its probability is above this; by name: one per category.
        policy: As for `SemSegEvaluator`.
        executor: Scores the scans; None: threads on the cores.
        keep_going: Whether what cannot be scored is left out, and listed in the result, instead of raising.
        fresh: Whether scans that are done are done again.
        pictures: Whether the report has pictures.
        progress: Called with an iterable and its length, returns one that yields the same.

    Returns:
        As `SemSegEvaluator.evaluate`.

    Raises:
        PredictionsError: Scans without a prediction, predictions without a scan, shapes, grids or channels that do not
            fit, values that are NaN or out of range, or no spacing where a metric needs it: all of them are listed.
        UnknownNameError: There is no such dataset.
        ReadError: There is no such folder.
    """
    if dataset not in DatasetCatalog:
        DatasetCatalog.get(dataset)  # the error for an unknown name, not one for the metadata that it lacks
    metadata = MetadataCatalog.get(dataset)
    settings = make_settings(cfg, metadata, policy, thresholds)
    colors = tuple(colors_of(metadata, settings.categories))
    drawn = colors if pictures and output_folder is not None else None
    ids = tuple(category_id for _, category_id in selected_categories(cfg, metadata))
    pairs, failed = _paired(list_scans(dataset, ids), dataset, Path(predictions))
    names = None if channels is None else tuple(channels)
    known_labels = required_channels(normalize_category_ids(metadata.get("category_ids")))
    jobs = [Job(*pair, settings, ids, metadata.view(), known_labels, names, drawn) for pair in pairs]
    store = None if output_folder is None else ScanStore(Path(output_folder) / "scans")
    done: list[ScanScores] = []
    if store is not None and not fresh:
        with workers(executor, len(jobs)) as run:
            done = [scores for scores in run(partial(kept, store=store), jobs) if scores is not None]
    known = {scores.scan for scores in done}
    jobs = [job for job in jobs if job.scan not in known]
    follow = progress or (lambda items, _: items)
    with workers(executor, len(jobs)) as run:
        if not keep_going:
            found = follow(run(check, jobs), len(jobs))
            _refuse([*failed, *(item for item in found if item is not None)])
        for item in follow(run(partial(score, store=store), jobs), len(jobs)):
            (failed if isinstance(item, FailedScan) else done).append(item)
    if not keep_going:
        _refuse(failed)
    return _finish(dataset, done, failed, settings, output_folder, colors)


def _paired(
    listed: Sequence[DatasetScan], dataset: str, folder: Path
) -> tuple[list[tuple[str, DatasetScan, Path]], list[FailedScan]]:
    """Return the scans with their predictions, and those that lack one or the other."""
    scans, files = {scan.scan_id: scan for scan in listed}, list_predictions(folder)
    failed = []
    for scan in sorted({*scans, *files}):
        if scan not in files:
            failed.append(FailedScan(scan, (f"there is no prediction of it in {folder}",)))
        elif scan not in scans:
            failed.append(FailedScan(scan, (f"{files[scan]} is a prediction of no scan of {dataset!r}",)))
    return [(scan, scans[scan], files[scan]) for scan in scans if scan in files], failed


def _refuse(failed: Sequence[FailedScan]) -> None:
    if failed:
        listed = "".join(f"\n  {item}" for item in sorted(failed, key=lambda item: item.scan))
        raise PredictionsError(
            f"{counted(len(failed), 'scan')} cannot be scored; keep_going=True (--keep-going) scores the rest:{listed}"
        )


def _finish(
    dataset: str,
    done: Sequence[ScanScores],
    failed: Sequence[FailedScan],
    settings: ScoreSettings,
    output_folder: str | os.PathLike[str] | None,
    colors: tuple[tuple[int, int, int], ...],
) -> dict[str, Any]:
    document = document_of(dataset, done, failed, settings, Bootstrap())
    if output_folder is not None:
        write_tables(Path(output_folder), document)
        drawn = {scores.scan: scores.picture for scores in done if scores.picture is not None}
        write_report(Path(output_folder) / "report.html", document, drawn, colors)
    return document


def kept(job: Job, store: ScanStore) -> ScanScores | None:
    """Return the result of an earlier run, if it still holds."""
    return store.get(job.scan, job.mark, job.files)


def check(job: Job) -> FailedScan | None:
    """Look at everything that can be wrong with a scan and its prediction, the values included."""
    with accessing(job.access):
        item = _prepared(job)
    return item if isinstance(item, FailedScan) else None


def score(job: Job, store: ScanStore | None) -> ScanScores | FailedScan:
    """Score one scan, and keep the result."""
    with accessing(job.access):
        return _scored(job, store)


def _scored(job: Job, store: ScanStore | None) -> ScanScores | FailedScan:
    try:
        # Before anything is read, so that what was scored is what was hashed, if that is unchanged afterwards.
        contents = contents_of(job.files) if store is not None else {}
        item = _prepared(job)
        if isinstance(item, FailedScan):
            return item
        identity, pred, probabilities = item
        truth, image = job.truth.read(with_image=job.colors is not None)
        if truth.shape != pred.shape:
            return FailedScan(job.scan, (f"the truth has the shape {truth.shape}, the prediction {pred.shape}",))
        scores = score_scan(
            identity,
            truth,
            pred,
            scoring_settings(job.settings),
            probabilities=probabilities,
            image=image,
            colors=job.colors,
            affine=job.metadata.for_scan(job.truth.inputs, job.truth.metadata).get("affine"),
        )
        if changed := [path for path, content in contents.items() if not is_content(path, content)]:
            return FailedScan(job.scan, (f"{', '.join(changed)} changed while it was scored; evaluate again",))
    except (MedSegPyError, OSError) as error:
        return FailedScan(job.scan, (str(error),))
    if store is not None:
        store.put(scores, job.mark, contents)
    return scores


def _prepared(job: Job) -> tuple[dict[str, Any], Any, Sequence[Any] | None] | FailedScan:
    """Return who the scan is, the masks that were predicted, and the probabilities; or what is wrong."""
    problems = job.truth.problems()
    try:
        truth = job.truth
        needed = job.settings.needing_spacing
        identity, more = scan_identity(truth.inputs, job.metadata, needed, truth.metadata, truth.shape)
        problems += more
        masks, probabilities, wrong = _predicted(job)
    except (MedSegPyError, OSError) as error:
        return FailedScan(job.scan, (*problems, str(error)))
    problems += wrong
    return FailedScan(job.scan, tuple(problems)) if problems else (identity, masks, probabilities)


def _predicted(job: Job) -> tuple[Any, Sequence[Any] | None, list[str]]:
    """Return what was predicted of the categories, on the truth's grid: masks; the probabilities, if there are any and
    a metric needs them; and what is wrong with them."""
    expected = job.truth.shape
    with open_prediction(job.path) as prediction:
        names = job.channels or prediction.names
        shape = tuple(prediction.array.shape)
        if expected[2:] == (1,) and shape[:2] == expected[:2] and shape[2:] != (1,) and len(shape) in (2, 3):
            shape = (*shape[:2], 1, *shape[2:])  # a scan of one slice, saved as H x W or H x W x C
        stored = shape
        how, problems = _placed(job, shape, prediction.metadata)
        if len(shape) >= len(expected):
            shape = (*(shape[axis] for axis in how.order), *shape[len(expected) :])
        problems += problems_of_layout(prediction, shape, expected, names, job.settings)
        if problems:
            return None, None, problems
        data = np.ascontiguousarray(align(prediction.array[...].reshape(stored), how))
        form = prediction.form
    if data.dtype.kind not in "fbiu":
        return None, None, [f"the prediction is {data.dtype}: numbers are expected"]
    if data.ndim > len(expected):
        return _decided(job, data, names, form)
    values = _label_values(job, names)
    is_map, problems = is_label_map(data, form, names, values, job.settings)
    if problems:
        return None, None, problems
    if not is_map:
        return _decided(job, data[..., None], names, form)
    masks, problems = labelled(data, values, job.settings.categories)
    return masks, None, problems


def _decided(
    job: Job, data: Any, names: Sequence[str] | None, form: str | None
) -> tuple[Any, Sequence[Any] | None, list[str]]:
    masks, problems = decided(data, names, job.settings)
    if problems or form == "labels" or not job.settings.needing_probabilities or not has_probabilities(data):
        return masks, None, problems
    channels = list(default_channels(job.settings) if names is None else names)
    return masks, [data[..., channels.index(name)] for name in job.settings.categories], []


def _placed(job: Job, shape: Sequence[int], stated: Mapping[str, Any]) -> tuple[Alignment, list[str]]:
    """Return how to bring a prediction onto the grid of the truth, and what is wrong with its grid."""
    truth = job.truth
    resolved = job.metadata.for_scan(truth.inputs, truth.metadata)
    known = {key: resolved.get(key) for key in ("spacing", "affine")}
    trusted = bool(truth.records[0].extra.get("trust_geometry", resolved.get("trust_geometry")))
    grid = Grid.of(shape[: len(truth.shape)], stated)
    return placed(grid, truth.metadata, known, truth.shape, trusted=trusted)


def _label_values(job: Job, names: Sequence[str] | None) -> LabelValues:
    """Return what the values of a label map mean: by the names, else as in the label maps of the dataset."""
    if names is not None:
        return LabelValues.named(names, job.settings.categories)
    declared = job.truth.records[0].extra.get("label_values", job.metadata.get("label_values"))
    return LabelValues.of_dataset(job.category_ids, job.label_channels, declared)
