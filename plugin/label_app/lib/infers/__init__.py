# SPDX-License-Identifier: Apache-2.0
"""Inference tasks of the MONAI Label app."""
