"""Faults planted in a model whose posterior is known exactly, and who notices them."""

import math

import numpy as np
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.guides import GaussNewton

BOX, PIXEL = 16, 6.0


class Linear(nn.Module):
    """The map of `arms` arms, linear in the angle of each: b + W z."""

    dim, side = 2, BOX
    numbers_an_image = 6 * BOX**2

    def __init__(self, arms=2, seen=None):
        super().__init__()
        self.arms, self.seen = arms, seen or arms

    def build(self, latent, box):
        molecule = pc.molecules.Arms(self.arms)
        z = torch.cat([torch.zeros(1, self.arms), torch.eye(self.arms)[: self.seen]])
        one, none = torch.eye(3).expand(len(z), 3, 3), torch.zeros(len(z), 2)
        maps = molecule.render(z, one, none, box=box, pixel_size=PIXEL)
        scale = 1 / maps[0].std()
        self.register_buffer("base", scale * maps[0])
        self.register_buffer("slopes", scale * (maps[1:] - maps[0]))
        return self

    def density(self, z):
        return self.base + torch.einsum("...k,kyx->...yx", z, self.slopes)

    def forward(self, z, rotation, shift):
        from pyrocryo.imaging import resample

        lead = torch.broadcast_shapes(z.shape[:-1], rotation.shape[:-2], shift.shape[:-1])
        maps = self.density(z.expand(*lead, -1)).flatten(0, -3)
        turns, shift = rotation.expand(*lead, 3, 3).flatten(0, -3), shift.expand(*lead, 2)
        return resample(maps, turns, shift.flatten(0, -2), box=BOX).unflatten(0, lead)

    def check(self, particles):
        pass


class Guide(GaussNewton):
    """The exact posterior of a linear decoder, its deviations times `wide`, moved by `off` sd."""

    def __init__(self, sd, wide=1.0, off=0.0):
        super().__init__(1)
        self.sd, self.wide, self.off = sd, wide, off

    def build(self, latent, box, volume):
        super().build(latent, box, volume)
        nn.init.constant_(self.log_noise, math.log(self.sd))
        nn.init.constant_(self.log_widening, math.log(self.wide))
        return self

    def forward(self, images, rotation, shift, optics):
        loc, scale_tril = super().forward(images, rotation, shift, optics)
        moved = self.off / self.wide * scale_tril.sum(-1)
        return loc + moved, scale_tril


def pair(sd=1.0, wide=1.0, off=0.0, arms=2, seen=2, ctf=False):
    made = pc.Pair(
        pc.priors.IsotropicNormal(seen),
        Linear(arms, seen),
        BOX,
        guide=Guide(sd, wide, off),
        optics=pc.optics.CTF() if ctf else None,
        noise=sd,
        rotate=False,
    )
    return made.eval()


def particles(n=200, seed=0, sd=1.0, arms=2, ctf=False):
    """Drawn from the model itself, of `arms` arms and noise `sd`."""
    rng = np.random.default_rng([seed, 7])
    fields = {"rotation": pc.rotations.random_in_plane((n,), rng)}
    if ctf:
        defocus = rng.uniform(9_000, 14_000, n)
        fixed = [np.full(n, value) for value in (0.0, 300.0, 2.7, 0.1, 0.0)]
        fields["ctf"] = np.stack([defocus, defocus, *fixed], axis=-1)
    z = rng.standard_normal((n, arms))
    blank = np.zeros((n, BOX, BOX), dtype=np.float32)
    some = pc.Particles(blank, pixel_size=PIXEL, truth=z, **fields)
    true = pair(sd, arms=arms, seen=arms, ctf=ctf)
    with torch.no_grad():
        clean = true.seen(torch.as_tensor(z, dtype=torch.float32), some.batch(np.arange(n)))
    images = clean.numpy() + sd * rng.standard_normal(clean.shape).astype(np.float32)
    return pc.Particles(images, pixel_size=PIXEL, truth=z, **fields)


WORSE = 1_500.0  # Å of defocus
FAULTS = {  # by name: keywords of what the images are drawn from, and of the pair that is asked
    "none": ({}, {}),
    "none, CTF": ({"ctf": True}, {"ctf": True}),
    "guide too narrow (sd x .7)": ({}, {"wide": 0.7}),
    "guide too narrow (sd x .5)": ({}, {"wide": 0.5}),
    "guide too wide (sd x 1.4)": ({}, {"wide": 1.4}),
    "guide off by .5 sd": ({}, {"off": 0.5}),
    "noise 10 % too low": ({"sd": 1.1}, {}),
    "defocus 1500 Å off": ({"ctf": True}, {"ctf": True}),
    "third arm missing": ({"arms": 3}, {"arms": 3, "seen": 2}),
    "defocus 1500 Å off, SNR .1": ({"ctf": True, "sd": 3.2}, {"ctf": True, "sd": 3.2}),
    "third arm missing, SNR .1": ({"arms": 3, "sd": 3.2}, {"arms": 3, "seen": 2, "sd": 3.2}),
    "none, SNR .1": ({"sd": 3.2}, {"sd": 3.2}),
    "none, CTF, SNR .1": ({"ctf": True, "sd": 3.2}, {"ctf": True, "sd": 3.2}),
}
DIAGNOSTICS = ("khat", "gap", "sbc", "tarp", "calibration", "predictive")


def planted(fault, seed):
    """Particles and a pair with a fault in it."""
    data, model = FAULTS[fault]
    some = particles(4096 if "SNR .1" in fault else 256, seed, **data)
    if fault.startswith("defocus"):
        ctf = some.fields["ctf"].copy()
        ctf[:, :2] += WORSE
        some = some.having(ctf=ctf)
    return some.take(np.arange(len(some))), pair(**model)  # nothing was trained, or held out


def alarms(fault, seed):
    """Which diagnostics go off."""
    some, model = planted(fault, seed)
    return pc.diagnose.check(model, some, draws=100, most=128, images=4096, seed=seed).alarms


def rates(fault, runs, first=0):
    """Share of runs in which each diagnostic went off, and in which any did."""
    found = [alarms(fault, seed) for seed in range(first, first + runs)]
    each = [np.mean([name in one for one in found]) for name in DIAGNOSTICS]
    return np.array([*each, np.mean([bool(one) for one in found])])


def table(runs, first=0):
    """The matrix as Markdown, of percentages; twice as many runs where there is no fault."""
    lines = ["| fault | " + " | ".join((*DIAGNOSTICS, "any")) + " |"]
    lines.append("|---" * (len(DIAGNOSTICS) + 2) + "|")
    for fault in FAULTS:
        row = rates(fault, 2 * runs if fault.startswith("none") else runs, first)
        lines.append(f"| {fault} | " + " | ".join(f"{100 * x:.0f}" for x in row) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    print(table(*map(int, sys.argv[1:] or [20])))
