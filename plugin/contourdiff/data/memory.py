# SPDX-License-Identifier: Apache-2.0
"""What fits into the memory of this machine."""

from __future__ import annotations

import os


def physical_memory() -> int:
    """Bytes of memory of this machine; 0 where that is unknown."""
    if not hasattr(os, "sysconf"):
        return 0
    return max(0, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_memory(size: int, what: str) -> None:
    """Raise ``ValueError`` if ``size``, in bytes, exceeds the memory of this machine, where that is known."""
    memory = physical_memory()
    if size > memory > 0:
        got = f"{what}, which takes {size / 1e9:.1f} GB or more of {memory / 1e9:.1f} GB"
        raise ValueError(
            f"expected a volume that fits into memory, got {got}; crop it, or check its voxel size"
        )
