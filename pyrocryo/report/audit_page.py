"""``audit.html``: one self-contained page of an :class:`~pyrocryo.report.audit.Audit`."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyrocryo.files import replacing
from pyrocryo.io.figures import png
from pyrocryo.report import audit_figures as figures
from pyrocryo.report.audit import Audit, Audited
from pyrocryo.report.page import STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyrocryo.diagnose.dependence import Dependence
    from pyrocryo.diagnose.reencoded import Reencoded

__all__ = ["page", "write_page"]

TITLE = "Audit of latents"


def write_page(found: Audit, path: str | Path) -> Path:
    """Writes the page, whole or not at all; returns its path."""
    path = Path(path)
    text = page(found)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def page(found: Audit) -> str:
    """The page as HTML, pictures within."""
    names = ", ".join(run.name for run in found.runs)
    parts = [
        f"<h1>{TITLE}</h1>",
        f"<p class=small>{_told(names)}</p>",
        *[f"<p class=verdict>{_begun(line)}</p>" for line in _verdicts(found)],
    ]
    for run in found.runs:
        if len(found.runs) > 1:
            parts.append(f"<h1>{_told(run.name)}</h1>")
        parts += _run(run)
    parts += _agreement(found)
    done = [f"{run.name}: {text}" for run in found.runs for text in run.skipped]
    parts += ["<h2>What was not done</h2>", _list(done + found.skipped)]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _verdicts(found: Audit) -> list[str]:
    told = []
    for run in found.runs:
        of = f"{run.name}: " if len(found.runs) > 1 else ""
        if run.leak is not None:
            told.append(f"{of}{run.leak.sentence}.")
        else:
            told.append(f"{of}whether z depends on the pose is not known: no poses were compared.")
        told += [f"{of}{run.turned.sentence}."] if run.turned is not None else []
        told += [f"{of}{other.sentence}." for other in run.others if run.sure(other)]
    if found.agreement is not None:
        told.append(f"{found.agreement.sentence[:1].upper()}{found.agreement.sentence[1:]}.")
    return told


def _run(run: Audited) -> Iterable[str]:
    n, k = run.z.shape
    yield f"<p class=small>{n} particles, {k} latents.</p>"
    yield "<h2>Does z depend on the pose?</h2>"
    if run.leak is None:
        yield "<p>Not known: see below what was not done.</p>"
    else:
        yield _dependences(run.leak.tests)
        yield (
            "<p class=small>Shares are R² less the mean R² of permuted particles. p by "
            f"permutation, {run.leak.tests[0].permutations} times; those of single latents are "
            "corrected for their number. Red bars: latents that surely depend (p &lt;= .05); "
            "dotted: what would be seen in 8 of 10 cases. The turn in the plane is tested "
            "among particles seen from about the same direction, as a share of what the "
            "direction leaves.</p>"
        )
        yield _picture(figures.shares(run.leak), "shares of each latent")
        yield _picture(figures.over_poses(run.z, run.rotation, run.leak), "latents over poses")
        yield f"<p class=small>{_told(run.causes())}</p>"
    if run.turned is not None:
        yield from _turned(run.turned)
    if run.others:
        yield "<h2>Does z depend on anything else?</h2>"
        yield _dependences(run.others)
        yield (
            "<p class=small>Each tested by itself, p not corrected for the number of rows. "
            "Particles of one micrograph share its defocus, ice and more: a dependence on one of "
            "them may come through another.</p>"
        )
    if run.dims is not None:
        yield "<h2>How many dimensions, and how wide are posteriors?</h2>"
        yield f"<p>{_begun(run.dims.sentence)}.</p>"
        yield _picture(figures.variances(run.dims), "variances")
    if run.ica is not None:
        yield "<h2>Are there axes to tell apart?</h2>"
        some = (
            f" Of {n} particles {m} were drawn at random."
            if (m := len(run.ica.sources)) < n
            else ""
        )
        yield f"<p>{_told(run.ica.sentence)}{some}</p>"
        yield (
            "<p class=small>Linear ICA of the latents that vary: histograms of its components "
            "beside a Gaussian, with their negentropy. Components that are told apart are axes "
            "if motions are independent and z mixes them linearly; neither is tested.</p>"
        )
        yield _picture(figures.components(run.ica), "components")


def _turned(seen: Reencoded) -> Iterable[str]:
    yield "<h2>Does z stay when images are turned?</h2>"
    yield f"<p>{_begun(seen.sentence)}.</p>"
    if seen.by_turn is not None:
        yield _dependences([seen.by_turn], "of the change of z on")
    yield (
        "<p class=small>Images turned by 90° with shift and astigmatism, and encoded again by the "
        "run's own encoder, which gives what the run wrote down for images as they are. "
        "The conformation is the same, so it should say the same. What goes with the turn is an "
        "encoder that takes turns for motions; the rest is one that reads noise, or images it "
        "has not seen are none that it can read. What it makes of the direction of view is not "
        "seen here.</p>"
    )


def _agreement(found: Audit) -> Iterable[str]:
    if len(found.runs) < 2:
        return
    yield "<h2>Do the runs agree?</h2>"
    seen = found.agreement
    if seen is None:
        yield "<p>Not known: see below.</p>"
        return
    yield f"<p>{_begun(seen.sentence)}.</p>"
    yield (
        f"<p class=small>Matched latents correlate {seen.permutation:.3f}; a linear map explains "
        f"{seen.affine:.3f} of the variance and nearest neighbours {seen.nonlinear:.3f} "
        f"({seen.axiswise:.3f} from the matched latent alone), fitted on one half of the "
        "particles and scored on the other. Runs that agree may share a bias: agreement is "
        "necessary for axes that mean something, and not sufficient.</p>"
    )
    runs = [run.z for run in found.runs]
    yield _picture(figures.matches(runs, [run.name for run in found.runs]), "correlations")


def _dependences(tests: Sequence[Dependence], what: str = "of z on") -> str:
    head = f"<tr><th>{what}<th>p<th>of all variance<th>strongest direction<th>seen from<th>by<th>n"
    rows = "".join(
        f"<tr><td>{_told(test.what)}<td>{test.p:.2g}<td>{_percent(test.total)}"
        f"<td>{_percent(test.strongest)}<td>{_percent(test.noticed)}"
        f"<td class=small>{_told(test.how)} ({test.features})<td>{test.particles}</tr>"
        for test in tests
    )
    return f"<div class=wide><table>{head}</tr>{rows}</table></div>"


def _percent(share: float) -> str:
    return f"{100 * share:{'.0f' if abs(share) >= 0.1 else '.2g'}} %"


def _picture(figure: Figure, name: str) -> str:
    buffer = io.BytesIO()
    png(figure, buffer)
    code = base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{code}"></figure>'


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_told(item)}</li>' for item in items)}</ul>"


def _begun(text: str) -> str:
    """As a sentence, but for names and symbols that begin it."""
    keeps = text.startswith("z ") or ": " in text[:60]
    return _told(text if keeps else text[:1].upper() + text[1:])


def _told(text: str) -> str:
    return html.escape(str(text))
