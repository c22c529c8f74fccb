"""Whether topics are as they are declared: by their number of partitions keys are placed, and state is split.

A topic that gets more partitions while it is used puts the records of one key into two of them: views forget, and
predictions miss their labels. So who reads or writes it looks now and then, and stops.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tidemill.errors import TopicError
from tidemill.stream.api import Broker, TopicState

NOTHING_DECLARED: Mapping[str, int] = MappingProxyType({})
#: How often topics are looked at, and how long that may take.
TOPIC_CHECK_SECONDS = 10.0
TOPIC_CHECK_TIMEOUT = 1.0

PLACED_BY_NUMBER = "keys are placed by their number, so records of one key would be in two of them"

log = logging.getLogger(__name__)

#: A broker that has just started may not know a topic yet: one that is missing for so long is gone.
MISSING_SECONDS = 15.0


def other_partitions(name: str, actual: int, declared: int) -> str:
    """Return what is wrong with a topic of another number of partitions, and what to do."""
    return f"{_differs(name, actual, declared)}: {PLACED_BY_NUMBER}. {other_partitions_fix(actual)}"


def _differs(name: str, actual: int, declared: int) -> str:
    return f"topic {name} has {actual} partitions where {declared} are declared"


def other_partitions_fix(actual: int) -> str:
    """Return what to do about a topic with `actual` partitions where others are declared."""
    return (
        f"Declare partitions={actual} if the pipeline's topics were all created so; if this one was changed since, "
        f"delete it while nothing needs it and create it again, or move to new topics with `tidemill grow`"
    )


class DeclaredTopics:
    """Topics with their declared partitions, held to what the cluster says.

    Parameters
    ----------
    declared
        The number of partitions by topic.
    """

    def __init__(
        self, broker: Broker, declared: Mapping[str, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.broker, self.declared, self.clock = broker, declared, clock
        self._ids: dict[str, str] = {}
        self._missing_since: dict[str, float] = {}

    def check(self, timeout: float = 10.0) -> Mapping[str, TopicState]:
        """Return the topics as they are. Raises TopicError where any is gone or has other partitions, or BrokerError.

        One that was created again as declared is only logged: whoever reads it decides what that means.
        """
        if not self.declared:
            return {}
        states, wrong, fixes = self.broker.topic_states(sorted(self.declared), timeout), list[str](), dict[str, None]()
        for name, declared in self.declared.items():
            state = states.get(name)
            if state is None:
                if self.clock() - self._missing_since.setdefault(name, self.clock()) > MISSING_SECONDS:
                    wrong.append(f"topic {name} was deleted while it was used")
                    fixes["Create what was deleted again, as `tidemill topics PIPELINE --create` does"] = None
                continue
            self._missing_since.pop(name, None)
            if not state.id:
                continue  # nobody was there to ask: librdkafka's mock cluster
            if state.partitions != declared:
                wrong.append(_differs(name, state.partitions, declared))
                fixes[f"{PLACED_BY_NUMBER[0].upper()}{PLACED_BY_NUMBER[1:]}"] = None
                fixes[other_partitions_fix(state.partitions)] = None
                continue
            if self._ids.setdefault(name, state.id) != state.id:
                log.error("a topic was deleted and created again while it was used", extra={"topic": name})
                self._ids[name] = state.id
        if wrong:
            raise TopicError(f"{'; '.join(wrong)}. {'. '.join(fixes)}")
        return states
