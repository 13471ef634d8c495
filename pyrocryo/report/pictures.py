"""Pictures as text: many small ones on one sheet, for a page that has all within it."""

from __future__ import annotations

import base64
import io

import numpy as np

__all__ = ["binned", "binned_side", "encoded", "sheet", "sprite"]

COLUMNS = 25  # pictures in a row of a sheet
QUALITY = 55  # of JPEG: noise takes most of it


def binned(images: np.ndarray, side: int) -> np.ndarray:
    """Images `(n, D, D)` averaged over blocks of pixels until no wider than ``side``."""
    factor = -(-images.shape[-1] // side)
    d = binned_side(images.shape[-1], side)
    cut = images[:, : d * factor, : d * factor].astype(np.float32)
    return cut.reshape(len(images), d, factor, d, factor).mean(axis=(2, 4))


def binned_side(side: int, most: int) -> int:
    """Pixels along an edge that :func:`binned` leaves."""
    return side // -(-side // most)


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Images `(n, d, d)` side by side, `(rows d, columns d)`; y points up in each."""
    n, d = len(images), images.shape[-1]
    rows = -(-n // columns)
    full = np.zeros((rows * columns, d, d), dtype=images.dtype)
    full[:n] = images[:, ::-1]
    return full.reshape(rows, columns, d, d).swapaxes(1, 2).reshape(rows * d, columns * d)


def sprite(images: np.ndarray, side: int) -> dict[str, object]:
    """A grey sheet of pictures, JPEG, from the 0.5th to the 99.5th percentile of all.

    Returns:
        ``src``, ``side`` and ``columns``; ``count`` of the pictures.
    """
    small = binned(images, side)
    low, high = np.quantile(small, [0.005, 0.995])
    grey = np.clip((small - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    columns = min(COLUMNS, len(grey))
    return {
        "src": encoded(sheet(grey, columns), kind="JPEG"),
        "side": grey.shape[-1], "columns": columns, "count": len(grey),
    }  # fmt: skip


def encoded(array: np.ndarray, *, palette: np.ndarray | None = None, kind: str = "PNG") -> str:
    """A `data:` address of a picture `(rows, columns)` uint8, grey or by a palette `(256, 3)`."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(array))
    if palette is not None:
        picture.putpalette(np.asarray(palette, dtype=np.uint8).tobytes())
    buffer = io.BytesIO()
    options = {"quality": QUALITY} if kind == "JPEG" else {"optimize": True}
    picture.save(buffer, kind, **options)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{code}"
