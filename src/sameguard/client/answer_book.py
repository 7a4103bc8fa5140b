"""A ledger for a victim: its answers by query, in whatever order they are asked for.

An attack's ledger is replayed in order, because the next query depends on the last answers. Fitting and calibrating ask a function: a
resumed fit skips what it has done and asks the rest, so answers are looked up by the query's digest. Same file, same promise.
"""

from pathlib import Path

import numpy as np

from sameguard.endpoint import Answers, Endpoint
from sameguard.ledger import Ledger


class AnswerBook(Ledger):
    """The inner endpoint's answers, each query asked once. replayed: queries served from the book so far."""

    def __init__(self, endpoint: Endpoint, path: str | Path) -> None:
        super().__init__(endpoint, path)
        self._known = {digest.tobytes(): (self._probs[row], self._answered[row]) for row, digest in enumerate(self._digests)}

    def query(self, queries: np.ndarray) -> Answers:
        """Recorded answers for the queries that were asked before, the inner endpoint's for the others, each asked once."""
        queries = self.contract.canonicalise(queries)
        keys = [digest.tobytes() for digest in self.contract.digests(queries)]
        new: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if key not in self._known:
                new.setdefault(key, row)
        self.replayed += len(queries) - len(new)
        if new:
            answers = self.endpoint.query(queries[list(new.values())])
            self._append(np.stack([np.frombuffer(key, np.uint8) for key in new]), answers)
            self._known.update(zip(new, zip(answers.probs, answers.answered, strict=True), strict=True))
        probs, answered = zip(*(self._known[key] for key in keys), strict=True)
        return Answers(np.stack(probs), np.array(answered, bool))
