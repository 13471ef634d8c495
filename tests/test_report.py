"""The page of a run: what is in it, and what it does in a real browser."""

import base64
import gzip
import html.parser
import json
import re

import numpy as np
import pytest
from browser import Browser, found

import pyrocryo as pc
from pyrocryo.io import run_folder
from pyrocryo.io.motion import alanines
from pyrocryo.io.structure import write_structure
from pyrocryo.report import drawn, further, trust
from pyrocryo.report.motions import _atoms
from pyrocryo.report.pictures import binned, sheet
from pyrocryo.to_arviz import from_netcdf, to_netcdf

needs_browser = pytest.mark.skipif(found() is None, reason="no Chromium here (PYROCRYO_BROWSER)")


@pytest.fixture(scope="module")
def flat(tmp_path_factory, pairs_in_time):
    """A run of two seeds, with pairs of frames."""
    out = tmp_path_factory.mktemp("flat")
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=15, seeds=[0, 3], batch_size=32)
    post = pc.posterior(fit, pairs_in_time.test, draws=12)
    name = "a run </script><b>of arms</b>"
    pc.io.export(fit, post, out, particles=pairs_in_time, config={"name": name})
    return pc.report.write(out)


@pytest.fixture(scope="module")
def deep(tmp_path_factory, flat):
    """A run with maps and a chain in space; what is said of it is that of the other one."""
    out = tmp_path_factory.mktemp("deep")
    kinase = pc.molecules.AdenylateKinase()
    particles = pc.simulate.poses(kinase, n=40, snr=1.0, box=24, pixel_size=4.0)
    volume = pc.volumes.RigidBodies(kinase.ca_open, kinase.domain, pixel_size=4.0, hidden=(8,))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, particles.box)
    fit = pc.fit(pair, particles, steps=4, batch_size=8)
    post = pc.posterior(fit, particles, draws=3)
    (out / "volumes").mkdir()
    run_folder._write_volumes(out / "volumes", fit, post)
    to_netcdf(post, out / "posterior.nc")
    for name in ("config", "metrics", "identify"):
        (out / f"{name}.json").write_text(flat.with_name(f"{name}.json").read_text())
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"seeds": [0]}))
    return pc.report.write(out)


@pytest.fixture(scope="module")
def browser():
    tab = Browser()
    yield tab
    tab.close()


class Page(html.parser.HTMLParser):
    """Ids, addresses and pictures without words of a page."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.addresses, self.mute = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.addresses += [attrs[name] for name in ("src", "href") if name in attrs]
        silent = {"img": "alt", "canvas": "aria-label"}.get(tag)
        if silent and not attrs.get(silent) and "tip" not in self.ids[-1:]:
            self.mute.append(attrs)


def data(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search("<script type=application/json id=run>(.*?)</script>", text)[1])


def test_one_file_with_all_in_it(flat, deep):
    for path in (flat, deep):
        text = path.read_text(encoding="utf-8")
        page = Page(text)
        assert len(page.ids) == len(set(page.ids))
        assert {"explore", "scatter", "motion", "step", "metrics", "axes", "settings"} <= set(
            page.ids
        )
        outside = [a for a in page.addresses if not a.startswith(("data:image/", "#"))]
        assert not outside
        assert not re.search("https?:|url\\(|@import", text)
        assert not page.mute
        assert path.stat().st_size < 5e6
        assert "<noscript>" in text
    assert {"seeds", "figures", "training"} <= set(Page(flat.read_text()).ids)
    assert "solid" not in Page(flat.read_text()).ids
    assert "solid" in Page(deep.read_text()).ids


def test_names_cannot_end_the_script(flat):
    text = flat.read_text()
    assert "<b>of arms" not in text
    assert "&lt;b&gt;of arms" in text


def test_columns_are_those_of_the_posterior(flat):
    found = data(flat)
    post = from_netcdf(flat.with_name("posterior.nc"))
    points = found["points"]
    columns = {c["name"]: c for c in points["columns"]}
    z = post["posterior"]["z"].values.mean(axis=1).reshape(2, -1, 2)
    np.testing.assert_allclose(columns["z2"]["values"], z[..., 1], rtol=1e-3, atol=1e-5)
    truth = post["constant_data"]["truth"].values.reshape(-1, 2)
    np.testing.assert_allclose(columns["true 1"]["values"], truth[:, 0], rtol=1e-3, atol=1e-5)
    assert columns["time"]["kind"] == "class"
    assert columns["pose: in-plane angle"]["kind"] == "angle"
    assert "pose: tilt" not in columns
    assert points["frame"][:4] == [0, 1, 0, 1]
    index = post["posterior"]["z"].coords["particle"].values
    assert points["index"] == np.repeat(index, 2).tolist()
    metrics = json.loads(flat.with_name("metrics.json").read_text())
    elbo = np.mean(columns["ELBO"]["values"], axis=1)
    np.testing.assert_allclose(elbo, metrics["elbo"]["per_seed"], rtol=1e-3)
    assert found["best"] == int(np.argmax(metrics["elbo"]["per_seed"]))
    share = np.array(columns["effective share of draws"]["values"])
    assert ((share > 1 / 12 - 1e-3) & (share <= 1)).all()


def test_khat_comes_from_diagnose(flat):
    from pyrocryo.report.points import points, read_arrays

    found = read_arrays(flat.with_name("posterior.nc"))
    rows = found["posterior/particle"][[2, 0]].tolist()
    checked = {"particles": rows, "importance": {"khat": [[0.2, None], [0.9, 0.1]]}}
    told = points(found, [0, 3], 0, checked)["columns"]
    khat = next(c for c in told if c["name"] == "k-hat")["values"]
    assert khat[0][4:6] == [0.2, 0.2]
    assert khat[1][:2] == [0.1, 0.1]
    assert khat[0][0] is None
    assert khat[1][2] is None


def test_chains_and_maps_are_those_on_file(deep):
    (seed,) = data(deep)["motions"]
    folder = deep.parent / "volumes"
    packed = seed["atoms"][1]
    xyz = (
        np.frombuffer(base64.b64decode(packed["data"]), "<i2").reshape(seed["steps"], -1, 3) / 100
    )
    first = pc.io.read_structure(folder / "seed0_z2.pdb", model=1).positions
    apart = np.linalg.norm(xyz[0][:, None] - xyz[0], axis=-1)
    np.testing.assert_allclose(apart, np.linalg.norm(first[:, None] - first, axis=-1), atol=0.04)
    map_ = seed["maps"][0]
    raw = np.frombuffer(gzip.decompress(base64.b64decode(map_["data"])), np.uint8)
    cubes = raw.reshape(seed["steps"], *3 * [map_["side"]])
    whole, voxel = pc.io.read_map(folder / "seed0_z1_0.mrc")
    # atoms on file lie where the map on file has its density
    at = np.round(pc.io.read_structure(folder / "seed0_z1.pdb", model=1).positions / voxel)
    x, y, z = at.astype(int).T
    assert whole[z, y, x].mean() > 4 * whole.mean()
    assert cubes[0].max() > 128
    assert not cubes[:, 0].any()  # a margin all around, so that surfaces are closed


def test_a_seed_that_is_no_number_is_left_out(flat):
    from pyrocryo.report.motions import motions
    from pyrocryo.report.points import points, read_arrays

    found = read_arrays(flat.with_name("posterior.nc"))
    found["posterior/z"][1, 2, 5] = np.nan
    columns, axes = points(found, [0, 3], 0), motions(flat.parent, found, [0, 3], 0)
    json.dumps([columns, axes], allow_nan=False)
    assert [one["seed"] for one in axes] == [0]


def test_gaussians_in_no_order_are_no_chain(tmp_path, rng):
    for name, places in (
        ("chain", np.arange(30)[:, None] * [3.8, 0.0, 0.0]),
        ("gaussians", rng.normal(size=(30, 3)) * 40),
    ):
        steps = np.stack([places, places + 1.0])
        write_structure(tmp_path / f"{name}.pdb", alanines(places), steps)
    assert _atoms(tmp_path / "chain")["count"] == 30
    assert _atoms(tmp_path / "gaussians") is None  # the map is shown


def test_sheets_keep_the_place_of_each_picture(rng):
    stack = rng.normal(size=(5, 6, 6))
    small = binned(stack, 3)
    np.testing.assert_allclose(small[4, 0, 2], stack[4, :2, 4:].mean(), rtol=1e-5)
    page = sheet(small, 2)
    assert page.shape == (9, 6)
    np.testing.assert_array_equal(page[3:6, 3:], small[3, ::-1])
    assert not page[6:, 3:].any()


def test_trust_reads_what_was_found():
    row = {"mean": 0.5, "sd": 0.0, "floor": None, "per_seed": [-10.0, -20.0]}
    run = {
        "config": {"seeds": [4, 7]},
        "metrics": {
            "elbo": row,
            "mcc_pearson": {**row, "mean": 0.85, "rotation_floor": 0.9},
            "pose_leak": {**row, "mean": 0.4},
        },
        "identify": {"seeds": None, "decoder": None},
    }
    told = {line.what: line for line in trust.lines(run, None)}
    assert told["Training"].state == "care"
    assert "seed 7 lies 10 nats" in told["Training"].says
    assert told["Axes"].state == "care"
    for mcc, turned, state in ((0.91, 20.0, "care"), (0.85, 1.0, "good")):  # noise costs MCC only
        run["metrics"]["mcc_pearson"]["mean"] = mcc
        angle = {"angle_deg": {**row, "mean": turned, "floor": 22.5}}
        seen = trust.lines({**run, "metrics": run["metrics"] | angle}, None)
        assert next(line for line in seen if line.what == "Axes").state == state
    assert told["Pose"].state == "care"
    assert told["Seeds"].state == "open"
    assert told["Posterior"].state == "open"
    told = trust.lines(run, {"sentence": "Too narrow.", "passed": False})
    assert told[-1][:2] == ("Posterior", "bad")
    assert told[-1].says.startswith("Too narrow: see")
    assert [
        trust.state(s) for s in ("Not identified: x", "Consistent with identified axes: y")
    ] == [
        "bad",
        "good",
    ]


def test_other_findings_are_shown_as_they_are(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("diagnose_khat.png", "landscape_1.png", "loss.png"):
        (tmp_path / "figures" / name).write_bytes(name.encode())
    (tmp_path.parent / "secret.png").write_bytes(b"secret")
    content = {
        "sentence": "Widths are <wrong>.",
        "passed": False,
        "sbc": {"verdict": "too narrow", "passed": False, "p": [0.01, None], "ranks": [[1] * 99]},
        "figures": ["../secret.png"],
        "seeds": [4, 7],
        "dimensions": [{"sentence": "both vary"}, {"sentence": "one is empty"}],
        "axes": [{"axis": 2, "sentence": "two wells"}, {"axis": 3, "sentence": "one well"}] * 2,
    }
    text = "".join(further.parts({"diagnose": content, "landscape": None}, tmp_path))
    assert "Widths are &lt;wrong&gt;." in text
    assert "<li class=bad><b>✗ sbc</b> too narrow" in text
    assert "sbc.p<td class=number>0.01, –" in text
    assert text.count("data:image") == 1
    assert "<b>dimensions, seed 4</b> both vary" in text
    assert "<b>dimensions, seed 7</b> one is empty" in text
    assert "ranks" not in text
    assert text.count("<b>z2</b> two wells") == text.count("<b>z3</b> one well") == 1
    assert not further.parts({"diagnose": None, "landscape": {}}, tmp_path)


def test_drawings_survive_what_training_does(rng):
    x = np.arange(50.0)
    rows = np.stack([rng.normal(size=50), np.full(50, np.nan)])
    svg = drawn.curves(x, rows, ["a", "b & c"], "step", "loss")
    assert svg.count("<path") == 2
    assert "nan" not in svg
    assert "b &amp; c" in svg
    assert "<svg" not in drawn.curves(x, np.full((1, 50), np.nan), ["a"], "step", "loss")
    assert drawn.bar({"per_seed": [None], "floor": 0.0}) == ""


def test_a_page_without_a_posterior(flat, tmp_path):
    for name in ("config", "metrics", "identify"):
        (tmp_path / f"{name}.json").write_text(flat.with_name(f"{name}.json").read_text())
    page = Page(pc.report.write(tmp_path).read_text())
    assert {"metrics", "axes", "settings"} <= set(page.ids)
    assert "scatter" not in page.ids
    (tmp_path / "posterior.nc").write_bytes(b"cut short")
    with pytest.raises(pc.InputError, match="posterior.nc: cannot be read as a posterior"):
        pc.report.write(tmp_path)


def middle(browser, name):
    return browser.js(
        f"(() => {{const e = document.getElementById('{name}');"
        "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
        "return [r.left + r.width / 2, r.top + r.height / 2]})()"
    )


def ink(browser, name):
    """A number that changes with what is drawn, once that is drawn finely."""
    browser.until("new Promise(r => requestAnimationFrame(() => setTimeout(r, 20, true)))")
    if name == "solid":
        shown = "document.getElementById('solid')"
        browser.until(f"{shown}.width > {shown}.clientWidth")
    return browser.js(
        f"(() => {{const c = document.getElementById('{name}');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let s = 0; for (let i = 0; i < d.length; i++) s = (s * 31 + d[i]) % 1000003; return s})()"
    )


@needs_browser
def test_in_a_browser_particles_can_be_looked_at(browser, flat):
    browser.said.clear()
    browser.media(prefers_reduced_motion="reduce")
    browser.open(flat)
    browser.until("document.getElementById('picture').getContext('2d') !== null")
    assert browser.js("document.documentElement.classList.contains('js')")
    x, y = middle(browser, "scatter")
    assert browser.js("document.getElementById('tip').hidden")
    for dx in range(-200, 200, 8):  # until it meets a particle
        browser.mouse("mouseMoved", x + dx, y)
        if not browser.js("document.getElementById('tip').hidden"):
            break
    words = browser.js("document.getElementById('tip').textContent")
    assert re.match(r"particle \d+, frame [12]z1: ", words)
    assert browser.js(
        "(() => {const c = document.querySelector('#tip canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, 96, 96).data;"
        "return new Set(d).size})()"
    ) > 20  # fmt: skip
    for kind in ("mousePressed", "mouseReleased"):
        browser.mouse(kind, x + dx, y, button="left", clickCount=1)
    card = browser.js("document.getElementById('card').textContent")
    assert "true 1" in card
    assert "decoded (seed" in card
    before = ink(browser, "scatter")
    choose = "{const s = document.getElementById('%s'); s.value = '%s';"
    choose += "s.dispatchEvent(new Event('change'))}"
    browser.js(choose % ("colour", "seeds"))
    browser.until("document.getElementById('legend').textContent === 'seed 0seed 3'")
    browser.until("new Promise(r => requestAnimationFrame(() => r(true)))")
    assert ink(browser, "scatter") != before
    angle = next(
        n
        for n, c in enumerate(data(flat)["points"]["columns"])
        if c["name"] == "pose: in-plane angle"
    )
    browser.js(choose % ("colour", angle))
    browser.until("document.getElementById('legend').textContent.includes('−180')")
    browser.js("document.getElementById('scatter').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    assert browser.js("document.getElementById('card').textContent") != card
    assert not browser.said


@needs_browser
@pytest.mark.parametrize("width", [390, 1300])
def test_in_a_browser_motions_move(browser, flat, deep, width):
    browser.said.clear()
    browser.size(width, 800)
    browser.media(prefers_reduced_motion="reduce")
    for path, canvases in ((flat, ["picture"]), (deep, ["picture", "solid"])):
        browser.open(path)
        slide = "{const s = document.getElementById('step'); s.value = %s;"
        slide += "s.dispatchEvent(new Event('input'))}"
        browser.until("document.getElementById('where').textContent !== ''")
        browser.until("new Promise(r => setTimeout(() => r(true), 200))")
        for name in canvases:
            browser.js(slide % 1)
            before = ink(browser, name)
            assert before != 0
            browser.js(slide % 5.5)
            assert ink(browser, name) != before
        assert browser.js("document.documentElement.scrollWidth") <= width
    before = ink(browser, "solid")
    x, y = middle(browser, "solid")
    browser.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
    browser.mouse("mouseMoved", x + 40, y + 10, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 40, y + 10, button="left", clickCount=1)
    assert ink(browser, "solid") != before
    browser.js(
        "{const s = document.getElementById('kind'); s.value = 'map';"
        "s.dispatchEvent(new Event('change'))}"
    )
    browser.until("document.getElementById('solidly').textContent.startsWith('Surface')")
    assert not browser.said


@needs_browser
def test_in_a_browser_tables_sort(browser, flat):
    browser.open(flat)
    column = (
        "[...document.querySelectorAll('.sortable tbody tr')].map(r => r.cells[1].dataset.value)"
    )
    browser.js("document.querySelectorAll('.sortable th')[1].click()")
    values = [float(v) for v in browser.js(column) if v != ""]
    assert values == sorted(values)
    browser.js("document.querySelectorAll('.sortable th')[1].click()")
    values = [float(v) for v in browser.js(column) if v != ""]
    assert values == sorted(values, reverse=True)
    assert not browser.said


@needs_browser
def test_in_a_browser_without_javascript(browser, flat):
    browser.open(flat, script=False)
    shown = "getComputedStyle(document.getElementById('%s')).display"
    assert browser.js(shown % "explore") == "none"
    assert browser.js("document.querySelector('.figures').open")
    assert "need JavaScript" in browser.js("document.body.innerText")
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
