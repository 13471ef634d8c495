import numpy as np
import pytest
import torch
from toys import written

import pyrocryo as pc
from pyrocryo.diagnose.indices import NAMES


class Mute:
    """The molecule that writes what it is into the image, as the volume of the pair does."""

    def render(self, z, rotation, shift, *, box, pixel_size):
        line = torch.cat([z, rotation[..., :2, 0].expand(*z.shape[:-1], 2)], dim=-1)
        image = torch.cat([line, line.new_zeros(*line.shape[:-1], 60)], dim=-1)
        return image.unflatten(-1, (8, 8))


def _table(result):
    return dict(zip(NAMES, result.value[0], strict=True))


@pytest.mark.parametrize("encoder", ["guide", "oracle"])
@pytest.mark.parametrize("molecule", [None, Mute()], ids=["learned", "true"])
def test_a_pair_that_inverts_itself_has_none(encoder, molecule):
    pair, particles = written(n=300)
    result = pc.diagnose.indices(
        pair, particles, molecule=molecule, encoder=encoder, noise=False, steps=100
    )
    # the oracle shrinks z towards its prior by σ² = .01
    assert max(_table(result).values()) < (1e-3 if encoder == "oracle" else 1e-6)
    random = dict(zip(NAMES, result.random[0], strict=True))
    # strangers: E|z - z'|² = 2 var, the mean square of a uniform arc π² / 3
    assert random["cc"] == pytest.approx(2 * particles.truth.var(axis=0).sum(), rel=0.2)
    assert random["pc"] == pytest.approx(np.pi**2 / 3, rel=0.2)


def test_faults_show_where_they_are():
    plain = {"noise": False, "most": 300}
    pair, particles = written(n=300, share=0.5, off=0.3)
    found = _table(pc.diagnose.indices(pair, particles, **plain))
    z = 0.5 * particles.truth  # what is decoded, and then read as half of it
    assert found["cc"] == pytest.approx(0.25 * np.square(z).sum(axis=1).mean(), rel=1e-3)
    assert found["vc"] == found["cc"]
    assert found["pc"] == pytest.approx(0.09, rel=0.02)
    assert found["vi"] == found["pc"]
    assert found["ci"] < 1e-6  # the same mistake in every pose, for every conformation
    assert found["pi"] < 1e-5
    # in true coordinates the guide is right: the map and the offset take that up
    true = _table(pc.diagnose.indices(pair, particles, molecule=Mute(), **plain))
    assert max(true["cc"], true["pc"], true["ci"]) < 1e-4
    assert true["vc"] == pytest.approx(
        0.25 * np.square(particles.truth).sum(axis=1).mean(), rel=0.05
    )


def test_noise_steps_and_errors():
    pair, particles = written(n=2000)
    result = pc.diagnose.indices(pair, particles, most=2000)
    found = _table(result)
    assert found["cc"] == pytest.approx(2 * 0.01, rel=0.1)  # two latents, noise of .1
    assert found["ci"] == pytest.approx(4 * 0.01, rel=0.1)  # both images are noisy
    assert result.error[0, 2] == pytest.approx(0.02 / 2000**0.5, rel=0.2)  # χ² of 2 degrees
    assert "cc" in str(result)
    assert len(result.rows()) == 6


def test_the_oracle_inverts_what_the_guide_cannot():
    pair, particles = written(n=100, share=0.3, off=1.5)
    guide = _table(pc.diagnose.indices(pair, particles))
    oracle = _table(pc.diagnose.indices(pair, particles, encoder="oracle"))
    assert oracle["cc"] < 0.05
    assert oracle["pc"] < 0.05 < guide["pc"]


def test_known_poses_have_the_conformation_alone():
    pair, particles = written(known=True)
    found = _table(pc.diagnose.indices(pair, particles, noise=False))
    assert all(np.isnan(found[name]) for name in ("vi", "pc", "pi"))
    assert max(found["vc"], found["cc"], found["ci"]) < 1e-6


def test_bad_requests():
    pair, particles = written()
    for wrong, said in (
        ({"encoder": "best"}, "encoder: expected 'guide' or 'oracle'"),
        ({"pose_step": 0}, "pose_step: expected a positive number, got 0"),
        ({"z_step": -1.0}, "z_step: expected a positive number"),
    ):
        with pytest.raises(pc.InputError, match=said):
            pc.diagnose.indices(pair, particles, **wrong)
    with pytest.raises(pc.InputError, match="at least 20"):
        pc.diagnose.indices(pair, particles.take(range(10)))
    with pytest.raises(pc.InputError, match="needs the truth"):
        pc.diagnose.indices(pair, particles.without("truth"), molecule=Mute())


def test_separation_of_a_pair_that_knows():
    pair, particles = written(n=300)
    found = pc.diagnose.separation(pair, particles)
    assert found["reconstruction_error"][0] < 1e-6
    assert found["pose_correlation"][0] == pytest.approx(1, abs=1e-3)
    assert found["mcc_with_pose"][0] == pytest.approx(1, abs=1e-3)
    noisy = 0.1 * ((np.pi / 2) ** 0.5 + (2 / np.pi) ** 0.5)  # what noise alone adds up to
    assert found["eq2"][0] == pytest.approx(noisy, rel=0.2)
    # N(z, 1) from N(0, 1): |z|² / 2; poses of concentration 100 from uniform
    z = 0.5 * np.square(particles.truth).sum(axis=1).mean()
    pose = -0.5 * np.log(2 * np.pi * np.e) + np.log(2 * np.pi) + np.log(100)
    assert found["kl"][0] == pytest.approx(z + pose, rel=0.01)
    known = pc.diagnose.separation(*written(n=300, known=True))
    assert set(known) == {"reconstruction_error", "kl", "pose_circular_linear"}
