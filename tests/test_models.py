"""Every model file runs in short form, and has a model card."""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.imaging import splat
from pyrocryo.imaging.splat import pixel_centres
from pyrocryo.io import star as star_file
from pyrocryo.report.cards import cards

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.py"))
SHORT = ("--steps", "4", "--draws", "3", "--batch-size", "16")


@pytest.fixture
def test_data():
    folder = os.environ.get("PYROCRYO_TEST_DATA")
    if not folder:
        pytest.skip("PYROCRYO_TEST_DATA names no folder with other people's data")
    return Path(folder)


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_card(path):
    card = ast.get_docstring(ast.parse(path.read_text()))
    for word in ("Expected", "~ N", "core"):
        assert word in card


def test_the_page_of_cards_is_up_to_date():
    folder = MODELS[0].parent
    assert (folder / "README.md").read_text() == cards(folder), "run make models/README.md"


def test_a_file_without_a_card_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(pc.InputError, match="mine.py: expected a docstring"):
        cards(tmp_path)


WITH_ARMS = [p for p in MODELS if p.stem in ("vae", "slowvae", "boltzmann")]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("path", WITH_ARMS, ids=lambda p: p.stem)
@pytest.mark.parametrize("volume", ["grid", "implicit", "atoms"])
@pytest.mark.parametrize("pose", ["known", "in-plane"])
def test_short_form(path, volume, pose, tmp_path):
    """Volumes and poses swap into every model file by one argument each."""
    out = tmp_path / "run"
    options = ["--n", "60", "--arms", "3", "--out", str(out), "--seeds", "2"]
    options += ["--volume", volume, "--pose", pose]
    if pose == "in-plane":
        options += ["--rigid-steps", "1", "--body", "auto"]
        options += ["--n", "240"]  # enough images for a frame, and for poses to be scored
    assert main(["fit", str(path), *options, *SHORT]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["mcc_pearson"]["per_seed"]) == 2
    assert json.loads((out / "config.json").read_text())["volume"].lower() == volume
    if pose == "in-plane" and volume == "grid":
        found = metrics.get("pose_error_deg", {"per_seed": []})["per_seed"]
        assert len(found) == (0 if path.stem == "boltzmann" else 2)  # too few images to tell


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize(
    "options",
    [
        "student --steps-law student --no-rotate",
        "huber --learned --boundary ar",
        "jump --steps-law jump --frames 3 --window 2",
        "switching --frames 4",
        "gaussian --steps-law gaussian --plugin --correlation 0.5",
        "isotropic --pose in-plane --weight 1 --rigid-steps 1 --small",
    ],
    ids=lambda o: o.split()[0],
)
def test_slowvae_takes_any_steps(options, tmp_path):
    model = next(p for p in MODELS if p.stem == "slowvae")
    out = tmp_path / "run"
    options = ["--prior", *options.split(), "--n", "600", "--box", "16"]
    assert main(["fit", str(model), "--out", str(out), *options, *SHORT]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    for name in ("betavae", "factorvae", "mig", "dci_disentanglement", "explicitness", "irs"):
        assert 0 <= metrics[name]["mean"] <= 1
    assert metrics["betavae"]["floor"] == 0.5


@pytest.mark.parametrize(
    "options",
    [[], ["--encoder", "polar", "--weight", "0"], ["--no-physics"]],
    ids=lambda o: "".join(o[:2]),
)
def test_posevae_in_short_form(options, tmp_path):
    model = next(p for p in MODELS if p.stem == "posevae")
    out = tmp_path / "run"
    assert main(["fit", str(model), "--n", "400", "--out", str(out), *options, *SHORT]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert {"reconstruction_error", "kl", "pose_circular_linear"} <= set(metrics)
    assert ("index_ci" in metrics) == ("eq2" in metrics) == ("--no-physics" not in options)
    settings = json.loads((out / "config.json").read_text())["settings"]["interventions"]
    assert (settings is None) == bool(options)


@pytest.mark.usefixtures("brisk")
def test_hinges_in_refined_poses_in_short_form(tmp_path):
    """Its other forms are in test_so3.py, and poses from nothing in test_search.py."""
    model = next(p for p in MODELS if p.stem == "refine")
    out = tmp_path / "run"
    options = ["--n", "40", "--rigid-steps", "0", "--volume", "hinges", *SHORT, "--held-out", "4"]
    assert main(["fit", str(model), "--out", str(out), *options]) == 0
    assert (out / "poses_seed0.star").exists()


DECODERS = [
    ("atoms", "--volume hinges --no-ctf --limit 2"),
    ("atoms", "--volume atoms --prior isotropic --pose refined"),
    ("atoms", "--volume residues --bonds 0.01"),
    ("atoms", "--volume incompressible --prior isotropic --no-ctf"),
    ("atoms", "--volume mixture --no-ctf"),
    ("atoms", "--volume map --no-ctf --prior isotropic --batch-size 4"),
    ("atoms", "--volume fourier --no-ctf --prior isotropic --batch-size 4"),
    ("modes", "--latents 10 --knowledge amplitudes --limit 2 --no-ctf"),
    ("modes", "--knowledge none --pose refined --no-ctf"),
    ("modes", "--knowledge time --no-ctf"),
    ("modes", "--knowledge temperature"),
    ("rigid_bodies", "--bodies hinges --pose searched"),
    ("rigid_bodies", "--bodies separate --limit 2 --bonds 10"),
    ("rigid_bodies", "--bodies free --prior time --pose refined --no-ctf"),
    ("linear_ica", "--law laplace --latents 2 --shared"),
]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize(
    ("stem", "options"), DECODERS, ids=lambda o: o.replace("--", "").replace(" ", "-")
)
def test_decoders_of_adenylate_kinase_in_short_form(stem, options, tmp_path, capsys):
    model = next(p for p in MODELS if p.stem == stem)
    options, out = options.split(), tmp_path / "run"
    few = ["--n", "90", "--steps", "2", "--draws", "2", "--held-out", "4", "--batch-size", "8"]
    assert main(["fit", str(model), "--out", str(out), *few, *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    other = bool({"mixture", "map", "fourier"} & set(options))  # no atoms of the molecule
    assert ("rmsd" in metrics) != other
    assert ("angle_limit_1" in metrics) == ("--limit" in options)
    restrained = stem == "atoms" and not other and "hinges" not in options
    assert ("bond_max" in metrics) == (restrained or stem == "rigid_bodies")
    said = stem in ("modes", "linear_ica")
    assert ("no linear ICA: " in capsys.readouterr().out) == said  # of so few


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("stem", ["modes", "linear_ica"])
def test_linear_ica_of_what_was_found(stem, tmp_path, monkeypatch):
    model = next(p for p in MODELS if p.stem == stem)
    copy = tmp_path / model.name
    copy.write_text(model.read_text().replace("FEWEST = 500", "FEWEST = 20"))
    out = tmp_path / "run"
    law = ["--knowledge", "amplitudes"] if stem == "modes" else []
    few = [*law, "--n", "2100", "--steps", "2", "--draws", "1", "--no-ctf", "--batch-size", "8"]
    assert main(["fit", str(copy), "--out", str(out), *few]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    if stem == "modes":
        assert {"mcc_ica", "ica_separated"} <= set(metrics)
        return
    assert {"mcc_pca", "mcc_fastica", "negentropy_fastica_2"} <= set(metrics)
    assert len(list((out / "ica_seed0").glob("ic1_*.mrc"))) == 10
    assert (out / "ica_seed0" / "ic2.cxc").exists()


@pytest.mark.parametrize(
    ("stem", "options", "told"),
    [
        ("atoms", "--limit 1", "limit: expected 0 or at least 2 molecules, got 1"),
        ("atoms", "--volume map --pose refined", "volume: a map starts from a map of the images"),
        ("atoms", "--bonds -1", "weight: expected 0 or more, got -1"),
        ("modes", "--latents 11", "latents: expected 1 to 10 (modes), got 11"),
        ("modes", "--latents 3 --knowledge temperature", "latents: the spreads are those of 2"),
        ("rigid_bodies", "--limit -1", "limit: expected 0 or at least 2 molecules, got -1"),
        ("linear_ica", "--latents 3", "dim: 2 bodies with latents of their own"),
    ],
)
def test_mistakes_are_told_before_training(stem, options, told, tmp_path, capsys):
    model = next(p for p in MODELS if p.stem == stem)
    out = tmp_path / "run"
    assert (
        main(["fit", str(model), "--n", "60", "--no-ctf", "--out", str(out), *options.split()])
        == 2
    )
    assert told in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("prior", "columns"),
    [
        (
            "LaplaceTransition(config.latents, rate=2.0)",
            {"pyrocryoMolecule": lambda i: i // 2, "pyrocryoFrame": lambda i: i % 2},
        ),
        ("Boltzmann((300.0, 240.0))", {"pyrocryoTemperature": lambda i: 300 - 60 * (i % 2)}),
    ],
)
def test_a_prior_with_its_columns_in_the_file_for_real_particles(prior, columns, rigid, tmp_path):
    """As docs/from_relion_to_a_verdict.md says, section 3."""
    blocks = star_file.read(rigid[0])
    n = len(blocks["particles"]["rlnImageName"])
    blocks["particles"] |= {k: [str(of(i)) for i in range(n)] for k, of in columns.items()}
    star_file.write(tmp_path / "known.star", blocks)
    text = next(p for p in MODELS if p.stem == "particles").read_text()
    assert text.count("IsotropicNormal(config.latents)") == 1
    model = tmp_path / "mine.py"
    model.write_text(text.replace("IsotropicNormal(config.latents)", prior))
    options = ["--data", str(tmp_path / "known.star"), "--steps", "5", "--draws", "2"]
    assert main(["fit", str(model), *options, "--out", str(tmp_path / "run")]) == 0
    row = json.loads((tmp_path / "run" / "metrics.json").read_text())["map_correlation"]
    assert row["floor"] < row["mean"]


@pytest.mark.parametrize(("volume", "steps"), [("implicit", "60"), ("atoms", "200")])
def test_a_map_of_another_kind_from_a_star_file(volume, steps, rigid, tmp_path):
    star, truth = rigid
    out = tmp_path / "run"
    model = next(p for p in MODELS if p.stem == "particles")
    options = ["--data", str(star), "--reference", str(truth), "--out", str(out)]
    options += ["--volume", volume, "--steps", steps, "--draws", "2", "--held-out", "20"]
    assert main(["fit", str(model), *options]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["map_correlation"]["mean"] > 0.85


@pytest.mark.usefixtures("brisk")
def test_control_with_equal_spreads(tmp_path):
    model = next(p for p in MODELS if p.stem == "boltzmann")
    out = tmp_path / "run"
    assert main(["fit", str(model), "--equal", "--n", "60", "--out", str(out), *SHORT]) == 0
    assert not json.loads((out / "identify.json").read_text())["prior"]["sees_rotations"]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("learned", [False, True])
def test_wells_of_any_shape(learned, tmp_path):
    model = next(p for p in MODELS if p.stem == "boltzmann")
    out = tmp_path / "run"
    options = ["--wells", "--n", "60", "--out", str(out), *(["--learned"] if learned else [])]
    assert main(["fit", str(model), *options, *SHORT]) == 0
    assert json.loads((out / "config.json").read_text())["exact_kl"]


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize(
    ("options", "prior", "sees"),
    [
        ("--law two --linear all", "Boltzmann", True),
        ("--law mild --linear images --isotropic", "IsotropicNormal", False),
        ("--law graded --arms 3 --learned --no-rotate", "Boltzmann", True),
        ("--law frozen --encode moving", "Boltzmann", True),
        ("--law proportional", "Boltzmann", False),  # turns of whitened z
        ("--law knob", "Boltzmann", True),
        ("--law knob --ligand 0", "Boltzmann", False),
        ("--law wells --temperatures 330 300 --no-rotate", "Boltzmann", True),
    ],
    ids=lambda o: o if isinstance(o, str) and o[0] == "-" else "",
)
def test_laws_of_temperature(options, prior, sees, tmp_path):
    model = next(p for p in MODELS if p.stem == "boltzmann")
    out = tmp_path / "run"
    options = [*options.split(), "--n", "120", "--small", "--box", "16", "--out", str(out)]
    assert main(["fit", str(model), *options, *SHORT]) == 0
    verdict = json.loads((out / "identify.json").read_text())["prior"]
    assert (verdict["name"], verdict["sees_rotations"]) == (prior, sees)


@pytest.mark.usefixtures("brisk")
def test_labels_in_error_are_told_to_the_prior_or_not(tmp_path):
    model = next(p for p in MODELS if p.stem == "boltzmann")
    for told in ([], ["--told-error", "0"]):
        out = tmp_path / f"run{len(told)}"
        options = ["--law", "wells", "--label-error", "20", "--n", "60", *told, *SHORT]
        assert main(["fit", str(model), "--out", str(out), *options]) == 0
        exact = json.loads((out / "config.json").read_text())["exact_kl"]
        assert exact == bool(told)  # a mixture over temperatures has no KL in closed form


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("--equal --wells", "give --equal or --wells"),
        ("--law two --equal", "two and --equal are two laws"),
        ("--law frozen --label-error 20", "only of wells"),
        ("--encode moving", "with --law frozen"),
        ("--linear all --volume atoms", "atoms cannot"),
    ],
)
def test_laws_that_exclude_each_other(options, why, tmp_path, capsys):
    model = next(p for p in MODELS if p.stem == "boltzmann")
    options = ["--n", "60", *options.split(), "--out", str(tmp_path / "run")]
    assert main(["fit", str(model), *options]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def rigid(tmp_path):
    """A star file of 400 projections of a rigid molecule in all poses, and its map."""
    rng = np.random.default_rng(0)
    box, angstrom, sd = 16, 4.0, 6.0
    points = torch.as_tensor(rng.normal(size=(7, 3)) * 11)
    euler = np.stack([rng.uniform(-180, 180, 400), np.rad2deg(np.arccos(rng.uniform(-1, 1, 400))),
                      rng.uniform(-180, 180, 400)], axis=-1)  # fmt: skip
    rotation = pc.rotations.matrix_from_euler(euler)
    shift = rng.uniform(-5, 5, (400, 2))
    seen = points @ torch.as_tensor(rotation).transpose(-1, -2)
    seen[..., :2] += torch.as_tensor(shift)[:, None]
    width, weight = torch.full((7,), sd).double(), torch.ones(7).double()
    images = splat(seen, width, weight, box=box, pixel_size=angstrom).numpy()
    images = images + 0.1 * images.std() * rng.standard_normal(images.shape)
    particles = pc.Particles(
        images.astype(np.float32), pixel_size=angstrom, rotation=rotation, shift=shift
    )
    pc.io.save(particles, tmp_path / "rigid.star")
    r = pixel_centres(box, angstrom, dtype=torch.double)
    truth = sum(
        torch.exp(-((r[:, None, None] - z) ** 2 + (r[None, :, None] - y) ** 2 + (r - x) ** 2)
                  / (2 * sd**2))
        for x, y, z in points
    )  # fmt: skip
    pc.io.write_map(tmp_path / "truth.mrc", truth.numpy().astype(np.float32), angstrom)
    return tmp_path / "rigid.star", tmp_path / "truth.mrc"


def test_a_map_from_particles_in_all_poses(rigid, tmp_path):
    """Rotation, shift, axis order and handedness all have to be right for this."""
    star, truth = rigid
    out = tmp_path / "run"
    model = next(p for p in MODELS if p.stem == "particles")
    options = ["--data", str(star), "--reference", str(truth), "--out", str(out)]
    assert main(["fit", str(model), *options, "--steps", "150", "--draws", "5"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["map_correlation"]["mean"] > 0.95
    assert metrics["map_correlation"]["floor"] < 0.9  # images of other particles
    assert metrics["fsc_half_angstroms"]["mean"] <= 16
    written, voxel = pc.io.read_map(out / "volumes" / "seed0_median.mrc")
    reference, _ = pc.io.read_map(truth)
    assert np.corrcoef(written.ravel(), reference.ravel())[0, 1] > 0.9
    assert voxel == pytest.approx(4.0)


def test_a_reference_that_does_not_fit_is_told_before_training(rigid, tmp_path, capsys):
    star, truth = rigid
    model = next(p for p in MODELS if p.stem == "particles")
    options = ["--data", str(star), "--reference", str(truth), "--out", str(tmp_path / "run")]
    assert main(["fit", str(model), *options, "--side", "12"]) == 2
    assert "has (16, 16, 16) voxels, the fitted map (12, 12, 12)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_flat_particles_of_a_user(tmp_path):
    assert main(["simulate", "poses", str(tmp_path / "p.star"), "--n", "60"]) == 0
    model = next(p for p in MODELS if p.stem == "particles")
    options = ["--data", str(tmp_path / "p.star"), "--dimensions", "2"]
    assert main(["fit", str(model), *options, "--out", str(tmp_path / "run"), *SHORT]) == 0


def test_toy_stack_of_another_group(test_data, tmp_path):
    """Noise-free projections made by other people's software, poses in their pickle."""
    model = next(p for p in MODELS if p.stem == "particles")
    toy = test_data / "toy"
    options = [
        "--data", str(toy / "toy_projections.star"), "--poses", str(toy / "toy_rot_zerotrans.pkl"),
        "--reference", str(toy / "toymodel_small_nocenter.mrc"), "--steps", "120", "--draws", "2",
    ]  # fmt: skip
    assert main(["fit", str(model), *options, "--out", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["map_correlation"]["mean"] >= 0.9
    assert metrics["image_correlation"]["mean"] >= 0.9
    assert metrics["fsc_mean"]["mean"] > 0.5


def test_without_its_poses_the_toy_stack_is_refused(test_data, tmp_path, capsys):
    model = next(p for p in MODELS if p.stem == "particles")
    star = test_data / "toy" / "toy_projections.star"
    assert main(["fit", str(model), "--data", str(star), "--out", str(tmp_path / "run")]) == 2
    assert "rlnAngleRot, rlnAngleTilt and rlnAnglePsi" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_real_particles_fit_a_few_steps(test_data, tmp_path):
    model = next(p for p in MODELS if p.stem == "particles")
    star = test_data / "relion31" / "relion31.star"
    options = ["--data", str(star), "--steps", "3", "--draws", "2"]
    assert main(["fit", str(model), *options, "--out", str(tmp_path / "run")]) == 0
    history = np.genfromtxt(tmp_path / "run" / "history.csv", delimiter=",", names=True)
    assert np.isfinite(history["loss"]).all()
