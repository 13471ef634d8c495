"""``elpd``: how well a model predicts particles that it has not seen, for ArviZ to compare."""

from __future__ import annotations

from typing import Any

from pyrocryo.diagnose.importance import importance
from pyrocryo.draws import posterior
from pyrocryo.errors import InputError
from pyrocryo.identify import report
from pyrocryo.particles import Particles
from pyrocryo.svi import Fit
from pyrocryo.to_arviz import to_elpd

__all__ = ["elpd"]

SEEN = 256  # particles that the verdict looks at


def elpd(
    fit: Fit,
    particles: Particles,
    *,
    draws: int = 200,
    most: int = 1000,
    chain: int = 0,
    seed: int = 0,
) -> Any:
    r"""The held-out log-likelihood of each particle, with latents integrated out.

    .. math:: \ln p(x) \approx \ln \frac1S \sum_s \frac{p(x, z_s)}{q(z_s | x)}, \quad z_s \sim q

    by importance sampling (:func:`pyrocryo.diagnose.importance`), with the k-hat of each
    particle's weights. The estimate is low by about their variance over 2 S: compare models
    whose posteriors were :func:`pyrocryo.refined`, or the encoder is judged with the model. What
    is learned is taken as it is, so these are predictive densities of held-out particles and not
    of leave-one-out; never ask ``az.loo`` for latents of each particle's own (99.8 % of k-hats
    above .7).

    The result is what ``az.compare``, ``az.plot_compare`` and ``az.plot_khat`` take, an
    ``ELPDData`` (ArviZ 0.23) or ``ELPDDataLOO`` (1.x); its ``identifiability`` is the sentence of
    :func:`pyrocryo.identify.report`, to be read beside it: likelihood does not see turned axes.
    Of pairs of frames of two arms that fall back to the middle, an Ornstein-Uhlenbeck prior, which
    leaves rotations of `z` free, predicted held-out ones better than Laplace steps of the right
    size, by .15 to .30 nats a pair (2.5 to 5 standard errors, four data sets of four), and had the
    worse axes: MCC .86 ± .10 and .94 ± .02 (8 fits each; tutorial 8).

    Example::

        table = az.compare({"slowvae": (a := pc.elpd(pc.refined(slow), held_out)),
                            "plain": (b := pc.elpd(pc.refined(plain), held_out))})
        print(table, a.identifiability, b.identifiability, sep="\n")

    Args:
        fit: A fit.
        particles: Not trained on, the same for all models that are compared: ``particles.test``.
        draws: Draws a particle, S.
        most: At most so many particles.
        chain: Which of its seeds.
        seed: Of the draws.

    Raises:
        InputError: If the pair does not fit the particles, or there is only one.
    """
    if not isinstance(fit, Fit):
        raise InputError(f"fit: expected a Fit, got {type(fit).__name__}")
    if not 0 <= chain < len(fit.pairs):
        raise InputError(f"chain: expected 0 to {len(fit.pairs) - 1}, got {chain}")
    if len(particles) < 2:
        raise InputError(f"particles: expected at least 2, got {len(particles)}")
    found = importance(fit.pairs[chain], particles, draws=draws, most=most, seed=seed)
    some = particles.spread(SEEN)
    post = posterior(fit, some, draws=10, predictive=0, seed=seed)
    told = report(fit, post)["sentence"]
    return to_elpd(found.iwae[0], found.khat[0], found.particles, draws=draws, sentence=told)
