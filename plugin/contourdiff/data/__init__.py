# SPDX-License-Identifier: Apache-2.0
"""Files: lists of cases, label maps, checks, NIfTI, atomic writing."""
