"""Maps and images against what they should look like."""

from __future__ import annotations

import numpy as np

from pyrocryo.errors import InputError

__all__ = ["fsc", "image_correlation", "resolution"]


def fsc(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""Fourier shell correlation of two maps.

    .. math:: FSC(s) = \frac{\Re \sum_{|k| \in s} A_k B_k^*}
              {\sqrt{\sum_{|k| \in s} |A_k|^2 \sum_{|k| \in s} |B_k|^2}}

    (Harauz and van Heel 1986.) Shell `s` holds the frequencies that round to `s` cycles a box.

    Args:
        a: `(D, D, D)`, or `(D, D)` for images (then it is a ring correlation).
        b: Of the same shape.

    Returns:
        `(D // 2 + 1,)`, from the mean (shell 0) to Nyquist; 0 where a shell is empty of signal.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim not in (2, 3) or len(set(a.shape)) != 1:
        raise InputError(f"fsc: expected two maps of one cubic shape, got {a.shape} and {b.shape}")
    side = a.shape[0]
    axes = np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * a.ndim, indexing="ij")
    shell = np.rint(np.sqrt(sum(axis**2 for axis in axes))).astype(int).ravel()
    fa, fb = np.fft.fftn(a).ravel(), np.fft.fftn(b).ravel()

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(shell, weights=values)[: side // 2 + 1]

    norm = np.sqrt(sums(np.abs(fa) ** 2) * sums(np.abs(fb) ** 2))
    return np.divide(sums((fa * fb.conj()).real), norm, out=np.zeros_like(norm), where=norm > 0)


def resolution(curve: np.ndarray, voxel_size: float, threshold: float = 0.5) -> float:
    """Resolution (Å) at which an FSC curve first falls below ``threshold``.

    Twice the voxel size (Nyquist) where it never does.

    Args:
        curve: What :func:`fsc` gives, from frequency 0 to Nyquist.
        voxel_size: Å per voxel.
        threshold: Such as .5 against a known map, .143 between half maps.
    """
    below = np.flatnonzero(curve[1:] < threshold) + 1
    box = 2 * (len(curve) - 1) * voxel_size
    return float(box / below[0]) if len(below) else 2 * voxel_size


def image_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over images `(N, D, D)` of the correlation of each pair over its pixels."""
    a, b = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (a, b))
    if a.shape != b.shape:
        raise InputError(f"images: expected the same shape, got {a.shape} and {b.shape} pixels")
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0)))
