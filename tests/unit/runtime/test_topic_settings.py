"""Which changes of a topic's settings delete records, and which options go with which."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from tidemill.cli.main import cli
from tidemill.errors import SettingsError
from tidemill.runtime import topic_settings


@pytest.mark.parametrize("words", [("--dry-run",), ("--yes",), ("--create", "--yes")])
def test_options_that_go_with_others_are_refused_without_them(words: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match="--dry-run goes with"):
        CliRunner().invoke(cli, ["topics", "flights", *words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("setting", "value", "becomes", "deletes"),
    [
        ("retention.ms", "-1", "5", True),
        ("retention.ms", "6", "5", True),
        ("retention.ms", "5", "6", False),
        ("retention.ms", "5", "-1", False),
        ("cleanup.policy", "compact", "delete", True),
        ("cleanup.policy", "delete", "compact", True),
        ("max.message.bytes", "9", "5", False),
    ],
)
def test_which_changes_delete_records(setting: str, value: str, becomes: str, deletes: bool) -> None:
    assert topic_settings._deletes(setting, value, becomes) is deletes
