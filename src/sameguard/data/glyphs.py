"""A thief's proxy for scikit-learn's digits: letters and symbols (no decimal digit) from the fonts that matplotlib ships.

Made the way the digits were: a 32x32 black-and-white bitmap, the character filling its height, counted in 4x4 blocks to 8x8 values of
0..16. Character width, stroke and slant are drawn around what was measured on the digits, for a thief who has seen the format would do the
same. Rendered on call, so nothing is stored; the same seed gives the same images under the same matplotlib and Pillow.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sameguard.data.dataset import Split
from sameguard.errors import ConfigurationError, DataNotFoundError

GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω&?!$%#@+*<>§¶€£"
FONT_FILES = tuple(
    [f"DejaVuSans{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSansMono{style}.ttf" for style in ("", "-Bold", "-Oblique", "-BoldOblique")]
    + [f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
    + [f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Ita", "BolIta")]
)
FONT_SIZES = (40, 56, 72)  # pixels, before scaling to the bitmap: they differ in hinting and in how coarse the outline becomes
BITMAP = 32
BLOCK = 4
LEVELS = BLOCK * BLOCK  # 16, as in the digits
INK_MEAN, INK_SD = 313.0, 35.0  # black pixels per bitmap, measured on the digits
WIDTH_MEAN, WIDTH_SD = 20.0, 2.0  # pixels, of a character as wide as it is high
NARROWEST, WIDEST = 7, 27
MAX_THICKENINGS = 8
ROTATION_SD = 6.0  # degrees
SHIFT = 1  # pixels, to either side


def render_glyphs(n: int = 4000, seed: int = 0) -> Split:
    """n distinct images (n, 1, 8, 8) in [0, 1], white on black like the digits; labels: position in GLYPHS, all equally frequent.

    Raises ConfigurationError unless n is positive, DataNotFoundError without matplotlib or its fonts.
    """
    if n < 1:
        raise ConfigurationError(f"n must be at least 1 image, got {n}.")
    generator = np.random.default_rng(seed)
    fonts = [ImageFont.truetype(str(path), size) for path in _font_paths() for size in FONT_SIZES]
    images: dict[bytes, int] = {}  # the image's bytes -> its class; insertion order is the order of the rows
    while len(images) < n:
        label = len(images) % len(GLYPHS)
        bitmap = _bitmap(GLYPHS[label], fonts[generator.integers(len(fonts))], generator)
        images.setdefault(_block_counts(bitmap).tobytes(), label)
    counts = np.frombuffer(b"".join(images), np.uint8).reshape(n, 1, BITMAP // BLOCK, BITMAP // BLOCK)
    return Split((counts / LEVELS).astype(np.float32), np.array(list(images.values()), np.int64), len(GLYPHS))


def _font_paths() -> list[Path]:
    try:
        import matplotlib
    except ImportError as error:
        raise DataNotFoundError(
            'glyphs must be rendered from matplotlib\'s fonts, but it is not installed: pip install "sameguard[train]".'
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = [folder / name for name in FONT_FILES if (folder / name).exists()]
    if not paths:
        raise DataNotFoundError(f"glyphs must be rendered from matplotlib's fonts, but {folder} has no DejaVu or STIX: reinstall it.")
    return paths


def _bitmap(character: str, font: ImageFont.FreeTypeFont, generator: np.random.Generator) -> np.ndarray:
    """One character as bool (32, 32): turned a little, cut out, scaled to full height, its strokes widened to the ink they should have."""
    side = 2 * int(font.size)
    drawing = Image.new("L", (side, side))
    ImageDraw.Draw(drawing).text((side / 2, side / 2), character, fill=255, font=font, anchor="mm")
    turned = drawing.rotate(generator.normal(0.0, ROTATION_SD), Image.Resampling.BILINEAR)
    cut = turned.crop(turned.point(lambda value: 255 * (value > 127)).getbbox())
    width = int(np.clip(generator.normal(WIDTH_MEAN, WIDTH_SD) * (cut.width / cut.height) ** 0.5, NARROWEST, WIDEST))
    bitmap = Image.new("L", (BITMAP, BITMAP))
    left = (BITMAP - width) // 2 + int(generator.integers(-SHIFT, SHIFT + 1))
    bitmap.paste(cut.resize((width, BITMAP), Image.Resampling.BILINEAR), (left, 0))
    return _thickened(np.asarray(bitmap) > 127, generator.normal(INK_MEAN, INK_SD))


def _thickened(bitmap: np.ndarray, ink: float) -> np.ndarray:
    """The bitmap with its strokes widened by a pixel, sideways and downwards in turn, as long as that brings it nearer to so much ink."""
    for turn in range(MAX_THICKENINGS):
        thicker = bitmap.copy()
        if turn % 2:
            thicker[1:] |= bitmap[:-1]
        else:
            thicker[:, 1:] |= bitmap[:, :-1]
        if abs(thicker.sum() - ink) >= abs(bitmap.sum() - ink):
            break
        bitmap = thicker
    return bitmap


def _block_counts(bitmap: np.ndarray) -> np.ndarray:
    """How many white pixels each 4x4 block has: uint8 (8, 8), 0..16."""
    blocks = bitmap.reshape(BITMAP // BLOCK, BLOCK, BITMAP // BLOCK, BLOCK)  # (8, 4, 8, 4)
    return blocks.sum(axis=(1, 3), dtype=np.uint8)
