"""What is declared personal is seen by those alone who have the right to, wherever records are shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import site_by_hand
import small
from fastapi.testclient import TestClient
from gateway_in_memory import HOLDERS, READERS_KEY, Shop
from river import compose
from river_in_memory import River
from site_by_hand import ADMINS_TOKEN, TOKEN, VIEWERS_TOKEN, Site
from test_status_access import ROUTES, bearer

from tidemill import Monitor, Stream, category, number, rules
from tidemill.cli.text.dead_letters import letter_text, letters_text, stats_text
from tidemill.cli.text.predictions import prediction_text
from tidemill.cli.text.records import RecordTable
from tidemill.cli.text.reports import known_text
from tidemill.cli.text.suggestions import suggestions_text
from tidemill.errors import DeclarationError
from tidemill.features.store import Known
from tidemill.offline.dead_letters import DeadLetters, LetterFilter, content
from tidemill.offline.replay import Replay
from tidemill.offline.suggest import profiles
from tidemill.offline.suggest.core import suggest
from tidemill.offline.tail import reader
from tidemill.tokens import Holder, Permission, Role, Tokens, parse_holders, token_hash
from tidemill.watch.notifier.notices import Notices
from tidemill.wire import topics
from tidemill.wire.dead_letters import producer_headers
from tidemill.wire.personal import HIDDEN, Mask

PERSONAL = ("origin", "tailnum", "dest")
KEY_MARK, TAIL_MARK, DEST_MARK, LABEL_MARK = "KEYMARK", "TAILMARK", "DESTMARK", 1234.5
MARKS = (KEY_MARK, TAIL_MARK, DEST_MARK, str(LABEL_MARK))
PIPELINE = small.make(
    name="flights",
    events=replace(small.EVENTS, personal=PERSONAL),
    labels=replace(small.LABELS, personal=("arr_delay",)),
    rules=[rules.between("sched_hour", 0, 23), rules.matches("tailnum", "[A-Z]+"), rules.one_of("dest", ["LAX"], warn=True)],
    request={"distance": number("distance"), "to": category("dest"), "plane": category(lambda event: event["tailnum"])},
    models={"linear": compose.Select("distance") | small.linear()},
)  # fmt: skip


def event(number_: int, **more: Any) -> dict[str, Any]:
    values = {"tailnum": TAIL_MARK, "dest": DEST_MARK, **more}
    return {**small.event(f"e{number_}", number_ * 10_000, KEY_MARK, 100.0 + number_), **values}


@pytest.fixture(scope="module")
def river(tmp_path_factory: pytest.TempPathFactory) -> River:
    """A river with marks in every personal field, of what passed and of what was refused, and why."""
    river = River(PIPELINE, tmp_path_factory.mktemp("personal"))
    for number_ in range(12):
        river.event(event(number_))
    refused: list[bytes] = [
        json.dumps(event(20, sched_hour=99)).encode(),
        json.dumps(event(21, tailnum=f"{TAIL_MARK}-1")).encode(),
        json.dumps(event(22, tailnum=[TAIL_MARK])).encode(),
        json.dumps({**event(23), f"{TAIL_MARK}s": 1}).encode(),
        json.dumps({**event(24), "distance": TAIL_MARK}).encode(),
        json.dumps(event(25)).encode()[:-5],
        river.records.event.encode(event(26))[:-3],
        f"\0no record of {KEY_MARK} {TAIL_MARK}".encode(),
    ]
    for data in refused:
        river.broker.append("flights.events", data, KEY_MARK.encode(), headers=[("who", TAIL_MARK.encode())])
    for number_ in range(10):
        river.label(small.label(f"e{number_}", number_ * 10_000 + 5, LABEL_MARK))
    river.label(small.label("e1", 10_006, LABEL_MARK + 1_000_000))
    river.run()
    assert len(river.letters("validator")) == len(refused) + 1
    assert len(river.of(topics.EXAMPLES)) == 10
    return river


def marks_in(shown: str) -> list[str]:
    return [mark for mark in MARKS if mark in shown]


@pytest.mark.slow
class TestCommands:
    def texts(self, river: River, *, shows_personal: bool) -> Iterator[str]:
        """What the commands print, as text and as JSON."""
        letters = DeadLetters(PIPELINE, river.broker, shows_personal=shows_personal)
        newest = letters.last(LetterFilter(), 100)
        yield letters_text(letters, newest)
        yield json.dumps([letters.as_dict(letter) for letter in newest])
        stats = letters.stats(LetterFilter(), by_entity=True)
        yield stats_text(letters, stats) + json.dumps(stats.as_dict())
        for letter in newest:
            whole, record = letters.one(letter.place)
            inside = content(PIPELINE, whole, record.value() or b"", shows_personal=shows_personal)
            headers = producer_headers(record) if shows_personal else []
            yield letter_text(letters.shown(whole), letters, headers, [], inside)
        for what, topic in (("dlq", topics.DLQ), ("predictions", topics.PREDICTIONS), ("examples", topics.EXAMPLES)):
            read = reader(PIPELINE, what, shows_personal=shows_personal)
            for record in river.of(topic):
                row = read(record)
                assert row is not None
                yield json.dumps(row, default=str) + RecordTable(what, PIPELINE.entity).line(row)
        assert river.registry
        replayed = Replay(PIPELINE, river.broker, river.registry).report(["e1", "e11"], shows_personal=shows_personal)
        for one in replayed.predictions:
            yield prediction_text(PIPELINE, one) + json.dumps(one, default=str)

    def test_no_command_prints_them_without_the_option(self, river: River) -> None:
        for text in self.texts(river, shows_personal=False):
            assert marks_in(text) == [], text

    def test_with_the_option_they_are_there(self, river: River) -> None:
        assert {mark for text in self.texts(river, shows_personal=True) for mark in marks_in(text)} == {*MARKS}

    def test_why_something_was_refused_is_written_without_them(self, river: River) -> None:
        """So no log, trace, report or alert that quotes a reason has them, whoever reads it."""
        for record in river.of(topics.DLQ):
            ours = {name: data for name, data in record.headers() or [] if name != "who"}
            assert marks_in(repr(ours)) == []
        fields = {letter.field for letter in river.letters("validator")}
        assert {"sched_hour", "tailnum", "distance", HIDDEN} <= fields
        assert any("99 where" in letter.message for letter in river.letters("validator")), "of others it is told"

    def test_nor_have_warnings_and_notices_them(self, river: River) -> None:
        notices = Notices(PIPELINE, None)
        warned = river.of(topics.WARNINGS)
        assert warned
        for record in warned:
            shown = json.dumps(river.records.warnings.of(record.value())) + repr(notices.of(record))
            assert marks_in(shown) == []


@pytest.mark.slow
class TestServices:
    @pytest.fixture
    def site(self, river: River, monkeypatch: pytest.MonkeyPatch) -> Site:
        monkeypatch.setattr(site_by_hand, "FLIGHTS", PIPELINE)
        site = Site()
        site.lookup.broker = river.broker
        site.redis = {
            KEY_MARK: {"event_time": "1000", "origin_distinct_carrier_5m": "2", "origin_top_share_dest_5m": "1"}
        }
        for record in river.of(topics.DLQ):
            site.follower._letter(record)
        return site

    def answers(self, site: Site, token: str | None) -> Iterator[str]:
        filled = {
            "model": "linear", "command_id": "12345678", "event_id": "e1", "entity_id": KEY_MARK, "alert": "drift:distance",
        }  # fmt: skip
        for route in ROUTES:
            if route.methods != {"GET"} or route.path == "/api/live":
                continue
            answer = site.client.get(route.path.replace(":path", "").format(**filled), headers=bearer(token))
            assert answer.status_code in (200, 404), answer.text
            yield f"{route.path} {answer.text}"

    @pytest.mark.parametrize("token", [None, VIEWERS_TOKEN, TOKEN], ids=["anybody", "viewer", "operator"])
    def test_no_route_of_the_status_service_shows_them(self, site: Site, token: str | None) -> None:
        for text in self.answers(site, token):
            assert marks_in(text) == [], text

    def test_who_has_the_right_sees_them(self, site: Site) -> None:
        seen = {mark for text in self.answers(site, ADMINS_TOKEN) for mark in marks_in(text)}
        assert seen == {*MARKS}
        holder = Holder("vera", Role.VIEWER, personal=True)
        site.app.state.parts.access.tokens = Tokens({token_hash(VIEWERS_TOKEN): holder})
        assert {mark for text in self.answers(site, VIEWERS_TOKEN) for mark in marks_in(text)} == seen

    def test_the_gateway_shows_them_to_keys_with_the_right_alone(self) -> None:
        with Shop(PIPELINE) as shop:
            shop.predict(event(1))
            features = {"entities": {"origin": [KEY_MARK]}}

            def texts(client: TestClient, key: str) -> str:
                answers = [
                    client.get(path, headers=bearer(key))
                    for path in ("/v1/predictions/e1", "/v1/predictions/e1?log=true", "/v1/journeys/e1", "/v1/example")
                ]
                answers.append(client.post("/v1/features", json=features, headers=bearer(key)))
                answers.append(client.post("/v1/what-if", json=event(2), headers=bearer(key)))
                assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
                return "\n".join(answer.text for answer in answers)

            assert marks_in(texts(shop.client, READERS_KEY)) == []
            permission = HOLDERS[READERS_KEY].role
            assert isinstance(permission, Permission)
            holder = Holder("screen", permission, personal=True)
            shop.gateway.access.tokens = Tokens({token_hash(READERS_KEY): holder})
            assert set(marks_in(texts(shop.client, READERS_KEY))) == {KEY_MARK, TAIL_MARK, DEST_MARK}


def test_nothing_is_suggested_of_their_values() -> None:
    rows = [event(number_) for number_ in range(2_000)]
    made = suggest(PIPELINE, "rules", profiles.of_rows(PIPELINE.events, (), rows))
    shown = suggestions_text(made) + json.dumps(made.as_dict(), default=str)
    assert marks_in(shown) == []
    assert "it is personal" in shown
    assert any(one.suggestions for one in made.fields), "of others there is something"


def test_features_of_an_entity_are_shown_without_those_made_of_them() -> None:
    values = {"origin_count_5m": 7.0, "origin_top_share_dest_5m": 0.125}
    known = Known("origin", 1, 1, whole=True, features=values)
    shown = known_text([known.masked(Mask(PIPELINE).vector)])
    assert "7" in shown
    assert HIDDEN in shown
    assert "0.125" not in shown


def test_what_a_model_raises_is_logged_without_what_it_quotes() -> None:
    error = ValueError(f"could not convert string to float: {TAIL_MARK!r}")
    assert Mask(PIPELINE).error(error) == "ValueError"
    assert TAIL_MARK in Mask(small.make()).error(error)


class TestDeclaration:
    def test_a_property_of_the_schema_says_the_same(self, tmp_path: Path) -> None:
        inner = {"type": "record", "name": "P", "fields": [{"name": "mail", "type": "string", "personal": True}]}
        avro = {
            "type": "record", "name": "E",
            "fields": [
                {"name": "id", "type": "string"}, {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
                {"name": "name", "type": "string", "personal": True}, {"name": "who", "type": ["null", inner]},
                {"name": "size", "type": "double"},
            ],
        }  # fmt: skip
        (tmp_path / "e.avsc").write_text(json.dumps(avro))
        stream = Stream(str(tmp_path / "e.avsc"), personal=["size"])
        assert stream.personal_fields == {"name", "who", "size"}

    @pytest.mark.parametrize(
        ("personal", "words"),
        [(("plane",), "'plane' is not a field"), (("flight_id",), "is the id"), (("asked_at",), "is the time")],
    )
    def test_what_can_not_be_personal_is_refused(self, personal: tuple[str, ...], words: str) -> None:
        with pytest.raises(DeclarationError, match=words):
            small.make(events=replace(small.EVENTS, personal=personal))

    def test_a_personal_field_is_no_segment(self) -> None:
        with pytest.raises(DeclarationError, match="'carrier' is personal"):
            small.with_category(
                events=replace(small.EVENTS, personal=("carrier",)), monitor=Monitor(segments=["carrier"])
            )

    def test_versions_stay_what_they_are(self) -> None:
        plain = dataclasses.replace(PIPELINE, events=small.EVENTS, labels=small.LABELS)
        assert plain.declaration_hash("linear") == PIPELINE.declaration_hash("linear")
        assert not Mask(plain).is_on

    def test_a_token_says_who_may_see_them(self) -> None:
        digest = "0" * 64
        holders = parse_holders(f"ann:viewer+personal:{digest}")
        assert (holders[digest].role, holders[digest].sees_personal) == (Role.VIEWER, True)
        assert holders[digest].role_name == "viewer+personal"
        key = parse_holders(f"app:produce+read+personal:{digest}", Permission)[digest]
        assert (key.role, key.personal) == (Permission.PRODUCE | Permission.READ, True)
        assert not Holder("bob", Role.OPERATOR).sees_personal
        assert Holder("eve", Role.ADMIN).sees_personal
        for wrong in ("personal", "viewer+operator", "viewer+personal+personal"):
            with pytest.raises(ValueError, match="entry 1"):
                parse_holders(f"ann:{wrong}:{digest}")
