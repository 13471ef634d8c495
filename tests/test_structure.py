"""PDB and mmCIF, in and out: what is taken, what is left, and what is said of bad files."""

import gzip

import gemmi
import numpy as np
import pytest
import torch

import pyrocryo as pc
from pyrocryo.io import read_structure, write_structure

AT = {  # a residue's atoms beside its Cα at the origin, Å
    "N": (-1.2, 0.8, 0.0),
    "CA": (0.0, 0.0, 0.0),
    "C": (1.3, 0.75, 0.0),
    "O": (1.4, 1.98, 0.0),
    "CB": (0.0, -0.9, 1.2),
}
ELEMENT = {"N": "N", "O": "O", "P": "P", "H": "H", "Z": "ZN"}


def _line(serial, atom, altloc, residue, chain, number, xyz, occupancy=1.0, b=20.0, het=False):
    record = "HETATM" if het else "ATOM"
    element = "CA" if residue == "CA" else ELEMENT.get(atom[0], "C")
    name = f"{atom:<4}" if len(element) == 2 else f" {atom:<3}"
    x, y, z = xyz
    return (
        f"{record:<6}{serial:5d} {name}{altloc:1}{residue:>3} {chain:1}{number:>4} "
        f"   {x:8.3f}{y:8.3f}{z:8.3f}{occupancy:6.2f}{b:6.2f}          {element:>2}"
    )


def _residue(chain, number, at=None, residue="ALA", altloc="", shift=0.0, **more):
    """Lines of a residue whose Cα is ``3.8 number`` Å along x."""
    place = (number if at is None else at) * 3.8
    return [
        _line(k, atom, altloc, residue, chain, number, (place + x, y + shift, z), **more)
        for k, (atom, (x, y, z)) in enumerate(AT.items(), start=1)
    ]


def _write(path, *parts, models=1):
    text = "\n".join(line for part in parts for line in part)
    if models > 1:
        text = "\n".join(
            f"MODEL     {m:4d}\n{text.replace('20.00', f'{m:5.2f}')}\nENDMDL"
            for m in range(1, models + 1)
        )
    path.write_text(text + "\nEND\n")
    return path


@pytest.fixture
def plain(tmp_path):
    """Chain A: 1-3 and 6-8 (4 and 5 missing), water, zinc and calcium; chain B: 1-2."""
    return _write(
        tmp_path / "plain.pdb",
        *[_residue("A", n) for n in (1, 2, 3, 6, 7, 8)],
        *[_residue("B", n, shift=30.0, residue="MSE", het=True) for n in (1, 2)],
        [
            _line(1, "O", "", "HOH", "A", 101, (9, 9, 9), het=True),
            _line(2, "ZN", "", " ZN", "A", 102, (8, 8, 8), het=True),
            _line(3, "CA", "", "CA", "A", 103, (7, 7, 7), het=True),
        ],
    )


def test_alpha_carbons_of_all_chains(plain):
    s = read_structure(plain, blur=2.0)
    assert s.number.tolist() == [1, 2, 3, 6, 7, 8, 1, 2]
    assert s.chain.tolist() == ["A"] * 6 + ["B"] * 2
    assert set(s.atom) == {"CA"}
    assert set(s.element) == {"C"}  # the calcium ion is none
    assert s.residue.tolist() == ["ALA"] * 6 + ["MSE"] * 2
    np.testing.assert_allclose(s.positions[:, 0], 3.8 * s.number, atol=1e-3)
    np.testing.assert_allclose(s.width, np.sqrt(20 / (8 * np.pi**2) + 4))
    assert s.weight.tolist() == [1.0] * 8


def test_missing_residues_break_the_chain(plain):
    s = read_structure(plain)
    assert s.bonds.tolist() == [[0, 1], [1, 2], [3, 4], [4, 5], [6, 7]]
    assert s.breaks == 1
    assert repr(s) == "Structure(8 atoms of 8 residues, chains A, B, broken 1 times)"


def test_the_backbone_and_its_bonds(plain):
    s = read_structure(plain, chain="A", atoms="backbone", blur=0.0)
    assert s.atom.tolist() == ["N", "CA", "C", "O"] * 6
    np.testing.assert_allclose(s.weight[:4], [7, 6, 6, 8])
    names = s.atom[s.bonds].tolist()
    assert names.count(["C", "N"]) == 4
    assert len(names) == 3 * 6 + 4
    assert s.breaks == 1
    length = np.linalg.norm(np.subtract(*s.positions[s.bonds.T]), axis=1)
    assert 1.1 < length.min() <= length.max() < 1.7


def test_all_atoms_but_water_ions_and_hydrogens(tmp_path):
    lines = [*_residue("A", 1), _line(9, "HA", "", "ALA", "A", 1, (3.8, 0, -1))]
    water = [_line(1, "O", "", "HOH", "A", 9, (0, 0, 0), het=True)]
    s = read_structure(_write(tmp_path / "a.pdb", lines, water), atoms="all")
    assert s.atom.tolist() == ["N", "CA", "C", "O", "CB"]
    np.testing.assert_allclose(s.weight, [7, 6, 6, 8, 6])


def test_residues_and_chains_are_chosen_by_their_authors_names(plain):
    assert read_structure(plain, chain=["B"]).number.tolist() == [1, 2]
    assert read_structure(plain, chain="A", residues=range(3, 8)).number.tolist() == [3, 6, 7]


def test_insertion_codes_are_residues_of_their_own(tmp_path):
    lines = [*_residue("A", 1), *_residue("A", 2)]
    inserted = [line[:26] + "B" + line[27:] for line in _residue("A", 2, at=3)]
    s = read_structure(_write(tmp_path / "a.pdb", lines, inserted, _residue("A", 3, at=4)))
    assert s.number.tolist() == [1, 2, 2, 3]
    assert s.insertion.tolist() == ["", "", "B", ""]
    assert len(s.bonds) == 3
    assert s.breaks == 0


@pytest.mark.parametrize(
    ("altloc", "expected"), [("highest", [0, 5]), ("A", [2, 3]), ("B", [0, 5]), ("C", [0, 5])]
)
def test_one_of_alternative_locations_is_taken(altloc, expected, tmp_path):
    """Both atoms of a residue from the same alternative, the occupancies of all together."""
    path = _write(
        tmp_path / "a.pdb",
        _residue("A", 1, altloc="A", shift=2.0, occupancy=0.3),
        _residue("A", 1, altloc="B", shift=0.0, occupancy=0.7),
        _residue("A", 2, altloc="A", shift=3.0, occupancy=0.2),
        _residue("A", 2, altloc="B", shift=5.0, occupancy=0.6),
    )
    s = read_structure(path, altloc=altloc)
    np.testing.assert_allclose(s.positions[:, 1], expected, atol=1e-3)
    np.testing.assert_allclose(s.occupancy, [1.0, 0.8])
    whole = read_structure(path, altloc=altloc, atoms="all")
    assert len(whole) == 10
    np.testing.assert_allclose(whole.positions[whole.atom == "CB", 1], np.array(expected) - 0.9)


def test_a_residue_of_two_kinds_is_one(tmp_path):
    """Microheterogeneity: a serine at .4 and a proline at .6 share a place in the sequence."""
    path = _write(
        tmp_path / "a.pdb",
        _residue("A", 1),
        _residue("A", 2, residue="SER", altloc="A", occupancy=0.4),
        _residue("A", 2, residue="PRO", altloc="B", occupancy=0.6),
        _residue("A", 3),
    )
    assert read_structure(path).residue.tolist() == ["ALA", "PRO", "ALA"]
    assert read_structure(path, altloc="A").residue.tolist() == ["ALA", "SER", "ALA"]


def test_models_go_by_their_number(tmp_path):
    path = _write(tmp_path / "nmr.pdb", _residue("A", 1), _residue("A", 2), models=3)
    assert read_structure(path).b_factor.tolist() == [1.0, 1.0]  # the first
    assert read_structure(path, model=3).b_factor.tolist() == [3.0, 3.0]
    with pytest.raises(pc.InputError, match="holds model 1 to 3, asked for 4"):
        read_structure(path, model=4)


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".pdb.gz", ".cif.gz", ".ent", ".mmcif"])
@pytest.mark.parametrize("atoms", ["CA", "all"])
def test_what_is_written_is_read_again(suffix, atoms, plain, tmp_path):
    s = read_structure(plain, atoms=atoms)
    path = tmp_path / f"again{suffix}"
    write_structure(path, s)
    again = read_structure(path, atoms=atoms)
    for name in ("atom", "element", "residue", "number", "insertion", "chain", "bonds"):
        assert getattr(again, name).tolist() == getattr(s, name).tolist(), name
    for name in ("positions", "b_factor", "occupancy", "width", "weight"):
        np.testing.assert_allclose(getattr(again, name), getattr(s, name), atol=1e-3)


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".cif.gz"])
def test_conformations_are_models(suffix, plain, tmp_path):
    s = read_structure(plain)
    path = tmp_path / f"movie{suffix}"
    where = torch.as_tensor(s.positions) + 2.0 * torch.arange(4)[:, None, None]
    write_structure(path, s, where.requires_grad_())
    assert len(gemmi.read_structure(str(path))) == 4
    for m in range(4):
        found = read_structure(path, model=m + 1)
        np.testing.assert_allclose(found.positions, s.positions + 2.0 * m, atol=1e-3)
        assert found.number.tolist() == s.number.tolist()


def test_nothing_is_left_of_a_failed_write(plain, tmp_path, monkeypatch):
    s, path = read_structure(plain), tmp_path / "kept.pdb"
    path.write_text("as it was")
    with pytest.raises(pc.InputError, match="positions: expected finite"):
        write_structure(path, s, np.full((len(s), 3), np.nan))

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_structure(path, s)
    assert path.read_text() == "as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.pdb", "plain.pdb"]


def test_formats_go_by_content(plain, tmp_path):
    write_structure(tmp_path / "a.cif", read_structure(plain))
    odd = tmp_path / "download"
    odd.write_bytes((tmp_path / "a.cif").read_bytes())
    assert len(read_structure(odd)) == 8


def test_a_structure_becomes_a_volume(plain):
    """Centred, its widths and weights go where volumes want them."""
    s = read_structure(plain, atoms="all").centred()
    np.testing.assert_allclose(s.positions.mean(axis=0), 0, atol=1e-12)
    modes = pc.molecules.normal_modes(s.positions, 3, cutoff=40.0)
    looks = {"width": s.width, "weight": s.height}
    one = pc.imaging.splat(
        torch.zeros(1, 2), torch.tensor(s.width[:1]), torch.tensor(s.height[:1]),
        box=32, pixel_size=1.0,
    )  # fmt: skip
    assert float(one.sum()) == pytest.approx(s.weight[0])
    volume = pc.volumes.NormalModes(modes, pixel_size=3.0, **looks)
    image = volume.build(2, 32)(torch.zeros(2), torch.eye(3), torch.zeros(2))
    assert float(image.detach().std()) == pytest.approx(1, rel=1e-3)


def test_where_nothing_is_occupied_all_count(tmp_path):
    s = read_structure(_write(tmp_path / "a.pdb", _residue("A", 1, occupancy=0.0)), atoms="all")
    assert s.occupancy.tolist() == [1.0] * 5


NUCLEOTIDE = {"P": (0, 0, 0), "O5'": (1.6, 0, 0), "C5'": (2.4, 1.2, 0), "C4'": (3.9, 1.0, 0)}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, r"bad.pdb: cannot read it \(No such file"),
        ("", {}, "holds no atoms"),
        ("these are not atoms\n", {}, "holds no atoms"),
        ("data_x\nloop_\n_a.b\n_a.c\n1 2 3\n", {}, "not a PDB or mmCIF file"),
        ("protein", {"chain": "X"}, "holds chains A, asked for 'X'"),
        ("protein", {"chain": ["A", "b"]}, "holds chains A, asked for 'b'"),
        ("protein", {"residues": range(50, 60)}, "no Cα in chain A and residues asked for"),
        ("protein", {"model": 2}, "holds model 1 only, asked for 2"),
        ("protein", {"atoms": "ca"}, "atoms: expected 'CA', 'backbone' or 'all', got 'ca'"),
        ("protein", {"altloc": "first"}, "altloc: expected 'highest' or one letter"),
        ("protein", {"blur": -1}, "blur: expected 0 or a positive"),
        ("RNA", {}, "no Cα in chain R"),
        ("RNA", {"atoms": "backbone"}, "no backbone of a protein in chain R"),
    ],
)
def test_bad_files_and_choices_are_named(content, options, message, tmp_path):
    path = tmp_path / "bad.pdb"
    if content == "protein":
        _write(path, _residue("A", 1), _residue("A", 2))
    elif content == "RNA":
        _write(path, [_line(1, k, "", "A", "R", 1, xyz) for k, xyz in NUCLEOTIDE.items()])
    elif content is not None:
        path.write_text(content)
    with pytest.raises(pc.InputError, match=message) as raised:
        read_structure(path, **options)
    assert "\n" not in str(raised.value)


def test_damaged_archives_are_named(plain, tmp_path):
    path = tmp_path / "cut.pdb.gz"
    path.write_bytes(gzip.compress(plain.read_bytes())[:60])
    with pytest.raises(pc.InputError, match=r"cut\.pdb\.gz: "):
        read_structure(path)


def test_nucleotides_are_polymer_of_all_atoms(tmp_path):
    path = _write(
        tmp_path / "r.pdb", [_line(1, k, "", "A", "R", 1, x) for k, x in NUCLEOTIDE.items()]
    )
    s = read_structure(path, atoms="all")
    assert s.atom[s.bonds].tolist() == [["P", "O5'"], ["O5'", "C5'"], ["C5'", "C4'"]]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("a.xyz", lambda s: (s, None), "expected a name that ends in .pdb"),
        ("a.pdb", lambda s: (s, s.positions[:3]), r"positions: expected \(8, 3\) or \(M, 8, 3\)"),
        ("a.pdb", lambda s: (s, s.positions + 9999), "PDB files hold -999 to 9999 Å"),
    ],
)
def test_what_cannot_be_written_is_named(name, change, message, plain, tmp_path):
    structure, positions = change(read_structure(plain))
    with pytest.raises(pc.InputError, match=message):
        write_structure(tmp_path / name, structure, positions)
    assert not (tmp_path / name).exists()


def test_long_names_of_chains_need_mmcif(plain, tmp_path):
    from dataclasses import replace

    s = read_structure(plain)
    s = replace(s, chain=np.array(["LA0"] * 6 + ["LB0"] * 2))
    with pytest.raises(pc.InputError, match="no room for chain 'LA0'"):
        write_structure(tmp_path / "a.pdb", s)
    write_structure(tmp_path / "a.cif", s)
    assert read_structure(tmp_path / "a.cif", chain="LB0").number.tolist() == [1, 2]


@pytest.mark.parametrize("suffix", ["pdb", "cif.gz"])
def test_trajectories_are_all_models(suffix, tmp_path, rng):
    one = read_structure(_write(tmp_path / "one.pdb", _residue("A", 1), _residue("B", 2)))
    where = one.positions + rng.standard_normal((3, 2, 3))
    pc.io.write_structure(tmp_path / f"all.{suffix}", one, where)
    first, positions = pc.io.read_trajectory(tmp_path / f"all.{suffix}")
    np.testing.assert_allclose(positions, where, atol=1e-3)
    np.testing.assert_allclose(first.positions, positions[0])
    some, positions = pc.io.read_trajectory(tmp_path / f"all.{suffix}", chain="B")
    assert some.chain.tolist() == ["B"]
    np.testing.assert_allclose(positions, where[:, 1:], atol=1e-3)


def test_models_of_a_trajectory_need_the_same_atoms(tmp_path):
    def models(*parts):
        lines = []
        for m, part in enumerate(parts, start=1):
            lines += [f"MODEL     {m:4d}", *(line for one in part for line in one), "ENDMDL"]
        path = tmp_path / "some.pdb"
        path.write_text("\n".join([*lines, "END"]))
        return path

    here = [_residue("A", 1), _residue("A", 2)]
    other = [_residue("A", 1), _residue("A", 2, residue="GLY")]
    message = "model 2 of 2 has CA of GLY 2 in chain A where the first has CA of ALA 2"
    with pytest.raises(pc.InputError, match=message):
        pc.io.read_trajectory(models(here, other))
    with pytest.raises(pc.InputError, match="model 3 of 3 has 1 atoms where the first has 2"):
        pc.io.read_trajectory(models(here, here, here[:1]))
    with pytest.raises(pc.InputError, match="atoms: expected 'CA'"):
        pc.io.read_trajectory(models(here), atoms="C1")
