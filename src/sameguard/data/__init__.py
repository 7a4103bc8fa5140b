"""Data sets as arrays: load one by name, cut it into disjoint parts, fetch the official files.

`names()` lists what `load` knows. A user's own images and arrays are read by `sameguard.data.folders`.
"""

from sameguard.data.dataset import DataSet, Split
from sameguard.data.fetch import fetch
from sameguard.data.registry import load, names
from sameguard.data.splits import split

__all__ = ["DataSet", "Split", "fetch", "load", "names", "split"]
