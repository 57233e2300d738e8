# SPDX-License-Identifier: Apache-2.0
"""Training pairs for a segmentation network: a labelled CT in many shapes, each translated to MR."""

from contourdiff.pairs.make import make_pairs
