# SPDX-License-Identifier: Apache-2.0
"""Lay out the site as the repository is, so that links between its pages work as written; add a page per package."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
BUNDLE = "bundles/contourdiff_ct2mr"
MODEL = "bundles/contourdiff_vertebrae_mr"
OUTSIDE = (
    "README.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
    "CITATION.cff",
    "LICENSE",
    f"{BUNDLE}/docs/**/*",
    f"{BUNDLE}/*/*.json",
    f"{MODEL}/LICENSE",
    f"{MODEL}/docs/**/*",
    "plugin/contourdiff/**/*.py",
    "plugin/contourdiff_lab/**/*.py",
)
"""Files outside ``docs`` that pages may link to."""
PAGE = (
    "# {0}\n\n::: {0}\n    options:\n      show_root_heading: false\n      show_submodules: {1}\n"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give every file its path in the repository, and add those outside ``docs`` and the pages of the API."""
    site = []
    paths = []
    for file in files:
        if file.src_dir != config.docs_dir:
            site.append(file)
        elif file.abs_src_path and file.inclusion.is_included():
            paths.append(Path(file.abs_src_path))
    for pattern in OUTSIDE:
        paths.extend(ROOT.glob(pattern))
    for path in paths:
        if path.is_file():
            name = path.relative_to(ROOT).as_posix()
            site.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for package in ("contourdiff", "contourdiff_lab"):
        for name, text in api(package).items():
            site.append(File.generated(config, f"api/{name}.md", content=text))
    return Files(site)


def api(package: str) -> dict[str, str]:
    """Text of a page for a package and its modules, and one for each of its packages."""
    folder = ROOT / "plugin" / package
    text = PAGE.format(package, "false")
    for path in sorted(folder.glob("[!_]*.py")):
        text += f"\n::: {package}.{path.stem}\n"
    pages = {package: text}
    for path in sorted(folder.glob("*/__init__.py")):
        name = f"{package}.{path.parent.name}"
        pages[name] = PAGE.format(name, "true")
    return pages
