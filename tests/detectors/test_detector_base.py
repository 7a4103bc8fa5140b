"""What detectors share: how training rows are kept, how an empty batch is checked, what ties a checkpoint to its data."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.detectors.base import as_queries, checked, in_batches, tie_checkpoint, training_rows
from sameguard.detectors.exposure import default_fit, served_contract
from sameguard.errors import InvalidQueryError
from sameguard.networks import Conv3, ResNet18
from sameguard.training import RunControl

IMAGES = InputContract.images(1, 2, 2)


def test_images_on_the_grid_are_kept_in_8_bits_and_come_back_exactly():
    raw = np.arange(256, dtype=np.uint8).reshape(64, 1, 2, 2)
    canonical = IMAGES.canonicalise((raw / 255).astype(np.float32))
    for rows in (training_rows(raw, IMAGES), training_rows(canonical, IMAGES)):
        assert rows.dtype == np.uint8
        np.testing.assert_array_equal(as_queries(rows), canonical)


def test_without_a_grid_rows_stay_floats():
    off_grid = InputContract((1, 2, 2), grid="none")
    floats = np.full((3, 1, 2, 2), 0.3, np.float32)
    np.testing.assert_array_equal(training_rows(floats, off_grid), floats)
    np.testing.assert_array_equal(training_rows(np.full((3, 1, 2, 2), 51, np.uint8), off_grid), np.float32(0.2))


def test_an_empty_batch_is_checked_for_its_shape_all_the_same():
    nothing = np.empty((0, 3), np.float32)
    assert checked(np.empty((0, 1, 2, 2), np.float32), nothing, IMAGES).shape == (0, 1, 2, 2)
    with pytest.raises(InvalidQueryError, match=r"query shape must be \(batch, 1, 2, 2\), got \(0, 1, 2, 3\)"):
        checked(np.empty((0, 1, 2, 3), np.float32), nothing, IMAGES)
    assert in_batches(np.empty((0, 4), np.float32), lambda rows: rows[:, 0]).shape == (0,)


def test_batches_are_scored_in_order_and_none_is_larger_than_asked():
    sizes = []

    def first_value(rows):
        sizes.append(len(rows))
        return rows[:, 0]

    scores = in_batches(np.arange(7, dtype=np.float32)[:, None], first_value, rows=3)
    np.testing.assert_array_equal(scores, np.arange(7))
    assert (sizes, scores.dtype) == ([3, 3, 1], np.float64)


def test_a_checkpoint_directory_is_not_made_where_none_was_named(tmp_path):
    tie_checkpoint(RunControl(), "stage", np.zeros(3))
    tie_checkpoint(RunControl(tmp_path / "deep" / "down"), "stage", np.zeros(3))
    assert (tmp_path / "deep" / "down" / "stage.data.sha256").exists()


def test_plain_networks_learn_by_adamw_and_residual_ones_by_sgd():
    plain, residual = (default_fit(network, 54_000, epochs=2, batch_size=512) for network in (Conv3(), ResNet18()))
    assert (plain.optimizer, plain.epochs) == ("adamw", 2)
    assert (residual.optimizer, residual.learning_rate) == ("sgd", 0.1)
    assert default_fit(Conv3(), 900, epochs=2, batch_size=512).epochs == 40


def test_a_defence_serves_what_it_was_trained_on_whatever_clients_of_the_owner_send():
    contract = InputContract.images(3, 4, 4, layout="NHWC", dtype="UINT8", name="photo")
    served = served_contract(contract)
    queries = contract.canonicalise(np.random.default_rng(0).random((2, 3, 4, 4), dtype=np.float32))
    np.testing.assert_array_equal(served.encode(queries), queries)
    assert (served.name, served.grid) == ("photo", "8bit")
