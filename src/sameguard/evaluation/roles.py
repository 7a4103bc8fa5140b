"""Who owns which data in a setting, disjoint by content (algorithms.md 5.2b): the victim's, the defender's, the thief's, the test set.

The victim trains on a fixed share of the official training set. Of what it never sees, one part are the thief's few natural images (JBDA's
seeds), the other the defender's benign queries (statistics and calibration). Benign evaluation data are the test set; test images that
also lie in another role are left out and counted.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sameguard.calibration import short_digests
from sameguard.contract import InputContract
from sameguard.data import DataSet, Split, load, split
from sameguard.errors import DataNotFoundError, InvalidDataError
from sameguard.evaluation.scenarios import Setting, Source
from sameguard.evaluation.victims import held_out_split

THIEF_SEED, HALVES_SEED, TEST_ORDER_SEED = 1, 2, 0


@dataclass(frozen=True, eq=False)
class Roles:
    """train: the victim's and SAME's. benign: canonical queries for statistics and calibration. natural: the thief's own few images.

    test: in a fixed random order, so that its first n rows are a sample. digests: role -> SHA-256 of its content. left_out: test images
    that were also in another role.
    """

    contract: InputContract
    classes: int
    train: Split
    benign: np.ndarray
    natural: Split
    test: Split
    digests: dict[str, str]
    left_out: int

    @property
    def test_queries(self) -> np.ndarray:
        return self.contract.canonicalise(self.test.inputs)


def roles_of(setting: Setting, data_root: Path) -> Roles:
    """Reads and cuts the setting's data. Raises DataNotFoundError, InvalidDataError where roles overlap."""
    data = load(setting.dataset, data_root)
    train, rest = held_out_split(data.train, setting.held_out)
    natural, benign = split(rest, (setting.thief_share, 1.0 - setting.thief_share), seed=THIEF_SEED)
    contract = InputContract.for_inputs(data.test.take(np.arange(1)).inputs)
    test = data.test.take(np.random.default_rng(TEST_ORDER_SEED).permutation(len(data.test)))
    parts = {"train": train, "natural": natural, "benign": benign}
    keys = {name: keys_of(part, contract) for name, part in parts.items()}
    seen = np.isin(keys_of(test, contract), np.concatenate(list(keys.values())))
    test = test.take(np.flatnonzero(~seen))
    parts["test"], keys["test"] = test, keys_of(test, contract)
    check_disjoint(keys)
    digests = {name: digest_of(part) for name, part in parts.items()}
    return Roles(contract, train.classes, train, contract.canonicalise(benign.inputs), natural, test, digests, int(seen.sum()))


def foreign_data(sources: tuple[Source, ...], data_root: Path, read: Callable[[str, Path], DataSet] = load) -> tuple[Split, Source]:
    """The first of these sources that is found, and which it was. read: how a named set is loaded. Raises DataNotFoundError where none is."""
    reasons = []
    for source in sources:
        try:
            part = getattr(read(source.name, data_root), source.part)
        except DataNotFoundError as error:
            reasons.append(str(error))
            continue
        if part is None or not len(part):
            reasons.append(f"{source.name} has no {source.part} part below {data_root}.")
            continue
        return (part if source.half is None else split(part, (0.5, 0.5), seed=HALVES_SEED)[source.half]), source
    raise DataNotFoundError(" ".join(reasons))


def check_disjoint(keys: dict[str, np.ndarray]) -> None:
    """Raises InvalidDataError where two roles share a query. keys: role -> short digests."""
    names = list(keys)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = len(np.intersect1d(keys[first], keys[second]))
            if shared:
                raise InvalidDataError(
                    f"roles {first} and {second} must share no query, got {shared} that are in both: cut them by content."
                )


def keys_of(part: Split, contract: InputContract) -> np.ndarray:
    """Short digests of the canonical queries of a split."""
    batches = [short_digests(contract.digests(contract.canonicalise(batch))) for batch in part.batches(4096)]
    return np.concatenate(batches) if batches else np.empty(0, np.uint64)


def digest_of(part: Split) -> str:
    """SHA-256 of a split's inputs and labels."""
    found = hashlib.sha256(f"{part.raw.dtype} {part.raw.shape} {part.classes}".encode())
    found.update(np.ascontiguousarray(part.raw).tobytes())
    if part.labels is not None:
        found.update(np.ascontiguousarray(part.labels).tobytes())
    return found.hexdigest()
