# SPDX-License-Identifier: Apache-2.0
"""Hostile and broken input: a builder for each kind, and what the program has to answer."""
