# SPDX-License-Identifier: Apache-2.0
"""Pages that show a folder of translations: the cohort, and each case with its volumes and plots."""

from contourdiff.report.pages import write_report, write_table_page
from contourdiff.report.run_record import RunReport
from contourdiff.report.server import serve

__all__ = ["RunReport", "serve", "write_report", "write_table_page"]
