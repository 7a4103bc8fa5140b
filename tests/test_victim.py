"""Victims: what they return is declared, and every answer is checked against the declaration."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError, InvalidQueryError, InvalidVictimError
from sameguard.victim import BlackBox, checked_probs, from_onnx, from_predictor
from stand_ins import Watched, onnx_graph, softmax, unchecked

TABLE = InputContract.vectors(2)
ROWS = np.array([[0.0, 1.0], [2.0, -3.0], [0.5, 0.5]], np.float32)


def answering(answer, *, classes: int = 3, output: str = "probs", batch_size: int = 256) -> BlackBox:
    return BlackBox(lambda raw: answer, TABLE, classes=classes, output=output, batch_size=batch_size)


# ---------------------------------------------------------------------- what is accepted


def test_probabilities_come_back_as_they_are_and_every_query_is_answered():
    probs = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 1]])
    answers = answering(probs).query(ROWS)
    assert answers.probs.dtype == np.float32
    assert np.array_equal(answers.probs, probs)
    assert answers.answered.tolist() == [True, True, True]
    assert isinstance(answering(probs), Endpoint)


def test_probabilities_rounded_to_three_decimals_are_brought_back_to_a_sum_of_one():
    probs = answering([[0.333, 0.333, 0.333]] * 3).answer(ROWS)
    assert np.allclose(probs, 1 / 3, rtol=1e-6)


def test_integer_one_hot_rows_are_probabilities():
    assert np.array_equal(answering([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).answer(ROWS), [[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def test_logits_become_probabilities_by_one_softmax():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.9, 0.05, 0.05]])) + 7.0
    assert np.allclose(answering(logits, output="logits").answer(ROWS), np.exp(logits - 7.0), rtol=1e-6)


def test_logits_of_any_size_neither_overflow_nor_warn():
    probs = answering([[1e30, 0, -1e30], [-1e30, -1e30, -1e30], [800, 0, 0]], output="logits").answer(ROWS)
    assert np.allclose(probs, [[1, 0, 0], [1 / 3] * 3, [1, 0, 0]])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-50, 50), min_size=4, max_size=4), min_size=1, max_size=6))
def test_a_probability_victim_and_its_logit_twin_answer_equally(logits):
    logits = np.array(logits)
    assume(logits.min() < 0 or np.abs(logits.sum(axis=1) - 1).max() > 1e-4)  # such logits are refused: they look like probabilities
    by_logits = checked_probs(logits, len(logits), 4, "logits")
    by_probs = checked_probs(softmax(logits), len(logits), 4, "probs")
    assert np.allclose(by_logits, by_probs, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("labels", [[2, 0, 1], [[2], [0], [1]], np.array([2.0, 0.0, 1.0]), np.array([2, 0, 1], np.uint8)])
def test_labels_become_one_hot_rows(labels):
    assert np.array_equal(answering(labels, output="labels").answer(ROWS), [[0, 0, 1], [1, 0, 0], [0, 1, 0]])


def test_queries_reach_the_victim_as_a_client_would_send_them():
    watched = Watched(lambda raw: np.full((len(raw), 2), 0.5))
    contract = InputContract.images(1, 2, 3, layout="NHWC", dtype="UINT8")
    BlackBox(watched, contract, classes=2).query(np.full((1, 1, 2, 3), 0.4, np.float32))
    assert watched.rows.shape == (1, 2, 3, 1)
    assert watched.rows.dtype == np.uint8
    assert (watched.rows == 102).all()


def test_batches_are_cut_at_batch_size_and_put_together_in_order():
    watched = Watched(softmax)
    rows = np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)
    probs = BlackBox(watched, TABLE, classes=2, batch_size=4).answer(rows)
    assert [len(batch) for batch in watched.batches] == [4, 4, 2]
    assert np.allclose(probs, softmax(rows), rtol=1e-6)


def test_the_start_up_check_asks_four_queries_at_most():
    watched = Watched(softmax)
    BlackBox(watched, TABLE, classes=2).check(np.zeros((9, 2), np.float32))
    assert [len(batch) for batch in watched.batches] == [4]


def test_a_query_that_breaks_the_contract_never_reaches_the_victim():
    watched = Watched(softmax)
    with pytest.raises(InvalidQueryError, match="must be finite"):
        BlackBox(watched, TABLE, classes=2).query(np.array([[0.0, np.nan]], np.float32))
    assert watched.batches == []


# ---------------------------------------------------------------------- what is refused

FINE = [[0.5, 0.25, 0.25]] * 2


@pytest.mark.parametrize(
    ("answer", "output", "message"),
    [
        ([*FINE, [np.nan, 0.5, 0.5]], "probs", "must return finite probs, got NaN or infinity in 1 rows"),
        ([*FINE, [np.inf, 0.5, 0.5]], "probs", "must return finite probs"),
        ([*FINE, [np.nan, 0.5, 0.5]], "logits", "must return finite logits, got NaN or infinity in 1 rows"),
        ([*FINE, [-np.inf, 0.5, 0.5]], "logits", "must return finite logits"),
        ([*FINE, [-0.1, 0.6, 0.5]], "probs", "must return probabilities >= 0, got -0.1: declare output='logits'"),
        ([*FINE, [0.5, 0.5, 0.5]], "probs", "must return probabilities that sum to 1 in each row, got a sum of 1.5: declare"),
        ([*FINE, [0.0, 0.0, 0.0]], "probs", "sum to 1 in each row, got a sum of 0:"),
        ([*FINE, [0.5, 0.2, 0.29]], "probs", "sum to 1 in each row, got a sum of 0.99"),
        (np.full((3, 4), 0.25), "probs", r"must return shape \(3, 3\), .* got \(3, 4\): declare the right number of classes"),
        (np.full((3, 2), 0.5), "logits", r"must return shape \(3, 3\), .* got \(3, 2\)"),
        (FINE, "probs", r"must return shape \(3, 3\), one row per query .* got \(2, 3\)"),
        (np.ones(3), "probs", r"got \(3,\)"),
        (None, "probs", r"got \(\)"),
        ([["a", "b", "c"]] * 3, "probs", "must return numbers, got dtype <U1"),
        (np.ones((3, 3), bool), "probs", "must return numbers, got dtype bool"),
        (np.full((3, 3), 1j), "logits", "must return numbers, got dtype complex128"),
        ([0, 3, 1], "labels", r"must return labels in \[0, 3\), got 0 to 3"),
        ([0, -1, 1], "labels", r"must return labels in \[0, 3\), got -1 to 1"),
        ([0.0, np.inf, 1.0], "labels", r"must return labels in \[0, 3\), got 0.0 to inf"),
        (np.array([0, 2**64 - 1, 1], np.uint64), "labels", r"must return labels in \[0, 3\), got 0 to 18446744073709551615"),
        ([0.0, np.nan, 1.0], "labels", "must return whole-numbered labels"),
        ([0.0, 0.5, 1.0], "labels", "must return whole-numbered labels, got dtype float64"),
        (["cat", "dog", "cat"], "labels", "must return whole-numbered labels, got dtype <U3"),
        ([0, 1], "labels", r"must return labels of shape \(3,\), got \(2,\)"),
        (np.full((3, 3), 1 / 3), "labels", r"must return labels of shape \(3,\), got \(3, 3\): declare output='probs'"),
    ],
)
def test_an_answer_that_is_not_what_was_declared_is_refused(answer, output, message):
    with pytest.raises(InvalidVictimError, match=message):
        answering(answer, output=output).query(ROWS)


def test_one_bad_row_in_a_later_batch_is_found():
    def predict(raw: np.ndarray) -> np.ndarray:
        return np.where(raw > 0, np.nan, 0.5)

    rows = np.zeros((5, 2), np.float32)
    rows[4] = 1
    with pytest.raises(InvalidVictimError, match="got NaN or infinity in 1 rows"):
        BlackBox(predict, TABLE, classes=2, batch_size=2).query(rows)


def test_a_victim_that_raises_is_named_with_its_error_and_the_batch():
    def predict(raw: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    with pytest.raises(InvalidVictimError, match=r"mine raised RuntimeError on a batch of shape \(3, 2\): out of memory") as caught:
        BlackBox(predict, TABLE, classes=2, name="mine").query(ROWS)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_ragged_answers_are_refused():
    with pytest.raises(InvalidVictimError, match="victim raised ValueError"):
        answering([[0.5, 0.5], [1.0], [0.5, 0.5]]).query(ROWS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "victim classes must be at least 2, a whole number, got 1"),
        ({"classes": 2.5}, "victim classes must be at least 2, a whole number, got 2.5"),
        ({"classes": float("nan")}, "victim classes must be at least 2, a whole number, got nan"),
        ({"classes": 2, "batch_size": 0}, "victim batch_size must be at least 1, a whole number, got 0"),
        ({"classes": 2, "batch_size": 1.5}, "victim batch_size must be at least 1, a whole number, got 1.5"),
        ({"classes": 2, "output": "scores"}, "victim output must be probs, logits or labels, got 'scores'"),
    ],
)
def test_impossible_declarations_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        unchecked(BlackBox, softmax, TABLE, **settings)


# ---------------------------------------------------------------------- scikit-learn


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """Images (60, 1, 2, 2) on the grid and labels 0..2: the brightest of the first three pixels."""
    rows = np.random.default_rng(0).integers(0, 256, (60, 1, 2, 2)).astype(np.float32) / np.float32(255)
    return rows, rows.reshape(60, 4)[:, :3].argmax(axis=1)


@pytest.mark.parametrize("model", [LogisticRegression(), KNeighborsClassifier(3)], ids=lambda model: type(model).__name__)
def test_a_fitted_classifier_answers_as_its_predict_proba(model, pixels):
    rows, labels = pixels
    model.fit(rows.reshape(60, 4), labels)
    victim = from_predictor(model, InputContract.images(1, 2, 2))
    assert victim.classes == 3
    assert victim.name == type(model).__name__
    assert np.allclose(victim.query(rows).probs, model.predict_proba(rows.reshape(60, 4)), atol=1e-6)


def test_a_classifier_without_predict_proba_serves_by_its_labels(pixels):
    rows, labels = pixels
    names = np.array(["cat", "dog", "emu"])
    model = LinearSVC().fit(rows.reshape(60, 4), names[labels])
    with pytest.raises(InvalidVictimError, match=r"LinearSVC must have predict_proba, got none: declare output='labels'"):
        from_predictor(model, InputContract.images(1, 2, 2))
    victim = from_predictor(model, InputContract.images(1, 2, 2), output="labels")
    assert (victim.classes, victim.output) == (3, "labels")
    assert np.array_equal(names[victim.query(rows).probs.argmax(axis=1)], model.predict(rows.reshape(60, 4)))


def test_a_classifier_gives_no_logits_and_an_object_without_predict_is_no_classifier(pixels):
    with pytest.raises(ConfigurationError, match="output of a classifier must be probs or labels, got 'logits'"):
        from_predictor(LogisticRegression(), InputContract.images(1, 2, 2), output="logits")
    with pytest.raises(InvalidVictimError, match=r"victim of type object must have predict, got none\."):
        from_predictor(object(), InputContract.images(1, 2, 2), output="labels")


def test_a_function_that_names_classes_under_another_declaration_is_told_which(pixels):
    victim = BlackBox(lambda raw: np.zeros(len(raw), int), InputContract.images(1, 2, 2), classes=3)
    with pytest.raises(InvalidVictimError, match=r"got \(60,\): declare output='labels' \(--output labels\) if these are class labels"):
        victim.query(pixels[0])


def test_a_classifier_that_was_never_fitted_is_refused():
    with pytest.raises(InvalidVictimError, match=r"LogisticRegression must be fitted, got no classes_: call fit\(\) first"):
        from_predictor(LogisticRegression(), InputContract.images(1, 2, 2))


# ---------------------------------------------------------------------- ONNX

LINEAR = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)


def grid_images(rows: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (rows, 1, 2, 2)).astype(np.float32) / np.float32(255)


def test_an_onnx_graph_of_logits_answers_as_its_matrix(tmp_path):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR))
    assert victim.contract == InputContract.images(1, 2, 2, name="x")
    assert (victim.classes, victim.output, victim.name) == (3, "logits", "victim.onnx")
    rows = grid_images(7)
    assert np.allclose(victim.query(rows).probs, softmax(rows.reshape(7, 4) @ LINEAR), atol=1e-6)


def test_an_onnx_graph_of_vectors_has_no_grid_and_no_bounds(tmp_path):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", ("batch", 4), LINEAR))
    assert victim.contract == InputContract.vectors(4, name="x")
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert np.allclose(victim.query(rows).probs, softmax(rows @ LINEAR), atol=1e-6)


def test_an_onnx_graph_of_bytes_receives_bytes(tmp_path):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR, input_type=TensorProto.UINT8))
    assert victim.contract == InputContract.images(1, 2, 2, dtype="UINT8", name="x")
    rows = grid_images(3)
    assert np.allclose(victim.query(rows).probs, softmax(np.rint(rows * 255).reshape(3, 4) @ LINEAR), atol=1e-6)


def test_an_onnx_graph_with_labels_first_still_gives_its_logits(tmp_path):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR, outputs=("labels", "logits")))
    rows = grid_images(4)
    assert np.allclose(victim.query(rows).probs, softmax(rows.reshape(4, 4) @ LINEAR), atol=1e-6)


def test_a_label_only_onnx_graph_answers_one_hot_once_it_is_told_the_classes(tmp_path):
    path = onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR, outputs=("labels",))
    with pytest.raises(InvalidVictimError, match=r"does not state its number of classes \(output shape \['batch'\]\): give classes"):
        from_onnx(path, output="labels")
    rows = grid_images(6)
    probs = from_onnx(path, output="labels", classes=3).query(rows).probs
    assert np.array_equal(probs, np.eye(3)[(rows.reshape(6, 4) @ LINEAR).argmax(axis=1)])


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8])
def test_a_graph_with_a_fixed_batch_answers_any_number_of_queries(tmp_path, rows):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", (4, 1, 2, 2), LINEAR))
    queries = grid_images(rows)
    assert np.allclose(victim.query(queries).probs, softmax(queries.reshape(rows, 4) @ LINEAR), atol=1e-6)


def test_a_channels_last_graph_works_under_the_contract_it_asks_for(tmp_path):
    weights = np.random.default_rng(3).normal(size=(5 * 6 * 2, 3)).astype(np.float32)
    path = onnx_graph(tmp_path / "victim.onnx", ("batch", 5, 6, 2), weights)
    with pytest.raises(InvalidVictimError, match=r"seems to take channels last, .* give an input contract with layout NHWC"):
        from_onnx(path)
    victim = from_onnx(path, InputContract.images(2, 5, 6, layout="NHWC"))
    queries = victim.contract.canonicalise(np.random.default_rng(0).random((3, 2, 5, 6)))
    expected = softmax(queries.transpose(0, 2, 3, 1).reshape(3, -1) @ weights)
    assert np.allclose(victim.query(queries).probs, expected, atol=1e-5)


def test_the_wrong_number_of_classes_for_a_graph_is_found_at_the_first_query(tmp_path):
    victim = from_onnx(onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR), classes=5)
    with pytest.raises(InvalidVictimError, match=r"victim.onnx must return shape \(2, 5\), .* got \(2, 3\)"):
        victim.check(grid_images(2))


@pytest.mark.parametrize("inputs", [0, 2])
def test_a_graph_without_exactly_one_input_is_refused(tmp_path, inputs):
    path = onnx_graph(tmp_path / "victim.onnx", ("batch", 1, 2, 2), LINEAR, inputs=inputs)
    with pytest.raises(InvalidVictimError, match=rf"must have one input, got {inputs}: wrap it in BlackBox"):
        from_onnx(path)


@pytest.mark.parametrize(
    ("shape", "input_type"),
    [
        (("batch", 2, 2), TensorProto.FLOAT),
        (("batch", 1, "height", 2), TensorProto.FLOAT),
        (("batch", 1, 2, 2), TensorProto.INT64),
        (("batch", 4), TensorProto.UINT8),
    ],
)
def test_a_graph_whose_input_gives_no_contract_asks_for_one(tmp_path, shape, input_type):
    path = onnx_graph(tmp_path / "victim.onnx", shape, LINEAR, input_type=input_type)
    with pytest.raises(
        InvalidVictimError, match=r"must take float or uint8 \(batch, C, H, W\) or float .*, got tensor.* give an input contract"
    ):
        from_onnx(path)


def test_a_missing_or_damaged_file_is_refused(tmp_path):
    with pytest.raises(InvalidVictimError, match=r"none.onnx must be a readable ONNX graph, got NoSuchFile"):
        from_onnx(tmp_path / "none.onnx")
    path = onnx_graph(tmp_path / "victim.onnx", ("batch", 4), LINEAR)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InvalidVictimError, match=r"victim.onnx must be a readable ONNX graph"):
        from_onnx(path)


def test_probabilities_declared_as_logits_are_refused_before_a_second_softmax_flattens_them():
    with pytest.raises(InvalidVictimError, match=r"declared to return logits, got rows that are >= 0 and sum to 1: declare output='probs'"):
        checked_probs(np.array([[0.9, 0.1], [0.2, 0.8]]), 2, 2, "logits")
