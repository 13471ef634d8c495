"""The command line on good and bad input: bad input gets one line, exit code 2, and no files."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.cli.app import COMMANDS
from pyrocryo.io import star

ROOT = Path(__file__).parents[1]
MODELS = [["fit", f"models/{path.name}"] for path in sorted((ROOT / "models").glob("*.py"))]
SHORT = ("--steps", "4", "--batch-size", "16", "--draws", "3")


def _fit(model, *options):
    return main(["fit", str(ROOT / "models" / f"{model}.py"), *map(str, options), *SHORT])


@pytest.fixture
def stack(tmp_path):
    """Forty simulated pairs on disk."""
    path = tmp_path / "particles.star"
    assert main(["simulate", "time-resolved", str(path), "--n", "40"]) == 0
    return path


def _rewrite(path, change):
    blocks = star.read(path)
    change(blocks["particles"])
    star.write(path, blocks)


def test_simulate_fit_report_compare(stack, tmp_path, capsys):
    out = tmp_path / "run"
    assert _fit("slowvae", "--data", stack, "--out", out, "--seeds", 2) == 0
    printed = capsys.readouterr().out
    assert "mcc" in printed.lower()
    assert "report.html" in printed
    config = json.loads((out / "config.json").read_text())
    assert config["source"] == str(stack)
    assert config["options"]["scale"] == 0.5
    page = (out / "report.html").read_text()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").read_text() == page
    other = shutil.copytree(out, tmp_path / "other")
    capsys.readouterr()
    assert main(["compare", str(out), str(other), "--out", str(tmp_path / "c.json")]) == 0
    assert "other - run, seed by seed (2 seeds; too few for p < .05)" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["seeds"] == [0, 1]
    assert main(["compare", str(out), str(out)]) == 2
    assert "names one of them twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("poses", {}),
        ("temperature", {}),
        ("single-shot", {}),
        ("tilt-pairs", {"frames": 3}),
        (
            "time-resolved",
            {"frames": 3, "steps": "jump", "boundary": "ar", "correlation": 0.5, "scale": 0.2},
        ),
    ],
)
def test_simulate_is_what_python_gives(kind, options, tmp_path):
    path = tmp_path / "p.star"
    words = [w for name, value in options.items() for w in (f"--{name}", str(value))]
    line = ["simulate", kind, str(path), "--n", "12", "--arms", "3", "--seed", "5", *words]
    assert main(line) == 0
    draw = getattr(pc.simulate, kind.replace("-", "_"))
    expected = draw(pc.molecules.Arms(3), 12, 5, **options)
    loaded = pc.io.load(path)
    np.testing.assert_array_equal(loaded.batch(np.arange(12)).images, expected.images)
    np.testing.assert_allclose(loaded.truth, expected.truth, atol=1e-6)


def test_resume_finishes_a_run(stack, tmp_path):
    out = tmp_path / "run"
    assert _fit("vae", "--data", stack, "--out", out) == 0
    history = (out / "history.csv").read_text()
    (out / "metrics.json").unlink()
    assert _fit("vae", "--data", stack, "--out", out, "--resume") == 0
    assert (out / "history.csv").read_text() == history
    assert (out / "metrics.json").exists()


@pytest.mark.parametrize(
    ("model", "options"),
    [("vae", ()), ("slowvae", ("--rate", "50")), ("slowvae", ("--latents", "3"))],
)
def test_resume_takes_no_other_model(model, options, stack, tmp_path, capsys):
    out = tmp_path / "run"
    assert _fit("slowvae", "--data", stack, "--out", out) == 0
    config = (out / "config.json").read_text()
    capsys.readouterr()
    assert _fit(model, "--data", stack, "--out", out, "--resume", *options) == 2
    assert "was made with other model" in capsys.readouterr().err
    assert (out / "config.json").read_text() == config


def test_simulate_overwrites_nothing(stack, capsys):
    before = stack.read_bytes()
    assert main(["simulate", "poses", str(stack), "--n", "3"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert stack.read_bytes() == before


def _no_poses(path):
    _rewrite(path, lambda t: [t.pop(f"rlnAngle{a}") for a in ("Rot", "Tilt", "Psi")])


def _one_angle_missing(path):
    _rewrite(path, lambda t: t.pop("rlnAngleTilt"))


def _no_stack(path):
    path.with_suffix(".mrcs").unlink()


def _truncated(path):
    with path.with_suffix(".mrcs").open("r+b") as file:
        file.truncate(100_000)


def _past_the_end(path):
    _rewrite(path, lambda t: t["rlnImageName"].__setitem__(3, "000999@particles.mrcs"))


def _nan(path):
    with path.with_suffix(".mrcs").open("r+b") as file:
        file.seek(1024 + 4 * 32 * 32 * 7)
        file.write(np.full(5, np.nan, dtype="<f4").tobytes())


def _no_number(path):
    _rewrite(path, lambda t: t["rlnAnglePsi"].__setitem__(2, "north"))


def _not_a_star(path):
    path.write_bytes(b"\x00\x01 nothing")


BAD_STACKS = {
    _no_poses: "rlnAngleRot, rlnAngleTilt and rlnAnglePsi",
    _one_angle_missing: "no column rlnAngleTilt",
    _no_stack: "particles.mrcs",
    _truncated: "bytes",
    _past_the_end: "999",
    _nan: "images: particle 3 has pixels that are not finite numbers",
    _no_number: "rlnAnglePsi is 'north'",
    _not_a_star: "particles.star",
}


@pytest.mark.parametrize("spoil", BAD_STACKS, ids=lambda f: f.__name__.strip("_"))
def test_a_bad_stack_gets_one_line_and_no_folder(spoil, stack, tmp_path, capsys):
    spoil(stack)
    out = tmp_path / "run"
    assert _fit("slowvae", "--data", stack, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("pyrocryo: ")
    assert BAD_STACKS[spoil] in error
    assert not out.exists()


def _wrong_prior(tmp_path):
    model = tmp_path / "wrong.py"
    model.write_text(
        "from dataclasses import dataclass\nimport pyrocryo as pc\n"
        "@dataclass\nclass Config:\n    '''None.'''\n"
        "def pair(config, particles):\n"
        "    return pc.Pair(pc.priors.LaplaceTransition(2, 1.0, frames=5), pc.volumes.Grid(),\n"
        "                   box=BOX)\n"
    )
    return model


@pytest.mark.parametrize(
    ("box", "message"),
    [(32, "prior: LaplaceTransition has event shape (5, 2)"), (16, "box: the particles are 32")],
)
def test_a_model_that_does_not_fit_the_data(box, message, stack, tmp_path, capsys):
    model = _wrong_prior(tmp_path)
    model.write_text(model.read_text().replace("BOX", str(box)))
    out = tmp_path / "run"
    assert main(["fit", str(model), "--data", str(stack), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("boltzmann", (), "temperature: the prior Boltzmann needs the temperature"),
        ("vae", ("--lr", "-1"), "lr: expected a positive number"),
        ("vae", ("--gamma", "3"), "gamma: 3 weighs transition terms"),
        ("vae", ("--device", "tpu9"), "device: 'tpu9' is not to be had"),
        ("vae", ("--seeds", "0"), "seeds: expected at least one"),
        ("vae", ("--latents", "-2"), "dim: expected at least one latent"),
        ("slowvae", ("--latents", "0"), "dim: expected at least one latent"),
        ("slowvae", ("--rate", "0"), "rate: expected one positive"),
        ("slowvae", ("--rate", "2", "--prior", "jump"), "rate: that of a Laplace prior"),
        ("slowvae", ("--plugin", "--prior", "isotropic"), "an isotropic prior has no steps"),
        ("slowvae", ("--plugin", "--prior", "switching"), "a switching prior has no KL in closed"),
        ("slowvae", ("--prior", "gaussian", "--scale", "0.8"), "needs < .707, got 0.8"),
        ("slowvae", ("--scale", "0"), "scale: expected a positive"),
        ("vae", ("--held-out", "0"), "held_out: expected at least 1"),
    ],
)
def test_wrong_options_get_one_line(model, options, message, stack, tmp_path, capsys):
    out = tmp_path / "deep" / "run"
    assert _fit(model, "--data", stack, "--out", out, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not (tmp_path / "deep").exists()


def test_what_the_parser_says_is_one_line(capsys):
    assert main(["simulat", "poses"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("pyrocryo: Unrecognized options: simulat")
    assert not re.search("---|─", said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("fit", "models/vae.py", "--step", "10"),  # of other commands' options, none
            "Unrecognized options: --step, 10; did you mean --rigid-steps or --steps? see "
            "pyrocryo fit --help",
        ),
        (("fit", "models/vae.py", "--steps", "abc"), "--steps: expected INT, got 'abc'; see"),
        (
            ("movie", "run"),
            "Missing from pyrocryo movie: --out PATH A new folder to write to; see",
        ),
        (("simulate", "pose", "p.star"), "'single-shot', 'tilt-pairs'); see pyrocryo simulate"),
    ],
)
def test_a_slip_of_the_pen_is_answered_by_its_command(words, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"pyrocryo: {message}") or message in said, said
    assert said.count("\n") == 1


def test_nothing_is_said_to_a_pipe_that_was_closed():
    words = [sys.executable, "-u", "-m", "pyrocryo.cli", "compare", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait() == 141


def test_help_is_a_line_a_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "Train a model file" in said
    assert "adds its own options" not in said
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "adds its own options" in capsys.readouterr().out


def test_particles_are_no_model(stack, capsys):
    assert main(["fit", str(stack)]) == 2
    assert "particles go to --data" in capsys.readouterr().err


def test_an_unwritable_folder_is_told_before_training(stack, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert _fit("vae", "--data", stack, "--out", tmp_path / "file" / "run") == 2
    assert "out: cannot write to" in capsys.readouterr().err
    assert main(["simulate", "poses", str(tmp_path / "file" / "p.star"), "--n", "3"]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(stack, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    assert _fit("vae", "--data", stack, "--out", out) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("x = 1\n", "defines no pair"),
        (
            "import dataclasses\ndef pair(config, particles): ...\n"
            "@dataclasses.dataclass\nclass Config:\n    poses: int = 1\n",
            "has an option poses, which is one of pyrocryo fit's",
        ),
        ("x = (\n", "model.py, line 1: '(' was never closed"),
    ],
)
def test_a_file_that_is_no_model(content, message, tmp_path, capsys):
    path = tmp_path / "model.py"
    if content is not None:
        path.write_text(content)
    assert main(["fit", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_particles_needs_data(tmp_path, capsys):
    assert _fit("particles", "--out", tmp_path / "run") == 2
    assert "give it --data" in capsys.readouterr().err
    assert _fit("vae", "--poses", "x.pkl", "--out", tmp_path / "run") == 2
    assert "go with --data" in capsys.readouterr().err


def test_training_that_breaks_down_exits_1(stack, tmp_path, capsys):
    assert _fit("vae", "--data", stack, "--out", tmp_path / "run", "--lr", "1e9") == 1
    assert "pyrocryo: training stopped: seed 0, step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", str(ROOT / "models" / "vae.py"), "--sedes", "3"], "--sedes"),
        (["fit", str(ROOT / "models" / "vae.py"), "--steps", "many"], "'many'"),
        (["fit"], "Model file"),
        (["fitt"], "simulate, inspect, fit, identify, diagnose"),
        ([], "Expected one of {simulate, inspect, fit"),
    ],
)
def test_mistyped_commands_get_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_help_says_everything(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(ROOT / "models" / "slowvae.py"), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--data", "--seeds", "--steps", "--device", "--out", "--resume", "--arms"):
        assert option in text


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), *MODELS], ids=" ".join)
def test_help_names_no_default_that_is_none(words, capsys, monkeypatch):
    """What is done without an option is said in words."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--help" in said
    assert not re.search(r"default: *(None)?\)", said)


def test_the_command_is_installed():
    done = subprocess.run(
        [sys.executable, "-m", "pyrocryo.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for command in ("fit", "simulate", "report", "compare"):
        assert command in done.stdout


def test_a_body_from_too_few_images_is_refused_before_training(tmp_path, capsys):
    model = Path(__file__).parents[1] / "models" / "boltzmann.py"
    options = ["--pose", "in-plane", "--body", "auto", "--n", "30", "--out", str(tmp_path / "run")]
    assert main(["fit", str(model), *options]) == 2
    assert "body: α(z) needs at least 40 images, there are 27" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_body_for_known_poses_is_refused_before_training(tmp_path, capsys):
    model = Path(__file__).parents[1] / "models" / "vae.py"
    options = ["--body", "auto", "--n", "60", "--out", str(tmp_path / "run")]
    assert main(["fit", str(model), *options]) == 2
    assert "body: only in-plane poses of flat volumes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "5"], "batch_size: 16 particles cannot be shared evenly among 5 devices"),
        (["--devices", "0"], "devices: expected at least 1"),
        (["--together", "0"], "together: expected at least 1"),
        (["--precision", "fp16"], "precision"),
    ],
)
def test_a_machine_that_will_not_do_is_told_before_a_folder_is_made(
    stack, tmp_path, capsys, options, message
):
    out = tmp_path / "run"
    assert _fit("vae", "--data", stack, "--out", out, *options) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
