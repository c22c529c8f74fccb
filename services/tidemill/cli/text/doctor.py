"""Findings of the doctor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tidemill.cli.text.shared import new_table, render
from tidemill.runtime.doctor import Finding


def differences_text(servers: str, findings: Sequence[Finding]) -> str:
    """Return the table of how topics differ from their declaration, with the fixes."""
    if not findings:
        return f"\nthe topics at {servers} are as declared\n"
    return f"\nthe topics at {servers} differ\n" + render(_table(findings))


def findings_text(findings: Sequence[Finding], examined: int) -> str:
    """Return the table of findings; `examined` is how many things were looked at."""
    wrong = sum(finding.level == "wrong" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    summary = f"{examined} examined, {wrong} wrong, {warnings} {'warning' if warnings == 1 else 'warnings'}"
    if not findings:
        return f"{summary}\n"
    return render(_table(findings), summary)


def _table(findings: Sequence[Finding]) -> Table:
    table = new_table("", "what", "value", "expected", "fix")
    for one in findings:
        table.add_row(one.level, one.what, one.value, one.expected, one.fix)
    return table
