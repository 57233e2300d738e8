# SPDX-License-Identifier: Apache-2.0
"""The bundle and its networks in forms that run without this package."""
