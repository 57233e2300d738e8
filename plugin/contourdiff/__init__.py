# SPDX-License-Identifier: Apache-2.0
"""Contour-guided diffusion: CT volumes become MR volumes with the same anatomy (Chen et al., arXiv 2403.10786)."""

from importlib import import_module

__version__ = "0.2.0.dev0"
MODULES = {
    "translate": "contourdiff.translation",
    "make_pairs": "contourdiff.pairs",
    "transfer": "contourdiff.segmentation",
    "segment": "contourdiff.segmentation",
}
"""Where the functions of the package are."""


def __getattr__(name: str) -> object:
    """Import what the package offers when it is first asked for: the package imports nothing."""
    if name in MODULES:
        return getattr(import_module(MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
