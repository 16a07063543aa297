"""What this package hands to medsegpy_core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medsegpy_core import EvaluatorSpec, MetricSpec, hookimpl

if TYPE_CHECKING:
    import click

    from medsegpy_core import Config
    from medsegpy_evaluation.evaluator import SemSegEvaluator

__all__ = ["medsegpy_register_commands", "medsegpy_register_evaluators", "medsegpy_register_metrics"]


def _build(dataset_name: str, cfg: Config, output_folder: Any) -> SemSegEvaluator:
    from medsegpy_evaluation.evaluator import SemSegEvaluator

    return SemSegEvaluator(dataset_name, cfg, output_folder)


@hookimpl
def medsegpy_register_evaluators() -> list[EvaluatorSpec]:
    """Bring the evaluator that ``evaluator_type: "SemSegEvaluator"`` names."""
    return [EvaluatorSpec("SemSegEvaluator", _build)]


@hookimpl
def medsegpy_register_metrics() -> list[MetricSpec]:
    """Bring the metrics that `TEST_METRICS` picks from."""
    from medsegpy_evaluation.metrics import metric_specs

    return metric_specs()


@hookimpl
def medsegpy_register_commands() -> list[click.Command]:
    """Bring ``medsegpy evaluate``."""
    from medsegpy_evaluation.command import evaluate

    return [evaluate]
