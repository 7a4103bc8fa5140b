"""Evaluation: the metrics that the laboratory reports, and the laboratory: `evaluation.run.evaluate`, `evaluation.report.write_report`."""

from sameguard.evaluation.feasibility import infeasibilities, largest_average_precision
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
    "infeasibilities",
    "largest_average_precision",
    "tpr_at_fpr",
]
