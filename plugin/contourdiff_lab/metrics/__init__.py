# SPDX-License-Identifier: Apache-2.0
"""Measures of sets of images."""
