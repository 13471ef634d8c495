"""Structures put into maps: all orientations are tried, and the best refined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocryo import quaternions
from pyrocryo.errors import InputError
from pyrocryo.imaging import one_each, splat_map
from pyrocryo.molecules.elastic import Modes
from pyrocryo.molecules.mixture import cubic

__all__ = ["Docked", "dock"]

COARSE = 6.0  # voxels from the middle of the structure to its end where orientations are tried
SIDES = (16, 48)  # least and most voxels along an edge of the box there
VIEWS, ANGLES = 192, 24  # orientations tried: 15° apart
GOLDEN = math.pi * (3 - math.sqrt(5))
APART = math.radians(45)  # places that are refined begin at least so far from one another
OTHER = math.radians(25)  # and end in another well if at least so far
HEADS = 5
BATCH = 64  # orientations at once
ITERATIONS = 60  # of LBFGS
NARROW = 0.6  # of a voxel: narrower Gaussians would fall between voxels


@dataclass(frozen=True, eq=False)
class Docked:
    r"""A structure in a map, from :func:`dock`: atoms are at :math:`R r_a + t`.

    Attributes:
        positions: `(A, 3)` Å from the centre of the map's box.
        rotation: `R`, `(3, 3)`.
        translation: `t`, `(3,)` Å.
        correlation: Of the map of Gaussians at these positions with the map.
        runner_up: The best correlation at least 25° away, before it moved along modes. As good
            as ``rigid``, the place is ambiguous: a symmetric molecule, or a map that shows too
            little.
        mirror: The best correlation of the mirrored structure, likewise. Better than ``rigid``,
            the map is of the other hand (or the structure).
        amplitudes: `(n,)` Å along each mode, where modes were given; or None.
        rigid: Correlation before it moved along modes; the same as ``correlation`` without.
    """

    positions: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    correlation: float
    runner_up: float
    mirror: float
    amplitudes: np.ndarray | None
    rigid: float

    def __repr__(self) -> str:
        bent = "" if self.amplitudes is None else f" (rigid {self.rigid:.4f})"
        return (
            f"Docked(correlation {self.correlation:.4f}{bent}, runner-up {self.runner_up:.4f}, "
            f"mirror {self.mirror:.4f})"
        )


class _Place(NamedTuple):
    rotation: Tensor
    translation: Tensor
    correlation: float


def dock(
    positions: Any,
    map: Any,
    voxel_size: float,
    *,
    width: Any = 4.0,
    weight: Any = 1.0,
    modes: Modes | None = None,
    amplitude: float = 1.0,
) -> Docked:
    r"""Puts a structure where its Gaussians correlate most with a map.

    On the map at few voxels, 4608 orientations 15° apart are tried, each at all places at once (by
    FFT); the best five, 45° apart, are refined on the whole map (LBFGS on
    :math:`R, t`). The mirrored structure is put into the map too.

    With ``modes``, the structure then moves along them, :math:`r_a = r_a^{(0)} + \sum_k q_k
    m_{ka}`, to the most probable amplitudes,

    .. math:: \frac n 2 \log (1 - c^2) + \sum_k \frac{\gamma \lambda_k q_k^2}{2 a^2 k_B 300 K}
              \to \min

    with `c` the correlation over `n` voxels: a Gaussian likelihood whose noise is what is left
    over, and the energy of the springs. What comes out is the consensus structure.

    Args:
        positions: `(A, 3)` Å, such as those of :class:`pyrocryo.io.Structure`, anywhere.
        map: `(D, D, D)`, indexed `[z, y, x]`.
        voxel_size: Å.
        width: Standard deviations of the atoms' Gaussians in Å, one or `(A,)`. It should blur
            them as the map is blurred.
        weight: Their heights, one or `(A,)`.
        modes: Of these positions (:func:`pyrocryo.molecules.normal_modes`).
        amplitude: Factor `a` on the thermal amplitudes at 300 K.

    Raises:
        InputError: If shapes are wrong, the molecule is larger than the box, or modes are of
            other positions.
    """
    values = cubic(map, voxel_size)
    r = np.asarray(positions, dtype=np.float64)
    if r.ndim != 2 or r.shape[1] != 3 or len(r) < 3 or not np.isfinite(r).all():
        raise InputError(f"positions: expected finite numbers (A, 3) in Å, got shape {r.shape}")
    middle = r.mean(axis=0)
    extent, edge = float(np.linalg.norm(r - middle, axis=1).max()), len(values) * voxel_size
    if extent > edge / 2 * math.sqrt(3):
        raise InputError(f"positions: atoms {extent:.0f} Å from their middle, a box of {edge:g} Å")
    if modes is not None and not (
        modes.positions.shape == r.shape and np.allclose(modes.positions, r, atol=1e-3)
    ):
        raise InputError("modes: expected those of these positions; compute them of the same")
    if not amplitude > 0:
        raise InputError(f"amplitude: expected a positive factor, got {amplitude}")
    looks = one_each("width", width, len(r)), one_each("weight", weight, len(r), least=0.0)
    looks = looks[0].float(), looks[1].float()
    target = torch.as_tensor(values, dtype=torch.float32)
    still = torch.as_tensor(r - middle, dtype=torch.float32)
    best, second = _placed(still, looks, target, voxel_size)
    mirrored, _ = _placed(still * still.new_tensor([1.0, 1.0, -1.0]), looks, target, voxel_size)
    rotation, moved, correlation = best
    amplitudes = None
    if modes is not None:
        soft = torch.as_tensor(modes.vectors * modes.scales(amplitude)[:, None, None]).float()
        rotation, moved, u, correlation = _bent(best, still, soft, looks, target, voxel_size)
        still = still + torch.tensordot(u, soft, dims=1)
        amplitudes = u.double().numpy() * modes.scales(amplitude)
    turn = rotation.double().numpy()
    found = still.double().numpy() @ turn.T + moved.double().numpy()
    return Docked(
        positions=found,
        rotation=turn,
        translation=moved.double().numpy() - turn @ middle,
        correlation=correlation,
        runner_up=second.correlation,
        mirror=mirrored.correlation,
        amplitudes=amplitudes,
        rigid=best.correlation,
    )


def _placed(
    still: Tensor, looks: tuple[Tensor, Tensor], target: Tensor, voxel_size: float
) -> tuple[_Place, _Place]:
    """The best place, and the best of those that are turned away from it."""
    found = [
        _refined(q, t, still, looks, target, voxel_size)
        for q, t in _candidates(still, looks, target, voxel_size)
    ]
    found.sort(key=lambda place: -place.correlation)
    for other in found[1:]:
        cosine = ((found[0].rotation * other.rotation).sum() - 1) / 2
        if cosine < math.cos(OTHER):
            return found[0], other
    return found[0], found[0]._replace(correlation=-1.0)


def _candidates(
    still: Tensor, looks: tuple[Tensor, Tensor], target: Tensor, voxel_size: float
) -> list[tuple[Tensor, Tensor]]:
    """Orientations (quaternions) and translations (Å) to refine, from the map at few voxels."""
    edge, extent = voxel_size * len(target), float(still.norm(dim=-1).max())
    side = min(len(target), max(SIDES[0], min(SIDES[1], round(COARSE * edge / extent))))
    small, voxel = _coarse(target, side), edge / side
    width = looks[0].square().add((NARROW * voxel) ** 2).sqrt()
    small = torch.fft.rfftn(small - small.mean())
    small = small / small.abs().square().sum().sqrt()
    grid = _orientations()
    score, where = [], []
    for q in grid.split(BATCH):
        seen = still @ quaternions.matrix(q).transpose(-1, -2)
        shown = splat_map(seen, width, looks[1], side=side, voxel_size=voxel)
        shown = torch.fft.rfftn(shown, dim=(-3, -2, -1))
        shown[..., 0, 0, 0] = 0
        match = torch.fft.irfftn(small * shown.conj(), s=(side,) * 3, dim=(-3, -2, -1))
        match = match / shown.abs().square().sum(dim=(-3, -2, -1), keepdim=True).sqrt()
        most, at = match.flatten(1).max(-1)
        score.append(most)
        where.append(at)
    score, where = torch.cat(score), torch.cat(where)
    found = []
    for _ in range(HEADS):
        n = int(score.argmax())
        if not math.isfinite(score[n]):
            break
        steps = torch.tensor([int(where[n]) // side**k % side for k in range(3)])  # x, y, z
        steps = torch.where(steps >= (side + 1) // 2, steps - side, steps)
        found.append((grid[n], steps * voxel))
        score[(grid @ grid[n]).abs() > math.cos(APART / 2)] = -torch.inf
    return found


def _coarse(values: Tensor, side: int) -> Tensor:
    """The map at ``side`` voxels along an edge, its origin at voxel ``side // 2``."""
    if side == len(values):
        return values
    large, axes = len(values), (0, 1, 2)
    spectrum = torch.fft.fftn(values.roll([-(large // 2)] * 3, axes))
    n = torch.fft.fftfreq(side, 1 / side).round().long() % large
    spectrum = spectrum[n][:, n][:, :, n]
    return torch.fft.ifftn(spectrum).real.roll([side // 2] * 3, axes)


def _orientations() -> Tensor:
    """Quaternions `(V angles, 4)`: views on a spiral over the sphere, times turns in the plane."""
    n = torch.arange(VIEWS) + 0.5
    tilt, rot, none = torch.acos(1 - 2 * n / VIEWS), GOLDEN * n, torch.zeros(VIEWS)
    turn = torch.arange(ANGLES) * (2 * math.pi / ANGLES)
    view = quaternions.product(
        quaternions.exponential(torch.stack([none, tilt, none], dim=-1)),
        quaternions.exponential(torch.stack([none, none, rot], dim=-1)),
    )
    still = torch.zeros(ANGLES)
    turn = quaternions.exponential(torch.stack([still, still, turn], dim=-1))
    return quaternions.product(turn, view.unsqueeze(1)).reshape(-1, 4).float()


def _correlation(
    positions: Tensor, looks: tuple[Tensor, Tensor], target: Tensor, voxel_size: float
) -> Tensor:
    shown = splat_map(positions, *looks, side=len(target), voxel_size=voxel_size)
    shown, target = shown - shown.mean(), target - target.mean()
    return (shown * target).sum() / (shown.norm() * target.norm()).clamp_min(1e-20)


def _refined(
    start: Tensor,
    moved: Tensor,
    still: Tensor,
    looks: tuple[Tensor, Tensor],
    target: Tensor,
    voxel_size: float,
) -> _Place:
    """The nearest place where the correlation is highest."""
    reach = still.norm(dim=-1).mean()  # a turn by 1 / reach moves atoms by 1 Å
    step = torch.zeros(6, dtype=still.dtype, requires_grad=True)

    def place() -> tuple[Tensor, Tensor]:
        turn = quaternions.product(quaternions.exponential(step[:3] / reach), start)
        return quaternions.matrix(turn), moved + step[3:]

    def loss() -> Tensor:
        rotation, translation = place()
        return -_correlation(still @ rotation.T + translation, looks, target, voxel_size)

    value = _descended(step, loss)
    with torch.no_grad():
        return _Place(*place(), -value)


def _bent(
    rigid: _Place,
    still: Tensor,
    soft: Tensor,
    looks: tuple[Tensor, Tensor],
    target: Tensor,
    voxel_size: float,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Rotation, translation, amplitudes in units of ``soft``, and the correlation there."""
    reach = still.norm(dim=-1).mean()
    unit = soft.square().sum(-1).mean(-1).sqrt()  # Å an atom, on average
    free = torch.zeros(6 + len(soft), dtype=still.dtype, requires_grad=True)

    def now() -> tuple[Tensor, Tensor, Tensor]:
        turn = quaternions.matrix(quaternions.exponential(free[:3] / reach)) @ rigid.rotation
        return turn, rigid.translation + free[3:6], free[6:] / unit

    def matched() -> tuple[Tensor, Tensor]:
        turn, moved, u = now()
        shown = (still + torch.tensordot(u, soft, dims=1)) @ turn.T + moved
        return _correlation(shown, looks, target, voxel_size), u

    def loss() -> Tensor:
        c, u = matched()
        return 0.5 * (1 - c.square()).clamp_min(1e-7).log() + 0.5 * u.square().sum() / (
            target.numel()
        )

    _descended(free, loss)
    with torch.no_grad():
        return *now(), float(matched()[0])


def _descended(free: Tensor, loss: Any) -> float:
    """Follows ``loss`` down by LBFGS from where ``free`` is; its last value."""
    optimiser = torch.optim.LBFGS(
        [free],
        max_iter=ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        return float(loss())
