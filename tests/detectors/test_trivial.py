"""What a sceptic tries first: texture terms one- and two-sided, the grid test, the nearest training image."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.detectors import Detector, NearestTrainingImage, OffGrid, TextureTerm, trivial, trivial_detectors
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidQueryError, NotFittedError
from sameguard.evaluation import auroc
from sameguard.scoring import texture_terms
from sameguard.testing.detectors import check_detector

IMAGES = InputContract.images(1, 4, 4)


def answers(queries):
    return np.full((len(queries), 2), 0.5, np.float32)


def flat_images(*values):
    """One image of one grey level for each value."""
    return IMAGES.canonicalise(np.stack([np.full((1, 4, 4), value, np.float32) for value in values]))


def bernoulli(rows, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (rows, *shape)).astype(np.float32)


def test_one_sided_a_term_is_its_value(digits):
    queries = digits.contract.canonicalise(digits.test.inputs[:30])
    terms = texture_terms(queries, digits.contract)
    for name, values in terms.items():
        np.testing.assert_array_equal(TextureTerm(name, digits.contract).score(queries, answers(queries)), values)


def test_two_sided_it_is_the_distance_from_the_benign_median_in_benign_spreads():
    benign = flat_images(51 / 255, 102 / 255, 153 / 255)  # means .2, .4, .6: median .4, standard deviation .2 sqrt(2/3)
    detector = TextureTerm("mean", IMAGES, two_sided=True).fit(benign)
    queries = flat_images(102 / 255, 0.0, 204 / 255)
    np.testing.assert_allclose(detector.score(queries, answers(queries)), np.array([0.0, 2.0, 2.0]) / np.sqrt(2 / 3), atol=1e-6)


def test_a_term_that_is_the_same_in_all_benign_queries_is_measured_in_its_own_units():
    detector = TextureTerm("contrast", IMAGES, two_sided=True).fit(flat_images(0.2, 0.4))
    noise = bernoulli(5, (1, 4, 4))
    np.testing.assert_allclose(detector.score(noise, answers(noise)), noise.reshape(5, -1).std(axis=1), atol=1e-6)


def test_total_variation_tells_bernoulli_noise_from_digits(digits):
    noise = bernoulli(200, (1, 8, 8))
    for two_sided in (False, True):
        detector = TextureTerm("total_variation", digits.contract, two_sided).fit(digits.benign)
        benign, malicious = (detector.score(queries, answers(queries)) for queries in (digits.test.inputs, noise))
        assert auroc(benign, malicious) >= 0.99


@pytest.mark.parametrize("contract", [InputContract.images(1, 8, 8), InputContract.vectors(5)])
def test_every_term_comes_one_and_two_sided_under_a_readable_name_and_keeps_the_contract(contract):
    rng = np.random.default_rng(0)
    queries = contract.canonicalise(rng.random((12, *contract.shape), dtype=np.float32))
    detectors = trivial_detectors(contract)
    assert len(detectors) == 2 * len(texture_terms(queries, contract))
    assert {"mean", "mean (two-sided)"} < set(detectors)
    assert not any("_" in name for name in detectors)
    for detector in detectors.values():
        assert isinstance(detector, Detector)
        detector.fit(queries[:6])
        check_detector(detector, queries, answers(queries), out_of_bounds=2.0 if contract.is_image else None)


def test_all_terms_of_a_batch_are_computed_once_and_those_of_another_batch_anew(monkeypatch):
    counted = []

    def counting(queries, contract):
        counted.append(len(queries))
        return texture_terms(queries, contract)

    detectors = trivial_detectors(IMAGES)
    first, second = flat_images(0.2, 0.4, 0.6), flat_images(0.2, 0.4, 0.8)
    monkeypatch.setattr(trivial, "texture_terms", counting)
    monkeypatch.setattr(trivial, "term_names", lambda contract: list(texture_terms(first[:1], contract)))
    means = [
        [detector.score(queries, answers(queries)) for name, detector in detectors.items() if "two" not in name]
        for queries in (first, second)
    ]
    assert counted == [3, 3]
    assert not np.array_equal(means[0][3], means[1][3])


def test_the_grid_test_sees_what_no_8_bit_file_can_hold_and_nothing_else(digits):
    assert OffGrid().score(digits.test.inputs, answers(digits.test.inputs)).all()  # sixteenths, as the library ships them
    on_grid = digits.contract.canonicalise(digits.test.inputs[:50])
    steps = np.clip(on_grid + 0.1 * np.sign(np.random.default_rng(0).standard_normal(on_grid.shape)), 0, 1).astype(np.float32)
    for detector in (OffGrid(), OffGrid(digits.contract)):
        np.testing.assert_array_equal(detector.score(on_grid, answers(on_grid)), 0.0)
        np.testing.assert_array_equal(detector.score(steps, answers(steps)), 1.0)
        quantised = digits.contract.canonicalise(steps)
        np.testing.assert_array_equal(detector.score(quantised, answers(steps)), 0.0)
    every_level = (np.arange(256, dtype=np.float32) / 255).reshape(256, 1)
    np.testing.assert_array_equal(OffGrid().score(every_level, answers(every_level)), 0.0)
    barely = every_level + np.float32(2e-3 / 255)
    np.testing.assert_array_equal(OffGrid().score(barely, answers(barely)), 1.0)


def test_the_nearest_training_image_is_found_as_a_loop_finds_it():
    rng = np.random.default_rng(0)
    bank, queries = rng.integers(0, 256, (60, 1, 4, 4), dtype=np.uint8), IMAGES.canonicalise(rng.random((9, 1, 4, 4), dtype=np.float32))
    floats = (bank / 255).astype(np.float32)
    distances = [sorted(np.sqrt(((query - image).astype(np.float64) ** 2).sum()) for image in floats) for query in queries]
    for k in (1, 3):
        found = NearestTrainingImage(k).fit(bank).score(queries, answers(queries))
        np.testing.assert_allclose(found, [row[k - 1] for row in distances], rtol=1e-5)
    np.testing.assert_array_equal(NearestTrainingImage().fit(bank).score(floats, answers(floats)), 0.0)


def test_the_grid_test_and_the_nearest_image_keep_the_contract_of_detectors(digits):
    queries = digits.test.inputs[:12]
    check_detector(OffGrid(digits.contract), queries, answers(queries))
    check_detector(NearestTrainingImage(2).fit(digits.train.inputs), queries, answers(queries))


def test_impossible_uses_are_refused():
    with pytest.raises(ConfigurationError, match=r"texture term must be one of laplacian_mean, .*, got 'sharpness'"):
        TextureTerm("sharpness", IMAGES)
    with pytest.raises(InvalidDataError, match="at least 1 benign query, got 0"):
        TextureTerm("mean", IMAGES).fit(np.empty((0, 1, 4, 4), np.float32))
    with pytest.raises(NotFittedError, match="two-sided mean needs benign queries"):
        TextureTerm("mean", IMAGES, two_sided=True).score(flat_images(0.5), answers(flat_images(0.5)))
    with pytest.raises(ConfigurationError, match="k must be at least 1, got 0"):
        NearestTrainingImage(0)
    with pytest.raises(NotFittedError, match=r"NearestTrainingImage needs fit\(\)"):
        NearestTrainingImage().score(flat_images(0.5), answers(flat_images(0.5)))
    with pytest.raises(InvalidQueryError, match=r"victim_probs must be \(1, classes\)"):
        OffGrid().score(flat_images(0.5), np.ones((2, 2), np.float32))
