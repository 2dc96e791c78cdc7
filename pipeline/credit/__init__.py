"""Credit assignment and objective: pure maths, one idea a file.

``build_algorithm`` composes them. ``losses`` is the only file that needs torch and is not
imported here, so that the driver does without.
"""

from pipeline.credit.algorithm import Algorithm, CreditResult, TrajectoryCredit, build_algorithm
from pipeline.credit.objective import Objective

__all__ = ["Algorithm", "CreditResult", "Objective", "TrajectoryCredit", "build_algorithm"]
