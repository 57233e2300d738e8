# SPDX-License-Identifier: Apache-2.0
"""From labelled CT and unlabelled MR to a bundle with a segmentation network for MR."""

from contourdiff.segmentation.results import segment
from contourdiff.segmentation.stages import transfer
