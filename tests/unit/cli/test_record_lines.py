"""Lines of `send` and `tail`."""

from tidemill.cli.text.records import outcome_line, record_line
from tidemill.offline.send import Outcome

ROW = {"event_time": 0, "label_time": 0, "event_id": "7", "entity_id": "7", "model": "m", "version": 9, "label": "fog"}


def test_of_several_classes_the_one_that_is_predicted_is_named() -> None:
    answers = {"probabilities": {"rain": 0.25, "fog": 0.75}, "score": 0.75}
    sent = Outcome("7", "predicted", model="m", version=9, **answers)
    assert outcome_line(sent, "weather") == "7  predicted fog (0.75) by m@9"
    assert record_line("predictions", {**ROW, **answers}) == "1970-01-01 00:00:00  7  7  fog (0.75)  m@9"
    assert record_line("examples", {**ROW, **answers}).endswith("fog  predicted fog (0.75)  m@9")
    assert outcome_line(Outcome("7", "predicted", score=0.5, model="m"), "orders") == "7  predicted 0.5 by m@0"
