"""A model behind a URL as a victim: what fitting, calibrating and scoring ask, which must be the model itself and not its guard."""

import numpy as np

from sameguard.client.remote_endpoint import RemoteEndpoint
from sameguard.endpoint import Endpoint
from sameguard.errors import InvalidVictimError
from sameguard.shapes import Probs, Queries
from sameguard.victim import BlackBox


class RemoteVictim(BlackBox):
    """A BlackBox that asks `endpoint` one request at a time.

    kept: what the queries go through instead, an AnswerBook of the endpoint for example, so that answers survive a crash.
    A refused query raises InvalidVictimError: half the answers are no victim.
    """

    def __init__(self, endpoint: RemoteEndpoint, kept: Endpoint | None = None) -> None:
        self.endpoint = endpoint
        self._asked = kept or endpoint
        model = endpoint.model
        super().__init__(
            self._predict, endpoint.contract, classes=endpoint.classes, output=model.output_kind, batch_size=endpoint.batch_rows,
            name=f"{endpoint.url} ({model.name})",
        )  # fmt: skip

    def _predict(self, raw: np.ndarray) -> np.ndarray:
        return self._answer_chunk(self.contract.decode(raw))

    def _answer_chunk(self, queries: Queries) -> Probs:
        """The dialect has turned logits and labels into probabilities already."""
        answers = self._asked.query(queries)
        if not answers.answered.all():
            raise InvalidVictimError(
                f"{self.name} must answer every query, got {int((~answers.answered).sum())} of {len(queries)} refused: this is a guard, or another "
                "gateway. Give the address of the model server behind it."
            )
        return answers.probs
