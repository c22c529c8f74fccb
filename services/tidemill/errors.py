"""Every error Tidemill raises, in one tree.

The class decides what the loop does with an error: `Reject` sends the message to the dead-letter topic, `Retry` and
`Aborted` go back to what is committed and back off, `Refused` has the one record found and made a dead letter, anything
else ends the process with the error, and the orchestrator starts it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Characters of an error's text that may quote what somebody else wrote.
MAX_QUOTING_CHARACTERS = 1_000


class TidemillError(Exception):
    """Base of all our errors. Its text names the thing, its value, what was expected and what to do."""

    #: What a service answers over HTTP where it is raised.
    http_status = 503


def printable(text: str, *, keeps: str = "") -> str:
    """Return text without control characters, but those to keep: a terminal would obey what anybody may send."""
    return "".join(c if c.isprintable() or c in keeps else c.encode("unicode_escape").decode() for c in text)


def in_one_line(text: str) -> str:
    """Return a text that may quote anything: in one line, printable, and cut."""
    line = " ".join(text[: 2 * MAX_QUOTING_CHARACTERS].split())
    line = printable(line)
    return line if len(line) <= MAX_QUOTING_CHARACTERS else line[: MAX_QUOTING_CHARACTERS - 1] + "…"


def described(error: Exception) -> str:
    """Return an error of somebody else's code in one line: its type, and its text where it has one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class DeclarationError(TidemillError):
    """The pipeline's Python file can't be loaded or says something impossible."""


class SettingsError(TidemillError):
    """A setting is missing or has a value that can't be used."""


class BrokerError(TidemillError):
    """Kafka can't be reached, or refused a request."""


class ArtifactError(TidemillError):
    """A model artifact or its manifest is corrupted, forged or made by something else. It was not unpickled.

    Its text may quote what is in there, whoever wrote it: so it is one line of bounded length.
    """

    def __init__(self, message: str) -> None:
        super().__init__(in_one_line(message))


class VersionsError(TidemillError):
    """A model's versions can't be continued from what is left of log and store: a person decides how it goes on."""


class ScoreError(ArtifactError):
    """A model's output is no valid score of its task: it has diverged. No version of it is published or opened."""


class UnknownOutcome(BrokerError):
    """Kafka has not said whether something was written, so it may be."""

    http_status = 504


class Fenced(BrokerError):
    """Another process has taken this one's place: nothing it still holds may be written."""


class Aborted(BrokerError):
    """The transaction could not be committed; the loop goes back to what Kafka has committed."""


class Refused(Aborted):
    """Kafka will never take a record as it is: it is too large, or invalid.

    `records` are those from which it came where the producer knows them, and has sent all else. `is_early`: nothing was
    sent, for its size is known to be too large; it came from the record in hand. `next_is_early`: when it is tried
    again. Else the loop finds it.
    """

    def __init__(
        self, message: str, records: Sequence[Any] = (), *, is_early: bool = False, next_is_early: bool = False
    ) -> None:
        super().__init__(message)
        self.records, self.is_early, self.next_is_early = records, is_early, next_is_early


class NotAllowed(BrokerError):
    """Kafka does not allow what the service has to do: it ends, and a person grants it."""


class StoreNotAllowed(TidemillError):
    """Redis does not allow what the service has to do: it ends, and a person grants it."""


class PositionError(TidemillError):
    """From where a service goes on can't be known: its offsets, or records that it has processed, were taken away."""


class TopicError(TidemillError):
    """A topic is not as it is declared: what would be read or written would be at a wrong place."""


class Retry(TidemillError):
    """Something outside is unavailable for the moment: back off, commit nothing, try the same records again."""


class StoreError(Retry):
    """Redis or the artifact store can't be reached, or refused a request."""


class Stopped(TidemillError):
    """A step stops. Its work up to `positions` (next offset by partition) is committed, and the service ends."""

    def __init__(self, message: str, positions: Mapping[Any, int]) -> None:
        super().__init__(message)
        self.positions = positions


class Reject(TidemillError):
    """One message is wrong: it goes to the dead-letter topic with its original bytes.

    Parameters
    ----------
    reason
        A word from a closed set, for counting (`out_of_range`, `truncated`, ...).
    message
        One sentence for a person: name, value, expectation.
    rule, field, value
        The rule that failed, the field that it looked at, and the field's value.
    entity
        The id of the message's entity, where it is known.
    """

    def __init__(
        self, reason: str, message: str, *, rule: str = "", field: str = "", value: object = None, entity: str = ""
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.rule = rule
        self.field = field
        self.value = value
        self.entity = entity
