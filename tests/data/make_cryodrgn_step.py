"""Makes cryodrgn_step.npz: one training step of cryoDRGN 4.3.1, by its own classes.

    pip install cryodrgn==4.3.1
    python tests/data/make_cryodrgn_step.py [tests/data/cryodrgn_step.npz]

Holds raw images with poses (cryoDRGN's file conventions) and the same as cryoDRGN prepares them,
its weights at first, the noise its posterior was drawn with, and what ``loss_function`` gives:
loss and gradients of every weight. ``step(box, ...)`` is the same at any size, for a check by
hand.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from cryodrgn import fft
from cryodrgn.commands.train_vae import loss_function, preprocess_input, run_batch
from cryodrgn.lattice import Lattice
from cryodrgn.masking import spherical_window_mask
from cryodrgn.models import HetOnlyVAE
from scipy.spatial.transform import Rotation


def step(
    box: int, *, zdim: int, layers: int, width: int, n: int, beta: float | None = None
) -> dict[str, np.ndarray]:
    """One step of ``train_vae`` with its defaults otherwise, in single precision."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    side = box + 1
    lattice = Lattice(side, extent=0.5)
    mask = lattice.get_circular_mask(side // 2)
    model = HetOnlyVAE(
        lattice, layers, width, layers, width, int(mask.sum()), zdim,
        encode_mode="resid", enc_mask=mask, enc_type="gaussian", enc_dim=None,
        domain="fourier", activation=torch.nn.ReLU, feat_sigma=0.5,
    )  # fmt: skip
    # as ImageDataset prepares images, and PoseTracker shifts
    images = torch.as_tensor(rng.standard_normal((n, box, box)), dtype=torch.float32)
    scale = torch.std(fft.symmetrize_ht(torch.stack([fft.ht2_center(x) for x in images])))
    window = spherical_window_mask(D=box, in_rad=0.85, out_rad=0.99)
    prepared = fft.symmetrize_ht(fft.ht2_center(images * window)) / scale
    rotation = torch.as_tensor(Rotation.random(n, random_state=0).as_matrix(), dtype=torch.float32)
    translation = torch.as_tensor(rng.uniform(-0.1, 0.1, (n, 2)), dtype=torch.float32)
    prepared = preprocess_input(prepared, lattice, translation * side)

    drawn = {}
    model.reparameterize = lambda mu, logvar: drawn["noise"] * (0.5 * logvar).exp() + mu
    drawn["noise"] = torch.randn(n, zdim)
    beta = 1 / zdim if beta is None else beta
    model.train()
    mu, logvar, _, recon, mask = run_batch(model, lattice, prepared, rotation, None)
    loss, _, _ = loss_function(mu, logvar, prepared, None, recon, mask, beta)
    loss.backward()
    result = {
        "images": images, "prepared": prepared, "rotation": rotation, "translation": translation,
        "noise": drawn["noise"], "loss": loss, "beta": beta,
    }  # fmt: skip
    for name, parameter in model.named_parameters():
        result[f"weight.{name}"] = parameter
        if parameter.grad is not None:
            result[f"gradient.{name}"] = parameter.grad
    return {k: torch.as_tensor(v).detach().numpy() for k, v in result.items()}


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("cryodrgn_step.npz")
    np.savez_compressed(out, **step(16, zdim=3, layers=2, width=24, n=4))
