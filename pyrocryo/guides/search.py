"""A guide for poses that nobody knows: all orientations are tried on the current volume."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyrocryo import quaternions
from pyrocryo.errors import InputError
from pyrocryo.guides.refine import RotationAndShift, Step, gauss_newton, posed, precisions, through
from pyrocryo.imaging import rings
from pyrocryo.precision import applied, exact
from pyrocryo.rotated_normal import RotatedNormal
from pyrocryo.rotation_laws import RotationMixture, RotationNormal

__all__ = ["Search"]

GOLDEN = math.pi * (3 - math.sqrt(5))
APART = math.radians(25)  # candidates of one image lie at least so far from one another


class Search(nn.Module):
    r"""Finds rotations by trying all on the current volume, and refines the best few.

    The volume at `u` = 0 is projected along ``views`` directions, spread evenly over the sphere;
    in polar coordinates all turns in the plane are one correlation (by FFT), which gives the
    log-likelihood :math:`\ell` of each image in each orientation of the grid (as the search of
    cryoDRGN2, Zhong et al. 2021). The best ``heads`` of them, at least 25° apart, are refined by
    Gauss-Newton steps on pose, shift and conformation (:class:`pyrocryo.guides.Refine`), and
    weighed by the evidence of their wells: :math:`q(pose | x) = \sum_k w_k q_k(pose | x)`, a
    mixture, whose KL is sampled.

    While training, candidates are drawn from the grid's posterior, by Gumbel noise on
    :math:`\ell`, rather than its best taken: a volume that shows nothing yet gives poses all over,
    which sharpen as it does. Each such mixture is a guide by itself, so the bound holds.
    The noise is the model's, `u` is taken as standard normal, and learned is how much wider than
    linearised each well is, a number an axis.

    Args:
        views: Directions of the grid; 192 lie 15° apart.
        angles: Turns in the plane of the grid.
        heads: Candidates that are refined.
        iterations: Gauss-Newton steps on each.
        side: Images are averaged down to at most this many pixels for the search.
    """

    def __init__(
        self,
        views: int = 192,
        *,
        angles: int = 36,
        heads: int = 3,
        iterations: int = 2,
        side: int = 32,
    ) -> None:
        super().__init__()
        given = {"views": views, "angles": angles, "heads": heads, "iterations": iterations}
        for name, value in (given | {"side": side}).items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        self.views, self.angles, self.heads = views, angles, heads
        self.iterations, self.side = iterations, side

    def build(self, pair: nn.Module) -> Search:
        """Takes what it needs from the pair: its volume, its poses, its noise and K."""
        if pair.pose.sd is not None:
            raise InputError(
                "pose_guide: Search looks everywhere, SO3(); Refine stays around known rotations"
            )
        self._pair = (pair,)  # in a tuple: its parameters are not the guide's
        self.latent, self.box, self.shift_sd = pair.dim, pair.box, pair.pose.shift_sd
        self.bin = -(-self.box // self.side)
        self.radii = max(2, self.box // self.bin // 2 - 1)
        view, turn = _grid(self.views, self.angles)
        self.register_buffer("view", view, persistent=False)
        grid = quaternions.product(turn, view.unsqueeze(1)).reshape(-1, 4)
        self.register_buffer("grid", grid, persistent=False)
        self.register_buffer("kept", _kept(self.box, self.bin), persistent=False)
        self.log_widening = nn.Parameter(torch.zeros(3 + 2 * pair.pose.shifts))
        return self

    def extra_repr(self) -> str:
        """What decides its answer beside the weights: resuming goes by it."""
        return (
            f"views={self.views}, angles={self.angles}, heads={self.heads}, "
            f"iterations={self.iterations}, side={self.side}"
        )

    def reset_parameters(self) -> None:
        """Back to the posterior as linearised."""
        nn.init.zeros_(self.log_widening)

    @exact
    def forward(
        self,
        images: Tensor,
        rotation: None,
        shift: Tensor,
        pixel_size: Tensor,
        optics: Callable[[Tensor], Tensor] | None,
    ) -> RotationMixture:
        """The posterior of images `(..., D, D)` of molecules about ``shift`` `(..., 2)` (px).

        Args:
            images: `(..., D, D)` as they are.
            rotation: None: there is none.
            shift: `(..., 2)` in pixels.
            pixel_size: Å per pixel.
            optics: Clean images `(..., D, D)`, with further leading axes, as they are seen; linear
                and symmetric, as a CTF is. None where nothing happens to them.
        """
        lead = images.shape[:-2]
        pair = self._pair[0]
        weight = pair.noise.detach() ** -2
        precision = precisions(images, self.latent, None, self.shift_sd, pixel_size)
        render = through(pair.volume, optics)
        centre = shift.expand(self.heads, *lead, 2)
        with torch.no_grad():
            pose = self._candidates(self._scores(images, shift, weight, optics))
            pose = pose.movedim(1, 0).unflatten(1, lead)
            at = Step(pose, centre, images.new_zeros(*pose.shape[:-1], self.latent))
            for _ in range(self.iterations):
                at, factor, evidence = gauss_newton(
                    render, images, at, Step(None, centre, None), precision, weight
                )
        law = posed(at, factor, self.log_widening.exp(), self.shift_sd, pixel_size)

        def heads_last(value: Tensor) -> Tensor:
            return value.movedim(0, len(lead))

        component = RotationNormal(
            heads_last(law.centre), heads_last(law.scale_tril), validate_args=False
        )
        logits = heads_last(evidence)
        if not isinstance(law, RotationAndShift):
            return RotationMixture(logits, component)
        return MixtureAndShift(
            logits, component, *map(heads_last, (law.moved, law.gain, law.spread))
        )

    def _scores(
        self,
        images: Tensor,
        shift: Tensor,
        weight: Tensor,
        optics: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        r"""Log-likelihoods `(B, V, angles)` of the grid, up to a constant of the image.

        With `C` the optics and `T` a view, :math:`(\langle C x, T \rangle
        - \tfrac12 |C T|^2) / s^2`: the images pass the optics a second time, and views not once.
        """
        volume, still = self._pair[0].volume, images.new_zeros(self.views, 2)
        u = images.new_zeros(self.views, self.latent)
        views = volume(u, quaternions.matrix(self.view), still)
        seen = self._rings(views, still)
        twice = (images if optics is None else optics(images)).reshape(-1, self.box, self.box)
        rings = self._rings(twice, shift.reshape(-1, 2))
        radius = torch.arange(1, self.radii + 1, dtype=images.dtype, device=images.device)
        spacing = (self.box / self.bin) / 2 / (self.radii + 1)
        area = radius * (spacing**2 * 2 * math.pi / self.angles)  # wide pixels a sample
        norm = 0.5 * (seen.square() * area[:, None]).sum((-1, -2))
        if optics is not None:
            norm = norm * self._passed(views, images, optics)
        image = torch.fft.rfft(rings * area[:, None]).permute(2, 0, 1)  # (frequency, B, radii)
        templates = torch.fft.rfft(seen).permute(2, 1, 0).conj()  # (frequency, radii, V)
        match = torch.fft.irfft((image @ templates).permute(1, 2, 0), n=self.angles)
        return (match - norm.unsqueeze(-1)) * (weight * self.bin**2)

    def _passed(self, views: Tensor, images: Tensor, optics: Callable[[Tensor], Tensor]) -> Tensor:
        r"""The share `(B, V)` of each view's power that the optics of each image let pass.

        With a CTF `C` that does not depend on the turn in the plane, as it hardly does,

        .. math:: \sum_k b^2 C^2 |\hat T|^2 \, / \, \sum_k b^2 |\hat T|^2

        where `b` is what averaging pixels leaves of a frequency; the optics are those of a point
        in the middle.
        """
        point = images.new_zeros(self.box, self.box)
        point[self.box // 2, self.box // 2].fill_(1.0)  # a number alone would come from the host
        point = optics(point.expand(images.shape)).reshape(-1, self.box, self.box)
        passed = torch.fft.rfft2(point).abs().square().flatten(1)
        power = torch.fft.rfft2(views).abs().square().flatten(1) * self.kept
        return passed @ (power / power.sum(-1, keepdim=True)).T

    def _rings(self, images: Tensor, shift: Tensor) -> Tensor:
        return rings(images, shift, by=self.bin, radii=self.radii, angles=self.angles)

    def _candidates(self, scores: Tensor) -> Tensor:
        """The best `(B, heads, 4)`, or while training draws, each away from those before it."""
        left = scores.flatten(1)
        if self.training:
            smallest = torch.finfo(left.dtype).tiny
            left = left - (-torch.rand_like(left).clamp_min(smallest).log()).log()
        found = []
        for _ in range(self.heads):
            pose = self.grid[left.argmax(-1)]
            near = (pose @ self.grid.T).abs() > math.cos(APART / 2)
            left = torch.where(near, -torch.inf, left)
            found.append(pose)
        return torch.stack(found, dim=1)


class MixtureAndShift(RotationMixture):
    """A mixture of rotations that also knows the shift in Å, given the rotation.

    It is that of the component that is the most likely to have given the rotation: a function of
    the rotation, so that the product of the two is a density as it should be.

    Args:
        logits: `(..., M)`.
        component: M laws on the last batch axis.
        moved: `(..., M, 2)`; this and the next as for ``RotationAndShift``.
        gain: `(..., M, 2, 3)`.
        spread: `(..., M, 2, 2)`.
    """

    def __init__(
        self,
        logits: Tensor,
        component: RotationNormal,
        moved: Tensor,
        gain: Tensor,
        spread: Tensor,
    ) -> None:
        super().__init__(logits, component)
        self.moved, self.gain, self.spread = moved, gain, spread

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> RotationMixture:
        """Of the rotation alone."""
        return RotationMixture(self.logits, self.component, validate_args=False).expand(
            batch_shape
        )

    def shift(self, direction: Tensor) -> RotatedNormal:
        """q(shift | x, pose), event shape `(2,)`, of poses `(..., 4)`."""
        which = self.responsible(direction)

        def chosen(values: Tensor, event: int) -> Tensor:
            size = values.shape[-event:]
            index = which.reshape(*which.shape, 1, *[1] * event).expand(*which.shape, 1, *size)
            values = values.expand(*which.shape, *values.shape[-event - 1 :])
            return values.gather(which.dim(), index).squeeze(which.dim())

        omega = 2 * self.component.tangent(direction.unsqueeze(-2))
        loc = chosen(self.moved + applied(self.gain, omega), 1)
        still = torch.eye(2, dtype=loc.dtype, device=loc.device)
        return RotatedNormal(loc, chosen(self.spread, 2), still)


def _grid(views: int, angles: int) -> tuple[Tensor, Tensor]:
    r"""Quaternions of the views `(V, 4)`, on a spiral over the sphere, and of turns `(angles, 4)`.

    A view is :math:`R_y(-\theta) R_z(-\phi)` of a direction (θ, φ), which it takes to the beam.
    """
    n = torch.arange(views) + 0.5
    tilt, rot = torch.acos(1 - 2 * n / views), GOLDEN * n
    zero, turn = torch.zeros(views), torch.arange(angles) * (2 * math.pi / angles)
    about_z = quaternions.exponential(torch.stack([zero, zero, -rot], dim=-1))
    about_y = quaternions.exponential(torch.stack([zero, -tilt, zero], dim=-1))
    none = torch.zeros(angles)
    in_plane = quaternions.exponential(torch.stack([none, none, turn], dim=-1))
    return quaternions.product(about_y, about_z), in_plane


def _kept(box: int, by: int) -> Tensor:
    """What averaging ``by`` times ``by`` pixels keeps of the power of each frequency of ``rfft2``.

    `(n,)`, twice that where the negative frequency, of the same power, is left out.
    """
    ky, kx = torch.fft.fftfreq(box), torch.fft.rfftfreq(box)
    along_y, along_x = (torch.sinc(by * k) / torch.sinc(k) for k in (ky, kx))
    twice = torch.full((len(kx),), 2.0)
    twice[0] = 1.0
    if box % 2 == 0:
        twice[-1] = 1.0
    return (along_y.square()[:, None] * along_x.square() * twice).flatten()
