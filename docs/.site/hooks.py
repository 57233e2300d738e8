# SPDX-License-Identifier: Apache-2.0
"""Lay out the site as the repository is, so that links between its pages work as written; add a page per package."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugin" / "contourdiff"
BUNDLE = "bundles/contourdiff_ct2mr"
OUTSIDE = ("README.md", "SECURITY.md", "LICENSE", f"{BUNDLE}/docs/**/*", f"{BUNDLE}/*/*.json")
OUTSIDE += ("plugin/contourdiff/**/*.py",)
"""Files outside ``docs`` that pages may link to."""


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
    block = "# {0}\n\n::: {0}\n    options:\n      show_root_heading: false\n      show_submodules: {1}\n"
    modules = [f"\n::: contourdiff.{path.stem}\n" for path in sorted(PACKAGE.glob("[!_]*.py"))]
    packages = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    pages = {name: block.format(f"contourdiff.{name}", "true") for name in packages}
    return {"contourdiff": block.format("contourdiff", "false") + "".join(modules), **pages}
