"""The two sets that need no file: scikit-learn's digits, and the rendered proxy of a thief who knows their format."""

import builtins

import matplotlib
import numpy as np
import pytest
from sklearn.datasets import load_digits

from sameguard.data import load
from sameguard.data.glyphs import GLYPHS, render_glyphs
from sameguard.data.splits import content_digests
from sameguard.errors import ConfigurationError, DataNotFoundError


def test_digits_are_all_there_on_their_sixteen_levels_and_always_parted_alike():
    digits, again = load("digits"), load("digits")
    assert len(digits.train) + len(digits.test) == len(load_digits().target) == 1797
    assert digits.train.input_shape == (1, 8, 8)
    together = np.concatenate([digits.train.inputs, digits.test.inputs])
    np.testing.assert_allclose(np.sort(together.sum(axis=(1, 2, 3))), np.sort(load_digits().images.sum(axis=(1, 2))) / 16, rtol=1e-6)
    np.testing.assert_array_equal(digits.train.raw, again.train.raw)
    assert not set(content_digests(digits.train)) & set(content_digests(digits.test))


def test_every_digit_keeps_its_label():
    official = {image.astype(np.uint8).tobytes(): target for image, target in zip(load_digits().images, load_digits().target, strict=True)}
    digits = load("digits")
    for part in (digits.train, digits.test):
        counts = np.rint(part.inputs[:, 0] * 16).astype(np.uint8)
        assert all(official[image.tobytes()] == label for image, label in zip(counts, part.labels, strict=True))


def test_glyphs_are_distinct_balanced_and_on_the_digits_levels():
    glyphs = render_glyphs(300)
    assert glyphs.raw.shape == (300, 1, 8, 8)
    assert len(np.unique(glyphs.raw, axis=0)) == 300
    assert np.ptp(np.bincount(glyphs.labels, minlength=glyphs.classes)) == 1
    np.testing.assert_array_equal(glyphs.raw * 16, np.rint(glyphs.raw * 16))


def test_no_glyph_is_a_decimal_digit_and_none_comes_twice():
    assert not any(character.isdecimal() for character in GLYPHS)
    assert len(set(GLYPHS)) == len(GLYPHS)


def test_glyphs_depend_on_the_seed_and_on_nothing_else():
    np.testing.assert_array_equal(render_glyphs(50, seed=1).raw, render_glyphs(50, seed=1).raw)
    assert (render_glyphs(50, seed=1).raw != render_glyphs(50, seed=2).raw).any()
    np.testing.assert_array_equal(render_glyphs(80, seed=1).raw[:50], render_glyphs(50, seed=1).raw)


def test_glyphs_have_the_digits_ink_height_and_place():
    glyphs, digits = render_glyphs(960).inputs[:, 0], load("digits").train.inputs[:, 0]
    assert glyphs.mean() == pytest.approx(digits.mean(), rel=0.1)
    assert glyphs.any(axis=2).sum(axis=1).mean() == pytest.approx(8, abs=0.1)  # rows that hold ink
    np.testing.assert_allclose(glyphs.mean(axis=(0, 1)), digits.mean(axis=(0, 1)), atol=0.12)  # ink by column
    np.testing.assert_allclose(glyphs.mean(axis=(0, 2)), digits.mean(axis=(0, 2)), atol=0.12)  # ink by row


def test_glyphs_need_a_positive_number():
    with pytest.raises(ConfigurationError, match="n must be at least 1 image, got 0"):
        render_glyphs(0)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn.datasets"), ("glyphs", "matplotlib")])
def test_without_the_package_the_error_says_what_to_install(monkeypatch, name, package):
    genuine = builtins.__import__

    def refuse(module, *arguments, **options):
        if module == package:
            raise ImportError(module)
        return genuine(module, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataNotFoundError, match=rf'{name} must .* not installed: pip install "sameguard\[train\]"'):
        load(name)


def test_without_the_fonts_the_error_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(DataNotFoundError, match="fonts/ttf has no DejaVu or STIX: reinstall it"):
        render_glyphs(1)
