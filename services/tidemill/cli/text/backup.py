"""What a backup has, or would have."""

from __future__ import annotations

from tidemill.cli.text.shared import count_of, new_table, render
from tidemill.runtime.backup import Backup


def backup_text(made: Backup) -> str:
    """Return what a backup has; of one that is not made yet, offsets instead of records.

    Gaps are those of the partition that has most: a restore takes as many rounds as the topic with most.
    """
    table = new_table("topic", "partitions", "records" if made.is_done else "offsets", "gaps", numbers=3)
    for name, logs in made.logs.items():
        gaps = f"{max(log.gaps for log in logs):,}" if made.is_done else ""
        table.add_row(name, str(len(logs)), f"{sum(log.records for log in logs):,}", gaps)
    lines = [
        f"consumer groups: {', '.join(made.groups) or 'none'}",
        *([f"RUNNING, stop them until the cut is made: {', '.join(made.running)}"] if made.running else []),
        f"Redis: {', '.join(f'{view} {keys:,}' for view, keys in made.views.items() if keys) or 'no'} keys",
        "artifacts: none, for no key verifies manifests (TIDEMILL_VERIFY_KEYS); models are made again from examples"
        if made.artifacts is None
        else count_of(len(made.artifacts), "artifact"),
    ]
    return render(table) + "\n" + "\n".join(lines) + "\n"
