# SPDX-License-Identifier: Apache-2.0
"""CITATION.cff has what its format (Citation File Format 1.2.0) requires, and the version of the package."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from contourdiff import __version__
from helpers.paths import REPOSITORY


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_has_the_required_keys(citation: dict[str, Any]) -> None:
    assert citation["cff-version"] == "1.2.0"
    for key in ("message", "title", "authors"):
        assert citation[key]
    assert citation["type"] == "software"


def test_the_citation_names_version_and_license_of_the_package(citation: dict[str, Any]) -> None:
    assert citation["version"] == __version__
    license_text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert citation["license"] == "Apache-2.0"
    assert "Apache License" in license_text


def test_every_reference_has_the_required_keys(citation: dict[str, Any]) -> None:
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        for author in reference["authors"]:
            assert {"family-names", "given-names"} == author.keys()


def test_the_paper_is_cited(citation: dict[str, Any]) -> None:
    (paper,) = citation["references"]
    assert "2403.10786" in paper["url"]
    assert len(paper["authors"]) == 8
