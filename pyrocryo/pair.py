"""The generative model and its guide: the only file with ``pyro.sample``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrocryo.compatible import check_images, check_law, check_pose
from pyrocryo.context import called, for_each_frame, latent_size, on_device, takes, wanted
from pyrocryo.errors import InputError
from pyrocryo.guides import Amortised, Polar, Refine, Search
from pyrocryo.particles import PER_IMAGE, Particles
from pyrocryo.poses import Known, shift_given, turned, unturned
from pyrocryo.precision import applied
from pyrocryo.registered import Registered
from pyrocryo.rotated_normal import RotatedNormal, RotationLayer

__all__ = ["Pair"]

READ = ("images", "rotation", "shift", "optics")  # what every guide is given
NOISE_SPEED = 5.0  # ln σ moves this much faster than the networks' weights


class Pair(Registered):
    r"""A Pyro model of particle images and the amortised guide that inverts it.

    .. math:: \phi \sim p(\phi), \quad z \sim p(z \mid c), \quad
              x \sim N(\pi_\phi(v(R^\top z)), \sigma^2)

    with `c` the particle's context (temperature, ...), φ its pose, `v` the volume and `R` the
    rotation layer (:mod:`pyrocryo.rotated_normal`); the guide is
    :math:`q(\phi | x) q(z | x, \phi)` with :math:`z = R u`, :math:`u \sim N(\mu, L L^\top)` read
    from the image turned back by φ, independent across frames (Klindt et al. 2024, Eq. 1). No
    gradient goes from `z` to the pose.
    ``pair.model`` and ``pair.guide`` are modules and ordinary Pyro callables of a batch
    (``particles.batch(index)``); sites: ``pose`` and ``shift`` (only where they are unknown),
    ``z`` and, observed, ``x``. While training (``pair.train()``, as modules start) a volume that
    asks for it is shown a random share of the pixels, and ``x`` is scaled up accordingly; after
    ``pair.eval()``, all: call that before ``Predictive`` and before NUTS, whose density must not
    be random.

    Args:
        prior: A Pyro distribution with event shape `(K,)` or `(T, K)`, or a function or module
            that returns one and whose parameters are named as the particle fields it wants (or
            that names them in its attribute ``fields``). An event shape `(K,)` on particles with
            frames makes the frames independent.
        volume: A volume such as :class:`pyrocryo.volumes.Grid`.
        box: Pixels along an edge of the images.
        pose: Where poses come from.
        guide: The encoder of `z`; :class:`pyrocryo.guides.Amortised` by default. Beside images,
            rotation and shift it is given the fields of a batch that its parameters name. One
            with a parameter ``optics`` is given there what turns clean images into seen ones, or
            None, and sees the images as they are. One whose answer is no normal of each image
            alone has a ``law``, which makes a distribution of it and `R`.
        pose_guide: The encoder of poses that are unknown; :class:`pyrocryo.guides.Polar` in the
            plane by default; in space :class:`pyrocryo.guides.Refine` near known ones, else
            :class:`pyrocryo.guides.Search`.
        optics: What becomes of clean images on the way, such as :class:`pyrocryo.optics.CTF`.
        likelihood: Of coloured noise or a contrast of each particle's own
            (:class:`pyrocryo.noise.Gaussian`); by default white noise alone.
        noise: Standard deviation σ of the pixels' noise, or None to learn it (from 1).
        rotate: Whether to put the rotation layer between posterior and prior.
        dim: Size K of `z`; only needed when the prior is a plain function.
    """

    def __init__(
        self,
        prior: Any,
        volume: nn.Module,
        box: int,
        *,
        pose: nn.Module | None = None,
        guide: nn.Module | None = None,
        pose_guide: nn.Module | None = None,
        optics: nn.Module | None = None,
        likelihood: nn.Module | None = None,
        noise: float | None = None,
        rotate: bool = True,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        if noise is not None and not noise > 0:
            raise InputError(f"noise: expected a positive standard deviation or None, got {noise}")
        self.dim = latent_size(prior, dim)
        self.box = int(box)
        self.prior = prior
        self.pose = pose if pose is not None else Known()
        for name, part in (("volume", volume), ("guide", guide or Amortised())):
            if isinstance(part, type) or not hasattr(part, "build"):
                raise InputError(f"{name}: expected a module with build(), got {called(part)}")
        # copies, so that a volume or guide given to two pairs is not shared by them
        self.volume = copy.deepcopy(volume).build(self.dim, self.box)
        guide = copy.deepcopy(guide) if guide is not None else Amortised()
        self.encoder = guide.build(self.dim, self.box, self.volume)
        check_pose(self.pose, self.volume, pose_guide)
        self.pose_encoder = None
        self._shifts = getattr(self.pose, "shifts", False)
        if self.pose.latent:
            flat = self.pose.spatial == 2
            usual = Polar if flat else Search if self.pose.sd is None else Refine
            pose_guide = copy.deepcopy(pose_guide or usual())
            self.pose_encoder = pose_guide.build(self.box if flat else self)
        self.optics = optics
        self.likelihood = copy.deepcopy(likelihood).build(self.box) if likelihood else None
        check_images(self)
        self.rotation = RotationLayer(self.dim, turns=rotate)
        self.register_buffer("first_noise", torch.tensor(float(noise or 1.0)))
        self.noise_steps = nn.Parameter(torch.tensor(0.0), requires_grad=noise is None)
        self.frame: Callable[[Tensor], Tensor] | None = None
        # what networks run in (lower precision, while training so); densities and KL never do
        self.autocast: Callable[[], AbstractContextManager] = nullcontext
        # a plain distribution, and the same where the pair is
        self._prior_there: tuple[Any, torch.device, Any] | None = None

    def reset_parameters(self) -> None:
        """The noise level back to where it started (each part resets its own parameters)."""
        nn.init.zeros_(self.noise_steps)

    @property
    def prior_name(self) -> str:
        """What to call the prior in messages."""
        return called(self.prior)

    @property
    def noise(self) -> Tensor:
        """Standard deviation σ of a pixel's noise, whatever its colour; contrast comes on top."""
        return self.first_noise * (NOISE_SPEED * self.noise_steps).exp()

    def moved(self, batch: Any) -> Any:
        """The batch on the device of this pair."""
        return batch._make(field.to(self.noise_steps.device) for field in batch)

    def prior_of(self, batch: Any) -> Any:
        """The prior over `z` given the context of each particle in ``batch``."""
        lead = batch.images.shape[:-2]
        context = {name: getattr(batch, name) for name in wanted(self.prior)}
        prior = self._prior(context)
        if not isinstance(prior, dist.Distribution):
            raise InputError(
                f"prior: {self.prior_name} returned {type(prior).__name__}, not a distribution"
            )
        if len(lead) == 1 or len(prior.event_shape) == 2:
            return prior
        # one law for each frame: what is known of a molecule holds for all its frames
        context = {
            name: value if name in PER_IMAGE else for_each_frame(value, lead)
            for name, value in context.items()
        }
        return self._prior(context).expand(lead).to_event(1)

    def _prior(self, context: dict[str, Tensor]) -> Any:
        # Pyro distributions are callable themselves, so they are told apart first
        if isinstance(self.prior, dist.Distribution):
            device, kept = self.noise_steps.device, self._prior_there
            if kept is None or kept[0] is not self.prior or kept[1] != device:
                kept = self._prior_there = self.prior, device, on_device(self.prior, device)
            return kept[2]
        if not isinstance(self.prior, PyroModule):
            return self.prior(**context)
        # these look into Pyro's store first, where another pair's values may lie under their names
        with pyro.get_param_store().scope():
            return self.prior(**context)

    @property
    def model(self) -> nn.Module:
        """The generative model: of a batch, returns the clean images.

        A module, so that ``Trace_ELBO()(pair.model, pair.guide).parameters()`` are the pair's.
        """
        return _Half(self, Pair._model)

    @property
    def guide(self) -> nn.Module:
        """The amortised posterior: of a batch, returns a draw of `z`. A module too."""
        return _Half(self, Pair._guide)

    def _model(self, batch: Any) -> Tensor:
        self.register()
        images, pixels = batch.images, self._pixels(batch.images)
        if pixels is not None:
            images = images.flatten(-2)[..., pixels]
        share = images[0].numel() / batch.images[0].numel()
        with pyro.plate("particle", len(images), dim=-1):
            direction = pyro.sample("pose", self.pose.prior(batch)) if self.pose.latent else None
            shift = pyro.sample("shift", self.pose.shift_prior(batch)) if self._shifts else None
            z = pyro.sample("z", self.prior_of(batch))
            clean = self.seen(z, batch, direction, pixels, shift)
            with poutine.scale(scale=1 / share):
                law = self._law(clean)
                event = images.dim() - 1 - len(law.event_shape)
                pyro.sample("x", law.to_event(event), obs=images)
        return clean

    def _law(self, clean: Tensor) -> Any:
        if self.likelihood is None:
            return dist.Normal(clean, self.noise)
        return self.likelihood(clean, self.noise)

    def replicated(self, clean: Tensor) -> Tensor:
        """Clean images as they might have been observed."""
        if self.likelihood is None:  # Normal's own draws cannot be stacked over seeds
            return clean + self.noise * torch.randn_like(clean)
        return self._law(clean).rsample()

    def _guide(self, batch: Any) -> Tensor:
        with pyro.plate("particle", len(batch.images), dim=-1):
            direction = shift = None
            if self.pose.latent:
                law = self.pose_of(batch)
                direction = pyro.sample("pose", law)
                if self._shifts:
                    shift = pyro.sample("shift", shift_given(law, direction))
            return pyro.sample("z", self.posterior_of(batch, direction, shift))

    def seen(
        self,
        z: Tensor,
        batch: Any,
        direction: Tensor | None = None,
        pixels: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Clean images `(..., B, [T,] D, D)` of conformations `z`, in the poses of a batch.

        Args:
            z: `(..., B, [T,] K)`.
            batch: A batch of B particles.
            direction: As for :meth:`placed`.
            pixels: `(P,)` which pixels of the flattened images, or None for all.
            shift: As for :meth:`placed`.
        """
        u = applied(self.rotation().T, z)
        where = self.placed(batch, direction, shift)
        with self.autocast():
            clean = self.volume(u, *where, *_given(pixels))
        clean = clean.to(batch.images.dtype)
        return clean if self.optics is None else self.optics(clean, batch)

    def _pixels(self, images: Tensor) -> Tensor | None:
        """Which pixels a step sees: a fresh draw without replacement, or None for all."""
        asked = getattr(self.volume, "pixels", None)
        if not self.training or asked is None or asked >= self.box**2:
            return None
        return torch.rand(self.box**2, device=images.device).topk(asked).indices

    def placed(
        self, batch: Any, direction: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotations `(..., 3, 3)` and shifts `(..., 2)` (pixels) of the particles in ``batch``.

        Args:
            batch: A batch of B particles.
            direction: Unit vectors `(..., B, [T,] 2)`, or quaternions `(..., 4)`, of unknown
                poses; by default the mean of the posterior.
            shift: Unknown shifts `(..., B, [T,] 2)` in Å; by default their mean, given the pose.
        """
        if not self.pose.latent:
            return self.pose(batch)
        law = None
        if direction is None:
            law = self.pose_of(batch)
            direction = law.mean
        if not self._shifts:
            return self.pose(batch, direction)
        if shift is None:
            shift = shift_given(law or self.pose_of(batch), direction).mean
        return self.pose(batch, direction, shift)

    def pose_of(self, batch: Any) -> Any:
        """The distribution q(pose | x) of each particle, event shape `([T,] 2)` or `([T,] 4)`."""
        images, more = self._shown(self.pose_encoder, batch)
        with self.autocast():
            posterior = self.pose_encoder(images, *self.pose.start(batch), **more)
        return posterior.to_event(1) if batch.images.dim() == 4 else posterior

    def posterior_of(
        self, batch: Any, direction: Tensor | None = None, shift: Tensor | None = None
    ) -> Any:
        """The distribution q(z | x, pose) of each particle, event shape `(K,)` or `(T, K)`.

        Args:
            batch: A batch of B particles.
            direction: As for :meth:`placed`.
            shift: As for :meth:`placed`.
        """
        rotation, shift = self.placed(batch, direction, shift)
        images, more = self._shown(self.encoder, batch)
        with self.autocast():
            answer = self.encoder(images, rotation.detach(), shift.detach(), **more)
        law = getattr(self.encoder, "law", RotatedNormal)
        posterior = law(*(part.to(batch.images.dtype) for part in answer), self.rotation())
        apart = batch.images.dim() - 2 - len(posterior.event_shape)  # frames that are, in a law
        return posterior.to_event(1) if apart else posterior

    def _shown(self, guide: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The images that a guide reads, and what else its parameters name.

        One that names ``optics`` compares the images, as they are, with clean ones passed through
        that function, `(..., B, [T,] D, D)`; None where nothing happens on the way.
        """
        names = wanted(guide)
        more = {name: getattr(batch, name) for name in names if name not in READ}
        compares = "optics" in names or takes(guide, "optics")
        if compares:
            more["optics"] = None if self.optics is None else self.optics.through(batch)
        read = batch if compares or self.optics is None else self.optics.corrected(batch)
        return read.images, more

    def density(self, z: Tensor) -> Tensor:
        """Density maps `(..., side, side[, side])` of conformations `z` `(..., K)`.

        Turned into the frame of the reference body, if one was fixed (:mod:`pyrocryo.frames`).
        """
        with torch.no_grad():
            z = z.to(self.noise_steps)
            maps = self.volume.density(z @ self.rotation())
            return maps if self.frame is None else unturned(maps, self.frame(z))

    def reported(self, batch: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`placed`, in the frame of the reference body, which :meth:`density` is in."""
        if self.frame is None:
            return self.placed(batch)
        direction = self.pose_of(batch).mean
        z = self.posterior_of(batch, direction).mean
        return self.pose(batch, self.framed(direction, z))

    def framed(self, direction: Tensor, z: Tensor) -> Tensor:
        """Poses `(..., 2)` in the frame of the reference body, if one was fixed."""
        return direction if self.frame is None else turned(direction, self.frame(z))

    def check(self, particles: Particles) -> None:
        """Checks that this pair fits these particles, before anything is computed.

        Raises:
            InputError: If the box differs, a field that the prior or the pose needs is missing, or
                the prior's event shape is neither `(K,)` nor `(T, K)`.
        """
        if particles.box != self.box:
            raise InputError(
                f"box: the particles are {particles.box} pixels wide, the pair was made for "
                f"{self.box}"
            )
        self.pose.check(particles)
        if self.optics is not None:
            self.optics.check(particles)
        # rotations that are there but not used may be whatever they are
        self.volume.check(particles.without("rotation") if self.pose.latent else particles)
        if hasattr(self.encoder, "check"):
            self.encoder.check(particles)
        for name in wanted(self.prior):
            if name not in particles.fields:
                held = ", ".join(particles.fields) or "no fields"
                own = name.capitalize() if name in ("temperature", "time") else f"Field_{name}"
                raise InputError(
                    f"{name}: the prior {self.prior_name} needs the {name} of each particle, and "
                    f"these carry only {held}; a star file gives it in a column pyrocryo{own}"
                )
        if hasattr(self.prior, "check"):
            self.prior.check(**{name: particles.fields[name] for name in wanted(self.prior)})
        batch = self.moved(particles.batch(np.arange(min(2, len(particles)))))
        with torch.no_grad():
            law = self.prior_of(batch)
        check_law(self, law, particles.frames)


class _Half(nn.Module):
    """One side of a pair as a module of its own, with the pair's parameters."""

    def __init__(self, pair: Pair, call: Callable[[Pair, Any], Tensor]) -> None:
        super().__init__()
        self.pair = pair
        self.call = call

    def forward(self, batch: Any) -> Tensor:
        return self.call(self.pair, batch)


def _given(pixels: Tensor | None) -> tuple[Tensor, ...]:
    return () if pixels is None else (pixels,)
