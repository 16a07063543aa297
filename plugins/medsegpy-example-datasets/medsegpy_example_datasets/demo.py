"""What ``medsegpy demo`` does: the main job on real images, step by step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

from medsegpy_core import Config, DatasetCatalog, MetadataCatalog, build_loader
from medsegpy_core.cli.output import Screen, console, table, track
from medsegpy_core.data import normalize_category_ids
from medsegpy_core.drawing import Color, Panel, Upright, class_colors, draw, gray_window, spread_slices
from medsegpy_core.plugins import default_manager
from medsegpy_core.text import by
from medsegpy_example_datasets.baseline import Baseline

if TYPE_CHECKING:
    from medsegpy_core.typing import Array


_TRAIN, _VAL, _TEST = (f"abdomen_slices_{split}" for split in ("train", "val", "test"))
_VOLUMES: Final = "abdomen_volumes_train"
_PATCH: Final = (48, 48, 8)
_STREAM_SECONDS: Final = 1.0  # how long each loader is timed
_SLICES_SHOWN: Final = 4  # of each scan; even, so that scans do not share a row


@frozen
class _Class:
    """A class of the example datasets."""

    category_id: int
    name: str
    color: Color


@frozen(eq=False)
class _Prediction:
    """One scan: its image (H x W x D), and truth and prediction as class numbers, 0 for background."""

    dataset: str
    scan_id: str
    image: Array
    truth: Array
    prediction: Array


def run(out: Path | None) -> None:
    """Run the demo.

    Args:
        out: The folder for the picture; None: ``MEDSEGPY_RESULTS/demo``.
    """
    began = time.perf_counter()
    screen = console()
    folder = out or Path(os.environ.get("MEDSEGPY_RESULTS") or "results") / "demo"
    _heading(screen, "Plugins")
    rows = [(info.name, info.distribution, info.version, info.status) for info in default_manager().infos()]
    screen.print(table(["plugin", "distribution", "version", "status"], rows))
    classes = _classes()
    cfg = Config(
        "baseline",
        TRAIN_DATASET=_TRAIN,
        VAL_DATASET=_VAL,
        TEST_DATASET=_TEST,
        CATEGORIES=[found.category_id for found in classes],
        INCLUDE_BACKGROUND=True,
        SEED=0,
    )
    _heading(screen, "Datasets, by name")
    _show_datasets(screen)
    _heading(screen, "Training batches")
    _stream(screen, cfg)
    _heading(screen, "Baseline: brightness and place of each class, counted on the training person")
    model = _fit(screen, cfg)
    _heading(screen, "Inference, scan by scan")
    tested, shifted = _infer(cfg, model, _TEST), _infer(cfg, model, _VAL)
    _score(screen, tested, [found.name for found in classes])
    _explain_shift(screen, shifted)
    path = _paint(folder, [*tested, *shifted], classes)
    screen.print(f"\nPicture: {path.absolute()}")
    screen.print(f"Took {time.perf_counter() - began:.1f} s.")


def _heading(screen: Screen, text: str) -> None:
    screen.print(f"\n{text}", style="bold cyan")


def _classes() -> list[_Class]:
    """Return the classes that exclude each other: the superclasses, which overlap their parts, are left out."""
    metadata = MetadataCatalog.get(_TRAIN).require()
    ids = normalize_category_ids(metadata.category_ids)
    colors = class_colors(len(ids), metadata.get("category_colors"))
    found = zip(ids, metadata.categories, colors, strict=True)
    return [_Class(category_id, str(name), color) for category_id, name, color in found if isinstance(category_id, int)]


def _show_datasets(screen: Screen) -> None:
    rows = []
    for name in (_TRAIN, _VAL, _TEST, _VOLUMES):
        dicts, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
        spacing = by(float(step) for step in metadata.spacing)
        rows.append((name, metadata.get("modality", ""), len(dicts), len({d["scan_id"] for d in dicts}), spacing))
    screen.print(table(["dataset", "modality", ">elements", ">scans", "spacing (mm)"], rows))


def _stream(screen: Screen, cfg: Config) -> None:
    """Time loaders for a second each, decoding included, with the files in the system's cache."""
    rows = []
    for tag, dataset, size, batch_size in (
        ("DefaultDataLoader", _TRAIN, (), 8),
        ("PatchDataLoader", _VOLUMES, _PATCH, 4),
        ("RandomPatchDataLoader", _VOLUMES, _PATCH, 4),
    ):
        chosen = cfg.copy().merge_from_list(["TAG", tag, "IMG_SIZE", size, "TRAIN_DATASET", dataset])
        # Slices and volumes show the same people: each config names the splits of its own form.
        chosen.merge_from_list([k for p in ("VAL", "TEST") for k in (f"{p}_DATASET", "")])
        # All of the data: one person makes few patches, fewer than a batch perhaps.
        loader = build_loader(chosen, dataset, batch_size=batch_size, drop_last=False)
        images, masks, elements, seconds = _timed(loader)
        rows.append((tag, dataset, by(images.shape), by(masks.shape), f"{elements / seconds:,.0f} elements/s"))
    screen.print(table(["loader", "dataset", "images", "masks", ">rate"], rows))


def _timed(loader: Any) -> tuple[Array, Array, int, float]:
    """Pass through a loader until the time is up; return its first batch, the elements seen, and the seconds."""
    images, masks = loader[0]
    began, elements, seconds = time.perf_counter(), 0, 0.0
    while seconds < _STREAM_SECONDS:
        for batch, _ in loader:
            elements += len(batch)
            seconds = time.perf_counter() - began
            if seconds >= _STREAM_SECONDS:
                break
    return images, masks, elements, seconds


def _fit(screen: Screen, cfg: Config) -> Baseline:
    loader = build_loader(cfg, _TRAIN, batch_size=8, drop_last=False)
    model = Baseline.untrained(len(cfg.CATEGORIES) + 1)
    began = time.perf_counter()
    for images, masks in track(loader, "Fitting", total=len(loader)):
        model.fit(images, masks)
    screen.print(f"{loader.num_elements} slices of 1 person, {time.perf_counter() - began:.1f} s.")
    return model


def _infer(cfg: Config, model: Baseline, dataset: str) -> list[_Prediction]:
    loader = build_loader(cfg, dataset, is_test=True, batch_size=8)
    return [
        _Prediction(
            dataset,
            inputs["scan_id"],
            inputs["x"],
            outputs["y_true"].argmax(axis=-1),
            outputs["y_pred"].argmax(axis=-1),
        )
        for inputs, outputs in loader.inference(model)
    ]


def _score(screen: Screen, predictions: Sequence[_Prediction], names: Sequence[str]) -> None:
    measure, source = _dice_function()
    rows = []
    for found in predictions:
        spacing = [float(step) for step in MetadataCatalog.get(found.dataset).spacing]
        values = [measure(found.prediction == c, found.truth == c, spacing) for c in range(1, len(names) + 1)]
        rows.append((found.scan_id, *[f"{value:.2f}" for value in values]))
    screen.print(table(["test scan", *[f">{name}" for name in names]], rows, title=f"Dice ({source})"))
    screen.print(
        "One person to learn from, and no idea of shape: large organs are found roughly, vessels are not. A network\n"
        "trained on many scans is what the loaders are for.",
        style="dim",
    )


def _dice_function() -> tuple[Callable[[Array, Array, Sequence[float]], float], str]:
    """Return the DSC of the plugin that is installed, else a plain one."""
    owned = default_manager().metrics().get("DSC")
    if owned is not None:
        return owned.record.function, owned.owner.distribution
    return _dice, "2 |P and T| / (|P| + |T|), by the demo itself"


def _dice(prediction: Array, truth: Array, _spacing: Sequence[float]) -> float:
    total = np.count_nonzero(prediction) + np.count_nonzero(truth)
    return 2 * np.count_nonzero(prediction & truth) / total if total else float("nan")


def _explain_shift(screen: Screen, predictions: Sequence[_Prediction]) -> None:
    for found in predictions:
        screen.print(
            f"\n{found.dataset}, scan {found.scan_id}, is MR, and the baseline has seen CT only: it is in the picture, "
            "as a look\nat what a change of modality does, and is not scored.",
            style="dim",
        )


def _paint(folder: Path, predictions: Sequence[_Prediction], classes: Sequence[_Class]) -> Path:
    rows = []
    for found in predictions:
        metadata = MetadataCatalog.get(found.dataset).view()
        pixel = (float(metadata.spacing[0]), float(metadata.spacing[1]))
        window, upright = gray_window(found.image, metadata), Upright.of(metadata.get("affine"))
        scored = "" if found.dataset == _TEST else ", not scored"
        for position in spread_slices(np.any(found.truth > 0, axis=(0, 1)), _SLICES_SHOWN):
            image = found.image[:, :, position]
            caption = f"{metadata.get('modality', '')}, {found.scan_id}, slice {position + 1}"
            masks = [
                None,
                _one_hot(found.truth, position, len(classes)),
                _one_hot(found.prediction, position, len(classes)),
            ]
            captions = [caption, "truth", f"prediction{scored}"]
            pairs = zip(masks, captions, strict=True)
            rows.append([Panel(image, mask, text, pixel, window, upright) for mask, text in pairs])
    # Two slices side by side make the picture less of a tower.
    paired = [[*rows[i], *rows[i + 1]] if i + 1 < len(rows) else rows[i] for i in range(0, len(rows), 2)]
    title = "medsegpy demo: image, truth, prediction of a baseline of statistics"
    picture = draw(paired, title, [(found.name, found.color) for found in classes])
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / "demo.png", format="PNG")
    return folder / "demo.png"


def _one_hot(labels: Array, position: int, classes: int) -> Array:
    return np.equal(labels[:, :, position, None], np.arange(1, classes + 1))
