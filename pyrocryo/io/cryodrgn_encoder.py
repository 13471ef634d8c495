r"""The trained encoder of a run folder of cryoDRGN's, and the particles it was trained on.

Written from the files that ``cryodrgn train_vae`` leaves (settings, weights) and from what it
documents, and shown equal to it in tests/test_io_cryodrgn_encoder.py. CryoDRGN is not needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, linear, relu

from pyrocryo.errors import InputError
from pyrocryo.files import regular
from pyrocryo.imaging.hartley import (
    disc,
    phase_signs,
    soft_window,
    transform,
    translated,
    wrapped,
)
from pyrocryo.io.cryodrgn import read_pickles, read_poses
from pyrocryo.io.cryodrgn_settings import found_beside, read_settings
from pyrocryo.io.others import read_indices
from pyrocryo.particles import Particles

__all__ = ["Encoder", "read_encoder", "read_particles"]

NAME = re.compile(r"encoder\.main\.(\d+)\.(linear\.)?(weight|bias)")


@dataclass(frozen=True)
class Encoder:
    """Means and standard deviations of `z` of images, as cryoDRGN reads them.

    Images are windowed, their sign may be changed, Hartley transformed, divided by a scale,
    centred, multiplied by the sign of the CTF, and read by an MLP within a disc.

    Attributes:
        layers: Weight `(out, in)`, bias `(out,)`, and whether the input is added to the output.
        box: Pixels along an edge of the images.
        inner: Radius, in half-boxes, from which images fade to nothing; None for no window.
        sign: -1 if images are inverted.
        norm: Offset and scale of Hartley transforms.
        where: Positions `(M,)` of the pixels that are read.
        slope: Of the activation below 0.
    """

    layers: tuple[tuple[Tensor, Tensor, bool], ...]
    box: int
    inner: float | None
    sign: float
    norm: tuple[float, float]
    where: Tensor
    slope: float

    @property
    def dim(self) -> int:
        """Latents."""
        return len(self.layers[-1][1]) // 2

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Means and standard deviations `(B, K)` of a batch with ``images`` `(B, D, D)`.

        Its ``shift`` (Å) and ``ctf`` are looked at where it has them.
        """
        x = self.prepared(batch)
        with torch.no_grad():
            for n, (weight, bias, residual) in enumerate(self.layers):
                y = linear(x, weight, bias) + (x if residual else 0)
                last = n == len(self.layers) - 1
                x = y if last else leaky_relu(y, self.slope) if self.slope else relu(y)
        mean, log_variance = x.chunk(2, dim=-1)
        return mean, (0.5 * log_variance).exp()

    def prepared(self, batch: Any) -> Tensor:
        """What the network is given, `(B, M)`."""
        window = 1.0 if self.inner is None else soft_window(self.box, self.inner)
        images = wrapped(transform(self.sign * batch.images * window, 2))
        images = (images - self.norm[0]) / self.norm[1]
        if "shift" in batch._fields:
            # cryoDRGN turns shares of the box into pixels by the box plus one
            off_by = (self.box + 1) / self.box
            images = translated(images, off_by * batch.shift / batch.pixel_size)
        if "ctf" in batch._fields:  # whose CTF has the opposite sign
            images = -images * phase_signs(batch.ctf, box=self.box, pixel_size=batch.pixel_size)
        return images.flatten(1)[:, self.where]


def read_encoder(folder: str | Path, epoch: int | None = None) -> Encoder:
    """The encoder of a run folder: ``config.yaml`` and ``weights.N.pkl`` (read as data, not run).

    Args:
        folder: As ``cryodrgn train_vae -o`` left it.
        epoch: Which; by default the last.

    Raises:
        InputError: If a file is missing or refused, or the encoder is neither of ``resid`` nor
            ``mlp``.
    """
    folder = Path(folder)
    told = read_settings(folder)
    data, model = told.get("dataset_args", {}), told.get("model_args", {})
    try:
        side = int(told["lattice_args"]["D"])
        latent, radius = int(model["zdim"]), int(model["enc_mask"])
        norm = float(data["norm"][0]), float(data["norm"][1])
        inner = float(data.get("window_r", 0.85)) if data.get("window", True) else None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{folder}: settings without what an encoder needs ({error!r})") from None
    if (mode := model.get("encode_mode")) not in ("resid", "mlp"):
        raise InputError(f"{folder}: expected an encoder resid or mlp, got {mode}")
    if side % 2 == 0 or not 1 < side < 4096 or not norm[1] > 0:
        raise InputError(f"{folder}: settings of no images (D = {side}, norm = {norm})")
    where = torch.arange(side**2) if radius == -1 else disc(side, radius)
    layers = _layers(_weights(folder, epoch), len(where), 2 * latent)
    return Encoder(
        layers, side - 1, inner, -1.0 if data.get("invert_data") else 1.0, norm, where,
        0.01 if model.get("activation") == "leaky_relu" else 0.0,
    )  # fmt: skip


def read_particles(
    folder: str | Path, epoch: int | None = None, *, images: str | Path | None = None
) -> Particles:
    """The particles of a run folder as cryoDRGN read them: images, poses and CTFs.

    Args:
        folder: As for :func:`read_encoder`.
        epoch: Poses of which epoch, where they were trained.
        images: The stack, ``.star`` or ``.cs`` file, where it is not where the settings say.

    Raises:
        InputError: If files are missing or do not go together.
    """
    from pyrocryo.io import load

    folder = Path(folder)
    data = read_settings(folder).get("dataset_args", {})
    given = {} if images is None else {"particles": Path(images)}
    paths = given | {
        name: _named(folder, name, data[name])
        for name in ("particles", "poses", "ctf", "ind")
        if isinstance(data.get(name), str) and name not in given
    }
    own = folder / (f"pose.{epoch}.pkl" if epoch is not None else "pose.pkl")
    if own.is_file():
        paths["poses"] = own
    for name in ("particles", "poses"):
        if name not in paths:
            raise InputError(f"{folder}: its settings name no {name}")
    path, where = paths["particles"], data.get("datadir")
    stack = path.suffix.lower() in (".mrc", ".mrcs")
    options = {} if stack or where is None or images is not None else {"folder": where}
    source = load(path, pixel_size=1.0, **options).images
    source = getattr(source, "stacks", source)  # of a .cs file cryoDRGN does not heed the sign
    if len(source.shape) != 3:
        raise InputError(f"{path}: expected one image a particle, got frames {source.shape}")
    total, box = source.shape[:2]
    rows = np.arange(total) if "ind" not in paths else read_indices(paths["ind"], total)
    rotation, trans = read_poses(paths["poses"])
    told = {"rotation": rotation, "shift": trans}
    pixel_size = 1.0
    if "ctf" in paths:
        ctf = np.asarray(read_pickles(paths["ctf"])[0])
        if ctf.ndim != 2 or ctf.shape[1] != 9 or not (ctf[:, :2] == ctf[0, :2]).all():
            raise InputError(
                f"{paths['ctf']}: expected CTFs (N, 9), all of one box and pixel size"
            )
        pixel_size = float(ctf[0, 1] * ctf[0, 0] / box)
        told["ctf"] = ctf[:, 2:]
    fields = {}
    for name, values in told.items():
        if len(values) not in (total, len(rows)):
            raise InputError(f"{folder}: {total} images, but {len(values)} of {name}")
        fields[name] = values[rows] if len(values) == total else values
    fields["shift"] = -fields["shift"] * box * pixel_size
    whole = Particles(
        source, pixel_size=pixel_size, test_fraction=0,
        **{name: _spread(values, rows, total) for name, values in fields.items()},
    )  # fmt: skip
    return whole if len(rows) == total else whole.take(rows)


def _named(folder: Path, name: str, value: str) -> Path:
    path = found_beside(folder, value)
    if path is None:
        raise InputError(f"{folder}: its settings name {value} ({name}), which is not there")
    return path


def _spread(values: np.ndarray, rows: np.ndarray, total: int) -> np.ndarray:
    """Values of some particles among those of all; what the others have is never looked at."""
    if len(rows) == total:
        return values
    every = np.repeat(values[:1], total, axis=0)
    every[rows] = values
    return every


def _weights(folder: Path, epoch: int | None) -> dict[str, Any]:
    """State of the model at an epoch; the last, if none is named."""
    if epoch is None and not (folder / "weights.pkl").is_file():
        found = [
            int(match[1]) for file in folder.glob("weights.*.pkl")
            if (match := re.fullmatch(r"weights\.(\d+)\.pkl", file.name))
        ]  # fmt: skip
        if not found:
            raise InputError(f"{folder}: no weights.N.pkl")
        epoch = max(found)
    path = folder / ("weights.pkl" if epoch is None else f"weights.{epoch}.pkl")
    regular(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
        return dict(state)
    except Exception as error:  # damaged files fail in many ways
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as weights ({lines[0]})") from None


def _layers(state: dict[str, Any], width: int, last: int) -> tuple[Any, ...]:
    """Layers of the encoder, from the first, checked to fit each other."""
    parts: dict[int, dict[str, Any]] = {}
    for name, value in state.items():
        if isinstance(name, str) and (match := NAME.fullmatch(name)):
            held = parts.setdefault(int(match[1]), {"residual": match[2] is not None})
            held[match[3]] = value
    layers = []
    for place, part in sorted(parts.items()):
        shape = tuple(part["weight"].shape) if "weight" in part else ()
        if len(shape) != 2 or shape[1] != width or tuple(part["bias"].shape) != shape[:1]:
            raise InputError(f"encoder: layer {place} takes {shape}, and is given {width} numbers")
        layers.append((part["weight"].float(), part["bias"].float(), part["residual"]))
        width = shape[0]
    if not layers or width != last:
        raise InputError(f"encoder: expected a last layer of {last} numbers, got {width}")
    return tuple(layers)
