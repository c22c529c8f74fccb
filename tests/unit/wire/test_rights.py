"""What each service may do is what the table of topics says, in the words of each tool."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from click.testing import CliRunner

from tidemill import Forgetting
from tidemill.cli.acl import acl
from tidemill.demo.flights import delays, flights
from tidemill.errors import SettingsError
from tidemill.stream.topic import READING_GROUP
from tidemill.wire import topics
from tidemill.wire.rights import (
    IN_REDIS,
    OPERATOR,
    ROLES,
    kafka_text,
    principal,
    redis_text,
    rights,
    strimzi_text,
)


@pytest.mark.parametrize("role", topics.ALL)
def test_a_service_may_write_and_consume_what_the_table_says(role: str) -> None:
    of_topics = {right.name: right.operations for right in rights(flights, role) if right.kind == "topic"}
    written = {name for name, operations in of_topics.items() if "Write" in operations}
    read = {name for name, operations in of_topics.items() if "Read" in operations}
    assert written == {topic.name(flights) for topic in topics.writes(role)}
    assert read >= {topic.name(flights) for topic in topics.reads(role)}
    beyond = read - {topic.name(flights) for topic in (*topics.reads(role), *topics.outputs(role))}
    assert beyond == set() or role in ("status", "gateway"), "these two are asked for what is in the log"
    assert not any({"Alter", "Create", "Delete", "All"} & set(right.operations) for right in rights(flights, role))


def test_who_follows_requests_to_forget_may_read_them_where_those_are_declared() -> None:
    declared, name = replace(flights, forgetting=Forgetting()), topics.FORGOTTEN.name(flights)
    for role in (*topics.KEEPING_PROGRESS, "monitor"):
        assert [right for right in rights(declared, role) if right.name == name and "Read" in right.operations], role
        assert not [right for right in rights(flights, role) if right.name == name], role


def test_the_status_service_may_write_requests_to_forget_where_they_wait() -> None:
    name = topics.FORGOTTEN.name(flights)
    for every, operations in ((None, {"Read"}), ("7d", {"Read", "Write"})):
        declared = replace(flights, forgetting=Forgetting(every=every))
        (right,) = [right for right in rights(declared, "status") if right.name == name]
        assert {*right.operations} & {"Read", "Write"} == operations


def test_only_the_operator_may_change_topics() -> None:
    assert [role for role in ROLES if any("Create" in right.operations for right in rights(flights, role))] == [
        OPERATOR
    ]


def test_services_in_one_process_have_the_rights_of_all_and_each_group() -> None:
    chain = rights(flights, "validator+featurizer+scorer")
    groups = {right.name for right in chain if right.kind == "group"}
    assert groups == {"flights.validator", "flights.featurizer", "flights.scorer", READING_GROUP}
    for name in ("validator", "featurizer", "scorer"):
        for right in rights(flights, name):
            (same,) = [one for one in chain if (one.kind, one.name) == (right.kind, right.name)]
            assert set(right.operations) <= set(same.operations)
    learners = {right.name for right in rights(flights, "learner") if right.kind == "group"}
    assert learners == {READING_GROUP, *(f"flights.learner.{model}" for model in flights.model_names)}


@pytest.mark.parametrize("role", ["validatr", "scorer+validator", "status+gateway"])
def test_who_is_nobody_or_can_not_share_a_process_is_named(role: str) -> None:
    with pytest.raises(SettingsError, match=role.split("+")[0]):
        rights(flights, role)


def test_topics_of_others_keep_their_names() -> None:
    theirs = replace(flights, events=replace(flights.events, topic="shop.orders"))
    assert "shop.orders" in {right.name for right in rights(theirs, "validator")}
    assert "--topic shop.orders" in kafka_text(theirs, [OPERATOR, "producers"])


def test_strimzis_users_have_the_same_rights_and_quotas_are_of_those_outside() -> None:
    users = list(yaml.safe_load_all(strimzi_text(flights, ROLES, quota=1000, cluster="main")))
    assert [user["metadata"]["name"] for user in users] == [principal(flights, role) for role in ROLES]
    for role, user in zip(ROLES, users, strict=True):
        assert user["metadata"]["labels"] == {"strimzi.io/cluster": "main"}
        kinds = {"transactionalId": "transactional-id"}
        shown = [
            (
                kinds.get(one["resource"]["type"], one["resource"]["type"]),
                one["resource"].get("name", "kafka-cluster"),
                tuple(one["operations"]),
                one["resource"].get("patternType") == "prefix",
            )
            for one in user["spec"]["authorization"]["acls"]
        ]
        assert shown == [tuple(right) for right in rights(flights, role)]
        limited = {"producerByteRate": 1000, "consumerByteRate": 1000} if role in ("producers", "consumers") else None
        assert user["spec"].get("quotas") == limited
    assert kafka_text(flights, ROLES, quota=1000).count("kafka-configs.sh") == 2
    assert "quota" not in strimzi_text(flights, ROLES)


def test_redis_has_users_of_those_that_use_it_without_passwords() -> None:
    lines = redis_text(flights, ROLES).splitlines()
    assert [line.split()[1] for line in lines] == [f"flights.{role}" for role in ROLES if role in IN_REDIS]
    assert not any("nopass" in line or ">" in line or "+@" in line or "~* " in line for line in lines)
    assert redis_text(replace(delays, views=()), ROLES) == "", "a pipeline without views uses no Redis"


def test_the_command_prints_all_or_some() -> None:
    done = CliRunner().invoke(acl, ["flights", "--service", "scorer", "--service", "validator+featurizer"])
    assert done.exit_code == 0
    assert done.output == kafka_text(flights, ["scorer", "validator+featurizer"])
    assert "User:flights.validator.featurizer " in done.output
    assert CliRunner().invoke(acl, ["flights", "--format", "redis"]).output == redis_text(flights, ROLES)
