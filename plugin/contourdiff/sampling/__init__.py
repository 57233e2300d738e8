# SPDX-License-Identifier: Apache-2.0
"""From random numbers to chosen slices, in torch alone."""

from contourdiff.sampling.noise import CandidateNoise
from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules
