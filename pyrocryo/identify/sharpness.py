"""Before training: how sharply an image tells the conformation at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrocryo.errors import InputError
from pyrocryo.imaging import modulated
from pyrocryo.simulate import poses
from pyrocryo.simulate.images import MARGIN

__all__ = ["posterior_sd"]

STEP = 1e-3  # of z, on either side


def posterior_sd(
    molecule: Any, *, snr: float, n: int = 500, seed: int = 0, **imaging: Any
) -> Tensor:
    r"""Standard deviation with which one image tells `z`, under the true molecule and pose.

    .. math:: s_k = \sqrt{(\bar J^{-1})_{kk}}, \quad
              J_{kl} = \frac{a^2}{\sigma^2} \sum_{pixels} \partial_k g^* \, \partial_l g^*

    with the Fisher information `J` averaged over `z` (standard normal, reflected at ± 3), poses
    and CTFs, derivatives by central differences, and `a` the brightness that gives the SNR (σ = 1,
    as in :mod:`pyrocryo.simulate`). The prior has no part in it (flat): it is what
    :func:`pyrocryo.identify.power` takes, and under a normal prior of unit variance the posterior
    has :math:`(s^{-2} + 1)^{-1/2}`. A Cramér-Rao bound. Beside the exact posterior of two
    arms (:func:`pyrocryo.simulate.information_limit`) it is within 4 % at an SNR of .3, 10 % too
    small at .1, and 22 to 40 % at .03, where arms get mistaken for each other. Where poses are
    unknown images tell less. Errors of two components that go together (off-diagonals of
    :math:`\bar J^{-1}`) are left out.

    Args:
        molecule: As for :func:`pyrocryo.simulate.poses`.
        snr: var(clean image) / σ².
        n: Images that the information is averaged over.
        seed: Seed of `z` and poses.
        **imaging: As for :func:`pyrocryo.simulate.poses`: ``box``, ``pixel_size``, ``ctf``, ...
            (of white noise and one brightness: no ``spectrum``, no ``contrast``).

    Returns:
        `(K,)`.
    """
    for name in ("spectrum", "contrast"):
        if imaging.get(name):
            raise InputError(f"{name}: the sharpness of z is known for white noise only")
    particles = poses(molecule, n, seed, snr=snr, **imaging)
    size = {"box": particles.box, "pixel_size": particles.pixel_size}
    z, rotation, shift = (
        torch.as_tensor(particles.fields[name], dtype=torch.float64)
        for name in ("truth", "rotation", "shift")
    )

    def seen(z: Tensor) -> Tensor:
        clean = molecule.render(z, rotation, shift, **size)
        if "ctf" in particles.fields:
            ctf = torch.as_tensor(particles.ctf)
            clean = modulated(clean, ctf, pixel_size=particles.pixel_size, margin=MARGIN)
        return clean.flatten(1)

    with torch.no_grad():
        power = snr / seen(z).var(dim=1, correction=0).mean()
        steps = STEP * torch.eye(molecule.dim, dtype=z.dtype)
        slopes = torch.stack([(seen(z + h) - seen(z - h)) / (2 * STEP) for h in steps], dim=-1)
        information = power * (slopes.mT @ slopes).mean(dim=0)
        values = torch.linalg.eigvalsh(information)
    if not values[0] > 1e-12 * values[-1]:
        raise InputError(
            f"molecule: some direction of its {molecule.dim} components cannot be seen in images"
        )
    return torch.linalg.inv(information).diagonal().sqrt()
