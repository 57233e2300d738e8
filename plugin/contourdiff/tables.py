# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with its header, a line each, without a line break at the end.

    Raises ``ValueError`` for a row that is not as long as the header.

    Examples:
        >>> print(markdown_table(["slice", "mean"], [[3, "88.1"]]))
        | slice | mean |
        |---|---|
        | 3 | 88.1 |
    """
    lines = []
    for cells in (header, *rows):
        if len(cells) != len(header):
            raise ValueError(
                f"expected {len(header)} cells in a row, got {len(cells)}: {list(cells)}"
            )
        text = " | ".join(str(cell) for cell in cells)
        lines.append(f"| {text} |")
    lines.insert(1, "|" + "---|" * len(header))
    return "\n".join(lines)
