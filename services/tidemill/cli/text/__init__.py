"""What people are shown: as text for a terminal, and as JSON. A file for each kind of thing."""

from tidemill.cli.text.artifacts import pruned_json, pruned_text, rebuilt_json, rebuilt_text
from tidemill.cli.text.dead_letters import (
    letter_json,
    letter_text,
    letters_text,
    redrive_text,
    stats_json,
    stats_text,
)
from tidemill.cli.text.decisions import decision_json, decisions_text
from tidemill.cli.text.declaration import as_json, as_text, check_models, topics_text
from tidemill.cli.text.models import comparison_json, comparison_text, version_json, version_text, versions_text
from tidemill.cli.text.predictions import again_text, prediction_text, unequal_text
from tidemill.cli.text.reports import dataset_text, known_text, report_json, report_text
from tidemill.cli.text.shared import printable
from tidemill.cli.text.suggestions import suggestions_text
from tidemill.cli.text.tuning import tuning_json, tuning_text

__all__ = [
    "again_text",
    "as_json",
    "as_text",
    "check_models",
    "comparison_json",
    "comparison_text",
    "dataset_text",
    "decision_json",
    "decisions_text",
    "known_text",
    "letter_json",
    "letter_text",
    "letters_text",
    "prediction_text",
    "printable",
    "pruned_json",
    "pruned_text",
    "rebuilt_json",
    "rebuilt_text",
    "redrive_text",
    "report_json",
    "report_text",
    "stats_json",
    "stats_text",
    "suggestions_text",
    "topics_text",
    "tuning_json",
    "tuning_text",
    "unequal_text",
    "version_json",
    "version_text",
    "versions_text",
]
