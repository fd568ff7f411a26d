"""Turns figures into small bitmaps: PNG files, and WebP in the page, both without loss and with the same pixels."""

from __future__ import annotations

import base64
import io
import warnings

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from introspection_lit.report.drawing import RESOLUTION, STYLE

# A colour of at least this share of the pixels is kept as it is. Others are those of edges, nine of ten colours: they have
# LEVELS values a channel, which nobody sees, and the page needs half as much space for them.
AREA, LEVELS = 0.0005, 5
PALETTE = 256  # colours that a PNG with one byte for each pixel may have
MAX_WEBP = 16383  # pixels of a side


def to_picture(figure: Figure) -> Image.Image:
    """Draw a figure, 1,000 pixels wide, in few colours."""
    figure.set_dpi(RESOLUTION)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(), mpl.rc_context(STYLE):
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as boxes
        canvas.draw()
    return few_colours(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"))


def few_colours(picture: Image.Image) -> Image.Image:
    """Keep the colours of areas, and round those of edges.

    Args:
        picture: In RGB.

    Returns:
        With a palette, if its colours fit into one.
    """
    pixels = np.asarray(picture).reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    starts = np.flatnonzero(np.diff(pixels, prepend=pixels[0] ^ 1))  # of runs of one colour: a tenth of the pixels, to sort
    lengths = np.diff(starts, append=len(pixels))
    codes, of_run = np.unique(pixels[starts], return_inverse=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    rare = np.bincount(of_run, lengths) < AREA * len(pixels)
    step = 255 / (LEVELS - 1)
    colours[rare] = np.rint(np.rint(colours[rare] / step) * step)
    palette, place = np.unique(colours, axis=0, return_inverse=True)
    drawn = np.repeat(place.reshape(-1)[of_run], lengths).reshape(picture.height, picture.width)
    if len(palette) > PALETTE:
        return Image.fromarray(palette[drawn].astype(np.uint8))
    small = Image.fromarray(drawn.astype(np.uint8))
    small.putpalette(palette.astype(np.uint8).tobytes())
    return small


def to_png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def data_url(picture: Image.Image) -> str:
    """The picture as a data URL: WebP, or PNG where it is too tall for that."""
    if max(picture.size) > MAX_WEBP:
        return f"data:image/png;base64,{base64.b64encode(to_png(picture)).decode()}"
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "WEBP", lossless=True, quality=100, method=2)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
