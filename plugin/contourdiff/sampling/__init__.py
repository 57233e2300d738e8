# SPDX-License-Identifier: Apache-2.0
"""From random numbers to chosen slices, in torch alone."""

from __future__ import annotations

from contourdiff.sampling.sampler import Sampler
from contourdiff.sampling.selection import SelectionRules
