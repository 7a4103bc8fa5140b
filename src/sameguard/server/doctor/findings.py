"""What the doctor says: one line for each thing that it looked at."""

from dataclasses import dataclass

VERDICTS = ("ok", "warning", "problem", "unknown")


@dataclass(frozen=True)
class Finding:
    """check: what was looked at. found: what is there. remedy: what to do about it, "" where nothing is."""

    check: str
    verdict: str
    found: str
    remedy: str = ""
