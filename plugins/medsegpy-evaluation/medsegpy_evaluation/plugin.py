"""What this package hands to medsegpy_core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from medsegpy_core import EvaluatorSpec, MetricSpec, hookimpl

if TYPE_CHECKING:
    import click

    from medsegpy_core import Config
    from medsegpy_evaluation.evaluator import SemSegEvaluator

__all__ = ["medsegpy_register_commands", "medsegpy_register_evaluators", "medsegpy_register_metrics"]


# Name, unit, and whether higher is better: what the table in `metrics` says, which takes NumPy to import. Metrics of
# probabilities are not among them: the function of a `MetricSpec` gets masks.
_METRICS: Final = (
    ("DSC", "", True),
    ("VOE", "", False),
    ("CV", "", False),
    ("RVD", "", True),
    ("Precision", "", True),
    ("Recall", "", True),
    ("ASSD", "mm", False),
    ("HD", "mm", False),
    ("HD95", "mm", False),
    ("NSD", "", True),
    ("BoundaryIoU", "", True),
    ("LesionF1", "", True),
    ("LesionPrecision", "", True),
    ("LesionRecall", "", True),
    ("LesionDSC", "", True),
    ("LesionTP", "", True),
    ("LesionFP", "", True),
    ("LesionFN", "", True),
    ("PredictedVolume", "mm3", True),
    ("TrueVolume", "mm3", True),
)


@frozen
class _OnMasks:
    """A metric of this package in the form that `MetricSpec` asks for: a function of two masks and the spacing."""

    name: str

    def __call__(self, pred: Any, truth: Any, spacing: Sequence[float]) -> float:
        from medsegpy_evaluation.metrics import MaskPair, builtin

        return builtin(self.name).of(MaskPair(pred, truth, spacing))


def _build(dataset_name: str, cfg: Config, output_folder: Any) -> SemSegEvaluator:
    from medsegpy_evaluation.evaluator import SemSegEvaluator

    return SemSegEvaluator(dataset_name, cfg, output_folder)


@hookimpl
def medsegpy_register_evaluators() -> list[EvaluatorSpec]:
    """Bring the evaluator that ``evaluator_type: "SemSegEvaluator"`` names."""
    return [EvaluatorSpec("SemSegEvaluator", _build)]


@hookimpl
def medsegpy_register_metrics() -> list[MetricSpec]:
    """Bring the metrics that `TEST_METRICS` picks from; those with options have the default ones."""
    return [MetricSpec(name, _OnMasks(name), unit, higher) for name, unit, higher in _METRICS]


@hookimpl
def medsegpy_register_commands() -> list[click.Command]:
    """Bring ``medsegpy evaluate`` and ``medsegpy compare``."""
    from medsegpy_evaluation.command import compare, evaluate

    return [evaluate, compare]
