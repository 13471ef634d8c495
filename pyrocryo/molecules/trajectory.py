r"""Energies of modes from a trajectory: what a simulation says of how a molecule moves.

Each frame is superposed on the reference and projected on the modes. If it is one of equilibrium
at temperature τ, amplitudes have the law :math:`p(z_k) \propto e^{-\epsilon_k(z_k) / \tau}`, and
energies are fitted to them by maximum likelihood.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyrocryo.errors import InputError
from pyrocryo.molecules.domains import superposition
from pyrocryo.molecules.elastic import Modes
from pyrocryo.molecules.wells import FORMS, Fit, fitted
from pyrocryo.priors import Boltzmann
from pyrocryo.priors.profiles import Profile, profile
from pyrocryo.priors.terms import positive_kelvin

__all__ = ["Landscape", "Moved", "Well", "amplitudes", "anharmonic", "effective_frames", "overlap"]

log = logging.getLogger(__name__)

FOLDS = 5  # blocks of frames in a row, each held out once
FEWEST, FEW = 20, 100  # effective frames: refused, and warned of
WIDE = 2.0  # units of z, root mean square, from which a larger unit is advised
TREND, SURE = 0.2, 4.0  # share of the variance in a straight line, and its t, to be refused
BETTER = 2.0  # standard errors by which an energy must beat the harmonic one
HOTTER = 2.0  # the grid of the prior is wide enough up to this many times the temperature
TOP = 14.0  # k_B T at its ends
JUMP = 0.1  # of the density between two nodes, of its maximum


class Moved(nn.Module):
    r"""An energy whose origin is elsewhere: :math:`\epsilon(z - a)`.

    Args:
        energy: Of one coordinate, elementwise.
        at: `a`, in units of `z`.
    """

    def __init__(self, energy: nn.Module, at: float) -> None:
        super().__init__()
        self.energy = energy
        self.at = float(at)

    def forward(self, z: Tensor) -> Tensor:
        """Energies of ``z``, any shape."""
        return self.energy(z - self.at)

    def extra_repr(self) -> str:
        """Where its origin is."""
        return f"at={self.at:.6g}"


@dataclass(frozen=True, eq=False)
class Well:
    """The energy of one mode.

    Attributes:
        kind: "harmonic", "single well" or "double well".
        energy: In K (over k_B), a function of `z`.
        gains: By kind, how much more likely it makes a frame that was held out than the harmonic
            one does, and the standard error, in nats; None for a double well that has one well.
        frames: Effective number of frames.
        profile: Its wells and barrier, at the temperature of the trajectory.
    """

    kind: str
    energy: nn.Module
    gains: dict[str, tuple[float, float] | None]
    frames: float
    profile: Profile

    def __str__(self) -> str:
        name, told = str(self.profile).split(" at ", 1)
        others = ", ".join(
            f"{kind} one well" if gain is None else f"{kind} {gain[0]:+.3f} ± {gain[1]:.3f}"
            for kind, gain in self.gains.items()
        )
        return (
            f"{name.replace('component', 'mode')}: {self.kind} at {told} (held out, nats a frame "
            f"over harmonic: {others}; {self.frames:.0f} effective frames)"
        )


@dataclass(frozen=True, eq=False)
class Landscape:
    """Energies of all modes, from :func:`anharmonic`; prints as a line for each.

    Attributes:
        wells: One for each mode.
        temperature: Of the trajectory, in K.
        correlation: `(n, n)` of amplitudes: what a prior of independent modes leaves out.
    """

    wells: tuple[Well, ...]
    temperature: float
    correlation: np.ndarray

    @property
    def energies(self) -> list[nn.Module]:
        """Functions of `z`, in K, for :class:`pyrocryo.priors.Boltzmann`. They do not train."""
        return [well.energy for well in self.wells]

    def prior(self, **options: Any) -> Boltzmann:
        """The Boltzmann prior of these energies.

        At other temperatures than the trajectory's, energies stay as they are: a free energy
        along a mode changes with temperature by its entropy, of which one trajectory says nothing.

        Args:
            **options: Of :class:`pyrocryo.priors.Boltzmann`, such as ``temperature``; ``extent``
                and ``nodes`` follow from the energies, for up to twice the temperature.
        """
        extent, nodes = _grid(self.energies, HOTTER * self.temperature)
        return Boltzmann(energies=self.energies, **{"extent": extent, "nodes": nodes, **options})

    def __str__(self) -> str:
        lines = [str(well) for well in self.wells]
        if len(lines) > 1:
            apart = np.abs(self.correlation - np.eye(len(lines)))
            i, j = sorted(np.unravel_index(apart.argmax(), apart.shape))
            lines.append(
                f"modes are taken to be independent; the largest correlation is "
                f"{self.correlation[i, j]:.2f}, of modes {i + 1} and {j + 1}"
            )
        return "\n".join(lines)


def amplitudes(modes: Modes, trajectory: Any, amplitude: Any = 1.0) -> np.ndarray:
    """How far each frame is along each mode, `(M, n)`, in units of `z`.

    Each frame is superposed on the reference, as modes neither turn nor shift the molecule.

    Args:
        modes: Of :func:`pyrocryo.molecules.normal_modes`.
        trajectory: `(M, A, 3)` Å, the atoms of the modes in the same order.
        amplitude: What the volume or the molecule was given.
    """
    return _along(modes, _displacements(modes, trajectory)) / modes.scales(amplitude)


def overlap(modes: Modes, conformations: Any) -> np.ndarray:
    r"""Share of each squared displacement that the first 1, ..., n modes hold, `(M, n)`.

    :math:`\sum_{j \le k} (m_j \cdot d)^2 / |d|^2`, with `d` the way from the reference after
    superposition: how many modes a known change of conformation takes, before any are used.

    Args:
        modes: Of :func:`pyrocryo.molecules.normal_modes`.
        conformations: `(M, A, 3)` Å, such as another structure of the molecule (`M` = 1).
    """
    moved = _displacements(modes, conformations)
    far = (moved**2).sum(axis=(1, 2))
    return (_along(modes, moved) ** 2).cumsum(axis=1) / np.maximum(far, 1e-300)[:, None]


def _along(modes: Modes, moved: np.ndarray) -> np.ndarray:
    return moved.reshape(len(moved), -1) @ modes.vectors.reshape(len(modes), -1).T


def _displacements(modes: Modes, trajectory: Any) -> np.ndarray:
    """Of each frame from the reference `(M, A, 3)`, after superposition."""
    frames = np.asarray(trajectory, dtype=np.float64)
    if frames.ndim != 3 or frames.shape[1:] != modes.positions.shape or not len(frames):
        raise InputError(
            f"trajectory: expected frames (M, {len(modes.positions)}, 3) in Å of the atoms of the "
            f"modes, got shape {frames.shape}"
        )
    if not np.isfinite(frames).all():
        raise InputError("trajectory: expected finite numbers of Å")
    turn, move = superposition(frames, modes.positions)
    return frames @ np.swapaxes(turn, -1, -2) + move[:, None] - modes.positions


def anharmonic(
    modes: Modes, trajectory: Any, *, temperature: float, amplitude: Any = 1.0
) -> Landscape:
    r"""Energies of modes from a trajectory in equilibrium: harmonic, a single or a double well.

    Each is fitted by maximum likelihood, with a place of its own. The simplest is taken unless
    another makes frames that were held out (five blocks, each of frames in a row) more likely, by
    two standard errors; these are for the effective number of frames, as frames in a row are
    alike (:func:`effective_frames`). A double well is one only if it has two wells.

    `z` is 0 at the reference, so the volume is to count from there as well
    (:class:`pyrocryo.volumes.NormalModes` without ``rest``), with the same ``amplitude``. Modes
    are taken one by one: correlations between them are told, but left out.

    Args:
        modes: As many as `z` has numbers.
        trajectory: `(M, A, 3)` Å, frames at equal intervals, such as those of
            :func:`pyrocryo.io.read_trajectory`.
        temperature: Of the trajectory, in K.
        amplitude: What the volume is given; best such that amplitudes are of order 1 (a warning
            says which), as guides look for `z` near 0.

    Raises:
        InputError: If frames do not fit; or a mode drifts (more than a fifth of its variance is a
            trend, of a t of over 4), or has less than 20 effective frames: the trajectory is then
            not one of equilibrium, or too short.
    """
    kelvin = positive_kelvin("temperature", temperature)
    q = amplitudes(modes, trajectory, amplitude)
    if len(q) < FEWEST:
        raise InputError(f"trajectory: expected at least {FEWEST} frames, got {len(q)}")
    drifting = [(k, *found) for k, found in enumerate(map(_trend, q.T)) if found is not None]
    if drifting:
        k, share, t = max(drifting, key=lambda row: row[1])
        raise InputError(
            f"trajectory: it drifts along mode {k + 1} ({100 * share:.0f} % of the variance is a "
            f"trend, t = {t:.0f}), so it is not in equilibrium and has no Boltzmann law; "
            "leave out how it got there"
        )
    sizes = [effective_frames(x) for x in q.T]
    worst = int(np.argmin(sizes))
    told = (
        f"trajectory: its {len(q)} frames are worth {sizes[worst]:.0f} independent ones along mode"
        f" {worst + 1}"
    )
    if sizes[worst] < FEWEST:
        raise InputError(f"{told}; expected at least {FEWEST}: run it for longer")
    if sizes[worst] < FEW:
        log.warning("%s: energies are rough", told)
    far = np.sqrt((q**2).mean(axis=0))
    if far.max() > WIDE:
        log.warning(
            "amplitude: z is %.1f along mode %d (root mean square), and guides look for it within "
            "a few units of 0; one that is %.1f times as large makes it 1",
            far.max(),
            int(far.argmax()) + 1,
            far.max(),
        )
    wells = tuple(_chosen(k, q[:, k], sizes[k], kelvin) for k in range(len(modes)))
    correlation = np.corrcoef(q.T).reshape(len(modes), len(modes))
    return Landscape(wells, kelvin, correlation)


def effective_frames(x: np.ndarray) -> float:
    r"""How many independent draws `M` frames are worth, :math:`M / (1 + 2 \sum_t \rho(t))`.

    The smaller of those for `x` and for its squared distance from the mean; the sum runs to five
    times the correlation time that it gives (Sokal 1997, section 3).

    Args:
        x: `(M,)`.
    """
    about = x - x.mean()
    return min(len(x) / _inefficiency(about), len(x) / _inefficiency(about**2))


def _inefficiency(x: np.ndarray) -> float:
    x = x - x.mean()
    n = len(x)
    power = np.abs(np.fft.rfft(x, 2 * n)) ** 2
    if not power.sum() > 0:
        return float(n)
    rho = np.fft.irfft(power)[:n]
    sums = 2 * np.cumsum(rho / rho[0]) - 1
    wide = np.arange(n) >= 2.5 * sums  # 5 times the correlation time, which is half the sum
    return float(np.clip(sums[np.argmax(wide)] if wide.any() else n, 1, n))


def _trend(x: np.ndarray) -> tuple[float, float] | None:
    """Share of the variance in a straight line, and its t, if the series drifts."""
    when = np.linspace(-1, 1, len(x))
    about = x - x.mean()
    left = about - when * (about @ when) / (when @ when)
    total = about @ about
    share = 1 - (left @ left) / total if total > 0 else 0.0
    free = max(1.0, len(x) / _inefficiency(left))
    t = np.sqrt(share / max(1 - share, 1e-12) * free)
    return (share, float(t)) if share > TREND and t > SURE else None


def _chosen(k: int, z: np.ndarray, frames: float, kelvin: float) -> Well:
    """The energy of mode `k` of amplitudes ``z`` `(M,)`."""
    centre, spread = z.mean(), z.std()
    y = (z - centre) / spread
    blocks = np.array_split(np.arange(len(y)), FOLDS)
    whole = {kind: fitted(kind, y) for kind in FORMS}
    held = {kind: np.empty(len(y)) for kind in FORMS}
    for block in blocks:
        rest = np.delete(y, block)
        for kind in FORMS:
            held[kind][block] = fitted(kind, rest, whole[kind].numbers).log_density(y[block])
    gains: dict[str, tuple[float, float] | None] = {}
    for kind in list(FORMS)[1:]:
        better = held[kind] - held["harmonic"]
        error = better.std() * np.sqrt(_inefficiency(better) / len(y))
        gains[kind] = float(better.mean()), float(error)
    seen = {kind: _seen(k, fit, centre, spread, kelvin) for kind, fit in whole.items()}
    if len(seen["double well"].wells) < 2:
        gains["double well"] = None
    sure = {
        kind: gain[0]
        for kind, gain in gains.items()
        if gain is not None and gain[0] > BETTER * gain[1]
    }
    kind = max(sure, key=sure.__getitem__) if sure else "harmonic"
    energy, at = whole[kind].energy(kelvin, spread)
    return Well(kind, Moved(energy, centre + spread * at), gains, frames, seen[kind])


def _seen(k: int, fit: Fit, centre: float, spread: float, kelvin: float) -> Profile:
    y = np.linspace(-fit.reach, fit.reach, 1201)
    return profile(centre + spread * y, fit.log_density(y), k, kelvin)


def _grid(energies: list[nn.Module], kelvin: float) -> tuple[float, int]:
    """Where all energies confine, and nodes close enough for the sharpest of them."""
    reach = 1.0
    while True:
        z = torch.linspace(-reach, reach, 4001)
        with torch.no_grad():
            levels = torch.stack([energy(z) for energy in energies]) / kelvin
        levels = levels - levels.amin(-1, keepdim=True)
        if float(levels[:, [0, -1]].min()) > TOP:
            break
        reach *= 1.25
    density = (-HOTTER * levels).exp()  # at the trajectory's own temperature
    steepest = float(density.diff(dim=-1).abs().max()) / float(z[1] - z[0])
    return reach, max(256, math.ceil(2 * reach * steepest / JUMP))
