# SPDX-License-Identifier: Apache-2.0
"""Run a config that is not of the installed bundle only after the user has accepted it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from contourdiff.bundle import find_bundle
from contourdiff.weights import sha256_of

SHOWN_CONFIGS = 3


def check_trust(bundle: str | Path | None, overlays: Sequence[str], accepted: str | None) -> None:
    """Refuse configs that can run code, unless they are the installed bundle's, or accepted by their digest.

    Args:
        bundle: another folder of a bundle; all its configs count.
        overlays: overlays by name or path; the paths count.
        accepted: digest of these configs, from the error of an earlier call.

    Raises:
        ValueError: with the names of the configs and their digest.
    """
    files = [Path(name) for name in overlays if name.endswith(".json")]
    if bundle is not None:
        files += sorted((find_bundle(bundle) / "configs").glob("*.json"))
    installed = {path.read_bytes() for path in (find_bundle() / "configs").glob("*.json")}
    foreign = []
    for path in files:
        if path.is_file() and path.read_bytes() not in installed and _can_run_code(path):
            foreign.append(path)
    digest = config_digest(foreign)
    if foreign and digest != accepted:
        names = ", ".join(map(str, foreign[:SHOWN_CONFIGS]))
        if len(foreign) > SHOWN_CONFIGS:
            names += f" and {len(foreign) - SHOWN_CONFIGS} more"
        raise ValueError(
            f"expected configs of the installed bundle, got {names}, which can run any code; read them, and if you "
            f"trust them add --trust-config {digest}"
        )


def config_digest(files: Iterable[Path]) -> str:
    """SHA-256 of names and contents of configs, in order."""
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _can_run_code(path: Path) -> bool:
    """Whether a config has an expression, a component, or a macro, which may include another file; or is no JSON."""
    try:
        return _has_code(json.loads(path.read_bytes()))
    except ValueError:
        return True


def _has_code(config: Any) -> bool:
    if isinstance(config, str):
        return config.lstrip().startswith(("$", "%"))
    if isinstance(config, dict):
        return any("_target_" in name or _has_code(value) for name, value in config.items())
    if isinstance(config, list):
        return any(_has_code(value) for value in config)
    return False
