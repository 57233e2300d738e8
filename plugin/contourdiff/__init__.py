# SPDX-License-Identifier: Apache-2.0
"""Contour-guided diffusion: CT volumes become MR volumes with the same anatomy (Chen et al., arXiv 2403.10786)."""

__version__ = "0.1.0"
