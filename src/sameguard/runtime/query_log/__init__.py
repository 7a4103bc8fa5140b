"""Recorded queries scored again, offline: what the guard would have said, without a model server and in memory bounded by a batch.

Logs are `.jsonl`, `.npz` or `.parquet`, read in pieces that a worker can find again by itself; each piece is scored on its own, here or by
Ray actors, and written in the log's order. A row that cannot be scored is written with the reason, and costs the others nothing.
"""

from sameguard.runtime.query_log.rows import LogScoringError
from sameguard.runtime.query_log.run import ENGINES, LogSummary, score_log

__all__ = ["ENGINES", "LogScoringError", "LogSummary", "score_log"]
