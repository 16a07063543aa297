"""Evaluation of segmentations: metrics in physical units, one policy for missing structures, tables and a report.

Everything is loaded when it is first used: importing this plugin costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from medsegpy_evaluation.plugin import (
    medsegpy_register_commands,
    medsegpy_register_evaluators,
    medsegpy_register_metrics,
)

if TYPE_CHECKING:
    from medsegpy_evaluation.compare import Comparison, ComparisonError, compare_results
    from medsegpy_evaluation.evaluator import SemSegEvaluator, build_evaluator, inference_on_dataset
    from medsegpy_evaluation.metrics import MetricOptions
    from medsegpy_evaluation.predictions import evaluate_predictions
    from medsegpy_evaluation.scoring import score_masks
    from medsegpy_evaluation.settings import MissingPolicy
    from medsegpy_evaluation.surfaces import SurfaceDistances, surface_distances

__all__ = [
    "Comparison",
    "ComparisonError",
    "MetricOptions",
    "MissingPolicy",
    "SemSegEvaluator",
    "SurfaceDistances",
    "build_evaluator",
    "compare_results",
    "evaluate_predictions",
    "inference_on_dataset",
    "medsegpy_register_commands",
    "medsegpy_register_evaluators",
    "medsegpy_register_metrics",
    "score_masks",
    "surface_distances",
]

# module -> the public names that it has; the same table as the imports above, which only type checkers read.
_MODULES = {
    "compare": "Comparison ComparisonError compare_results",
    "evaluator": "SemSegEvaluator build_evaluator inference_on_dataset",
    "metrics": "MetricOptions",
    "predictions": "evaluate_predictions",
    "scoring": "score_masks",
    "settings": "MissingPolicy",
    "surfaces": "SurfaceDistances surface_distances",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'medsegpy_evaluation' has no attribute {name!r}", name=name, obj=None)
    value = getattr(importlib.import_module(f"medsegpy_evaluation.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
