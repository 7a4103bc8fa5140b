"""Split and DataSet: what they hold, convert and refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.data import DataSet, Split
from sameguard.data.dataset import channels_first
from sameguard.errors import InvalidDataError

PIXELS = np.array([0, 51, 255, 102], np.uint8).reshape(2, 1, 1, 2)


def a_split(**changes) -> Split:
    return Split(**{"raw": PIXELS, "labels": np.array([0, 2]), "classes": 3, **changes})


def test_pixels_stay_uint8_and_inputs_are_their_255ths():
    split = a_split()
    assert split.raw.dtype == np.uint8
    assert split.inputs.dtype == np.float32
    np.testing.assert_array_equal(split.inputs.ravel(), np.array([0.0, 0.2, 1.0, 0.4], np.float32))
    assert (len(split), split.input_shape) == (2, (1, 1, 2))


def test_float32_inputs_are_handed_out_as_they_are():
    vectors = np.array([[-3.0, 1e6]], np.float32)
    assert Split(vectors, None, 0).inputs is vectors


def test_take_keeps_the_order_asked_for_and_the_compact_type():
    taken = a_split().take([1, 0, 1])
    np.testing.assert_array_equal(taken.raw, PIXELS[[1, 0, 1]])
    np.testing.assert_array_equal(taken.labels, [2, 0, 2])
    assert taken.raw.dtype == np.uint8


def test_take_of_nothing_is_an_empty_split():
    empty = a_split().take([])
    assert len(empty) == 0
    assert empty.inputs.shape == (0, 1, 1, 2)


def test_take_without_labels_stays_without_labels():
    assert a_split(labels=None).take(np.array([0])).labels is None


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([2], r"indices must be in \[0, 2\), got 2 to 2"),
        ([-1, 0], r"indices must be in \[0, 2\), got -1 to 0"),
        (np.array([True, False]), "indices must be one row of integers, got bool.*flatnonzero"),
        (np.array([[0]]), r"indices must be one row of integers, got int64 of shape \(1, 1\)"),
    ],
)
def test_take_refuses_positions_that_do_not_exist(indices, message):
    with pytest.raises(InvalidDataError, match=message):
        a_split().take(indices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"raw": PIXELS.astype(np.float64)}, "inputs must be uint8 images or float32, got float64"),
        ({"raw": PIXELS[:, 0]}, r"inputs must be images .* got uint8 of shape \(2, 1, 2\)"),
        ({"raw": PIXELS[:, 0, 0]}, r"or float32 vectors .* got uint8 of shape \(2, 2\)"),
        ({"raw": PIXELS[:, :0]}, "inputs must have at least one value each"),
        ({"raw": np.array([[0.0, np.nan]], np.float32)}, "inputs must be finite, got values from nan"),
        ({"raw": np.array([[0.0, np.inf]], np.float32)}, "inputs must be finite, got values from 0.0 to inf"),
        ({"raw": PIXELS.astype(np.float32)}, r"float32 images must be in \[0, 1\], got values from 0 to 255: divide by 255"),
        ({"labels": np.array([0, 1], np.int32)}, "labels must be int64"),
        ({"labels": np.array([[0], [1]])}, r"labels must be int64 \(n,\), got int64 of shape \(2, 1\)"),
        ({"labels": np.array([0, 1, 2])}, "labels must be one for each input, got 3 labels for 2 inputs"),
        ({"labels": np.array([0, 3])}, r"labels must be in \[0, 3\), got 0 to 3"),
        ({"labels": np.array([-1, 0])}, r"labels must be in \[0, 3\), got -1 to 0"),
        ({"classes": 0}, "classes must be at least 1 where there are labels"),
        ({"classes": -1, "labels": None}, "classes must be 0 or more, got -1"),
    ],
)
def test_a_split_refuses_what_it_does_not_promise(changes, message):
    with pytest.raises(InvalidDataError, match=message):
        a_split(**changes)


def test_a_data_set_needs_a_part():
    with pytest.raises(InvalidDataError, match="data set x must have a training or a test part, got neither"):
        DataSet("x", None, None)


@pytest.mark.parametrize("other", [a_split(classes=4), a_split(raw=PIXELS.reshape(2, 1, 2, 1))])
def test_a_data_set_needs_parts_alike(other):
    with pytest.raises(InvalidDataError, match="data set x must have parts alike"):
        DataSet("x", a_split(), other)


@given(st.integers(0, 3), st.integers(4, 9), st.integers(4, 9), st.sampled_from([1, 3]))
def test_channels_last_and_first_read_as_the_same_images(n, height, width, channels):
    images = np.arange(n * channels * height * width).reshape(n, channels, height, width)
    np.testing.assert_array_equal(channels_first(images, "x"), images)
    np.testing.assert_array_equal(channels_first(images.transpose(0, 2, 3, 1), "x"), images)
    np.testing.assert_array_equal(channels_first(images[:, 0], "x"), images[:, :1])


@pytest.mark.parametrize(("shape", "word"), [((2, 3, 5, 3), "both"), ((2, 5, 5, 5), "none")])
def test_an_ambiguous_channel_axis_is_refused(shape, word):
    with pytest.raises(InvalidDataError, match=f"x must have 1 or 3 channels .* not on {word}"):
        channels_first(np.zeros(shape), "x")


def test_images_need_three_or_four_axes():
    with pytest.raises(InvalidDataError, match=r"x must be images .* got shape \(4,\)"):
        channels_first(np.zeros(4), "x")
