"""InputContract: what is refused, what is put on the grid, and that encoding is the way back from decoding."""

import hashlib
import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.contract import InputContract
from sameguard.errors import ConfigurationError, InvalidQueryError
from stand_ins import unchecked

RGB = InputContract.images(3, 2, 4)
TABLE = InputContract.vectors(3)


@st.composite
def image_settings(draw: st.DrawFn) -> dict:
    """Arguments for InputContract.images; contracts are built in the tests, because beartype draws random numbers of its own."""
    channels, height, width = draw(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
    dtype = draw(st.sampled_from(["FP32", "UINT8"]))
    mean = std = None
    if dtype == "FP32" and draw(st.booleans()):
        count = draw(st.sampled_from([1, channels]))
        mean = tuple(draw(st.lists(st.floats(-1.0, 1.0), min_size=count, max_size=count)))
        std = tuple(draw(st.lists(st.floats(0.05, 2.0), min_size=count, max_size=count)))
    layout = draw(st.sampled_from(["NCHW", "NHWC", "flat"]))
    return {"channels": channels, "height": height, "width": width, "layout": layout, "dtype": dtype, "mean": mean, "std": std}


def on_grid(contract: InputContract, rows: int, seed: int) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 256, (rows, *contract.shape))
    return contract.canonicalise(levels / 255.0)


# ---------------------------------------------------------------------- decoding and encoding


@settings(max_examples=60, deadline=None)
@given(image_settings(), st.integers(1, 4), st.integers(0, 1000))
def test_encoding_then_decoding_gives_the_same_queries_in_every_layout_and_dtype(settings, rows, seed):
    contract = InputContract.images(**settings)
    queries = on_grid(contract, rows, seed)
    raw = contract.encode(queries)
    assert raw.dtype == (np.uint8 if contract.dtype == "UINT8" else np.float32)
    assert raw.shape == (rows, *contract.raw_shape)
    assert raw.flags.c_contiguous
    assert np.array_equal(contract.decode(raw), queries)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "flat"])
def test_decoding_then_encoding_gives_back_every_byte(layout):
    contract = InputContract.images(3, 4, 2, layout=layout, dtype="UINT8")
    raw = np.random.default_rng(0).integers(0, 256, (5, *contract.raw_shape), dtype=np.uint8)
    assert np.array_equal(contract.encode(contract.decode(raw)), raw)


def test_vectors_pass_through_unchanged():
    rows = np.array([[1e-30, -5.5, 3e38], [0.1, 2.0, -7.0]], np.float32)
    assert np.array_equal(TABLE.decode(rows), rows)
    assert np.array_equal(TABLE.encode(rows), rows)


def test_channels_last_pixels_land_in_their_channel():
    contract = InputContract.images(2, 1, 3, layout="NHWC", dtype="UINT8")
    raw = np.array([[[[0, 255], [51, 204], [102, 153]]]], np.uint8)  # batch, height, width, channels
    assert np.allclose(contract.decode(raw), [[[[0.0, 0.2, 0.4]], [[1.0, 0.8, 0.6]]]])


def test_flat_images_have_their_channels_first():
    contract = InputContract.images(2, 1, 2, layout="flat", dtype="UINT8")
    assert np.allclose(contract.decode(np.array([[0, 51, 102, 255]], np.uint8)), [[[[0.0, 0.2]], [[0.4, 1.0]]]])


def test_mean_and_std_are_undone_per_channel():
    contract = InputContract.images(2, 1, 1, mean=(0.5, 0.2), std=(0.5, 0.4))
    assert np.allclose(contract.decode(np.array([[[[1.0]], [[-0.5]]]], np.float32)), [[[[1.0]], [[0.0]]]])


def test_float64_clients_are_served_like_float32_ones():
    queries = on_grid(RGB, 2, 0)
    assert np.array_equal(RGB.decode(queries.astype(np.float64)), queries)


def test_decoding_accepts_arrays_that_are_not_contiguous():
    wide = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 8)).astype(np.float32) / 255.0
    strided = wide[..., ::2]
    assert not strided.flags.c_contiguous
    decoded = RGB.decode(strided)
    assert decoded.flags.c_contiguous
    assert np.array_equal(decoded, RGB.decode(strided.copy()))


def test_a_single_row_is_a_batch_of_one():
    assert RGB.decode(np.zeros((1, 3, 2, 4), np.float32)).shape == (1, 3, 2, 4)


# ---------------------------------------------------------------------- canonical queries


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1.0, width=32), min_size=1, max_size=20))
def test_canonicalise_is_idempotent_and_moves_nothing_by_more_than_half_a_step(values):
    contract = InputContract.images(1, 1, 1)
    raw = np.array(values, np.float32).reshape(-1, 1, 1, 1)
    once = contract.canonicalise(raw)
    assert np.array_equal(contract.canonicalise(once), once)
    assert np.abs(once - raw).max() <= 0.5 / 255 + 1e-7
    assert np.allclose(once * 255, np.rint(once * 255), atol=1e-4)


def test_all_256_levels_are_fixed_points_of_the_grid():
    levels = (np.arange(256, dtype=np.float32) / np.float32(255)).reshape(-1, 1, 1, 1)
    assert np.array_equal(InputContract.images(1, 1, 1).canonicalise(levels), levels)


def test_the_grid_rounds_halves_to_even():
    halves = (np.array([0.5, 1.5, 2.5, 127.5], np.float32) / np.float32(255)).reshape(-1, 1, 1, 1)
    assert np.array_equal(halves.reshape(-1) * np.float32(255), [0.5, 1.5, 2.5, 127.5])  # they are halves in float32 too
    levels = InputContract.images(1, 1, 1).canonicalise(halves).reshape(-1) * 255
    assert np.rint(levels).tolist() == [0, 2, 2, 128]


def test_canonicalise_leaves_its_argument_alone():
    raw = np.full((1, 3, 2, 4), 0.3, np.float32)
    RGB.canonicalise(raw)[:] = 0
    assert (raw == np.float32(0.3)).all()


def test_half_a_grid_step_outside_the_bounds_is_clipped():
    raw = np.zeros((1, 3, 2, 4), np.float32)
    raw[0, 0, 0, :2] = -0.0019, 1.0019
    queries = RGB.canonicalise(raw)
    assert queries.min() == 0.0
    assert queries.max() == 1.0


@pytest.mark.parametrize(("value", "got"), [(-0.003, "-0.003 to 0"), (1.003, "0 to 1.003"), (127.0, "0 to 127")])
def test_values_further_outside_the_bounds_are_refused(value, got):
    raw = np.zeros((2, 3, 2, 4), np.float32)
    raw[1, 2, 1, 3] = value
    with pytest.raises(InvalidQueryError, match=rf"must lie in \[0, 1\] after decoding, got {got}: check the contract's scale"):
        RGB.decode(raw)


def test_bounds_of_vectors_have_no_slack():
    contract = InputContract.vectors(2, bounds=(-1.0, math.inf))
    assert contract.canonicalise(np.array([[-1.0, 1e30]], np.float32)).tolist() == [[-1.0, np.float32(1e30)]]
    with pytest.raises(InvalidQueryError, match=r"must lie in \[-1, inf\]"):
        contract.canonicalise(np.array([[-1.0001, 0.0]], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("contract", [RGB, TABLE], ids=["image", "vector"])
def test_nan_and_infinity_are_refused_with_their_row(contract, value):
    raw = np.zeros((3, *contract.shape), np.float32)
    raw[1].reshape(-1)[-1] = value
    with pytest.raises(InvalidQueryError, match="must be finite, got NaN or infinity in row 1 of 3"):
        contract.decode(raw)


def test_a_number_beyond_float32_is_refused_as_infinite_and_not_with_a_warning():
    with pytest.raises(InvalidQueryError, match="must be finite"):
        TABLE.decode(np.array([[0.0, 1e300, 0.0]]))
    with pytest.raises(InvalidQueryError, match="must be finite"):
        TABLE.canonicalise(np.array([[0.0, -1e300, 0.0]]))
    steep = InputContract((1,), layout="flat", scale=(100.0,), bounds=(-math.inf, math.inf), grid="none")
    with pytest.raises(InvalidQueryError, match="must be finite"):
        steep.decode(np.array([[3e38]], np.float32))


@pytest.mark.parametrize("shape", [(3, 2, 4), (1, 3, 4, 2), (1, 24), (1, 3, 2, 4, 1), ()])
def test_another_shape_is_refused(shape):
    with pytest.raises(InvalidQueryError, match=r"query shape must be \(batch, 3, 2, 4\) in layout NCHW, got"):
        RGB.decode(np.zeros(shape, np.float32))
    with pytest.raises(InvalidQueryError, match=r"query shape must be \(batch, 3, 2, 4\), got"):
        RGB.canonicalise(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "contract", [RGB, TABLE, InputContract.images(3, 2, 4, layout="NHWC", dtype="UINT8")], ids=["image", "vector", "bytes"]
)
def test_an_empty_batch_is_refused(contract):
    empty = np.zeros((0, *contract.raw_shape), np.uint8 if contract.dtype == "UINT8" else np.float32)
    with pytest.raises(InvalidQueryError, match="at least one query, got 0"):
        contract.decode(empty)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.complex64, np.bool_, object, "U1"])
def test_a_float_contract_refuses_other_dtypes(dtype):
    raw = np.zeros((1, 3, 2, 4)).astype(dtype)
    with pytest.raises(InvalidQueryError, match=r"query dtype must be float32 \(FP32\), got"):
        RGB.decode(raw)
    with pytest.raises(InvalidQueryError, match="canonical queries must be float32, got"):
        RGB.canonicalise(raw)


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">f8", "<f8"])
def test_floats_of_either_byte_order_are_the_same_queries(dtype):
    queries = on_grid(RGB, 2, 0)
    for found in (RGB.decode(queries.astype(dtype)), RGB.canonicalise(queries.astype(dtype))):
        assert np.array_equal(found, queries)
        assert found.dtype.isnative
        assert np.array_equal(RGB.digests(found), RGB.digests(queries))


def test_lists_are_arrays_and_unequal_rows_are_refused():
    rows = [[0.0, 1.0, -2.5], [0.5, 0.5, 3.0]]
    for read in (inspect.unwrap(InputContract.decode), inspect.unwrap(InputContract.canonicalise)):
        assert np.array_equal(read(TABLE, rows), np.array(rows, np.float32))
        with pytest.raises(InvalidQueryError, match=r"must be an array, or nested lists of equal rows, got list: .*inhomogeneous"):
            read(TABLE, [[0.0, 1.0, 2.0], [0.5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int8, np.uint16])
def test_a_byte_contract_refuses_other_dtypes(dtype):
    with pytest.raises(InvalidQueryError, match=r"query dtype must be uint8 \(UINT8\), got"):
        InputContract.images(1, 2, 2, dtype="UINT8").decode(np.zeros((1, 1, 2, 2), dtype))


# ---------------------------------------------------------------------- digests


@pytest.mark.parametrize("contract", [RGB, TABLE], ids=["image", "vector"])
def test_minus_zero_and_zero_have_one_digest(contract):
    zeros = np.zeros((1, *contract.shape), np.float32)
    assert np.signbit(-zeros).all()
    assert np.array_equal(contract.digests(contract.canonicalise(-zeros)), contract.digests(zeros))


def test_a_digest_is_the_sha256_of_shape_and_little_endian_values():
    rows = np.array([[0.0, 1.0, -2.5]], np.float32)
    expected = hashlib.sha256(b"(3,)" + rows.astype("<f4").tobytes()).digest()
    assert TABLE.digests(rows).tobytes() == expected


def test_digests_are_equal_exactly_where_the_queries_are():
    queries = on_grid(RGB, 3, 0)[[0, 1, 0, 2]]
    queries[3] = queries[1]
    queries[3, 0, 0, 0] = np.float32(1) - queries[3, 0, 0, 0]
    digests = RGB.digests(queries)
    assert digests.shape == (4, 32)
    equal = (digests[:, None] == digests[None]).all(axis=2)
    assert equal.tolist() == [[i == j or {i, j} == {0, 2} for j in range(4)] for i in range(4)]
    assert np.array_equal(RGB.digests(np.asfortranarray(queries)), digests)


def test_equal_bytes_under_another_shape_have_another_digest():
    tall, wide = InputContract.images(1, 2, 3), InputContract.images(1, 3, 2)
    assert not np.array_equal(tall.digests(np.zeros((1, 1, 2, 3), np.float32)), wide.digests(np.zeros((1, 1, 3, 2), np.float32)))


# ---------------------------------------------------------------------- settings and storage


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (3, 4)}, r"contract shape must be .* got \(3, 4\): leave the batch axis out"),
        ({"shape": (3, 0, 4)}, "contract shape must be"),
        ({"shape": ()}, "contract shape must be"),
        ({"shape": (3,)}, "layout of a vector of 3 features must be flat, got NCHW"),
        ({"bounds": (1.0, 0.0)}, r"bounds must be \(lowest, highest\) with lowest < highest"),
        ({"bounds": (0.0, math.nan)}, "bounds must be"),
        ({"bounds": (-1.0, 1.0)}, r"grid 8bit needs bounds \(0, 1\), got \(-1.0, 1.0\)"),
        ({"scale": (1.0, 2.0)}, r"scale must hold 1 or 3 numbers \(one per channel\), got 2"),
        ({"offset": ()}, "offset must hold 1 or 3 numbers"),
        ({"scale": (0.0,)}, "scale must be finite and not 0"),
        ({"scale": (math.inf,)}, "scale must be finite and not 0"),
        ({"offset": (math.nan,)}, r"offset must be finite, got \(nan,\)"),
        ({"dtype": "INT8"}, "dtype must be FP32 or UINT8, .* got INT8, NCHW, 8bit"),
        ({"layout": "CHWN"}, "layout NCHW, NHWC or flat, .* got FP32, CHWN, 8bit"),
        ({"grid": "4bit"}, "grid 8bit or none, got FP32, NCHW, 4bit"),
    ],
)
def test_impossible_contracts_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        unchecked(InputContract, **{"shape": (3, 2, 4), **settings})


def test_mean_and_std_go_together_and_not_with_bytes():
    with pytest.raises(ConfigurationError, match="mean and std go together"):
        InputContract.images(1, 2, 2, mean=(0.5,))
    with pytest.raises(ConfigurationError, match=r"UINT8 sends pixels 0\.\.255, got a mean and std as well"):
        InputContract.images(1, 2, 2, dtype="UINT8", mean=(0.5,), std=(0.5,))


def test_the_plain_contract_follows_the_rank_of_the_inputs():
    assert InputContract.for_inputs(np.zeros((9, 3, 2, 4), np.float32)) == RGB
    assert InputContract.for_inputs(np.zeros((9, 3), np.float32)) == TABLE
    assert RGB.is_image
    assert not TABLE.is_image
    with pytest.raises(InvalidQueryError, match=r"inputs must be .* got shape \(9,\)"):
        InputContract.for_inputs(np.zeros(9, np.float32))


@settings(max_examples=40, deadline=None)
@given(image_settings())
def test_image_contracts_survive_json(settings):
    contract = InputContract.images(**settings)
    assert InputContract.from_json(json.loads(json.dumps(contract.to_json()))) == contract


@pytest.mark.parametrize("bounds", [(-math.inf, math.inf), (0.0, math.inf), (-math.inf, -1.5), (-1.0, 2.0)])
def test_bounds_of_vector_contracts_survive_strict_json(bounds):
    contract = InputContract.vectors(5, bounds=bounds, name="row")
    assert InputContract.from_json(json.loads(json.dumps(contract.to_json(), allow_nan=False))) == contract


def test_lists_and_numpy_numbers_make_the_same_contract_as_tuples():
    plain = InputContract.images(1, 8, 8, mean=(0.5,), std=(0.25,))
    for kind in (list, np.float32, np.array):
        mean, std = (kind([0.5]), kind([0.25]))
        assert InputContract.images(1, 8, 8, mean=mean, std=std) == plain
    assert InputContract.from_json(json.loads(json.dumps(plain.to_json()))) == plain
