"""Which parts of a pair go together; asked as it is made, and before anything is computed."""

from __future__ import annotations

from typing import Any

from torch import nn

from pyrocryo.context import bound
from pyrocryo.errors import InputError

__all__ = ["check_images", "check_law", "check_pose"]


def check_pose(pose: nn.Module, volume: nn.Module, pose_guide: nn.Module | None) -> None:
    """Raises InputError for poses that a volume cannot be shown in, or nobody need guess."""
    if pose.latent and volume.dim != pose.spatial:
        raise InputError(
            "pose: angles in the plane show a molecule from one side only; give them a volume "
            "of dim=2"
            if pose.spatial == 2
            else "pose: rotations in space need a volume of dim=3"
        )
    if pose_guide is not None and not pose.latent:
        raise InputError("pose_guide: there is nothing to guess, these poses are known")


def check_images(pair: Any) -> None:
    """Raises InputError for optics and likelihoods that the volume knows nothing of."""
    asked = {
        "optics": pair.optics is not None,
        "likelihood": pair.likelihood is not None and pair.likelihood.whole_images,
    }
    share = getattr(pair.volume, "pixels", None)
    for name, whole in asked.items():
        if whole and share is not None and share < pair.box**2:
            raise InputError(
                f"{name}: whole images are needed, but the volume shows {share} of {pair.box**2} "
                "pixels a step; make it with pixels=None"
            )


def check_law(pair: Any, law: Any, frames: int | None) -> None:
    """Raises InputError for a prior of another shape than `z`, or narrower than the guide."""
    if not hasattr(pair.encoder, "law") and (inner := bound(law)) is not None:
        raise InputError(
            f"prior: {pair.prior_name} is a law over {inner}, but guides put mass on all real "
            "numbers; transform z where it is used, in the volume"
        )
    event = tuple(law.event_shape)
    expected = {(pair.dim,)} if frames is None else {(frames, pair.dim)}
    if event not in expected:
        raise InputError(
            f"prior: {pair.prior_name} has event shape {event}, but these particles "
            f"need {' or '.join(map(str, expected))}"
        )
