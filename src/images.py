"""Judging an encoded image by its header, before it reaches a decoder.

MindSpore's JPEG decoder divides by zero on a file cut between its frame and its scan header, and the
signal ends the process; no error mode catches it. So what reaches the decoder has a whole header of a
sane size. Damage behind the header makes the decoder raise, which the pipeline handles.
"""
from __future__ import annotations

from typing import Optional

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp")

# Larger images would take gigabytes to decode; the largest of ImageNet has 14 million pixels.
MAX_PIXELS = 100_000_000

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD9)))


def _size_problem(width: int, height: int) -> Optional[str]:
    if not width or not height:
        return f"its header says {width}x{height} pixels"
    if width * height > MAX_PIXELS:
        return f"{width}x{height} pixels, more than {MAX_PIXELS // 10**6} million"
    return None


def _jpeg_problem(data: bytes) -> Optional[str]:
    position, components = 2, 0
    while True:
        # A segment: one or more FF, the marker, two bytes of length (which count themselves), the content.
        if data[position:position + 1] != b"\xff":
            return "truncated or damaged inside its header"
        while data[position:position + 1] == b"\xff":
            position += 1
        segment = data[position:position + 3]
        if len(segment) < 3:
            return "truncated inside its header"
        marker = segment[0]
        if marker in _BARE_MARKERS:
            position += 1
            continue
        length = int.from_bytes(segment[1:], "big")
        end = position + 1 + length
        if length < 2 or end > len(data):
            return "truncated inside its header"
        content = data[position + 3:end]
        if marker in _FRAME_MARKERS:
            if len(content) < 6 or components:
                return "damaged frame header"
            problem = _size_problem(int.from_bytes(content[3:5], "big"), int.from_bytes(content[1:3], "big"))
            components = content[5]
            if problem or components not in (1, 3, 4) or len(content) != 6 + 3 * components:
                return problem or "damaged frame header"
        elif marker == 0xDA:
            if not components or end == len(data):
                return "holds no image data"
            return None
        position = end


def image_problem(data: bytes) -> Optional[str]:
    """Why these bytes must not reach the decoder, or None for a JPEG, PNG or BMP with a whole header."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_problem(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and len(data) > 33:
        return _size_problem(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    if data[:2] == b"BM" and len(data) > 26:
        width, height = (abs(int.from_bytes(data[i:i + 4], "little", signed=True)) for i in (18, 22))
        return _size_problem(width, height)
    return "empty" if not data else "neither JPEG, PNG nor BMP"
