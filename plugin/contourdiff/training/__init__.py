# SPDX-License-Identifier: Apache-2.0
"""Components of a training: inferer, slice dataset, handlers."""

from contourdiff.training.inferer import ContourDiffusionInferer, ContourPrepareBatch
from contourdiff.training.slice_dataset import SliceDataset
