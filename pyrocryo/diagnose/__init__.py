"""What a fit did with the images, and whether its posterior can be believed.

Read them, memorised them, or took the pose for a motion (:func:`leak`, :func:`amortisation_gap`,
:func:`evil_twin`, ...); and :func:`check`: whether the guide's draws are those of the model's
posterior, and the images like the model's.
"""

from pyrocryo.diagnose.amortisation import Gap, amortisation_gap
from pyrocryo.diagnose.calibration import Calibration, calibration, coverage
from pyrocryo.diagnose.check import Checked, check
from pyrocryo.diagnose.conformations import posterior_means
from pyrocryo.diagnose.dependence import Dependence
from pyrocryo.diagnose.dimensions import Dimensions, dimensions
from pyrocryo.diagnose.free_energy import Populations
from pyrocryo.diagnose.generator import Generator
from pyrocryo.diagnose.heterogeneity import Heterogeneity, heterogeneity
from pyrocryo.diagnose.importance import Importance, importance
from pyrocryo.diagnose.indices import Indices, indices
from pyrocryo.diagnose.invariance import Invariance, pose_invariance
from pyrocryo.diagnose.invertibility import Invertibility, invertibility
from pyrocryo.diagnose.leak import PoseLeak, against, leak
from pyrocryo.diagnose.populations import populations
from pyrocryo.diagnose.predictive import Predictive, predictive
from pyrocryo.diagnose.psis import psis
from pyrocryo.diagnose.reencoded import Reencoded, reencoded
from pyrocryo.diagnose.sbc import Ranks, sbc
from pyrocryo.diagnose.sensitivity import Sensitivity, power_scaled, sensitivity
from pyrocryo.diagnose.separation import separation
from pyrocryo.diagnose.simulator import simulator
from pyrocryo.diagnose.stereochemistry import Stereochemistry, stereochemistry
from pyrocryo.diagnose.structures import Structures, structures
from pyrocryo.diagnose.tarp import Balls, tarp
from pyrocryo.diagnose.turning import turned_batch, turned_images
from pyrocryo.diagnose.twin import Twins, evil_twin
from pyrocryo.diagnose.uniform import uniform

__all__ = [
    "Balls", "Calibration", "Checked", "Dependence", "Dimensions", "Gap", "Generator",
    "Heterogeneity", "Importance", "Indices", "Invariance", "Invertibility", "Populations",
    "PoseLeak", "Predictive", "Ranks", "Reencoded", "Sensitivity", "Stereochemistry", "Structures",
    "Twins", "against", "amortisation_gap", "calibration", "check", "coverage", "dimensions",
    "evil_twin", "heterogeneity", "importance", "indices", "invertibility", "leak", "populations",
    "pose_invariance", "posterior_means", "power_scaled", "predictive", "psis", "reencoded", "sbc",
    "sensitivity", "separation", "simulator", "stereochemistry", "structures", "tarp",
    "turned_batch", "turned_images", "uniform",
]  # fmt: skip
