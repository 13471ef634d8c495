"""Structures of atoms: PDB and mmCIF, in and out, also gzipped. Lengths in Å."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import gemmi
import numpy as np

from pyrocryo.errors import InputError
from pyrocryo.files import replacing, unpacked

__all__ = ["Structure", "read_structure", "write_structure"]

BACKBONE = ("N", "CA", "C", "O")
WITHIN = (  # bonds along a chain of amino acids and of nucleotides
    *(("N", "CA"), ("CA", "C"), ("C", "O")),
    *(("P", "O5'"), ("O5'", "C5'"), ("C5'", "C4'"), ("C4'", "C3'"), ("C3'", "O3'")),
)
ONWARDS = (("C", "N"), ("O3'", "P"))
LONGEST, LONGEST_CA = 2.0, 4.2  # Å; neighbouring Cα are 3.8 apart
FARTHEST = 1e6  # Å
ASCII = bytes(range(128)) + 128 * b"?"


@dataclass(frozen=True, eq=False)
class Structure:
    """Atoms of one model, in the order of the file.

    Attributes:
        positions: `(A, 3)` Å.
        occupancy: `(A,)`; of alternatives, their sum. 1 where the file gives every atom 0.
        b_factor: `(A,)` isotropic B, Å².
        blur: Å, added to the width of each atom.
        weight: `(A,)` how much of the density is each atom's: 1 for structures of Cα alone, else
            occupancy times electrons. See :attr:`height`.
        atom: `(A,)` names of atoms.
        element: `(A,)` symbols of elements.
        residue: `(A,)` names of residues.
        number: `(A,)` numbers of residues, as authors count them.
        insertion: `(A,)` insertion codes, mostly "".
        chain: `(A,)` names of chains, as authors call them.
        bonds: `(M, 2)` bonded atoms along the chains: neighbouring Cα, or N-Cα, Cα-C, C=O and
            C-N of the next residue (of nucleotides P to O3', and on to P). None is longer than 2
            Å (Cα: 4.2), so none bridges missing residues.
    """

    positions: np.ndarray
    occupancy: np.ndarray
    b_factor: np.ndarray
    blur: float
    weight: np.ndarray
    atom: np.ndarray
    element: np.ndarray
    residue: np.ndarray
    number: np.ndarray
    insertion: np.ndarray
    chain: np.ndarray
    bonds: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        chains = ", ".join(dict.fromkeys(self.chain.tolist()))
        told = f"{len(self)} atoms of {self.residues} residues, chains {chains}"
        return f"Structure({told}, broken {self.breaks} times)"

    @cached_property
    def width(self) -> np.ndarray:
        r"""Standard deviations `(A,)` in Å, :math:`\sigma^2 = B / 8 \pi^2 + \text{blur}^2`.

        Negative B count as 0. Predicted models keep a confidence where B is, and structures from
        maps are often blurred as one: where B means nothing, take a width of your own.
        """
        return np.sqrt(self.b_factor.clip(0) / (8 * math.pi**2) + self.blur**2)

    @cached_property
    def height(self) -> np.ndarray:
        r"""Peaks :math:`w / 2 \pi \sigma^2` `(A,)` of the projected Gaussians, per Å².

        What volumes and molecules call their weight: whatever the width, each projection sums to
        ``weight``.
        """
        if not (self.width > 0).all():
            raise InputError("blur: atoms with a B of 0 have no width; add some")
        return self.weight / (2 * math.pi * self.width**2)

    @property
    def residues(self) -> int:
        """Number of residues."""
        return len(set(self._keys()))

    @property
    def breaks(self) -> int:
        """How often a chain goes on without a bond: residues are missing there."""
        number = {key: i for i, key in enumerate(dict.fromkeys(self._keys()))}
        place = np.array([number[key] for key in self._keys()])
        follow = {(a, b) for a, b in place[self.bonds].tolist() if a != b}
        chain = [key[0] for key in number]
        return sum(
            chain[i] == chain[i + 1] and (i, i + 1) not in follow for i in range(len(chain) - 1)
        )

    def centred(self) -> Structure:
        """With the mean of all positions at the origin, where volumes have the box centre."""
        return replace(self, positions=self.positions - self.positions.mean(axis=0))

    def _keys(self) -> list[tuple]:
        each = (self.chain, self.number, self.insertion)
        return list(zip(*(column.tolist() for column in each), strict=True))


def read_structure(
    path: str | Path,
    *,
    chain: str | Sequence[str] | None = None,
    residues: Iterable[int] | None = None,
    atoms: Literal["CA", "backbone", "all"] = "CA",
    model: int | None = None,
    altloc: str = "highest",
    blur: float = 2.0,
) -> Structure:
    """Reads the polymer of a PDB or mmCIF file, plain or ``.gz``.

    Polymer are amino acids and nucleotides, modified ones (such as MSE) too; waters, ligands, ions
    and hydrogens are left out. Residues that the file lacks are left out too, and no bond bridges
    them (:attr:`Structure.breaks` counts). Files tell their format by their content or suffix.

    Args:
        path: The file.
        chain: Names of chains, as authors (and viewers) call them; by default all.
        residues: Numbers of residues, as authors count them, such as ``range(30, 60)``; by default
            all. Those that the file lacks are left out.
        atoms: Cα alone; N, Cα, C and O; or all but hydrogens.
        model: Number of the model, as the file says (mostly from 1 on); by default the first.
        altloc: Of alternative locations: "highest", those of the largest occupancy in their
            residue (the first of equals), or the letter of those to take where a residue has them.
            One is taken, with the occupancies of all. At a position where the sequence itself has
            alternatives, the residue goes with the letter.
        blur: Å, standard deviation to add to the width that B-factors give: atoms seen at a
            resolution of d Å want about d / 4; a Cα that stands for a residue, 2 to 4 Å.

    Raises:
        InputError: If the file cannot be read or holds no atoms; the model or chain is not in it;
            or nothing is left, such as Cα of nucleic acids.
    """
    asked = {"chain": chain, "residues": residues, "atoms": atoms, "altloc": altloc, "blur": blur}
    return taken(_model(opened(path), model, path), path, **asked)


def taken(
    part: gemmi.Model,
    path: str | Path,
    *,
    chain: str | Sequence[str] | None,
    residues: Iterable[int] | None,
    atoms: str,
    altloc: str,
    blur: float,
) -> Structure:
    """What :func:`read_structure` takes of a model of a file that is open."""
    if atoms not in ("CA", "backbone", "all"):
        raise InputError(f"atoms: expected 'CA', 'backbone' or 'all', got {atoms!r}")
    if altloc != "highest" and (len(altloc) != 1 or altloc.isspace()):
        raise InputError(f"altloc: expected 'highest' or one letter, got {altloc!r}")
    if not 0 <= blur < math.inf:
        raise InputError(f"blur: expected 0 or a positive number of Å, got {blur}")
    chains = _chains(part, chain, path)
    numbers = None if residues is None else {int(number) for number in residues}
    rows = [
        (one.name, residue, atom, occupancy)
        for one in chains
        for residue, kept in _residues(one, numbers, altloc)
        for atom, occupancy in kept
        if _asked(atom, atoms)
    ]
    if not rows:
        where = f"chain {', '.join(one.name for one in chains)}"
        asked = "" if numbers is None else " and residues asked for"
        what = {"CA": "Cα", "backbone": "backbone of a protein"}.get(atoms, "polymer")
        raise InputError(f"{path}: no {what} in {where}{asked}")
    each = [atom for _, _, atom, _ in rows]
    occupancy = np.array([share for *_, share in rows])
    electrons = np.array([atom.element.atomic_number for atom in each], dtype=float)
    if not occupancy.any():
        occupancy = np.ones(len(each))
    found = Structure(
        positions=np.array([atom.pos.tolist() for atom in each]),
        occupancy=occupancy,
        b_factor=np.array([atom.b_iso for atom in each]),
        blur=float(blur),
        weight=np.ones(len(each)) if atoms == "CA" else occupancy * electrons,
        atom=np.array([atom.name for atom in each]),
        element=np.array([atom.element.name for atom in each]),
        residue=np.array([residue.name for _, residue, _, _ in rows]),
        number=np.array([residue.seqid.num for _, residue, _, _ in rows]),
        insertion=np.array([residue.seqid.icode.strip() for _, residue, _, _ in rows]),
        chain=np.array([name for name, *_ in rows]),
        bonds=np.zeros((0, 2), dtype=int),
    )
    if not (np.abs(found.positions) < FARTHEST).all():
        raise InputError(f"{path}: positions that are no numbers of Å, or beyond {FARTHEST:.0e}")
    if not (np.isfinite(found.occupancy).all() and np.isfinite(found.b_factor).all()):
        raise InputError(f"{path}: occupancies or B-factors that are no numbers")
    return replace(found, bonds=_bonds(found))


def write_structure(path: str | Path, structure: Structure, positions: Any = None) -> None:
    """Writes a structure, or many conformations of it as models 1 to M, whole or not at all.

    Args:
        path: Ends in ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif``, or one of these and ``.gz``.
        structure: Atoms and their names.
        positions: `(A, 3)` or `(M, A, 3)` Å; by default those of the structure.

    Raises:
        InputError: If the suffix is another, shapes disagree, positions are not finite, or the
            PDB format has no room for them: beyond -999 to 9999 Å, or names of chains of more than
            one letter. mmCIF has.
    """
    path = Path(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in ("pdb", "ent", "cif", "mmcif"):
        raise InputError(f"{path}: expected a name that ends in .pdb or .cif, or then .gz")
    where = structure.positions if positions is None else positions
    where = where.detach().cpu().numpy() if hasattr(where, "detach") else where
    where = np.asarray(where, dtype=np.float64)
    if where.ndim == 2:
        where = where[None]
    if where.ndim != 3 or where.shape[1:] != (len(structure), 3) or not len(where):
        raise InputError(
            f"positions: expected ({len(structure)}, 3) or (M, {len(structure)}, 3), got "
            f"{np.shape(positions)}"
        )
    if not np.isfinite(where).all():
        raise InputError("positions: expected finite numbers of Å")
    flat = kind in ("pdb", "ent")
    if flat and (where.min() < -999 or where.max() > 9999):
        raise InputError(f"{path}: PDB files hold -999 to 9999 Å; write .cif, or centre it")
    long = [name for name in dict.fromkeys(structure.chain.tolist()) if len(name) > 1]
    if flat and long:
        raise InputError(f"{path}: PDB files have no room for chain {long[0]!r}; write .cif")
    if flat and len(where) > 9999:
        raise InputError(f"{path}: PDB files hold 9999 models, got {len(where)}; write .cif")
    whole = gemmi.Structure()
    whole.name = path.name.partition(".")[0]
    for m, xyz in enumerate(where, start=1):
        whole.add_model(_as_model(m, structure, xyz))
    whole.setup_entities()
    text = whole.make_pdb_string() if flat else whole.make_mmcif_document().as_string()
    data = text.encode()
    with replacing(path) as temporary:
        temporary.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _as_model(number: int, structure: Structure, positions: np.ndarray) -> gemmi.Model:
    model = gemmi.Model(number)
    columns = (getattr(structure, f.name) for f in fields(structure)[1:-1] if f.name != "blur")
    rows = zip(positions.tolist(), *(column.tolist() for column in columns), strict=True)
    for name, residues in groupby(rows, key=lambda row: row[9]):
        chain = model.find_chain(name) or model.add_chain(gemmi.Chain(name))
        for (word, place, code), atoms in groupby(residues, key=lambda row: row[6:9]):
            residue = gemmi.Residue()
            residue.name, residue.seqid = word, gemmi.SeqId(place, code or " ")
            for xyz, occupancy, b_factor, _, name_, element, *_ in atoms:
                atom = gemmi.Atom()
                atom.name, atom.element = name_, gemmi.Element(element)
                atom.pos = gemmi.Position(*xyz)
                atom.occ, atom.b_iso = occupancy, b_factor
                residue.add_atom(atom)
            chain.add_residue(residue)
    return model


def opened(path: str | Path) -> gemmi.Structure:
    # names of chains are single bytes of a PDB line; what is not ASCII could not be told of
    text = unpacked(path).translate(ASCII)
    try:
        found = gemmi.Structure()
        if text:
            found = gemmi.read_structure_string(text, format=gemmi.CoorFormat.Detect)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: not a PDB or mmCIF file ({' '.join(str(error).split())})"
        ) from error
    if not len(found) or not any(model.count_atom_sites() for model in found):
        raise InputError(f"{path}: holds no atoms; expected a PDB or mmCIF file")
    return found


def _model(found: gemmi.Structure, number: int | None, path: str | Path) -> gemmi.Model:
    if number is None:
        return found[0]
    held = [model.num for model in found]
    if number not in held:
        told = f"{held[0]} to {held[-1]}" if len(held) > 1 else f"{held[0]} only"
        raise InputError(f"{path}: holds model {told}, asked for {number}")
    return found[held.index(number)]


def _chains(
    model: gemmi.Model, names: str | Sequence[str] | None, path: str | Path
) -> list[gemmi.Chain]:
    held = list(dict.fromkeys(chain.name for chain in model))
    names = held if names is None else [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in held:
            raise InputError(f"{path}: holds chains {', '.join(held)}, asked for {name!r}")
    return [chain for chain in model if chain.name in names]


def _residues(
    chain: gemmi.Chain, numbers: set[int] | None, altloc: str
) -> Iterator[tuple[gemmi.Residue, list[tuple[gemmi.Atom, float]]]]:
    """Residues of the polymer, each with the atoms to take and their occupancies."""
    for _, group in groupby(chain, key=lambda residue: str(residue.seqid)):
        group = [residue for residue in group if _polymer(residue)]
        if not group or (numbers is not None and group[0].seqid.num not in numbers):
            continue
        letter = _letter([atom for residue in group for atom in residue], altloc)
        takes = (one for one in group if any(atom.altloc in ("\0", letter) for atom in one))
        residue = next(takes, group[0])
        every = [atom for other in group for atom in other]
        kept = {}
        for atom in residue:
            if atom.element.is_hydrogen:
                continue
            best = kept.get(atom.name)
            if best is None or _rank(atom, letter) > _rank(best, letter):
                kept[atom.name] = atom
        yield (
            residue,
            [
                (atom, sum(other.occ for other in every if other.name == atom.name))
                for atom in kept.values()
            ],
        )


def _rank(atom: gemmi.Atom, letter: str) -> tuple[bool, float]:
    return atom.altloc == letter, atom.occ


def _letter(atoms: list[gemmi.Atom], altloc: str) -> str:
    """The alternative to take: the one asked for, if it is there, or the likeliest."""
    mean: dict[str, list[float]] = {}
    for atom in atoms:
        if atom.altloc != "\0":
            mean.setdefault(atom.altloc, []).append(atom.occ)
    if not mean or altloc in mean:
        return altloc if mean else "\0"
    return max(sorted(mean), key=lambda letter: sum(mean[letter]) / len(mean[letter]))


def _polymer(residue: gemmi.Residue) -> bool:
    known = gemmi.find_tabulated_residue(residue.name)
    if known.is_amino_acid() or known.is_nucleic_acid():
        return True
    names = {atom.name for atom in residue}
    return not known.is_water() and {"N", "CA", "C"} <= names


def _asked(atom: gemmi.Atom, atoms: str) -> bool:
    if atoms == "CA":
        return atom.name == "CA" and atom.element.name == "C"
    return atoms == "all" or atom.name in BACKBONE


def _bonds(structure: Structure) -> np.ndarray:
    """Bonded pairs `(M, 2)`: of neighbours in the file, those near enough."""
    keys = structure._keys()
    place: list[dict[str, int]] = []
    for _, rows in groupby(range(len(keys)), key=keys.__getitem__):
        place.append({str(structure.atom[i]): i for i in rows})
    alone = set(structure.atom.tolist()) == {"CA"}
    within, onwards = ((), (("CA", "CA"),)) if alone else (WITHIN, ONWARDS)
    pairs = []
    for here, after in zip(place, [*place[1:], {}], strict=True):
        pairs += [(here[a], here[b]) for a, b in within if a in here and b in here]
        pairs += [(here[a], after[b]) for a, b in onwards if a in here and b in after]
    i, j = np.array(pairs, dtype=int).reshape(-1, 2).T
    apart = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    near = apart <= (LONGEST_CA if alone else LONGEST)
    return np.stack([i, j], axis=1)[near & (structure.chain[i] == structure.chain[j])]
