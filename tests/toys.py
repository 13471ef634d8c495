"""A pair that writes its latents into the image and reads them there: all of it known exactly."""

import numpy as np
import torch
from torch import nn

import pyrocryo as pc
from pyrocryo.directions import PlanarNormal


class Written(nn.Module):
    """A volume that writes conformation and pose into the image, where they can be read again."""

    dim, side, numbers_an_image = 2, 8, 64

    def build(self, latent, box):
        self.gain = nn.Parameter(torch.ones(()))
        return self

    def forward(self, z, rotation, shift):
        line = torch.cat([z, rotation[..., :2, 0].expand(*z.shape[:-1], 2)], dim=-1)
        image = torch.cat([line, line.new_zeros(*line.shape[:-1], 60)], dim=-1)
        return self.gain * image.unflatten(-1, (8, 8))

    def density(self, z):
        return z.new_zeros(*z.shape[:-1], 8, 8)

    def check(self, particles):
        pass


class Reading(nn.Module):
    """An encoder that reads `share` of it."""

    def __init__(self, share=1.0):
        super().__init__()
        self.share = share

    def build(self, latent, box, volume):
        self.spread = nn.Parameter(torch.zeros(latent))
        return self

    def forward(self, images, rotation, shift):
        z = self.share * images.flatten(-2)[..., :2].expand(*rotation.shape[:-2], 2)
        return z, torch.diag_embed(self.spread.exp().expand_as(z))


class ReadingPose(nn.Module):
    def __init__(self, off=0.0):
        super().__init__()
        self.off = off

    def build(self, box):
        self.size = nn.Parameter(torch.tensor(100.0))
        return self

    def forward(self, images, shift):
        x, y = images.flatten(-2)[..., 2:4].unbind(-1)
        angle = torch.atan2(y, x) + self.off
        return PlanarNormal(self.size * torch.stack([angle.cos(), angle.sin()], dim=-1))


def written(n=64, share=1.0, off=0.0, known=False):
    rng = np.random.default_rng(0)
    z, rotation = rng.standard_normal((n, 2)), pc.rotations.random_in_plane((n,), rng)
    images = np.zeros((n, 64), dtype=np.float32)
    images[:, :4] = np.concatenate([z, rotation[:, :2, 0]], axis=1)
    particles = pc.Particles(images.reshape(n, 8, 8), rotation=rotation, truth=z)
    pair = pc.Pair(
        pc.priors.IsotropicNormal(2),
        Written(),
        8,
        pose=None if known else pc.poses.InPlane(),
        guide=Reading(share),
        pose_guide=None if known else ReadingPose(off),
        noise=0.1,
    )
    return pair, particles


class Linear(nn.Module):
    """Images W u: with a normal prior and known noise, the posterior is known exactly."""

    dim, numbers_an_image = 2, 1000

    def build(self, latent, box):
        self.box = box
        self.map = nn.Linear(latent, box**2, bias=False)
        return self

    def forward(self, z, rotation, shift):
        return self.map(z).unflatten(-1, (self.box, self.box))

    def density(self, z):
        return self.map(z).unflatten(-1, (self.box, self.box))

    def check(self, particles):
        pass


class Stubborn(nn.Module):
    """The same answer for every image."""

    def build(self, latent, box, volume):
        self.loc = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.scale = nn.Parameter(torch.tensor([[0.5, 0.0], [0.2, 0.7]]))
        return self

    def forward(self, images, rotation, shift):
        lead = rotation.shape[:-2]
        return self.loc.expand(*lead, -1), self.scale.expand(*lead, -1, -1)
