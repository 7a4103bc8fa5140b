"""Texture terms against naive loops on small images, and row by row."""

import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.contract import InputContract
from sameguard.scoring import texture_terms


def naive_terms(image: np.ndarray) -> dict[str, float]:
    """The terms of one image (channels, height, width) in [0, 1], pixel by pixel."""
    channels, height, width = image.shape
    pad = min(height, width) < 3
    laplacians, variation = [], 0.0
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                value = float(image[c, y, x])
                variation += abs(float(image[c, y + 1, x]) - value) if y + 1 < height else 0.0
                variation += abs(float(image[c, y, x + 1]) - value) if x + 1 < width else 0.0
                if pad or (0 < y < height - 1 and 0 < x < width - 1):
                    around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                    clipped = [(min(max(v, 0), height - 1), min(max(u, 0), width - 1)) for v, u in around]
                    laplacians.append(abs(4 * value - sum(float(image[c, v, u]) for v, u in clipped)))
    levels = [round(float(value) * 255) for value in image.reshape(-1)]
    count, counts = len(levels), Counter(levels)
    mean = sum(float(value) for value in image.reshape(-1)) / count
    return {
        "laplacian_mean": sum(laplacians) / len(laplacians),
        "laplacian_p20": sorted(laplacians)[int(0.2 * (len(laplacians) - 1))],
        "total_variation": variation / count,
        "mean": mean,
        "contrast": (sum((float(value) - mean) ** 2 for value in image.reshape(-1)) / count) ** 0.5,
        "compressed_size": len(zlib.compress(bytes(levels), 6)),
        "share_black": counts[0] / count,
        "share_white": counts[255] / count,
        "share_faint": sum(counts[level] for level in range(1, 64)) / count,
        "distinct_levels": len(counts),
        "histogram_entropy": -sum(n / count * np.log(n / count) for n in counts.values()),
    }


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), st.integers(0, 10_000), st.sampled_from([2, 9, 256]))
def test_each_term_of_an_image_equals_its_naive_loop(shape, seed, different_levels):
    contract = InputContract.images(*shape)
    levels = np.random.default_rng(seed).integers(0, different_levels, (2, *shape)) * (255 // (different_levels - 1))
    queries = contract.canonicalise(levels / 255.0)
    terms = texture_terms(queries, contract)
    for row in range(2):
        expected = naive_terms(queries[row])
        assert set(terms) == set(expected)
        for name, value in expected.items():
            assert terms[name][row] == pytest.approx(value, abs=1e-9), name


def test_terms_of_a_known_image_by_hand():
    contract = InputContract.images(1, 3, 3)
    image = np.zeros((1, 1, 3, 3), np.float32)
    image[0, 0, 1, 1] = 1.0
    image[0, 0, 0, 0] = np.float32(51 / 255)
    terms = {name: float(values[0]) for name, values in texture_terms(contract.canonicalise(image), contract).items()}
    assert terms["laplacian_mean"] == pytest.approx(4.0)  # the only interior pixel, its neighbours are black
    assert terms["total_variation"] == pytest.approx((4 * 1.0 + 2 * 0.2) / 9)
    assert terms["mean"] == pytest.approx(1.2 / 9)
    assert terms["share_black"] == pytest.approx(7 / 9)
    assert terms["share_white"] == terms["share_faint"] == pytest.approx(1 / 9)
    assert terms["distinct_levels"] == 3
    assert terms["histogram_entropy"] == pytest.approx(-(7 / 9 * np.log(7 / 9) + 2 / 9 * np.log(1 / 9)))


def test_a_constant_image_has_no_texture_at_all():
    contract = InputContract.images(3, 5, 5)
    terms = texture_terms(contract.canonicalise(np.full((1, 3, 5, 5), 0.5, np.float32)), contract)
    for name in ("laplacian_mean", "laplacian_p20", "total_variation", "contrast", "histogram_entropy"):
        assert terms[name][0] == pytest.approx(0.0, abs=1e-12)
    assert terms["distinct_levels"][0] == 1


@pytest.mark.parametrize("contract", [InputContract.images(3, 7, 5), InputContract.vectors(13)], ids=["image", "vector"])
def test_terms_of_a_row_do_not_depend_on_the_other_rows(contract):
    queries = contract.canonicalise(np.random.default_rng(0).random((9, *contract.shape)))
    together = texture_terms(queries, contract)
    reversed_rows = texture_terms(queries[::-1].copy(), contract)
    for row in range(9):
        alone = texture_terms(queries[row : row + 1], contract)
        for name, values in together.items():
            assert values.dtype == np.float64
            assert alone[name][0] == pytest.approx(values[row], rel=1e-12)
            assert reversed_rows[name][8 - row] == pytest.approx(values[row], rel=1e-12)


def test_terms_of_vectors_by_hand():
    terms = texture_terms(np.array([[3.0, 0.0, -4.0, 0.0], [2.0, 2.0, 2.0, 2.0]], np.float32), InputContract.vectors(4))
    assert terms["norm"].tolist() == [5.0, 4.0]
    assert terms["mean"].tolist() == [-0.25, 2.0]
    assert np.allclose(terms["spread"], [np.sqrt(25 / 4 - 0.0625), 0.0])
    assert terms["share_zero"].tolist() == [0.5, 0.0]


def test_images_with_other_bounds_are_counted_in_eight_bits_of_their_range():
    contract = InputContract((1, 1, 4), bounds=(-1.0, 1.0), grid="none")
    terms = texture_terms(np.array([[[[-1.0, -0.9, 0.0, 1.0]]]], np.float32), contract)
    shares = [float(terms[name][0]) for name in ("share_black", "share_faint", "share_white")]
    assert shares == [0.25, 0.25, 0.25]
    assert terms["distinct_levels"][0] == 4
