# SPDX-License-Identifier: Apache-2.0
"""The paper's experiment: translate, train segmentation networks, test them on real MR."""
