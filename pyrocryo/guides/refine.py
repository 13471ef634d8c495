"""A guide for poses that are known roughly: Gauss-Newton steps on pose, shift and conformation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyrocryo import cholesky, quaternions
from pyrocryo.errors import InputError
from pyrocryo.precision import applied, exact
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.rotation_laws import RotationNormal

__all__ = ["Refine", "RotationAndShift", "Step", "gauss_newton", "posed", "precisions", "through"]

TURN, MOVE, BEND = 0.02, 0.1, 0.05  # of finite differences: rad, pixels, units of z
LARGEST_TURN, LARGEST_MOVE = 0.35, 4.0  # a step, in rad and pixels
LARGEST = 4.0  # |u| beyond which the prior leaves nothing
WEAK = 4.0  # precision of turns (1/rad²) where the prior has none: wells are narrower than that


class Step(NamedTuple):
    """Where Gauss-Newton stands, an image.

    Attributes:
        pose: `(..., 4)` unit quaternions.
        shift: `(..., 2)` in pixels.
        u: `(..., K)` conformations.
    """

    pose: Tensor
    shift: Tensor
    u: Tensor


class RotationAndShift(RotationNormal):
    r"""The law of a rotation that also knows that of the shift in Å, given the rotation.

    Args:
        centre: `(..., 4)`.
        scale_tril: `(..., 3, 3)` of the rotation vector ω, rad.
        moved: `(..., 2)` mean of the shift at ω = 0, Å.
        gain: `(..., 2, 3)` Å per rad of ω.
        spread: `(..., 2, 2)` lower triangular, Å.
    """

    def __init__(
        self, centre: Tensor, scale_tril: Tensor, moved: Tensor, gain: Tensor, spread: Tensor
    ) -> None:
        super().__init__(centre, scale_tril)
        self.moved, self.gain, self.spread = moved, gain, spread

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotationNormal:
        """Of the rotation alone."""
        return RotationNormal(self.centre, self.scale_tril, validate_args=False).expand(
            batch_shape
        )

    def shift(self, direction: Tensor) -> Any:
        """q(shift | x, pose), event shape `(2,)`, of poses `(..., 4)`."""
        omega = 2 * self.tangent(direction)
        still = torch.eye(2, dtype=omega.dtype, device=omega.device)
        return RotatedNormal(self.moved + applied(self.gain, omega), self.spread, still)


class Refine(nn.Module):
    r"""The posterior of pose, shift and conformation under the volume, linearised together.

    With `g` the image without noise at the pose :math:`e^{\omega / 2} \otimes q`, shift `t` and
    conformation `u`, `J` its derivatives by all of them (forward differences), and `P` the
    precisions of the priors,

    .. math:: \Lambda = P + J^\top J / s^2, \quad
              (\omega, \delta t, \delta u) = \Lambda^{-1} [J^\top (x - g) / s^2 + P (m - \cdot)]

    from the known pose and shift and `u` = 0, a few times. The pose is then a normal of
    rotations (:class:`pyrocryo.rotation_laws.RotationNormal`), the shift a normal given the pose,
    both with `u` (standard normal) integrated out; `u` itself is the other guide's affair. The
    noise `s` is the model's. Learned is how much wider than linearised the two laws are, a number
    an axis: `s` and the precisions of `u`, learned here as well, ran away, as their gradients
    through the last step are not those of all steps. Nothing is kept of a particle, so held-out
    ones are refined as well as others. Gradients of the ELBO reach the volume through the decoder
    only.

    An iteration makes K + 6 images (K + 4 without shifts). Poses off by more than what blurs the
    molecule's features (some 20° here) may end in another well.

    Args:
        iterations: Gauss-Newton steps.
    """

    def __init__(self, iterations: int = 4) -> None:
        super().__init__()
        if iterations < 1:
            raise InputError(f"iterations: expected at least 1, got {iterations}")
        self.iterations = iterations

    def build(self, pair: nn.Module) -> Refine:
        """Takes what it needs from the pair: its volume, its poses, its noise and K."""
        if pair.pose.sd is None:
            raise InputError(
                "pose_guide: Refine starts from known rotations, SO3(around=...); Search finds "
                "unknown ones"
            )
        self._pair = (pair,)  # in a tuple: its parameters are not the guide's
        self.latent = pair.dim
        self.sd, self.shift_sd = pair.pose.sd, pair.pose.shift_sd
        self.log_widening = nn.Parameter(torch.zeros(3 + 2 * pair.pose.shifts))
        return self

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return f"iterations={self.iterations}"

    def reset_parameters(self) -> None:
        """Back to the posterior as linearised."""
        nn.init.zeros_(self.log_widening)

    @exact
    def forward(
        self,
        images: Tensor,
        rotation: Tensor,
        shift: Tensor,
        pixel_size: Tensor,
        optics: Callable[[Tensor], Tensor] | None,
    ) -> RotationNormal:
        """The posterior of images `(..., D, D)` near known poses.

        Args:
            images: `(..., D, D)` as they are.
            rotation: `(..., 4)` known rotations, as unit quaternions.
            shift: `(..., 2)` in pixels.
            pixel_size: Å per pixel.
            optics: Clean images `(..., D, D)`, with further leading axes, as they are seen.
                None where nothing happens to them.
        """
        at = Step(rotation, shift, images.new_zeros(*rotation.shape[:-1], self.latent))
        precision = precisions(images, self.latent, self.sd, self.shift_sd, pixel_size)
        pair = self._pair[0]
        weight = pair.noise.detach() ** -2
        render = through(pair.volume, optics)
        with torch.no_grad():
            for _ in range(self.iterations):
                at, factor, _ = gauss_newton(
                    render, images, at, Step(rotation, shift, None), precision, weight
                )
        return posed(at, factor, self.log_widening.exp(), self.shift_sd, pixel_size)


def through(
    volume: nn.Module, optics: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The volume as it is seen: a function of `(u, rotation, shift)`."""
    return volume if optics is None else lambda *given: optics(volume(*given))


def precisions(
    images: Tensor, latent: int, sd: float | None, shift_sd: float | None, pixel_size: Tensor
) -> Tensor:
    """Of the priors, `(3 + 2 + K,)` or, where the shift stays, `(3 + K,)`: 1/rad², 1/px², `u`.

    Args:
        images: For their dtype and device.
        latent: K.
        sd: Of the rotation about each axis, rad; None for a flat prior.
        shift_sd: Å, or None.
        pixel_size: Å per pixel.
    """
    parts = [images.new_full((3,), WEAK if sd is None else sd**-2)]
    if shift_sd is not None:
        parts.append((pixel_size / shift_sd).square().expand(2))
    return torch.cat([*parts, images.new_ones(latent)])


def gauss_newton(
    render: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: Tensor,
    at: Step,
    prior: Step,
    precision: Tensor,
    weight: Tensor,
) -> tuple[Step, Tensor, Tensor]:
    r"""One step on all images, with the Cholesky factor of Λ where it started.

    Args:
        render: Images without noise of `(u, rotation, shift)`: a volume, or one seen
            :func:`through` optics.
        images: `(..., D, D)`.
        at: Where it starts.
        prior: Centres of the priors of pose (None for a flat one) and shift; that of `u` is 0.
        precision: `(3 + 2 + K,)`, or `(3 + K,)` where the shift stays.
        weight: :math:`1 / s^2`.

    Returns:
        The step taken, the factor `(..., n, n)`, and the logarithm of the evidence of this well
        as linearised, :math:`\ln \int p(x, \omega, t, u)`, up to a constant, `(...)`.
    """
    k = at.u.shape[-1]
    shifts = len(precision) == k + 5
    with torch.no_grad():
        clean, jacobian = linearised(render, at, shifts)
    zero = torch.zeros_like(at.pose[..., :3])
    away = quaternions.logarithm(
        quaternions.product(prior.pose, quaternions.conjugate(at.pose))
    ) if prior.pose is not None else zero  # fmt: skip
    pull = [away, *([prior.shift - at.shift] if shifts else []), -at.u]
    pull = torch.cat(pull, dim=-1)
    residual = (images - clean).flatten(-2)
    matrix = torch.diag_embed(precision) + weight * (jacobian.transpose(-1, -2) @ jacobian)
    score = weight * (jacobian.transpose(-1, -2) @ residual.unsqueeze(-1)).squeeze(-1)
    factor = cholesky.factor(matrix)
    score = score + precision * pull
    step = cholesky.solve(score.unsqueeze(-1), factor).squeeze(-1)
    misfit = weight * residual.square().sum(-1) + (precision * pull.square()).sum(-1)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    evidence = 0.5 * ((score * step).sum(-1) - misfit) - log_det
    turn = _shorter(step[..., :3], LARGEST_TURN)
    pose = quaternions.unit(quaternions.product(quaternions.exponential(turn), at.pose))
    shift = at.shift + _shorter(step[..., 3:5], LARGEST_MOVE) if shifts else at.shift
    u = (at.u + step[..., -k:]).clamp(-LARGEST, LARGEST)
    return Step(pose, shift, u), factor, evidence


def linearised(
    render: Callable[[Tensor, Tensor, Tensor], Tensor], at: Step, shifts: bool
) -> tuple[Tensor, Tensor]:
    """Images `(..., D, D)` without noise and their derivatives `(..., D * D, n)`."""
    eye = torch.eye(3, dtype=at.u.dtype, device=at.u.device)
    turned = [quaternions.product(quaternions.exponential(TURN * e), at.pose) for e in eye]
    moved = [at.shift + MOVE * e for e in eye[:2, :2]] if shifts else []
    bends = BEND * torch.eye(at.u.shape[-1], dtype=at.u.dtype, device=at.u.device)
    bent = [at.u + e for e in bends]
    n, m = 1 + len(turned), len(moved)
    pose = torch.stack([at.pose, *turned, *[at.pose] * (m + len(bent))])
    shift = torch.stack([*[at.shift] * n, *moved, *[at.shift] * len(bent)])
    u = torch.stack([*[at.u] * (n + m), *bent])
    images = render(u, quaternions.matrix(pose), shift)
    steps = [TURN] * 3 + [MOVE] * m + [BEND] * len(bent)
    columns = [
        (image - images[0]).flatten(-2) / size
        for image, size in zip(images[1:], steps, strict=True)
    ]
    return images[0], torch.stack(columns, dim=-1)


def posed(
    at: Step, factor: Tensor, widening: Tensor, shift_sd: float | None, pixel_size: Tensor
) -> RotationNormal:
    """The laws of rotation and shift, `u` integrated out, from the factor of Λ."""
    covariance = cholesky.inverse(factor)
    turns = cholesky.factor(covariance[..., :3, :3])
    scale_tril = turns * widening[:3, None]
    if shift_sd is None:
        return RotationNormal(at.pose, scale_tril)
    cross = covariance[..., 3:5, :3]
    gain = cholesky.solve(cross.transpose(-1, -2), turns).transpose(-1, -2)
    rest = covariance[..., 3:5, 3:5] - gain @ cross.transpose(-1, -2)
    spread = cholesky.factor(rest) * widening[3:, None]
    return RotationAndShift(
        at.pose, scale_tril, pixel_size * at.shift, pixel_size * gain, pixel_size * spread
    )


def _shorter(vector: Tensor, most: float) -> Tensor:
    """The vector, no longer than ``most``."""
    length = vector.square().sum(-1, keepdim=True).add(1e-20).sqrt()
    return vector * (most / length).clamp_max(1.0)
