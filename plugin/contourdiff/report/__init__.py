# SPDX-License-Identifier: Apache-2.0
"""Pages that show a folder of translations: the cohort, and each case with its volumes and plots."""

from contourdiff.report.pages import command_line, run_report, write_markdown_page, write_report
from contourdiff.report.server import serve

__all__ = ["command_line", "run_report", "serve", "write_markdown_page", "write_report"]
