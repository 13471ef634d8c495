"""A motion to look at: atoms lie on their maps, and the script names what is there."""

import re

import gemmi
import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.cli import main
from pyrocryo.errors import InputError
from pyrocryo.to_arviz import from_netcdf

ADK = pc.molecules.AdenylateKinase(width=3.0)


def _pair(volume=None, box=24, pixel_size=4.0, dim=2):
    volume = volume or pc.volumes.Atoms.known(ADK, pixel_size=pixel_size)
    prior = pc.priors.IsotropicNormal(dim)
    return pc.Pair(prior, volume, box, rotate=False, noise=1.0).eval()


def _models(path):
    found = gemmi.read_structure(str(path))
    return np.array([[row.atom.pos.tolist() for row in model.all()] for model in found])


LATENTS = np.random.default_rng(0).standard_normal((500, 2)) * [1.0, 2.0] + [0.5, -1.0]


def test_along_an_axis(tmp_path):
    pair = _pair()
    files = pc.io.write_motion(tmp_path, pair, 1, latents=LATENTS, frames=6, pixel_size=4.0)
    names = [f"z2_0{n}{end}.mrc" for n, end in enumerate(["_first", "", "", "", "", "_last"], 1)]
    assert [file.name for file in files] == [*names, "z2.pdb", "z2.cxc"]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f.name for f in files)
    low, high = np.percentile(LATENTS[:, 1], [5, 95])
    path = np.full((6, 2), LATENTS[:, 0].mean())
    path[:, 1] = np.linspace(low, high, 6)
    for file, z in zip(files, path, strict=False):
        array, voxel = pc.io.read_map(file)
        assert voxel == pytest.approx(4.0)
        expected = pair.density(torch.as_tensor(z)).numpy()
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    truth = ADK.centres(torch.as_tensor(path)).numpy()
    # the box centre is voxel 12 of 24, 48 Å from the first
    np.testing.assert_allclose(_models(files[6]), truth + 48.0, atol=1e-3)
    model = gemmi.read_structure(str(files[6]))[0]
    assert [chain.name for chain in model] == ["A"]
    assert {residue.name for residue in model[0]} == {"ALA"}
    assert model[0][213].seqid.num == 214


@pytest.mark.parametrize("side", [None, 15, 16])
@pytest.mark.parametrize("box", [24, 25])
def test_atoms_lie_on_the_density(tmp_path, side, box):
    """One atom, off the centre, is at the peak of its map; odd and even sides alike."""
    place = np.array([[-14.0, 9.0, 22.0]])
    volume = pc.volumes.Atoms(place, pixel_size=3.0, width=6.0, side=side)
    path = np.zeros((2, 2))
    files = pc.io.write_motion(tmp_path, _pair(volume, box), path, pixel_size=3.0)
    array, voxel = pc.io.read_map(tmp_path / "path_01_first.mrc")
    assert array.shape[0] == (side or box)
    array = array - array.min()
    z, y, x = np.indices(array.shape)
    mass = [(axis * array).sum() / array.sum() * voxel for axis in (x, y, z)]
    np.testing.assert_allclose(mass, _models(files[-2])[0, 0], atol=0.3)


def test_most_atoms_are_inside_the_contour(tmp_path):
    files = pc.io.write_motion(tmp_path, _pair(), 0, latents=LATENTS, frames=2, pixel_size=4.0)
    array, voxel = pc.io.read_map(files[0])
    level = float(re.search(r"level (\S+)", files[-1].read_text())[1])
    where = np.rint(_models(files[-2])[0] / voxel).astype(int)
    inside = array[where[:, 2], where[:, 1], where[:, 0]] > level
    assert inside.mean() > 0.9
    assert (array > level).mean() < 0.2


def test_the_script_names_files_that_are_there(tmp_path):
    files = pc.io.write_motion(tmp_path, _pair(), 0, latents=LATENTS, frames=3, pixel_size=4.0)
    lines = files[-1].read_text().splitlines()
    opened = [line.split() for line in lines if line.startswith("open ")]
    assert opened[0] == ["open", *(f.name for f in files[:3]), "vseries", "true"]
    assert opened[1] == ["open", "z1.pdb", "coordset", "true"]
    play = [line for line in lines if line.startswith(("vseries", "coordset", "wait", "movie"))]
    assert play == [
        "movie record",
        "vseries play #1 direction forward", "coordset #2 1,3", "wait 3",
        "vseries play #1 direction backward", "coordset #2 3,1", "wait 3",
        "movie encode z1.mp4 framerate 10",
    ]  # fmt: skip
    assert "/" not in files[-1].read_text()


def test_names_of_a_structure_are_kept(tmp_path):
    whole = gemmi.Structure()
    whole.add_model(gemmi.Model(1))
    chain = gemmi.Chain("C")
    for n, xyz in enumerate([(0, 0, 0), (3.8, 0, 0), (7.6, 1, 0)], start=11):
        residue = gemmi.Residue()
        residue.name, residue.seqid = ("GLY", "TRP", "MET")[n - 11], gemmi.SeqId(n, " ")
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*xyz)
        residue.add_atom(atom)
        chain.add_residue(residue)
    whole[0].add_chain(chain)
    whole.setup_entities()
    whole.write_pdb(str(tmp_path / "in.pdb"))
    names = pc.io.read_structure(tmp_path / "in.pdb")
    volume = pc.volumes.Atoms(names.centred().positions, pixel_size=4.0)
    pair = _pair(volume)
    files = pc.io.write_motion(
        tmp_path / "out", pair, 0, latents=LATENTS, structure=names, pixel_size=4.0
    )
    back = pc.io.read_structure(files[-2])
    assert back.residue.tolist() == ["GLY", "TRP", "MET"]
    assert back.number.tolist() == [11, 12, 13]
    assert set(back.chain) == {"C"}
    assert len(gemmi.read_structure(str(files[-2]))) == 20
    with pytest.raises(InputError, match="expected the 214 atoms of the volume, got Structure"):
        pc.io.write_motion(
            tmp_path / "no", _pair(), 0, latents=LATENTS, structure=names, pixel_size=4.0
        )
    grid = _pair(pc.volumes.Grid(3, hidden=(4,)))
    with pytest.raises(InputError, match=r"structure: the volume \(Grid\) has no atoms"):
        pc.io.write_motion(
            tmp_path / "no", grid, 0, latents=LATENTS, structure=names, pixel_size=4.0
        )
    assert not (tmp_path / "no").exists()


def test_without_atoms_and_in_the_plane(tmp_path):
    given = {"latents": LATENTS, "frames": 3, "pixel_size": 4.0}
    files = pc.io.write_motion(tmp_path, _pair(pc.volumes.Grid(3, hidden=(4,))), 0, **given)
    assert [file.suffix for file in files] == [".mrc"] * 3 + [".cxc"]
    assert "coordset" not in files[-1].read_text()
    for volume in (pc.volumes.Grid(hidden=(4,)), pc.volumes.Atoms(pixel_size=4.0, count=9)):
        files = pc.io.write_motion(tmp_path, _pair(volume), 1, **given)
        assert [f.name for f in files] == ["z2_01_first.mrc", "z2_03_last.mrc", "z2.mrcs"]


def test_components_come_with_structures(tmp_path):
    rng = np.random.default_rng(0)
    z = rng.laplace(size=(400, 2)) @ np.array([[1.0, 0.3], [-0.2, 0.8]])
    ica = pc.identify.linear_ica(z)
    files = pc.io.write_components(tmp_path, _pair(), ica, count=5, pixel_size=4.0)
    truth = ADK.centres(torch.as_tensor(ica.path(1, count=5))).numpy()
    np.testing.assert_allclose(_models(tmp_path / "ic2.pdb"), truth + 48.0, atol=1e-3)
    assert files[-1].name == "ic2.cxc"
    assert "open ic2.pdb coordset true" in files[-1].read_text()


@pytest.mark.parametrize(
    ("along", "options", "message"),
    [
        (2, {}, "along: expected a latent from 0 to 1, got 2"),
        (-1, {}, "along: expected a latent from 0 to 1, got -1"),
        (np.zeros((4, 3)), {}, r"a path \(M, 2\) of two conformations or more, got \(4, 3\)"),
        (np.zeros((1, 2)), {}, r"got \(1, 2\)"),
        (np.full((3, 2), np.nan), {}, "finite"),
        (0, {"latents": None}, "latents: an axis needs posterior means"),
        (0, {"latents": LATENTS[:, :1]}, r"latents: expected finite numbers"),
        (0, {"frames": 1}, "frames: expected two or more"),
        (0, {"pixel_size": None}, "pixel_size: expected Å per pixel"),
    ],
)
def test_mistakes(tmp_path, along, options, message):
    given = {"latents": LATENTS, "pixel_size": 4.0} | options
    with pytest.raises(InputError, match=message):
        pc.io.write_motion(tmp_path / "no", _pair(), along, **given)
    assert not (tmp_path / "no").exists()


MODEL = """
from dataclasses import dataclass
import pyrocryo as pc

@dataclass
class Config:
    '''Options.'''
    volume: str = "atoms"
    '''Which.'''

def training(config):
    return {"steps": 2, "batch_size": 16}

def particles(config):
    flat = config.volume == "flat"
    molecule = pc.molecules.TwoArms() if flat else pc.molecules.AdenylateKinase()
    return pc.simulate.poses(molecule, 60, 0, snr=2.5, box=16, pixel_size=6.0)

def pair(config, particles):
    volume = {
        "atoms": lambda: pc.volumes.Atoms(pc.molecules.AdenylateKinase().ca_open, pixel_size=6.0),
        "grid": lambda: pc.volumes.Grid(3, hidden=(4,)),
        "flat": lambda: pc.volumes.Grid(hidden=(4,)),
    }[config.volume]()
    return pc.Pair(
        pc.priors.IsotropicNormal(2), volume, particles.box, guide=pc.guides.Amortised((8,))
    )
"""


@pytest.mark.parametrize("volume", ["atoms", "grid", "flat"])
def test_from_the_shell(tmp_path, volume, capsys):
    (tmp_path / "small.py").write_text(MODEL)
    run, out = tmp_path / "run", tmp_path / "out"
    line = ["fit", str(tmp_path / "small.py"), "--volume", volume, "--out", str(run)]
    assert main([*line, "--draws", "4", "--seeds", "2"]) == 0
    capsys.readouterr()
    movie = ["movie", str(run), "--out", str(out)]
    assert main([*movie, "--axis", "2", "--seed", "1", "--frames", "5"]) == 0
    said = capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    if volume == "flat":
        assert names == {"z2_01_first.mrc", "z2_05_last.mrc", "z2.mrcs"}
        assert "is flat: images only" in said
    else:
        assert {"z2_01_first.mrc", "z2_03.mrc", "z2_05_last.mrc", "z2.cxc"} <= names
        assert ("z2.pdb" in names) == (volume == "atoms")
        assert ("has no atoms: maps only" in said) == (volume == "grid")
    fit, _ = pc.io.load_fit(run)
    z = np.asarray(from_netcdf(run / "posterior.nc")["posterior"]["z"])[1].mean(axis=0)
    path = z.mean(axis=0)
    path[1] = np.percentile(z[:, 1], 95)
    array, _ = pc.io.read_map(out / "z2_05_last.mrc")
    expected = fit.pairs[1].density(torch.as_tensor(path)).numpy()
    np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)
    pc.io.write_structure(tmp_path / "three.pdb", _three())
    for words, message in [
        (["--axis", "3"], "axis: expected 1 to 2, got 3"),
        (["--seed", "5"], "seed: expected one of 0, 1, got 5"),
        (["--frames", "1"], "frames: expected two or more"),
        (
            ["--structure", str(tmp_path / "three.pdb")],
            "has no atoms in space" if volume != "atoms" else "the volume has 214 atoms",
        ),
    ]:
        assert main([*movie[:2], "--out", str(tmp_path / "none"), *words]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
    assert main(movie) == 2
    assert "is not empty" in capsys.readouterr().err
    if volume == "atoms":
        again = ["movie", str(run), "--out", str(tmp_path / "named")]
        assert main([*again, "--structure", str(out / "z2.pdb"), "--frames", "2"]) == 0
        assert (tmp_path / "named" / "z1.pdb").exists()


def test_help_says_everything(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["movie", "--help"])
    assert not stop.value.code
    said = " ".join(capsys.readouterr().out.split())
    for word in ("--axis", "--seed", "--frames", "--structure", "--out", "z1.cxc", "from 1"):
        assert word in said


def _three():
    from pyrocryo.io.motion import alanines

    return alanines(np.eye(3))
