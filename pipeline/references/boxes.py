"""Boxes: parts of pictures as fractions of their sides."""

from __future__ import annotations

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge, as fractions of the picture's width and height."""


def in_pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in whole pixels of a picture of ``size``: at least one pixel, and none outside."""
    width, height = size
    left, right = (min(width, max(0, round(edge * width))) for edge in box[::2])
    top, bottom = (min(height, max(0, round(edge * height))) for edge in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(left + 1, right), max(top + 1, bottom)
