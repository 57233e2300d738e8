# SPDX-License-Identifier: Apache-2.0
"""Load weights strictly, from files that hold tensors only."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

# Raised by torch.load for files with changed or missing bytes.
DAMAGED: tuple[type[Exception], ...] = (
    pickle.UnpicklingError,
    struct.error,
    OSError,
    RuntimeError,
    EOFError,
)
DAMAGED += (ValueError, LookupError, TypeError, AttributeError, AssertionError)


def start_weights(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load the weights that a training starts from, strictly; without ``path`` the network is returned unchanged."""
    return load_weights(network, path).train() if path else network


def load_weights(
    network: nn.Module, path: str | Path, device: torch.device | str | None = None
) -> nn.Module:
    """Load a state dict of tensors into ``network``, strictly, and return the network in evaluation mode.

    Half precision is cast to the network's. The network is moved to ``device``, if one is given. Errors are those of
    [`read_weights`][] and [`check_keys`][], and ``ValueError`` for weights that are not finite.
    """
    state = read_weights(path)
    check_keys(network.state_dict(), state, path)
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(
            f"expected finite weights in {path}, got NaN or infinity in {broken[:2]}; copy or train it again"
        )
    network.load_state_dict(state, strict=True)
    return network.eval().to(device)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict of tensors of a file written by ``torch.save(network.state_dict(), path)``, or ``*.safetensors``.

    Raises ``FileNotFoundError`` if there is no file, ``ValueError`` if it is damaged or holds anything but tensors, and
    ``ImportError`` if safetensors is needed and missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected weights at {path}, found none; pass --ckpt_path or train a model first"
        )
    safetensors = import_safetensors() if path.suffix == ".safetensors" else None
    damaged = DAMAGED if safetensors is None else (*DAMAGED, safetensors.SafetensorError)
    try:
        state = (
            safetensors.torch.load_file(path)
            if safetensors
            else torch.load(path, "cpu", weights_only=True)
        )
    except damaged as error:
        first_line = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"expected {path} to be an undamaged file of tensors (weights_only=True); reading it failed: {first_line}; "
            "copy or train it again"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise ValueError(
            f"expected a state dict of tensors in {path}, got something else; save network.state_dict()"
        )
    return state


def count_parameters(path: str | Path) -> int:
    """Number of values in a file of weights; errors are those of [`read_weights`][]."""
    return sum(value.numel() for value in read_weights(path).values())


def check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raise ``ValueError`` unless ``state``, read from ``path``, has the keys and shapes of ``expected``."""
    missing, unknown = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    shapes = sorted(
        key for key in expected.keys() & state.keys() if expected[key].shape != state[key].shape
    )
    if missing or unknown or shapes:
        raise ValueError(
            f"the weights in {path} are of another network: {len(missing)} keys missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(shapes)} of another shape {shapes[:2]}; "
            "use the network_def that they were trained with"
        )


def import_safetensors() -> ModuleType:
    """``safetensors``; ``ImportError`` that names what to install if it is missing."""
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "*.safetensors requires safetensors: pip install 'contourdiff[convert]'"
        ) from error
    return safetensors


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, as recorded of the weights beside every translation."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
