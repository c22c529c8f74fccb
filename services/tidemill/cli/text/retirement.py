"""What a pipeline has, before it is retired."""

from __future__ import annotations

from tidemill.cli.text.shared import count_of, new_table, render
from tidemill.runtime.down import Retirement


def retirement_text(plan: Retirement) -> str:
    """Return what there is to delete, and what stays."""
    table = new_table("topic", "offsets", numbers=1)
    for name, records in plan.topics.items():
        table.add_row(name, f"{records:,}")
    lines = [
        f"consumer groups: {', '.join(plan.groups) or 'none'}",
        *([f"RUNNING, stop them first: {', '.join(plan.running)}"] if plan.running else []),
        f"Redis: {', '.join(f'{view} {keys:,}' for view, keys in plan.views.items() if keys) or 'no'} keys",
        "artifacts: not looked at, for no key verifies manifests: set TIDEMILL_VERIFY_KEYS"
        if plan.artifacts is None
        else f"{count_of(len(plan.artifacts), 'artifact')}, {plan.bytes:,} bytes",
        f"stay: {', '.join([*plan.others, 'the archive'])}",
    ]
    return render(table) + "\n" + "\n".join(lines) + "\n"
