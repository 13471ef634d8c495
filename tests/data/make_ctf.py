"""Makes ctf.npz: the CTFs of other programs, which tests/test_ctf.py compares ours with.

    python tests/data/make_ctf.py

Needs torch-ctf 0.6 and cryoDRGN 4.3 (its ctf.py alone is used).
"""

from pathlib import Path

import numpy as np
import torch
from cryodrgn.ctf import compute_ctf
from torch_ctf import calculate_ctf_2d

BOX, PIXEL = 64, 2.0
SETTINGS = np.array(
    [  # defocus U and V (Å), angle (°), kV, Cs (mm), amplitude contrast, phase shift (°)
        [8_000, 7_700, 20, 300, 2.7, 0.1, 0],
        [15_000, 14_200, 75, 300, 2.7, 0.07, 0],
        [14_000, 13_900, 160, 300, 0.01, 0.1, 90],
        [12_000, 12_000, 0, 200, 2.0, 0.1, 0],
        [45_000, 43_000, 45, 200, 2.7, 0.1, 30],
    ],
    dtype=np.float64,
)

theirs = []
for u, v, angle, kv, cs, w, phase in SETTINGS:
    theirs.append(
        calculate_ctf_2d(
            defocus=(u + v) / 2 * 1e-4,
            astigmatism=(u - v) / 2 * 1e-4,
            astigmatism_angle=angle,
            voltage=kv,
            spherical_aberration=cs,
            amplitude_contrast=w,
            phase_shift=phase,
            pixel_size=PIXEL,
            image_shape=(BOX, BOX),
            rfft=True,
            fftshift=False,
        ).numpy()
    )
ky = np.fft.fftfreq(BOX)[:, None] / PIXEL * np.ones(BOX // 2 + 1)
kx = np.fft.rfftfreq(BOX) / PIXEL * np.ones((BOX, 1))
freqs = torch.as_tensor(np.stack([kx.ravel(), ky.ravel()], axis=1))
columns = [torch.as_tensor(SETTINGS[:, [i]]) for i in range(7)]
u, v, angle, kv, cs, w, phase = columns
drgn = compute_ctf(freqs, u, v, angle, kv, cs, w, phase).numpy().reshape(-1, BOX, BOX // 2 + 1)
np.savez_compressed(
    Path(__file__).with_name("ctf.npz"),
    settings=SETTINGS,
    pixel_size=PIXEL,
    torch_ctf=np.stack(theirs).astype(np.float32),
    cryodrgn=drgn.astype(np.float32),
)
