# SPDX-License-Identifier: Apache-2.0
"""Load weights strictly, from files that hold tensors only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contourdiff.extras import import_extra
from contourdiff.limits import check_device

CONTRASTS_KEY = "class_embedding.weight"
"""Name of the contrasts' embedding among the weights: a row for each contrast."""


def start_weights(
    network: nn.Module,
    path: str | Path | None,
    device: torch.device | str | None = None,
    initial_contrasts: Sequence[str] | None = None,
    new_contrasts: Mapping[str, str] | None = None,
) -> nn.Module:
    """The network to train, on ``device``; with the weights of ``path``, if any.

    Args:
        network: that of the training.
        path: of weights to start from; errors are those of [`load_weights`][].
        device: of the training.
        initial_contrasts: contrasts of the weights, if not those of ``network``; see [`choose_contrasts`][].
        new_contrasts: contrasts of ``network`` that the weights lack, each with the one that it begins as.
    """
    check_device("device", device)
    if path:
        state = read_weights(path)
        if initial_contrasts is not None:
            contrasts = getattr(network, "contrasts", ())
            state = choose_contrasts(state, initial_contrasts, contrasts, new_contrasts or {})
        load_state(network, state, path)
    return network.train().to(device)


def choose_contrasts(
    state: Mapping[str, Tensor],
    initial_contrasts: Sequence[str],
    contrasts: Sequence[str],
    new_contrasts: Mapping[str, str],
) -> dict[str, Tensor]:
    """Weights for ``contrasts`` from those for ``initial_contrasts``: rows of the embedding are chosen.

    Args:
        state: weights of a [`ContourUNet`][contourdiff.networks.ContourUNet].
        initial_contrasts: of ``state``, in their order.
        contrasts: of the network to train.
        new_contrasts: name of a contrast that ``state`` lacks: the one that it begins as.

    Raises:
        ValueError: for a contrast that ``state`` lacks and that begins as none, or another number of contrasts.
    """
    embedding = state.get(CONTRASTS_KEY)
    count = 0 if embedding is None else len(embedding)
    if embedding is None or count != len(initial_contrasts):
        raise ValueError(
            f"expected weights of the {len(initial_contrasts)} contrasts {list(initial_contrasts)}, got weights of "
            f"{count}; correct initial_contrasts or initial_weights"
        )
    sources = [new_contrasts.get(name, name) for name in contrasts]
    unknown = sorted(set(sources) - set(initial_contrasts))
    if unknown:
        raise ValueError(
            f"expected contrasts that the weights know, {list(initial_contrasts)}, got {unknown}; "
            "name in new_contrasts what each begins as"
        )
    rows = [list(initial_contrasts).index(source) for source in sources]
    return {**state, CONTRASTS_KEY: embedding[rows]}


def load_weights(
    network: nn.Module, path: str | Path, device: torch.device | str | None = None
) -> nn.Module:
    """Load a state dict of tensors into ``network``, strictly, and return the network in evaluation mode.

    Half precision is cast to the network's. Errors are those of [`read_weights`][] and [`load_state`][].
    """
    load_state(network, read_weights(path), path)
    return network.eval().to(device)


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load ``state``, read from ``path``, strictly; errors are those of [`check_keys`][] and [`check_finite`][]."""
    check_keys(network.state_dict(), state, path)
    check_finite(state, path)
    network.load_state_dict(state, strict=True)


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
    try:
        if path.suffix == ".safetensors":
            state: Any = import_safetensors().load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of damaged files, torch.load raises errors of many kinds
        first_line = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"expected {path} to be an undamaged file of tensors (weights_only=True); reading it failed: {first_line}; "
            "copy or train it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"expected a state dict of tensors in {path}, got something else; save network.state_dict()"
        )
    return state


def check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path
) -> None:
    """Raise ``ValueError`` unless ``state``, read from ``path``, has the keys and shapes of ``expected``."""
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    common = sorted(expected.keys() & state.keys())
    reshaped = [key for key in common if expected[key].shape != state[key].shape]
    if missing or unknown or reshaped:
        raise ValueError(
            f"the weights in {path} are of another network: {len(missing)} keys missing {missing[:2]}, "
            f"{len(unknown)} unknown {unknown[:2]}, {len(reshaped)} of another shape {reshaped[:2]}; "
            "use the network_def that they were trained with"
        )


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ``ValueError`` for NaN or infinity in ``state``, read from ``path``."""
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"expected finite weights in {path}, got NaN or infinity in {broken[:2]}; copy or train it again"
        )


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file in hexadecimal, as recorded of the weights beside every translation."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_safetensors() -> Any:
    """``safetensors.torch``; ``ImportError`` that names what to install if it is missing."""
    return import_extra("safetensors.torch", "*.safetensors requires safetensors", "convert")
