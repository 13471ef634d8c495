"""What a fit did with the images: read them, memorised them, or took the pose for a motion."""

from pyrocryo.diagnose.amortisation import Gap, amortisation_gap
from pyrocryo.diagnose.conformations import posterior_means
from pyrocryo.diagnose.generator import Generator
from pyrocryo.diagnose.indices import Indices, indices
from pyrocryo.diagnose.invariance import Invariance, pose_invariance
from pyrocryo.diagnose.invertibility import Invertibility, invertibility
from pyrocryo.diagnose.separation import separation
from pyrocryo.diagnose.simulator import simulator
from pyrocryo.diagnose.stereochemistry import Stereochemistry, stereochemistry
from pyrocryo.diagnose.structures import Structures, structures
from pyrocryo.diagnose.turning import turned_batch, turned_images
from pyrocryo.diagnose.twin import Twins, evil_twin

__all__ = [
    "Gap", "Generator", "Indices", "Invariance", "Invertibility", "Stereochemistry",
    "Structures", "Twins", "amortisation_gap", "evil_twin", "indices", "invertibility",
    "pose_invariance", "posterior_means", "separation", "simulator", "stereochemistry",
    "structures", "turned_batch", "turned_images",
]  # fmt: skip
