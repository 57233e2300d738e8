# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a trained translator, one module a command."""
