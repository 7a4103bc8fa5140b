"""Which files a log is made of, and which reader knows their format."""

import glob
from collections.abc import Callable
from pathlib import Path

from sameguard.errors import ConfigurationError, DataNotFoundError
from sameguard.runtime.query_log.arrays import Arrays
from sameguard.runtime.query_log.json_lines import JsonLines
from sameguard.runtime.query_log.parquet import ParquetRows
from sameguard.runtime.query_log.rows import Frame, Source

SOURCES: dict[str, Callable[[Frame], Source]] = {".jsonl": JsonLines, ".npz": Arrays, ".parquet": ParquetRows}


def find_logs(spec: str) -> list[Path]:
    """The files that a path, a directory or a glob names, in order of their names.

    Raises DataNotFoundError where there are none, ConfigurationError where they are not of one format.
    """
    path = Path(spec)
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.suffix in SOURCES and not entry.name.startswith("."))
    else:
        found = [path] if path.exists() else sorted(Path(name) for name in glob.glob(spec))
    known = ", ".join(SOURCES)
    if not found:
        raise DataNotFoundError(f"queries {spec!r} must name a file, a directory or a glob of {known} files, got none there.")
    suffixes = sorted({entry.suffix for entry in found})
    if len(suffixes) > 1 or suffixes[0] not in SOURCES:
        raise ConfigurationError(
            f"queries must be files of one format, {known}, got {', '.join(suffix or 'no suffix' for suffix in suffixes)}: choose by a glob."
        )
    return found
