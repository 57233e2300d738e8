# SPDX-License-Identifier: Apache-2.0
"""What pip installs for the tests is compared with the committed list of archives."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from helpers import REPOSITORY

TEXT = (REPOSITORY / ".ci" / "locked.txt").read_text()
HERE = (
    f"of {sys.platform} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor};"
    in TEXT
)
LOCKED = {
    name: (version, hashes.split(" --hash=sha256:"))
    for name, version, hashes in re.findall(r"^(\S+)==(\S+) --hash=sha256:(.+)$", TEXT, re.M)
}


def audit(folder: Path, archives: dict[str, tuple[str, str]]) -> tuple[int, list[str]]:
    """Status and errors for a report of pip with these versions and hashes, and this package's folder."""
    items = [
        {
            "metadata": {"name": name, "version": version},
            "download_info": {"archive_info": {"hashes": {"sha256": sha}}},
        }
        for name, (version, sha) in archives.items()
    ]
    items.append(
        {"metadata": {"name": "contourdiff", "version": "1"}, "download_info": {"dir_info": {}}}
    )
    (folder / "report.json").write_text(json.dumps({"install": items}))
    command = [
        sys.executable,
        str(REPOSITORY / ".ci" / "audit"),
        "--offline",
        str(folder / "report.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()


def test_archives_of_the_list_pass_and_all_others_fail_with_a_line(tmp_path: Path) -> None:
    archives = {name: (version, hashes[-1]) for name, (version, hashes) in LOCKED.items()}
    assert audit(tmp_path, archives) == (0, [])
    assert audit(
        tmp_path, {"PyYAML": archives["pyyaml"], "typing_extensions": archives["typing-extensions"]}
    ) == (
        0,
        [],
    )
    changed = {
        "fire": (archives["fire"][0], "0" * 64),
        "torch": ("1.0+cpu", "0" * 64),
        "unheard-of": ("1", "0" * 64),
    }
    status, errors = audit(tmp_path, {**archives, **changed})
    renew = "; if that is right, run .ci/audit --renew and commit .ci/locked.txt"
    assert status == 1
    replaced = f"audit: fire {archives['fire'][0]}: expected a hash of the list, got sha256:{'0' * 64}{renew}"
    assert errors == [
        *([replaced] if HERE else []),  # elsewhere other archives are right
        f"audit: torch: expected {archives['torch'][0]}, got 1.0{renew}",
        f"audit: unheard-of: expected no such package, got 1{renew}",
    ]


def test_the_list_has_the_versions_of_the_constraints() -> None:
    """A constraint that changes without the list would fail only where the archives are compared."""
    lines = re.findall(r"^([^#=\s]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}
    assert {name: version for name, (version, _) in LOCKED.items() if pinned[name] != version} == {}
