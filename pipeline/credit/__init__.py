"""Credit assignment and objective: pure maths, one idea a file.

``build_algorithm`` composes them. ``losses``, ``correction`` and ``units`` are the files that need
torch; they are not imported here, so that the driver does without.
"""

from pipeline.credit.algorithm import Algorithm, CreditResult, TrajectoryCredit, build_algorithm
from pipeline.credit.objective import Correction, Objective
from pipeline.credit.sensitivity import OppositeVerdict

__all__ = [
    "Algorithm",
    "Correction",
    "CreditResult",
    "Objective",
    "OppositeVerdict",
    "TrajectoryCredit",
    "build_algorithm",
]
