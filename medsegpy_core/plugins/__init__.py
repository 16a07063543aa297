"""Plugins: their hooks, how they are found and loaded, and what they provide."""

from __future__ import annotations

from medsegpy_core._util.exports import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "hookspecs": "hookimpl",
        "manager": "PluginManager default_manager",
        "specs": "Augmentation DatasetSpec Evaluator EvaluatorSpec LoaderOptions LoaderRequest LoaderSpec "
        "MetricSpec TransformSpec",
    },
)
