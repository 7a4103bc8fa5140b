"""The victim: the protected model, seen from outside as a callable from queries to probabilities under an input contract.

A victim is a plain function, anything with `predict_proba` (scikit-learn), or an ONNX file; a torch module is wrapped by
`networks.torch_victim`, where torch may be imported. What it returns is declared (probabilities, logits or labels), never guessed,
and every answer is checked: a second softmax on probabilities flattens everything, and NaN compares false with any threshold.
"""

from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sameguard.contract import InputContract
from sameguard.endpoint import Answers
from sameguard.errors import ConfigurationError, InvalidVictimError
from sameguard.shapes import Probs, Queries

Output = Literal["probs", "logits", "labels"]
SUM_TOLERANCE = 5.1e-3  # ten probabilities rounded to three decimals are off by at most ten halves of .001


class BlackBox:
    """A victim from any callable. It is itself an Endpoint.

    predict: raw queries, as a client would send them under `contract`, to (batch, classes) probabilities or logits, or (batch,) labels.
    classes: number of classes K. output: what `predict` returns.
    """

    def __init__(
        self,
        predict: Callable[[np.ndarray], Any],
        contract: InputContract,
        *,
        classes: int,
        output: Output = "probs",
        batch_size: int = 256,
        name: str = "victim",
    ) -> None:
        if not (isinstance(classes, Integral) and classes >= 2):
            raise ConfigurationError(f"victim classes must be at least 2, a whole number, got {classes}.")
        if output not in ("probs", "logits", "labels"):
            raise ConfigurationError(f"victim output must be probs, logits or labels, got {output!r}.")
        if not (isinstance(batch_size, Integral) and batch_size >= 1):
            raise ConfigurationError(f"victim batch_size must be at least 1, a whole number, got {batch_size}.")
        self.predict = predict
        self.contract = contract
        self.classes = int(classes)
        self.output: Output = output
        self.batch_size = int(batch_size)
        self.name = name

    def query(self, queries: np.ndarray) -> Answers:
        """Answers to queries in canonical units, put on the contract's grid first."""
        probs = self.answer(self.contract.canonicalise(queries))
        return Answers(probs, np.ones(len(probs), bool))

    def answer(self, queries: Queries) -> Probs:
        """Probabilities (batch, K) for queries that are canonical already; one-hot rows where the victim gives labels only.

        Raises InvalidVictimError where the victim raises, or its answer is not what was declared.
        """
        chunks = [self._answer_chunk(queries[i : i + self.batch_size]) for i in range(0, len(queries), self.batch_size)]
        return np.concatenate(chunks)

    def _answer_chunk(self, queries: Queries) -> Probs:
        raw = self.contract.encode(queries)
        try:
            answer = np.asarray(self.predict(raw))
        except Exception as error:
            raise InvalidVictimError(f"{self.name} raised {type(error).__name__} on a batch of shape {raw.shape}: {error}") from error
        return checked_probs(answer, len(queries), self.classes, self.output, self.name)

    def check(self, queries: np.ndarray) -> None:
        """Answers a few queries and discards the result: the start-up test of the declared contract."""
        self.query(queries[:4])


def checked_probs(answer: np.ndarray, rows: int, classes: int, output: Output, name: str = "victim") -> Probs:
    """Probabilities float32 (rows, classes) from an answer that was declared as probs, logits or labels.

    Raises InvalidVictimError for a wrong shape, NaN or infinity, negative or unnormalised probabilities, labels out of range.
    """
    if output == "labels":
        return _one_hot(answer, rows, classes, name)
    if answer.shape != (rows, classes):
        remedy = (
            "declare output='labels' (--output labels) if these are class labels"
            if answer.ndim == 1
            else "declare the right number of classes"
        )
        raise InvalidVictimError(
            f"{name} must return shape ({rows}, {classes}), one row per query and one column per class, got {answer.shape}: {remedy}."
        )
    if answer.dtype.kind not in "fiu":
        raise InvalidVictimError(f"{name} must return numbers, got dtype {answer.dtype}.")
    answer = answer.astype(np.float64)
    if not np.isfinite(answer).all():
        raise InvalidVictimError(
            f"{name} must return finite {output}, got NaN or infinity in {int((~np.isfinite(answer)).any(1).sum())} rows."
        )
    if output == "logits":
        if answer.min() >= 0 and np.abs(answer.sum(axis=1) - 1).max() <= 1e-4:
            raise InvalidVictimError(
                f"{name} is declared to return logits, got rows that are >= 0 and sum to 1: declare output='probs' (--output probs)."
            )
        exponentials = np.exp(answer - answer.max(axis=1, keepdims=True))
        return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32)
    if answer.min() < 0:
        raise InvalidVictimError(
            f"{name} must return probabilities >= 0, got {answer.min():g}: declare output='logits' if these are logits."
        )
    sums = answer.sum(axis=1)
    if np.abs(sums - 1).max() > SUM_TOLERANCE:
        worst = sums[np.abs(sums - 1).argmax()]
        raise InvalidVictimError(
            f"{name} must return probabilities that sum to 1 in each row, got a sum of {worst:g}: declare output='logits' if these are logits."
        )
    return (answer / sums[:, None]).astype(np.float32)


def _one_hot(answer: np.ndarray, rows: int, classes: int, name: str) -> Probs:
    if answer.shape not in ((rows,), (rows, 1)):
        raise InvalidVictimError(
            f"{name} must return labels of shape ({rows},), got {answer.shape}: declare output='probs' if it gives more."
        )
    if answer.dtype.kind not in "fiu" or not np.array_equal(answer, np.rint(answer)):
        raise InvalidVictimError(f"{name} must return whole-numbered labels, got dtype {answer.dtype}.")
    if answer.min() < 0 or answer.max() >= classes:  # before the cast: infinity is a whole number to rint, and to no integer
        raise InvalidVictimError(f"{name} must return labels in [0, {classes}), got {answer.min()} to {answer.max()}.")
    return np.eye(classes, dtype=np.float32)[answer.reshape(rows).astype(np.int64)]


# ---------------------------------------------------------------------- common victims


def from_predictor(model: Any, contract: InputContract, *, output: str = "probs") -> BlackBox:
    """A victim from a fitted classifier with `classes_` and `predict_proba`, or with `predict` alone (scikit-learn); images are flattened.

    output: `probs` asks predict_proba, `labels` asks predict, whose classes are numbered as in `classes_`.
    Raises InvalidVictimError where the object has no such method or is not fitted, ConfigurationError for another output.
    """
    if output not in ("probs", "labels"):
        raise ConfigurationError(f"output of a classifier must be probs or labels, got {output!r}: predict_proba or predict is asked.")
    method = "predict_proba" if output == "probs" else "predict"
    if not hasattr(model, method):
        raise InvalidVictimError(
            f"victim of type {type(model).__name__} must have {method}, got none"
            + (": declare output='labels' (--output labels) to use predict." if hasattr(model, "predict") else ".")
        )
    if not hasattr(model, "classes_"):
        raise InvalidVictimError(f"victim of type {type(model).__name__} must be fitted, got no classes_: call fit() first.")
    numbered = {label: index for index, label in enumerate(np.asarray(model.classes_).tolist())}

    def predict(raw: np.ndarray) -> np.ndarray:
        found = getattr(model, method)(raw.reshape(len(raw), -1))
        return found if output == "probs" else np.array([numbered[label] for label in np.asarray(found).tolist()])

    return BlackBox(predict, contract, classes=len(model.classes_), output=output, name=type(model).__name__)


def from_onnx(
    path: str | Path, contract: InputContract | None = None, *, output: Output = "logits", classes: int | None = None
) -> BlackBox:
    """A victim from an ONNX classifier with one input (batch, ...) and at least one output (batch, K).

    Without a contract the graph's own input shape is used, NCHW in [0, 1] for images. The first rank-2 float output counts, else, for
    `labels`, the first output. Raises InvalidVictimError where the file is not such a graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InvalidVictimError(f"victim file {path} must be a readable ONNX graph, got {type(error).__name__}: {error}") from error
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise InvalidVictimError(f"victim file {path} must have one input, got {len(inputs)}: wrap it in BlackBox(your_function, ...).")
    (graph_input,) = inputs
    if contract is None:
        contract = _contract_of(graph_input, path)
    outputs = session.get_outputs()
    chosen = next((out for out in outputs if output != "labels" and len(out.shape or ()) == 2 and "float" in out.type), outputs[0])
    width = chosen.shape[1] if len(chosen.shape or ()) == 2 else None
    classes = classes or (width if isinstance(width, int) else None)
    if classes is None:
        raise InvalidVictimError(f"victim file {path} does not state its number of classes (output shape {chosen.shape}): give classes.")
    fixed_batch = graph_input.shape[0] if graph_input.shape and isinstance(graph_input.shape[0], int) else None

    def predict(raw: np.ndarray) -> np.ndarray:
        missing = max(0, (fixed_batch or 0) - len(raw))  # the last batch of a graph that takes exactly fixed_batch rows
        padded = np.concatenate([raw, np.repeat(raw[-1:], missing, axis=0)])
        answer = session.run([chosen.name], {graph_input.name: padded})[0]
        return answer[: len(raw)] if missing else answer

    return BlackBox(predict, contract, classes=classes, output=output, batch_size=fixed_batch or 256, name=Path(path).name)


def _contract_of(graph_input: Any, path: str | Path) -> InputContract:
    sides = tuple(graph_input.shape[1:])
    types = {1: ("tensor(float)",), 3: ("tensor(float)", "tensor(uint8)")}.get(len(sides), ())
    if graph_input.type not in types or not all(isinstance(side, int) for side in sides):
        raise InvalidVictimError(
            f"victim file {path} must take float or uint8 (batch, C, H, W) or float (batch, features), got {graph_input.type} "
            f"{graph_input.shape}: give an input contract."
        )
    if len(sides) == 1:
        return InputContract.vectors(sides[0], name=graph_input.name)
    if sides[0] > 4 >= sides[2]:
        raise InvalidVictimError(
            f"victim file {path} seems to take channels last, got input shape {graph_input.shape}: give an input contract with layout NHWC."
        )
    return InputContract.images(*sides, dtype="UINT8" if graph_input.type == "tensor(uint8)" else "FP32", name=graph_input.name)
