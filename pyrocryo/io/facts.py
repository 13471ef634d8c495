"""What a particle file says besides its particles: optics groups, stacks, columns left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.io import cryosparc, star
from pyrocryo.io.mixed import Mixed
from pyrocryo.io.mrc import Header, Stacks
from pyrocryo.io.tables import numbered
from pyrocryo.particles import Particles

__all__ = ["facts"]

OPENED = 64  # stacks whose headers are looked at byte by byte
MAP = 208, b"MAP"  # where the header names its format, and how
GROUP = "exp_group_id"  # cryoSPARC's


def facts(path: str | Path, particles: Particles) -> dict[str, Any]:
    """What stands around the particles in their files.

    Args:
        path: What they were loaded from.
        particles: As loaded.

    Returns:
        ``format``; ``optics_groups``: a list of ``name``, ``particles``, and what the group's row
        says of pixel size, box and voltage; ``stacks``: how many there are and how many images
        they hold; ``oddities``: lines of text.
    """
    path = Path(path)
    found: dict[str, Any] = {"format": "MRC stack", "optics_groups": [], "oddities": []}
    suffix = path.suffix.lower()
    if suffix == ".star":
        found |= _star(path)
    elif suffix == ".cs":
        found |= _cs(path)
    headers = _headers(particles.images)
    if headers:
        found["stacks"] = {
            "files": len(headers),
            "images": sum(h.shape[0] for h in headers),
            "types": dict(Counter(h.dtype.name for h in headers)),
        }
        found["oddities"] = found["oddities"] + _of_headers(headers, particles)
    return found


def _star(path: Path) -> dict[str, Any]:
    blocks = star.read(path)
    optics = blocks.get("optics", {})
    named = {name: block for name, block in blocks.items() if "rlnImageName" in block}
    table = named.get("particles") or next(iter(named.values()))  # as relion.load takes it
    version = "RELION 3.1 or later" if optics else "RELION 3.0, or not RELION's"
    counts = Counter(table.get("rlnOpticsGroup", ()))
    groups = []
    for i, label in enumerate(optics.get("rlnOpticsGroup", ())):
        row = {name: values[i] for name, values in optics.items()}
        groups.append(
            {
                "name": row.get("rlnOpticsGroupName", label),
                "particles": counts[label],
                "pixel_size_in_angstroms": _number(row.get("rlnImagePixelSize")),
                "box": _number(row.get("rlnImageSize")),
                "voltage_in_kilovolts": _number(row.get("rlnVoltage")),
            }
        )
    odd = [f"optics group {g['name']} has no particles" for g in groups if not g["particles"]]
    if not optics and "rlnOpticsGroup" in table:
        odd.append("column rlnOpticsGroup without a block data_optics; not used")
    repeated = [n for n, k in Counter(table["rlnImageName"]).items() if k > 1]
    if repeated:
        odd.append(f"{len(repeated)} images are listed more than once, such as {repeated[0]}")
    return {"format": f"STAR ({version})", "optics_groups": groups, "oddities": odd}


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _cs(path: Path) -> dict[str, Any]:
    table = cryosparc.read(path)
    names = table.dtype.names
    column = next((name for name in names if name.endswith(GROUP)), None)
    groups = []
    if column is not None:
        values, counts = np.unique(table[column], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            groups.append({"name": f"group {value}", "particles": count})
    odd = []
    if {cryosparc.STACK, cryosparc.SECTION} <= set(names):
        image = numbered([table[cryosparc.STACK], table[cryosparc.SECTION]])
        if copies := len(image) - image.max() - 1:
            odd.append(f"{copies} rows show an image that another row has shown")
    return {"format": "cryoSPARC .cs", "optics_groups": groups, "oddities": odd}


def _headers(images: Any) -> list[Header]:
    """Of the stacks that images are read from, if they are."""
    while images is not None and not isinstance(images, Stacks | Mixed):
        images = getattr(images, "_images", getattr(images, "stacks", None))
    return [] if images is None else images.headers


def _of_headers(headers: list[Header], particles: Particles) -> list[str]:
    odd = []
    if cubes := [h for h in headers if len(set(h.shape)) == 1 < h.shape[0]]:
        odd.append(f"{cubes[0].path.name} is a cube: a map, rather than images?")
    wide = [h for h in headers if h.voxel_size > 0]
    if other := [h for h in wide if abs(h.voxel_size / particles.pixel_size - 1) > 0.01]:
        odd.append(
            f"{_counted(other, headers)} another pixel size than {particles.pixel_size:g} Å, "
            f"which counts: {other[0].voxel_size:g} Å in {other[0].path.name}"
        )
    if silent := [h for h in headers if not h.voxel_size > 0]:
        odd.append(f"{_counted(silent, headers)} no pixel size")
    nameless = [h for h in headers[:OPENED] if not _named(h.path)]
    if nameless:
        odd.append(f"the header of {nameless[0].path.name} lacks the map ID 'MAP '; forgiven")
    whole = [h for h in headers if h.dtype.kind in "iu"]
    if whole:
        odd.append(f"{whole[0].path.name} holds whole numbers ({whole[0].dtype.name})")
    unused = sum(h.shape[0] for h in headers) - len(particles) * (particles.frames or 1)
    if unused > 0:
        odd.append(f"{unused} images of the stacks are not listed")
    return odd


def _counted(some: list[Header], every: list[Header]) -> str:
    if len(every) == 1:
        return "the stack's header has"
    return f"the headers of {len(some)} of {len(every)} stacks have"


def _named(path: Path) -> bool:
    place, word = MAP
    try:
        with open(path, "rb") as file:
            file.seek(place)
            return file.read(len(word)) == word
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror or error})") from error
