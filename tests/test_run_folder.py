import json

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.io.run_folder import new_folder, write_json
from pyrocryo.to_arviz import from_netcdf


@pytest.fixture(scope="module")
def run(tmp_path_factory, pairs_in_time):
    out = tmp_path_factory.mktemp("run")
    pair = pc.Pair(pc.priors.LaplaceTransition(2, 2.0), pc.volumes.Grid(), pairs_in_time.box)
    fit = pc.fit(pair, pairs_in_time, steps=20, seeds=[0, 3], batch_size=32)
    post = pc.posterior(fit, pairs_in_time.test, draws=10)
    pc.io.export(fit, post, out, particles=pairs_in_time, config={"name": "a run"})
    pc.report.write(out)
    return out, fit, post


def test_every_file_is_there(run):
    out = run[0]
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {
        "config.json", "history.csv", "checkpoint.pt", "posterior.nc", "metrics.json",
        "identify.json", "report.html", "figures/loss.png", "figures/metrics.png",
        "figures/latents_seed3.png", "figures/images_seed0.png", "figures/traversal_seed0.png",
        "volumes/seed0_median.mrc", "volumes/seed3_z2.mrcs",
    } <= names  # fmt: skip
    assert not [name for name in names if name.rsplit("/")[-1].startswith(".")]


def test_config_tells_how_to_do_it_again(run, pairs_in_time):
    config = json.loads((run[0] / "config.json").read_text())
    assert config["seeds"] == [0, 3]
    assert config["settings"]["steps"] == 20
    assert config["data"]["sha256"] == pairs_in_time.digest()
    assert config["versions"]["torch"] == torch.__version__
    assert config["name"] == "a run"


def test_history_has_a_row_a_step(run):
    rows = np.genfromtxt(run[0] / "history.csv", delimiter=",", names=True)
    assert len(rows) == 40
    np.testing.assert_allclose(rows["loss"][20:], run[1].history["loss"][1], rtol=1e-5)


def test_checkpoint_restores_the_pairs(run):
    content = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    for seed, pair in zip((0, 3), run[1].pairs, strict=True):
        saved = content["done"][seed]["pair"]
        for name, value in pair.state_dict().items():
            assert torch.equal(saved[name], value)


def test_posterior_and_metrics_return(run):
    out, _, post = run
    again = from_netcdf(out / "posterior.nc")
    np.testing.assert_array_equal(again["posterior"]["z"], post["posterior"]["z"])
    metrics = json.loads((out / "metrics.json").read_text())
    for key in ("elbo", "mcc_pearson", "mcc_spearman", "r2_linear", "r2_knn", "angle_deg"):
        assert set(metrics[key]) >= {"mean", "sd", "per_seed", "floor"}
        assert len(metrics[key]["per_seed"]) == 2
    reported = json.dumps(pc.metrics.report(again))  # too few particles for metrics that bin
    assert metrics == json.loads(reported.replace("NaN", "null"))


def test_maps_follow_the_axes_of_z(run):
    out, fit, post = run
    pair = fit.pairs[1]
    codes = post["posterior"]["z"].values[1].reshape(-1, 2)
    z = np.median(codes, axis=0)
    z[1] = np.quantile(codes[:, 1], 0.98)
    import mrcfile

    with mrcfile.open(out / "volumes" / "seed3_z2.mrcs") as file:
        maps = file.data
        assert file.voxel_size.x == pytest.approx(3.0)
    expected = pair.density(torch.as_tensor(z)).numpy()
    np.testing.assert_allclose(maps[-1], expected, atol=1e-5)


def test_report_is_one_file_with_everything_in_it(run):
    page = (run[0] / "report.html").read_text()
    figures = sorted((run[0] / "figures").glob("*.png"))
    assert page.count("<img alt=") == len(figures) == 10
    for path in figures:
        assert path.with_suffix(".svg").read_text().rstrip().endswith("</svg>")
    assert "http" not in page
    for text in ("a run", "mcc_pearson", "Can axes mean anything?", "Not identified"):
        assert text in page


def test_what_a_run_can_do_without(run, pairs_in_time, tmp_path):
    """Export as the README's five lines call it, and without replicated images."""
    fit = run[1]
    post = pc.posterior(fit, pairs_in_time.test, draws=3, predictive=0)
    old = [tmp_path / "new" / name for name in ("diagnose.json", "figures/diagnose_khat.png")]
    (tmp_path / "new" / "figures").mkdir(parents=True)
    for path in old:  # of a fit that was here before
        path.write_text("{}")
    pc.io.export(fit, post, tmp_path / "new")
    assert not any(path.exists() for path in old)
    _, voxel = pc.io.read_map(tmp_path / "new" / "volumes" / "seed0_median.mrc")
    assert voxel == pytest.approx(3.0)
    assert "image_correlation" not in json.loads((tmp_path / "new" / "metrics.json").read_text())
    pc.report.write(tmp_path / "new")


def test_report_needs_a_finished_run(tmp_path):
    with pytest.raises(pc.InputError, match="is not a finished run folder: it has no config.json"):
        pc.report.write(tmp_path)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(pc.InputError, match="its fit was stopped and goes on with --resume"):
        pc.report.write(tmp_path)
    (tmp_path / "config.json").write_text('{"name": "of another program"}')
    with pytest.raises(pc.InputError, match="not from a run of pyrocryo, it has no 'seeds'"):
        pc.report.compare([tmp_path])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(pc.InputError, match="config.json: cannot be read as JSON"):
        pc.report.write(tmp_path)


def test_compare_is_a_table(run):
    text = pc.report.compare([run[0]])
    lines = text.splitlines()
    assert lines[0].split()[:3] == ["run", "seeds", "ELBO"]
    assert lines[2].startswith(run[0].name)
    assert any(line.startswith("floor: rotated") for line in lines)


def test_numbers_without_a_name_in_json_become_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [np.float32("nan"), np.inf, 1], "b": np.int64(3)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1], "b": 3}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    from pyrocryo.files import replacing

    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_new_folder_does_not_overwrite(tmp_path):
    assert new_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / "x").touch()
    with pytest.raises(pc.InputError, match="is not empty; name a new folder$"):
        new_folder(tmp_path / "a" / "b")
    with pytest.raises(pc.InputError, match="is not empty; .* or --resume this one"):
        new_folder(tmp_path / "a" / "b", resume=False)
    new_folder(tmp_path / "a" / "b", resume=True)
    with pytest.raises(pc.InputError, match="is a file, not a folder"):
        new_folder(tmp_path / "a" / "b" / "x")
    with pytest.raises(pc.InputError, match="cannot write to"):
        new_folder(tmp_path / "a" / "b" / "x" / "y")


def test_a_fit_goes_on_where_truth_cannot_be_scored(pairs_in_time, slowvae, caplog):
    fit = pc.fit(slowvae, pairs_in_time, steps=2, batch_size=8)
    truth = pairs_in_time.truth.copy()
    truth[..., 1] = 0.5  # this arm never moved
    post = pc.posterior(fit, pairs_in_time.having(truth=truth).test, draws=2)
    table = pc.metrics.report(post)
    assert np.isnan(table["mcc_pearson"]["per_seed"]).all()
    assert "never varies" in caplog.text
