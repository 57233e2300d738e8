# SPDX-License-Identifier: Apache-2.0
"""Files: cases, label maps, checks, NIfTI on a grid."""

from __future__ import annotations
