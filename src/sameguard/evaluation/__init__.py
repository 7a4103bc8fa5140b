"""Evaluation: the metrics that the laboratory reports."""

from sameguard.evaluation.metrics import (
    accuracy,
    aupr_trapezoid,
    auroc,
    average_precision,
    bootstrap_interval,
    bootstrap_intervals,
    fidelity,
    fpr_at_tpr,
    tpr_at_fpr,
)

__all__ = [
    "accuracy",
    "aupr_trapezoid",
    "auroc",
    "average_precision",
    "bootstrap_interval",
    "bootstrap_intervals",
    "fidelity",
    "fpr_at_tpr",
    "tpr_at_fpr",
]
