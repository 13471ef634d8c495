"""What a fit did with the images: read them, memorised them, or took the pose for a motion."""

from pyrocryo.diagnose.amortisation import Gap, amortisation_gap
from pyrocryo.diagnose.conformations import posterior_means
from pyrocryo.diagnose.dependence import Dependence
from pyrocryo.diagnose.dimensions import Dimensions, dimensions
from pyrocryo.diagnose.generator import Generator
from pyrocryo.diagnose.heterogeneity import Heterogeneity, heterogeneity
from pyrocryo.diagnose.indices import Indices, indices
from pyrocryo.diagnose.invariance import Invariance, pose_invariance
from pyrocryo.diagnose.invertibility import Invertibility, invertibility
from pyrocryo.diagnose.leak import PoseLeak, against, leak
from pyrocryo.diagnose.populations import Populations, populations
from pyrocryo.diagnose.reencoded import Reencoded, reencoded
from pyrocryo.diagnose.separation import separation
from pyrocryo.diagnose.simulator import simulator
from pyrocryo.diagnose.stereochemistry import Stereochemistry, stereochemistry
from pyrocryo.diagnose.structures import Structures, structures
from pyrocryo.diagnose.turning import turned_batch, turned_images
from pyrocryo.diagnose.twin import Twins, evil_twin

__all__ = [
    "Dependence", "Dimensions", "Gap", "Generator", "Heterogeneity", "Indices", "Invariance",
    "Invertibility", "PoseLeak", "Populations", "Reencoded", "Stereochemistry", "Structures",
    "Twins", "against", "amortisation_gap", "dimensions", "evil_twin", "heterogeneity", "indices",
    "invertibility", "leak", "pose_invariance", "populations", "posterior_means", "reencoded",
    "separation", "simulator", "stereochemistry", "structures", "turned_batch", "turned_images",
]  # fmt: skip
