# SPDX-License-Identifier: Apache-2.0
"""The memory allocator of the C library, told to keep what was freed, for a time, and when to let go of it."""

from __future__ import annotations

import ctypes
import logging
import sys
from typing import Any

logger = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4  # malloc.h of the GNU C library
KEEP = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 512 * 2**20}
RELEASE = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20, M_TOP_PAD: 128 * 2**10}
"""The library's own values, with the thresholds that it comes to by itself where big blocks are freed."""

_kept = False
"""Whether KEEP is in force; the settings are the process's, and so is this."""


def keep_freed_memory() -> bool:
    """Let this process keep big blocks that were freed, instead of handing them back to the kernel.

    The GNU C library maps each big block anew and unmaps it when it is freed; a network on a CPU then spends much of
    its time on page faults. The same can be had for a whole process by the environment variables ``MALLOC_MMAP_MAX_=0
    MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=536870912``. Results stay the same to the bit; the process holds
    the memory of its peak until it ends or lets go, see the functions below. Source: mallopt(3).

    Returns:
        Whether the settings were taken; ``False`` where the C library is another one.
    """
    global _kept
    _kept = _set(KEEP)
    if not _kept:
        logger.info("the memory allocator of this system takes no settings; a CPU may be slower than it could be")
    return _kept


def stop_keeping_freed_memory() -> None:
    """Undo :func:`keep_freed_memory`, if it was called: from now on each big block goes back when it is freed.

    For the time when no network works: blocks of a volume's size do not fit into what is free between blocks in use,
    and memory would grow with every step of the way. Source: mallopt(3).
    """
    global _kept
    if _kept:
        _set(RELEASE)
        _kept = False


def release_freed_memory() -> bool:
    """Hand what is free at the moment back to the kernel. Source: malloc_trim(3).

    Returns:
        Whether anything could be handed back.
    """
    trim = _function("malloc_trim")
    return trim is not None and trim(ctypes.c_size_t(0)) == 1


def _set(settings: dict[int, int]) -> bool:
    mallopt = _function("mallopt")
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in settings.items())


def _function(name: str) -> Any:
    """A function of the C library, or ``None`` where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
