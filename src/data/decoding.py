"""Decoding images, so that no file of any content can end a run.

MindSpore's own JPEG decoder ends the whole process (SIGFPE, SIGSEGV) on many files with a damaged
header, which no error mode catches. libjpeg-turbo, through simplejpeg, reports the same files as
errors, is at least as fast, and releases Python's lock while it works. Imports no framework.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")

# Larger images would take gigabytes to decode; the largest of ImageNet has 14 million pixels.
MAX_PIXELS = 100_000_000


class ImageError(ValueError):
    """Bytes that are no image, or a damaged one."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode a JPEG, PNG or BMP of any colour space to RGB, (H, W, 3) of uint8.

    Raises:
        ImageError: the bytes are anything else, cut off, damaged or too large an image.
    """
    if not data:
        raise ImageError("empty")
    try:
        if data[:2] == b"\xff\xd8":  # the marker with which every JPEG starts
            return _decode_jpeg(data)
        with warnings.catch_warnings():
            # Pillow warns of large images; their size is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP")) as image:
                _check_size(*image.size)
                if image.mode.startswith("I"):  # grey of 16 bits, which Pillow would clip at 255
                    grey = (np.asarray(image) >> 8).astype(np.uint8)
                    return np.stack([grey] * 3, axis=-1)
                return np.asarray(image.convert("RGB"))
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("neither JPEG, PNG nor BMP") from None
    except Exception as error:  # decoders raise many kinds of errors for damaged bytes
        reason = str(error).strip() or type(error).__name__
        raise ImageError(f"cannot be decoded ({reason})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels, more than {MAX_PIXELS // 10**6} million")


def _decode_jpeg(data: bytes) -> np.ndarray:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    _check_size(width, height)
    if colorspace in ("CMYK", "YCCK"):  # which libjpeg-turbo does not turn into RGB
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return np.asarray(image.convert("RGB"))
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        # Stray bytes in front of the end do no harm, and some ImageNet files have them. Elsewhere
        # they are refused: only the first complaint is told, and the next may be of lost pixels.
        if "extraneous bytes before marker 0xd9" not in str(error):
            raise
        return simplejpeg.decode_jpeg(data, "RGB", strict=False)
