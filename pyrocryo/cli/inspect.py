"""``pyrocryo inspect``: what was understood of a particle file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

__all__ = ["Inspect"]

SHOWN = 24  # particles in the montage
COLUMNS = 8
GROUPS = 12  # optics groups in the printed summary
PIXELS = 64  # of a picture that shows the particle and not the noise


@dataclass
class Inspect:
    """Print what was understood of a particle file: what there is, and what looks odd.

    With --out also pictures: particles as stored and low-passed (montage.png), views (views.png),
    defocus (defocus.png), and all the numbers (summary.json).
    """

    file: tyro.conf.Positional[Path]
    """A .star or .cs file, or an .mrcs stack."""
    poses: Path | None = None
    """Poses in cryoDRGN's form (.pkl), for particles that come without."""
    passthrough: Path | None = None
    """The passthrough file of a .cs file."""
    pixel_size: float | None = None
    """Å per pixel, for particles that do not say."""
    folder: Path | None = None
    """Where the image paths in the file start (default: looked for around the file)."""
    images: int = 1000
    """Most images to look at."""
    out: Path | None = None
    """Folder to make for pictures and numbers."""

    def run(self) -> None:
        """Prints the summary, and writes it."""
        from pyrocryo import inspection, io
        from pyrocryo.io.facts import facts
        from pyrocryo.io.figures import write_figure

        given = {"passthrough": self.passthrough, "poses": self.poses}
        if self.folder is not None:
            given["folder"] = self.folder
        particles = io.load(self.file, pixel_size=self.pixel_size, **given)
        if self.out is not None:
            io.new_folder(self.out)
        found = facts(self.file, particles)
        found |= inspection.summary(particles, most=self.images)
        print(f"{self.file}")
        print("\n".join(f"  {name:<12}{text}" for name, text in _lines(found)))
        if self.out is None:
            return
        for name, figure in _figures(self.file.name, particles, found).items():
            write_figure(self.out / f"{name}.png", figure)
        io.write_json(self.out / "summary.json", {"file": str(self.file)} | found)
        print(self.out)


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and sentences, in the order they are read."""
    frames = f" of {found['frames']} frames" if found["frames"] else ""
    stacks = found.get("stacks")
    files = f", in {stacks['files']} stack{'s' * (stacks['files'] > 1)}" if stacks else ""
    yield "format", found["format"]
    yield "particles", f"{found['particles']}{frames}{files}"
    wide = found["box"] * found["pixel_size_in_angstroms"]
    yield (
        "box",
        f"{found['box']} px of {found['pixel_size_in_angstroms']:g} Å: {wide:.4g} Å wide",
    )
    yield "fields", ", ".join(found["fields"]) or "none"
    groups = found["optics_groups"]
    for group in groups[:GROUPS]:
        more = [
            f"{group[key]:g} {unit}"
            for key, unit in (
                ("pixel_size_in_angstroms", "Å/px"),
                ("box", "px"),
                ("voltage_in_kilovolts", "kV"),
            )
            if group.get(key) is not None
        ]
        yield "optics", ", ".join([f"{group['name']}: {group['particles']} particles", *more])
    if len(groups) > GROUPS:
        yield "optics", f"and {len(groups) - GROUPS} groups more"
    yield from _of_optics(found)
    yield from _of_poses(found)
    if "temperature" in found:
        low, high = found["temperature"]["range_in_kelvin"]
        counts = found["temperature"]["particles"]
        several = f" ({', '.join(f'{k} K: {n}' for k, n in counts.items())})" if counts else ""
        yield "temperature", f"{low:g} to {high:g} K{several}"
    if "time" in found:
        low, high = found["time"]["range_in_seconds"]
        yield "time", f"{low:g} to {high:g} s"
    yield from _of_images(found)
    for line in found["oddities"]:
        yield "note", line


def _of_optics(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "ctf" not in found:
        yield "CTF", "none in the file"
        return
    ctf = found["ctf"]
    defocus = ctf["defocus_in_angstroms"]
    low, middle, high = (1e-4 * defocus[k] for k in ("least", "median", "most"))
    several = [
        f"{'/'.join(f'{value:g}' for value in ctf[name])}"
        for name in ("voltage_in_kilovolts", "aberration_in_millimetres", "amplitude_contrast")
    ]
    low_phase, high_phase = ctf["phase_shift_in_degrees"]
    plate = f"phase shifts of {low_phase:g} to {high_phase:g}°" if ctf["phase_plate"] else ""
    yield (
        "CTF",
        f"defocus {low:.3g} to {high:.3g} µm (median {middle:.3g}), astigmatism "
        f"{ctf['astigmatism_in_angstroms']['median']:.0f} Å; {several[0]} kV, Cs {several[1]} mm, "
        f"amplitude contrast {several[2]}; {plate or 'no phase plate'}",
    )
    if ctf["overfocused"]:
        yield "note", f"{ctf['overfocused']} images are overfocused (negative defocus)"


def _of_poses(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "views" not in found:
        yield "poses", "none in the file"
        return
    seen = found["views"]
    turns = f"turns in the plane {_even(seen['angle_p'])} (R {seen['angle_resultant']:.2f})"
    if seen["in_plane_only"]:
        yield "poses", f"in the plane only: {turns}"
    else:
        yield (
            "poses",
            f"views {_even(seen['uniform_p'])}: largest moment {seen['largest_moment']:.3f} "
            f"(even: .333), {100 * seen['filled']:.0f} % of 128 areas seen (even: "
            f"{100 * seen['filled_if_uniform']:.0f} %); {turns}",
        )
    if "shift" in found:
        moved = found["shift"]
        yield (
            "shifts",
            f"{moved['rms_in_angstroms']:.3g} Å rms, at most {moved['largest_in_angstroms']:.3g}",
        )
        if moved["beyond_half_the_box"]:
            yield "note", f"{moved['beyond_half_the_box']} shifts reach beyond half the box"


def _even(p: float) -> str:
    return f"{'uneven' if p < 0.01 else 'even as far as seen'}, p {_probability(p)}"


def _probability(p: float) -> str:
    return "< 1e-9" if p < 1e-9 else f"= {p:.2g}"


def _of_images(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    images, snr, sign = found["images"], found["snr"], found["sign"]
    if "background_sd" in images:
        state = "normalised" if images["normalised"] else "not normalised"
        yield (
            "background",
            f"mean {images['background_mean']:.3g} ± {images['background_mean_spread']:.2g}, sd "
            f"{images['background_sd']:.3g} ± {images['background_sd_spread']:.2g} over "
            f"{images['read']} images: {state}",
        )
    if snr is None:
        yield "SNR", "no noise outside the particle"
    else:
        error = "" if snr["se"] is None else f" ± {snr['se']:.1g}"
        lag = images["neighbour_correlation"]
        colour = "" if lag is None or abs(lag) < 0.05 else f"; noise coloured ({lag:+.2f} a pixel)"
        yield (
            "SNR",
            f"{snr['box']:.2g}{error} over the box, {snr['central_disc']:.2g} in a disc half as "
            f"wide{colour}",
        )
    told = ""
    if sign["p"] is not None:
        told = f" (t = {sign['t']:.1f}, p {_probability(sign['p'])})"
    text = {
        "bright": f"bright particles{told}",
        "dark": f"dark particles{told}: fit with --invert",
        "unclear": f"unclear{told}" + (f", leans {sign['leans']}" if "leans" in sign else ""),
    }
    yield "sign", text[sign["verdict"]]
    for name, said in (
        ("not_finite", "with pixels that are not numbers"),
        ("constant", "of one value"),
        ("repeated", "with the very background of another"),
    ):
        if count := images[name]["count"]:
            first = images[name]["first"][0]
            which = " like ".join(map(str, first[::-1])) if isinstance(first, list) else first
            yield "note", f"{count} image{'s' * (count > 1)} {said}, first {which} (from 0)"


def _figures(name: str, particles: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    from pyrocryo import plots
    from pyrocryo.inspection import sample

    rows = sample(particles, SHOWN * (particles.frames or 1))
    pictures, labels = list(_first(particles.raw(rows), particles)), particles.index[rows].tolist()
    title = f"{name}: as stored"
    if particles.box > PIXELS:  # what noise hides in narrow pixels
        gap = -len(rows) % COLUMNS
        small = _first(particles.downsampled(PIXELS).raw(rows), particles)
        pictures, labels = [*pictures, *[None] * gap, *small], [*labels, *[None] * gap, *labels]
        title += f", then in pixels of {particles.pixel_size * particles.box / PIXELS:.3g} Å"
    figures = {"montage": plots.montage(pictures, labels, title, columns=COLUMNS)}
    if "rotation" in particles.fields:
        rotation = particles.rotation.reshape(-1, 3, 3)
        figures["views"] = plots.views(rotation, name)
    if "ctf" in found:
        ctf = particles.ctf
        figures["defocus"] = plots.defocus(ctf.reshape(-1, ctf.shape[-1]), name)
    return figures


def _first(images: np.ndarray, particles: Any) -> np.ndarray:
    return images[:, 0] if particles.frames else images
