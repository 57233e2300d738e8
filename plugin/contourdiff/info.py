# SPDX-License-Identifier: Apache-2.0
"""What is installed: versions, devices, weights."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from contourdiff import __version__
from contourdiff.bundle import find_bundle
from contourdiff.inference.outputs import PACKAGES
from contourdiff.limits import SettingError, check_device
from contourdiff.weights import sha256_of


def installation(bundle: str | Path | None = None) -> dict[str, str]:
    """Versions, devices, and the bundle's weights with their SHA-256, as text."""
    root = find_bundle(bundle)
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        devices.append(torch.cuda.get_device_name(index))
    return {
        "contourdiff": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "devices": ", ".join(devices),
        "bundle": str(root),
        **{path.name: sha256_of(path) for path in sorted((root / "models").glob("*.pt"))},
    }


def usable_device(device: torch.device | str) -> torch.device:
    """A device by name; ``ValueError`` if torch cannot use it, or it is Apple's MPS, which has no float64."""
    check_device("device", device)
    try:
        return torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingError(
            f"expected a device that torch can use, got {str(device)!r}: {reason}; pass cpu"
        ) from error
