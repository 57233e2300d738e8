# SPDX-License-Identifier: Apache-2.0
"""Settings by name and value, and errors of components as one line; tests/hostile tries every setting."""

from __future__ import annotations

import pytest

from contourdiff.config_checks import check_names, check_values, plain_errors, references


def test_limits_belong_to_the_range() -> None:
    check_values(
        {
            "seed": 0,
            "fidelity_limit": 1,
            "filter_classes": 5,
            "batch_size": None,
            "axcodes": "PIL",
            "mine": "x",
        }
    )
    with pytest.raises(
        ValueError, match="expected filter_classes to be a whole number from 2 to 5, got 6"
    ):
        check_values({"filter_classes": 6})


def test_names_and_references() -> None:
    check_names(["seed", "_meta_", "// note", "network_def#channels"], ["seed", "network_def"])
    with pytest.raises(ValueError, match="got 'sed'; did you mean seed"):
        check_names(["sed"], ["seed", "device"])
    assert list(references({"a": "@b", "c": ["$@d + 1", "%e"]})) == ["b", "d", "e"]


def test_a_fault_of_an_entry_is_one_line_and_a_fault_of_the_program_is_not_hidden() -> None:
    with (
        pytest.raises(ValueError, match=r"^expected a config that can be built, got KeyError"),
        plain_errors(),
    ):
        raise RuntimeError("Failed to evaluate this") from KeyError("x")
    with pytest.raises(OSError, match="gone"), plain_errors():
        raise RuntimeError("Failed to instantiate this") from OSError("gone")
    with pytest.raises(RuntimeError, match="a fault"), plain_errors():
        raise RuntimeError("a fault")
