import importlib.util

import numpy as np
import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _same_seed_same_validation():
    """Seeds every test; fails one that leaves Pyro's validation or parameter store changed."""
    if not HAS_TORCH:  # the ArviZ bridge is tested without
        yield
        return
    import pyro
    import torch

    torch.manual_seed(0)
    before = torch.distributions.Distribution._validate_args
    yield
    assert torch.distributions.Distribution._validate_args == before
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def pairs_in_time():
    import pyrocryo as pc

    return pc.simulate.time_resolved(pc.molecules.TwoArms(), n=240, seed=0)


@pytest.fixture(scope="session")
def at_temperatures():
    import pyrocryo as pc

    return pc.simulate.temperature(pc.molecules.TwoArms(), n=240, seed=0)


@pytest.fixture
def slowvae(pairs_in_time):
    import pyrocryo as pc

    return pc.Pair(
        pc.priors.LaplaceTransition(2, 2.0), volume=pc.volumes.Grid(), box=pairs_in_time.box
    )


@pytest.fixture(scope="session")
def trained_vae(pairs_in_time):
    """A VAE that knows its 240 molecules well enough to have latents worth turning."""
    import pyrocryo as pc

    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume=pc.volumes.Grid(), box=pairs_in_time.box)
    return pc.fit(pair, pairs_in_time, steps=250, batch_size=32).pairs[0]


@pytest.fixture
def brisk(monkeypatch):
    """Runs of which no number matters: small images, few of them made of a decoder, none drawn.

    Simulated images of more than 16 pixels along an edge have half as many, of twice the size, and
    the figures of a run are composed but not drawn, which other tests do.
    """
    import sys

    from pyrocryo.io import run_folder
    from pyrocryo.simulate import datasets, temporal
    from pyrocryo.simulate.images import imaged

    def coarse(*told, box=32, pixel_size=3.0, **more):
        by = 2 if box > 16 else 1
        return imaged(*told, box=box // by, pixel_size=by * pixel_size, **more)

    for module in (datasets, temporal):
        monkeypatch.setattr(module, "imaged", coarse)
    monkeypatch.setattr(sys.modules["pyrocryo.identify.jacobian"], "NUMBERS", 2e7)
    monkeypatch.setattr(run_folder, "write_figure", lambda path, figure, drawing: path.touch())
