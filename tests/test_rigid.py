import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import pyrocryo as pc
from pyrocryo.chain import bond_lengths, bonded
from pyrocryo.volumes.rigid import blended, moved

PIXEL = 2.0


@pytest.fixture(scope="module")
def adk():
    return pc.molecules.AdenylateKinase()


def bodies(adk, latent=2, dtype=torch.float64, **options):
    volume = pc.volumes.RigidBodies(adk.ca_open, adk.domain, pixel_size=PIXEL, **options)
    return volume.build(latent, 32).to(dtype)


def hinges(adk):
    return {k + 1: (adk.axis[k], adk.pivot[k]) for k in range(2)}


def true_hinges(adk, **options):
    """The volume whose angles are those of the molecule."""
    volume = bodies(adk, hinges=hinges(adk), **options)
    least, most = adk.closure(torch.tensor([-3.0, 3.0], dtype=torch.float64)).tolist()
    angle = torch.as_tensor(adk.angle)
    volume.displacement.slope.data = angle * (most - least) / 6
    volume.displacement.offset.data = angle * (most + least) / 2
    return volume


def test_hinges_cut_sharply_are_the_molecule(adk):
    z = torch.randn(20, 2, dtype=torch.float64)
    found = true_hinges(adk, blend=0).centres(z) * PIXEL
    torch.testing.assert_close(found, adk.centres(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.9, 1.0, 1.1, 3.1])
def test_twists_are_rigid_motions(scale):
    v = torch.randn(3, dtype=torch.float64)
    turn = (scale * v / v.norm()).requires_grad_()
    r, u = torch.randn(50, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    at_rest = moved(r, turn, 0 * u)
    expected = r.numpy() @ Rotation.from_rotvec(turn.detach().numpy()).as_matrix().T
    np.testing.assert_allclose(at_rest.detach(), expected, atol=1e-9)
    # of a screw: what runs along the axis is not turned
    along = 2.0 * v / v.norm()
    torch.testing.assert_close(moved(r, turn, along), at_rest + along)
    # the same motion done in two halves, and its gradient finite even at rest
    half = moved(moved(r, turn / 2, u / 2), turn / 2, u / 2)
    torch.testing.assert_close(moved(r, turn, u), half, atol=1e-9, rtol=0)
    gradient = torch.autograd.grad(moved(r, turn, u).square().sum(), turn)[0]
    assert torch.isfinite(gradient).all()


def test_bodies_move_rigidly_and_the_frame_not_at_all(adk):
    volume = bodies(adk, blend=3)
    z = 3 * torch.randn(5, 2, dtype=torch.float64)
    found, start = volume.centres(z), volume.start
    share = volume.share
    inside = [share[:, k] == 1 for k in range(2)]
    assert volume.bodies == [1, 2]
    assert [int(i.sum()) for i in inside] == [24, 32]
    still = share.sum(1) == 0
    torch.testing.assert_close(found[:, still], start[still].expand(5, -1, 3))
    motions = volume.motions(z)
    for k, rows in enumerate(inside):
        torch.testing.assert_close(
            torch.cdist(found[:, rows], found[:, rows]),
            torch.cdist(start[rows], start[rows]).expand(5, -1, -1),
            atol=1e-6,
            rtol=0,
        )
        # and by what it says: the turn of the body, and the way of its centre
        middle = start[torch.as_tensor(adk.domain) == k + 1].mean(0)
        turn = torch.as_tensor(Rotation.from_rotvec(motions[:, k, :3].detach()).as_matrix())
        shift = motions[:, k, None, 3:] / PIXEL
        expected = (start[rows] - middle) @ turn.mT + middle + shift
        torch.testing.assert_close(found[:, rows], expected, atol=1e-6, rtol=0)


def test_where_a_structure_lies_does_not_matter(adk):
    a, b = bodies(adk), bodies(adk)
    b.load_state_dict(a.state_dict())
    by = torch.tensor([30.0, -20.0, 5.0], dtype=torch.float64)
    b.start += by
    b.point += by
    z = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(b.centres(z), a.centres(z) + by)


def test_joints_are_shared_by_residues_of_the_same_chain():
    positions = torch.zeros(12, 3)
    positions[:, 0] = 3.8 * torch.arange(12.0)
    body = torch.tensor([0] * 6 + [1] * 6)
    share = blended(body, positions, [1], 2).squeeze(1)
    expected = torch.tensor([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    torch.testing.assert_close(share, expected)
    positions[6:, 1] = 10.0  # another chain
    assert not bonded(positions)[5]
    torch.testing.assert_close(blended(body, positions, [1], 2).squeeze(1), body.float())
    torch.testing.assert_close(blended(body, positions, [0, 1], 0).argmax(1), body)


def test_blended_joints_tear_less(adk):
    z = pc.simulate.poses(adk, n=200, seed=0, box=8, pixel_size=12.0).truth
    z = torch.as_tensor(z, dtype=torch.float64)
    length = bond_lengths(torch.as_tensor(adk.ca_open))
    off = []
    for blend in (0, 3):
        centres = true_hinges(adk, blend=blend).centres(z) * PIXEL
        off.append((bond_lengths(centres) - length).abs().max().item())
    assert off[0] > 3.0 > 2.0 > off[1]


@pytest.mark.parametrize("monotone", [False, True])
def test_angles_of_hinges(adk, monotone):
    volume = bodies(adk, hinges=hinges(adk), monotone=monotone)
    if monotone:
        volume.displacement.bend.data.normal_(0, 3)
        volume.displacement.slope.data.normal_(-3, 1)
    z = torch.linspace(-4, 4, 81, dtype=torch.float64)[:, None].expand(-1, 2)
    angles = volume.angles(z)
    assert (angles.diff(dim=0) > 0).all()
    assert (angles.diff(n=2, dim=0).abs().max() > 1e-4) == monotone
    motions = volume.motions(z)
    torch.testing.assert_close(motions[..., 3:], torch.zeros_like(motions[..., 3:]))
    torch.testing.assert_close(
        motions[..., :3], angles[..., None] * torch.as_tensor(adk.axis), atol=1e-6, rtol=1e-6
    )
    # one latent moves one domain only
    one = volume.centres(torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
    went = (one[1] - one[0]).norm(dim=-1)
    assert went[torch.as_tensor(adk.domain) == 2].max() == 0 < went.max()


@pytest.mark.parametrize("hinged", [False, True])
def test_traced_stacked_and_in_bfloat16(adk, hinged, caplog):
    caplog.set_level("INFO", "pyrocryo")
    particles = pc.simulate.poses(adk, n=40, seed=0, box=16, pixel_size=6.0)
    given = {"hinges": hinges(adk)} if hinged else {"hidden": (16,)}
    volume = pc.volumes.RigidBodies(adk.ca_open, adk.domain, pixel_size=6.0, **given)
    guide = pc.guides.Amortised((16,))
    pair = pc.Pair(pc.priors.IsotropicNormal(2), volume, 16, guide=guide, rotate=False)
    settings = {"steps": 4, "batch_size": 8, "progress": False, "seeds": 2}
    python = pc.fit(pair, particles, capture=False, **settings).history["loss"]
    assert np.isfinite(python).all()
    assert (python[0] != python[1]).all()
    for together in (1, 2):
        fit = pc.fit(pair, particles, capture=True, together=together, **settings)
        np.testing.assert_allclose(fit.history["loss"], python, rtol=1e-5)
    assert "2 seeds at once" in caplog.text
    rounded = pc.fit(pair, particles, precision="bf16", **settings).history["loss"]
    np.testing.assert_allclose(rounded, python, rtol=0.1)
    maps = fit.pairs[0].density(torch.zeros(1, 2))
    assert maps.shape == (1, 16, 16, 16)
    assert maps.std() > 0


def test_angles_of_hinges_are_learned_from_images(adk):
    """Conformations and poses known: what is left is how the angles go with z."""
    z = torch.tensor([[-2.0, 1.0], [1.0, -1.0], [0.0, 2.0], [1.5, 0.0]])
    turns = torch.as_tensor(Rotation.random(4, random_state=0).as_matrix()).float()
    given = {"box": 24, "pixel_size": 4.5}
    images = adk.render(z, turns, torch.zeros(4, 2), **given)
    images = images / images.std()
    volume = pc.volumes.RigidBodies(
        adk.ca_open, adk.domain, pixel_size=4.5, hinges=hinges(adk), blend=0
    ).build(2, 24)
    optimiser = torch.optim.Adam(volume.displacement.parameters(), lr=0.02)
    shapes = torch.optim.Adam([volume.brightness, volume.background], lr=0.01)
    for _ in range(100):
        loss = (volume(z, turns, torch.zeros(4, 2)) - images).square().mean()
        loss.backward()
        for each in (optimiser, shapes):
            each.step()
            each.zero_grad()
    true = adk.closure(z).numpy() * adk.angle
    np.testing.assert_allclose(volume.angles(z).detach(), true, atol=math.radians(2))


def test_bad_bodies_are_refused(adk):
    make = pc.volumes.RigidBodies
    x, s = adk.ca_open, adk.domain
    axis = np.array([0.0, 0.0, 1.0])
    for wrong, said in (
        (lambda: make(x[:, :2], s, pixel_size=1.0), r"positions: expected \(A, 3\) in Å"),
        (lambda: make(x, s[:-1], pixel_size=1.0), "segmentation: expected 214 integers"),
        (lambda: make(x, 0.5 * s, pixel_size=1.0), "segmentation: expected 214 integers"),
        (lambda: make(x, 0 * s, pixel_size=1.0), "expected a body that moves"),
        (lambda: make(x, s, pixel_size=1.0, frame=7), r"frame: expected one of \[0, 1, 2\]"),
        (lambda: make(x, s, pixel_size=1.0, blend=-1), "blend: expected a number of residues"),
        (lambda: make(x, s, pixel_size=1.0, hinges={0: (axis, axis)}), "hinges: expected bodies"),
        (lambda: make(x, s, pixel_size=1.0, hinges={1: (0 * axis, axis)}), "that is not 0"),
        (
            lambda: make(x, s, pixel_size=1.0, hinges={1: (axis, axis)}).build(2, 16),
            "1 hinges need as many latents, z has 2",
        ),
        (lambda: make(x, s, pixel_size=6.0).build(2, 16).angles(None), "hinges: none were given"),
    ):
        with pytest.raises(pc.InputError, match=said):
            wrong()


def test_separate_bodies_have_latents_of_their_own(adk):
    volume = bodies(adk, latent=4, separate=True, blend=0)
    z = torch.randn(5, 4, dtype=torch.float64)
    still = volume.motions(z)
    for own, body in ((slice(0, 2), 0), (slice(2, 4), 1)):
        other = z.clone()
        other[:, own] += 1.0
        changed = (volume.motions(other) - still).abs().sum((0, 2)) > 0
        assert changed.tolist() == [body == 0, body == 1]
    # what is learned at z = 0 is the pose of the reference
    assert volume.motions(0 * z).abs().max() < 1e-12
    volume.displacement.rest.data[:3] = torch.tensor([0.0, 0.0, 0.25])
    assert volume.motions(0 * z)[0, 0, 2] == 0.25


def test_who_says_what_a_latent_is(adk):
    assert bodies(adk, hinges=hinges(adk)).axes == "one hinge"
    assert bodies(adk, separate=True).axes == "the motion of one body"
    assert bodies(adk, latent=4, separate=True).axes is None  # two for each may be turned
    assert bodies(adk).axes is None


def test_separate_is_refused_where_it_makes_no_sense(adk):
    with pytest.raises(pc.InputError, match="separate: hinges have latents of their own"):
        bodies(adk, separate=True, hinges=hinges(adk))
    with pytest.raises(pc.InputError, match="dim: 2 bodies .* z has 3"):
        bodies(adk, latent=3, separate=True)
