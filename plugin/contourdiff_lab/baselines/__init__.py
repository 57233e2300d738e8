# SPDX-License-Identifier: Apache-2.0
"""Methods that the paper compares with, trained on unpaired CT and MR."""
