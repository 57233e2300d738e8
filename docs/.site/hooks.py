# SPDX-License-Identifier: Apache-2.0
"""Lay out the site as the repository is, so that links between its pages work as written; add a page per package."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugin" / "contourdiff"
OUTSIDE = ("README.md", "LICENSE", "bundles/contourdiff_ct2mr/docs/**/*")
"""Files beside ``docs`` that are part of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give every file its path in the repository, and add those outside ``docs`` and the pages of the API."""
    own = [file.abs_src_path for file in files if file.src_dir == config.docs_dir and file.inclusion.is_included()]
    paths = [Path(path) for path in own if path] + [path for name in OUTSIDE for path in ROOT.glob(name)]
    site = [file for file in files if file.src_dir != config.docs_dir]
    for path in filter(Path.is_file, paths):
        name = path.relative_to(ROOT).as_posix()
        site.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    site += [File.generated(config, f"api/{name}.md", content=text) for name, text in api().items()]
    return Files(site)


def api() -> dict[str, str]:
    """Text of a page for ``contourdiff`` and its modules, and one for each of its packages."""
    modules = sorted(path.stem for path in PACKAGE.glob("[!_]*.py"))
    top = ["::: contourdiff\n    options:\n      show_submodules: false\n"]
    pages = {"contourdiff": "\n".join(top + [f"::: contourdiff.{name}\n" for name in modules])}
    return pages | {path.parent.name: f"::: contourdiff.{path.parent.name}\n" for path in PACKAGE.glob("*/__init__.py")}
