"""`SemSegEvaluator`: from what a model makes of scans to tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medsegpy_core import ConfigError, MetadataCatalog, MetadataError
from medsegpy_core.data import checked_affine, parse_scan_name
from medsegpy_evaluation.pictures import category_colors
from medsegpy_evaluation.prediction_files import file_stem, save_prediction
from medsegpy_evaluation.report import write_report
from medsegpy_evaluation.results import FailedScan, document_of, write_tables
from medsegpy_evaluation.scores import ScanScores
from medsegpy_evaluation.scoring import problems_of, score_scan, workers
from medsegpy_evaluation.settings import MissingPolicy, make_settings
from medsegpy_evaluation.statistics import Bootstrap

if TYPE_CHECKING:
    import os

    from medsegpy_core import Config, Metadata
    from medsegpy_core.data import MetadataView
    from medsegpy_core.plugins import Evaluator

__all__ = ["SemSegEvaluator", "build_evaluator", "colors_of", "inference_on_dataset", "scan_identity"]


class SemSegEvaluator:
    """Scores segmentations of the scans of a dataset, category by category.

    The masks have the categories of the config's `CATEGORIES` (all of the metadata's if it is empty), in that order,
    with the background first where `INCLUDE_BACKGROUND` says so. The background is not scored. What each metric is, and
    what it is worth where a structure is missing, is in docs/evaluation.md.

    Args:
        dataset_name: A dataset with metadata.
        cfg: `TEST_METRICS`, `CATEGORIES`, `INCLUDE_BACKGROUND`, `LOSS`, `NSD_TOLERANCE`.
        output_folder: Where tables and report go; None: nowhere, `evaluate` returns them.
        policy: What metrics are worth where a structure is missing; None: the default, with the changes of the config's
            `MISSING_POLICY` where there is one.
        thresholds: A voxel belongs to a category where its probability is above this; by name: one per category.
        executor: Scores the categories; None: threads on the cores.
        keep_going: Whether scans that cannot be scored are left out, and listed in the result, instead of raising.
        save_predictions: ``"labels"`` or ``"probs"``: also write each prediction to ``predictions/SCAN.h5``, from where
            ``medsegpy evaluate`` reads them.
        pictures: Whether the report has pictures of the worst scans.

    Raises:
        ConfigError: A value of the config that cannot be used.
        CategoryError: A category that the metadata do not name.
        MetadataError: The metadata lack the categories.
        UnknownNameError: No plugin brings one of the metrics.
    """

    def __init__(
        self,
        dataset_name: str,
        cfg: Config,
        output_folder: str | os.PathLike[str] | None = None,
        *,
        policy: MissingPolicy | None = None,
        thresholds: float | Mapping[str, float] = 0.5,
        executor: Executor | None = None,
        keep_going: bool = False,
        save_predictions: Literal["labels", "probs"] | None = None,
        pictures: bool = True,
    ) -> None:
        if save_predictions not in (None, "labels", "probs"):
            raise ConfigError(f"save_predictions is {save_predictions!r}, expected 'labels', 'probs' or None.")
        if save_predictions and output_folder is None:
            raise ConfigError("save_predictions needs an output folder.")
        self.dataset_name = dataset_name
        self.output_folder = None if output_folder is None else Path(output_folder)
        self.metadata = MetadataCatalog.get(dataset_name)
        self.settings = make_settings(cfg, self.metadata, policy, thresholds)
        self.bootstrap = Bootstrap()
        self.colors = colors_of(self.metadata, self.settings.categories)
        self._drawn = pictures and output_folder is not None
        self._executor = executor
        self._keep_going = keep_going
        self._save = save_predictions
        self.reset()

    def reset(self) -> None:
        """Forget all scans."""
        self._scans: dict[str, ScanScores] = {}
        self._failed: dict[str, FailedScan] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Score scans. Nothing of the arrays is kept.

        Args:
            inputs: Per scan, as `inference` yields them: `scan_id`; optional `subject_id`, `time_point`, `x` (for the
                picture), and ``scan_*`` keys, of which ``scan_spacing`` overrides the metadata.
            outputs: Per scan `y_true` and `y_pred`, H x W [x D] x C: 0 and 1 (255 where nothing is known: left out and
                counted), and probabilities.

        Raises:
            ValueError: A scan that cannot be scored: shapes that differ, values that are NaN or out of range, no truth,
                no spacing where a metric needs it, or an id that came before. All such scans of the call are named,
                and none is scored; with `keep_going` the others are.
        """
        if isinstance(inputs, Mapping) or isinstance(outputs, Mapping) or len(inputs) != len(outputs):
            raise ValueError("process() takes a list of inputs and a list of outputs, one of each per scan.")
        checked = [self._check(i, o, position) for position, (i, o) in enumerate(zip(inputs, outputs, strict=True))]
        seen: set[str] = set()
        for position, item in enumerate(checked):
            scan = item.scan if isinstance(item, FailedScan) else item["scan"]
            if scan in self._scans or scan in seen:
                checked[position] = FailedScan(scan, ("it was processed before; reset() forgets it",))
            seen.add(scan)
        failed = [item for item in checked if isinstance(item, FailedScan)]
        if failed and not self._keep_going:
            raise ValueError(" ".join(map(str, failed)))
        self._failed.update({item.scan: item for item in failed})
        with workers(self._executor, len(self.settings.categories)) as run:
            for identity, given, output in zip(checked, inputs, outputs, strict=True):
                if isinstance(identity, FailedScan):
                    continue
                self._scans[identity["scan"]] = score_scan(
                    identity,
                    output["y_true"],
                    output["y_pred"],
                    self.settings,
                    image=given.get("x"),
                    colors=self.colors if self._drawn else None,
                    affine=given.get("scan_affine"),
                    run=run,
                )
                if self._save and self.output_folder is not None:
                    path = self.output_folder / "predictions" / f"{file_stem(identity['scan'])}.h5"
                    affine = checked_affine(given.get("scan_affine"))
                    save_prediction(path, output["y_pred"], self._save, self.settings, identity["spacing"], affine)

    def evaluate(self) -> dict[str, Any]:
        """Summarize the scans, and write ``metrics.csv``, ``metrics.json``, ``summary.csv`` and ``report.html``.

        Returns:
            What ``metrics.json`` holds: `metrics`, a row per scan, category and metric; `summary`, a row per category
            and metric; `settings`, `policy`, `versions`, `scans`, `subjects`, `time_points`, `rms_cv`, `failed`.
            Undefined values are None.

        Raises:
            ValueError: No scan was processed.
        """
        if not self._scans and not self._failed:
            raise ValueError(f"No scan of {self.dataset_name!r} was processed: there is nothing to evaluate.")
        scans, failed = list(self._scans.values()), list(self._failed.values())
        document = document_of(self.dataset_name, scans, failed, self.settings, self.bootstrap)
        if self.output_folder is not None:
            write_tables(self.output_folder, document)
            pictures = {scan.scan: scan.picture for scan in scans if scan.picture is not None}
            write_report(self.output_folder / "report.html", document, pictures, self.colors)
        return document

    def _check(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], position: int
    ) -> dict[str, Any] | FailedScan:
        """Return the identity of a scan, or what is wrong with it."""
        scan = inputs.get("scan_id")
        if scan is None:
            return FailedScan(f"number {position} of this call", ("its inputs lack 'scan_id'",))
        problems = problems_of(outputs.get("y_true"), outputs.get("y_pred"), self.settings.channels)
        shape = getattr(outputs.get("y_true"), "shape", (None,))[:-1]
        identity, more = scan_identity(inputs, self.metadata, self.settings.needing_spacing, shape=shape)
        return FailedScan(str(scan), (*problems, *more)) if problems or more else identity


def scan_identity(
    inputs: Mapping[str, Any],
    metadata: Metadata | MetadataView,
    needing_spacing: Sequence[str],
    file: Mapping[str, Any] | None = None,
    shape: Sequence[int] = (),
) -> tuple[dict[str, Any], list[str]]:
    """Return who and what a scan is, and what is wrong with that.

    Args:
        inputs: `scan_id`; optional `subject_id`, `time_point`, ``scan_*``.
        metadata: Of the dataset.
        needing_spacing: The metrics that need the spacing.
        file: What the file says.
        shape: Of the scan; a spacing that has not a value for each axis counts as unknown. Empty: not known.
    """
    scan = str(inputs["scan_id"])
    subject, time_point = inputs.get("subject_id"), inputs.get("time_point")
    if time_point is None:
        time_point = parse_scan_name(scan).get("time_point")
    problems, spacing = [], None
    try:
        one_slice = len(shape) == 3 and shape[2] == 1
        axes = (2, 3) if one_slice else (len(shape),) if shape else None
        found = metadata.for_scan(inputs, file, axes).get("spacing")
        spacing = None if found is None else tuple(float(size) for size in found)
        if one_slice and spacing is not None and len(spacing) == 2:
            spacing = (*spacing, 1.0)  # as in 2D: no distance has a part along it, and volumes are areas
    except MetadataError as error:
        problems.append(str(error))
    if spacing is None and not problems and needing_spacing:
        problems.append(
            f"its spacing is unknown, but {', '.join(needing_spacing)} need it: set `spacing` (mm, one per axis) in "
            "the metadata, or `scan_spacing` in the dataset dicts"
        )
    identity = {
        "scan": scan,
        "subject": scan if subject is None else _id(subject),
        "time_point": None if time_point is None else _id(time_point),
        "spacing": spacing,
    }
    return identity, problems


def _id(value: Any) -> int | str:
    return int(value) if isinstance(value, Integral) else str(value)


def colors_of(metadata: Metadata, categories: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the colors of categories: those of the metadata, else those of the palette."""
    colors = metadata.get("category_colors")
    return category_colors(categories, dict(zip(metadata.get("categories"), colors or (), strict=False)))


def build_evaluator(dataset_name: str, cfg: Config, output_folder: str | os.PathLike[str] | None) -> Evaluator:
    """Build the evaluator that the metadata's `evaluator_type` names.

    Args:
        dataset_name: A dataset with metadata.
        cfg: Its settings.
        output_folder: Where it writes.

    Raises:
        MetadataError: The metadata lack `evaluator_type`.
        UnknownNameError: No plugin brings it.
    """
    from medsegpy_core.plugins import default_manager

    name = MetadataCatalog.get(dataset_name).require("evaluator_type").evaluator_type
    manager = default_manager()
    if name == SemSegEvaluator.__name__ and not manager.claims("evaluators").get(name):
        # This package was imported without being a plugin here (MEDSEGPY_LOAD_PLUGINS leaves it out).
        return SemSegEvaluator(dataset_name, cfg, output_folder)
    evaluator: Evaluator = manager.lookup("evaluators", name).record.build(dataset_name, cfg, output_folder)
    return evaluator


def inference_on_dataset(model: Any, loader: Any, evaluator: Evaluator | Sequence[Evaluator]) -> Any:
    """Run a model over all scans of a loader, one at a time, and evaluate.

    Args:
        model: What the loader's `inference` takes.
        loader: A loader with `inference`.
        evaluator: One evaluator, or several, which all see each scan. They are reset first.

    Returns:
        What `evaluate` returns; for several evaluators, a list of that.
    """
    several = isinstance(evaluator, Sequence)
    evaluators = list(evaluator) if isinstance(evaluator, Sequence) else [evaluator]
    for each in evaluators:
        each.reset()
    for inputs, outputs in loader.inference(model):
        for each in evaluators:
            each.process([inputs], [outputs])
    results = [each.evaluate() for each in evaluators]
    return results if several else results[0]
