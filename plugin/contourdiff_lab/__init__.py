# SPDX-License-Identifier: Apache-2.0
"""The laboratory beside contourdiff: experiments, baselines and measurements of translations."""
