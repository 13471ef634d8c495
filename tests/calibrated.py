"""How far guides are to be believed, on two arms and adenylate kinase: the tables of the docs.

    python tests/calibrated.py coverage|nuts|gaps|margin [arms|kinase] [seeds]

prints a row for each seed as it comes, and means and standard deviations over seeds in the end.
On one core a seed of coverage takes some 2 min, of NUTS and of gaps 4 min, of margin 3 min.
"""

import time

import numpy as np
import torch

import pyrocryo as pc
from pyrocryo import quaternions
from pyrocryo.diagnose.joint import answers

SNR, PIXEL, BOX = 0.3, 3.0, 32
MOLECULES = {"arms": pc.molecules.TwoArms, "kinase": pc.molecules.AdenylateKinase}


def particles(name, n, seed, frames=None):
    """Of two arms, or of adenylate kinase; pairs of frames by Laplace steps."""
    imaging = {"seed": seed, "snr": SNR, "box": BOX, "pixel_size": PIXEL}
    if frames is None:
        return pc.simulate.poses(MOLECULES[name](), n, **imaging)
    return pc.simulate.time_resolved(MOLECULES[name](), n, frames=frames, **imaging)


def pair(name, decoder="true", pose="known", guide=None, frames=None):
    """The molecule itself as a decoder, of which only the brightness is learned, or a map."""
    if decoder == "true":
        volume = pc.volumes.Atoms.known(MOLECULES[name](), pixel_size=PIXEL)
    else:
        volume = pc.volumes.Grid(dim=2)
    prior = pc.priors.IsotropicNormal(2) if frames is None else pc.priors.LaplaceTransition(2, 2.0)
    return pc.Pair(
        prior,
        volume,
        BOX,
        pose=None if pose == "known" else pc.poses.InPlane(),
        guide=guide,
        rotate=frames is not None and decoder == "map",
    )


def fitted(name, decoder, pose, seed, *, n=4000, steps=1200, guide=None):
    """A fit, and its particles."""
    some = particles(name, n, seed)
    rigid = steps // 6 if pose != "known" and decoder == "map" else 0
    made = pair(name, decoder, pose, guide)
    fit = pc.fit(made, some, seeds=[seed], steps=steps, rigid_steps=rigid, progress=False)
    return fit, some


def of_truth(fit, some, *, draws=199, most=1000, seed=0):
    """Coverage `(Q, 2)` of the true `z` and poses, in the frame of the molecule."""
    some, parts = some.spread(most), []
    torch.manual_seed(seed)
    for rows in some.chunks(100):
        parts.append(answers(fit.pairs[0], some.batch(rows), draws))
    told = {n: torch.cat([part[n] for part in parts], dim=1).numpy() for n in parts[0]}
    found = [pc.diagnose.coverage(some.truth, told["z"])]
    if "pose" in told:
        flat = told["pose"].shape[-1] == 2
        rotation = torch.as_tensor(some.rotation)
        pose = rotation[:, :2, 0] if flat else quaternions.from_matrix(rotation)
        found.append(pc.diagnose.coverage(pose.numpy()[:, None], told["pose"][:, :, None]))
    return np.concatenate(found)


def coverage(name, decoder, pose, seed, *, own=1000, guide=None, **training):
    """Percent within 50 % and 90 % sets: of the model's own particles and, if true, of truths."""
    fit, some = fitted(name, decoder, pose, seed, guide=guide, **training)
    rows = {}
    for kind, each in (("plain", fit), ("refined", pc.refined(fit))):
        sets = pc.diagnose.calibration(each, some.test, n=own, seed=seed)
        weights = pc.diagnose.importance(each, some.test)
        row = {"own": sets.coverage[0]}
        if decoder == "true":
            row["truth"] = of_truth(each, some.test)
        row = {
            f"{who} {q} {level}": 100 * held[k, i]
            for who, held in row.items()
            for k, q in enumerate(sets.names)
            for i, level in enumerate((50, 90))
        }
        told = {"gap": weights.gap[0], "iwae": weights.iwae.mean()}
        above = {"khat above .7": 100 * (weights.khat > 0.7).mean()}
        rows[kind] = row | told | above | {"counted": 100 * weights.khat_share[0]}
    return rows


def sampled(name, decoder, pose, seed, *, count=20, draws=120, warmup=50, **training):
    """Particles on which NUTS and guide agree, and what is said of the others."""
    fit, some = fitted(name, decoder, pose, seed, **training)
    rows = {}
    for kind, each in (("plain", fit), ("refined", pc.refined(fit))):
        weights = pc.diagnose.importance(each, some.test, draws=400, most=count)
        exact = pc.nuts(each, some.test, index=range(count), draws=draws, warmup=warmup, seed=seed)
        bad, unmixed = (np.isin(exact.index, part) for part in (exact.flagged, exact.unmixed))
        right, told = ~bad & ~unmixed, weights.doubtful[0]
        rows[kind] = {
            "agree": right.sum(),
            "unmixed": unmixed.sum(),
            "off": bad.sum(),
            "off and doubtful": (bad & told).sum(),
            "off, k-hat above .7": (bad & (weights.khat[0] > 0.7)).sum(),
            "right and doubtful": (right & told).sum(),
            "diverging": exact.diverging,
        }
    return rows


def guides(n):
    """Each kind, for pairs of frames."""
    g = pc.guides
    return {
        "Amortised": g.Amortised(),
        "Residual": g.Residual(),
        "Joint": g.Joint(frames=2),
        "Flow": g.Flow(),
        "GaussNewton": g.GaussNewton(),
        "LookupTable": g.LookupTable(n, frames=2),
    }


def gaps(seed, *, n=1000, steps=500, most=48):
    """Nats a molecule that a network loses, and that its kind of law loses, by guide."""
    some, rows = particles("arms", n, seed, frames=2), {}
    for label, guide in guides(n).items():
        fit = pc.fit(
            pair("arms", guide=guide, frames=2),
            some,
            seeds=[seed],
            steps=120 if label == "GaussNewton" else steps,  # it has 5 numbers to learn
            progress=False,
        )
        gap = pc.diagnose.amortisation_gap(fit, some, steps=100, most=most, draws=32)
        rows[label] = {"trained on": gap.train.mean()}
        if label != "LookupTable":  # which has no answer for held-out ones
            whole = pc.diagnose.importance(fit, some.test, most=most, draws=400).gap[0]
            law = gap.approximation.mean()
            rows[label] |= {"held out": gap.held_out.mean(), "law": law, "gap": whole}
        if label == "Amortised":
            better = pc.diagnose.importance(pc.refined(fit), some.test, most=most, draws=400)
            rows["refined"] = {"gap": better.gap[0]}
    return rows


def margin(kind, steps, seed, *, n=4000):
    """What refining gains, nats a held-out particle, and its cost, ms a particle."""
    frames = 2 if kind == "pairs" else None
    some = particles("arms", n // (frames or 1), seed, frames)
    made = pair("arms", "map", "in-plane" if kind == "in-plane" else "known", frames=frames)
    rigid = steps // 6 if kind == "in-plane" else 0
    began = time.process_time()
    fit = pc.fit(made, some, seeds=[seed], steps=steps, rigid_steps=rigid, progress=False)
    training = 1e3 * (time.process_time() - began) / (64 * steps)
    before, after = (
        pc.diagnose.importance(each, some.test, most=200) for each in (fit, pc.refined(fit))
    )
    gained = after.iwae.mean() - before.iwae.mean()
    row = {"iwae": gained, "elbo": after.elbo.mean() - before.elbo.mean()}
    row |= {"gap before": before.gap[0], "gap after": after.gap[0]}
    return {kind: row | {"ms refined": _ms(pc.refined(fit), some), "ms trained": training}}


def _ms(fit, some, n=64):
    """Of answering one particle."""
    took = []
    for _ in range(3):
        batch = some.batch(np.arange(n))  # a new one each time, as answers are kept
        began = time.process_time()
        with torch.no_grad():
            where = (fit.pairs[0].pose_of(batch).mean,) if fit.pairs[0].pose.latent else ()
            fit.pairs[0].posterior_of(batch, *where)
        took.append(time.process_time() - began)
    return 1e3 * min(took) / n


def table(what, name="arms", seeds=3):
    """Rows as they come, then means ± standard deviations over seeds."""
    if name == "kinase":  # maps in space learn slower: models/atoms.py
        small = {"n": 3000, "steps": 800}
        newton = {"n": 3000, "steps": 200, "guide": pc.guides.GaussNewton()}
        cases = {"true, known": ("true", "known", small), "GaussNewton": ("true", "known", newton)}
    else:
        cases = {f"{d}, {p}": (d, p, {}) for p in ("known", "in-plane") for d in ("map", "true")}
    kinds = [(kind, steps) for kind in ("known", "in-plane", "pairs") for steps in (200, 1200)]

    def each(run, cases):
        return {k: lambda s, c=c: run(name, *c[:2], s, **c[2]) for k, c in cases.items()}

    runs = {
        "coverage": each(coverage, cases),
        "nuts": each(sampled, {k: c for k, c in cases.items() if c[0] == "map" or name != "arms"}),
        "gaps": {"pairs": gaps},
        "margin": {f"{k}, {n}": lambda s, k=k, n=n: margin(k, n, s) for k, n in kinds},
    }[what]
    for label, run in runs.items():
        found = []
        for seed in range(seeds):
            found.append(run(seed))
            for kind, row in found[-1].items():
                told = ", ".join(f"{k} {v:.4g}" for k, v in row.items())
                print(f"{label}, {kind}, seed {seed}: {told}", flush=True)
        for kind in found[0]:
            values = {k: np.array([rows[kind][k] for rows in found]) for k in found[0][kind]}
            told = (f"{k} {v.mean():.4g} ± {v.std(ddof=1):.2g}" for k, v in values.items())
            print(f"{label}, {kind}:", ", ".join(told), flush=True)


if __name__ == "__main__":
    import sys

    what, name, seeds = [*sys.argv[1:], *("coverage", "arms", "3")[len(sys.argv) - 1 :]]
    table(what, name, int(seeds))
