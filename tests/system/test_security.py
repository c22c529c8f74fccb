"""Kafka and Redis with TLS and users: how each is reached, and what is said where it is reached wrongly."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from certificates import Authority
from click.testing import CliRunner
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from real_kafka import missing
from running import Running, until
from secured import PASSWORD, Issuer, SecuredKafka, SecuredRedis

from tidemill import settings
from tidemill.cli.main import cli
from tidemill.client import Client
from tidemill.demo import data
from tidemill.demo.script import script
from tidemill.errors import BrokerError, NotAllowed, StoreError, StoreNotAllowed
from tidemill.features.ports import Change
from tidemill.features.redis import RedisReader, RedisView, connect
from tidemill.local.processes import end, free_port, spawn
from tidemill.local.replay import Replay
from tidemill.runtime.run import broker_of, check_rights
from tidemill.stream.api import TopicPartition
from tidemill.stream.kafka.broker import KafkaBroker
from tidemill.stream.ranges import full_range
from tidemill.stream.topic import READING_GROUP, Topic
from tidemill.tokens import new_token
from tidemill.watch.monitor.credentials import credentials
from tidemill.watch.status import scrape
from tidemill.wire import topics
from tidemill.wire.rights import IN_REDIS, OPERATOR, ROLES, principal, rights

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@dataclass(frozen=True)
class Site:
    """A broker, a Redis and an issuer of tokens, whose certificates are of one authority; `stranger` is another one."""

    kafka: SecuredKafka
    redis: SecuredRedis
    issuer: Issuer
    authority: Authority
    stranger: Authority


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    lacking = missing()
    if lacking:
        if os.environ.get("TIDEMILL_REQUIRE_KAFKA"):
            pytest.fail(f"the tests on a real Kafka broker are mandatory here, and {lacking}")
        pytest.skip(f"NO REAL KAFKA: {lacking}")
    folder = tmp_path_factory.mktemp("secured")
    authority, stranger = Authority(folder), Authority(folder, "stranger")
    made = Site(SecuredKafka(folder, authority), SecuredRedis(folder, authority), Issuer(), authority, stranger)
    made.kafka.add("anna")
    made.redis.admin.execute_command("ACL", "SETUSER", "anna", "on", f">{PASSWORD}", "+ping", "+config|get")
    yield made
    made.kafka.stop()
    made.redis.stop()
    made.issuer.shutdown()


def kafka_cases(site: Site) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Return settings, and what is said of them; nothing where they are right."""
    kafka, anna, bob = site.kafka, site.kafka.settings("anna"), site.stranger.pair("bob")
    tls = {"kafka_tls": True, "kafka_ca": anna["kafka_ca"]}
    user = {"kafka_user": "anna", "kafka_password": PASSWORD}
    own, token = site.authority.pair("scorer"), {"kafka_mechanism": "OAUTHBEARER", "kafka_token_url": site.issuer.url}
    mine = {"kafka_certificate": str(own.certificate), "kafka_key": str(own.key)}
    others = {"kafka_certificate": str(bob.certificate), "kafka_key": str(bob.key)}
    return {
        "SCRAM": (anna, []),
        "PLAIN": ({**anna, "kafka_mechanism": "PLAIN"}, []),
        "token": ({**anna, **token, "kafka_token_scope": "kafka"}, []),
        "certificate": ({"brokers": kafka.mtls, **tls, **mine}, []),
        "without TLS": ({"brokers": kafka.clear, **user}, []),
        "wrong password": ({**anna, "kafka_password": "wrong"}, ["refuses user and password", "TIDEMILL_KAFKA_USER"]),
        "nobody's name": ({**anna, "kafka_user": "bob"}, ["refuses user and password", "TIDEMILL_KAFKA_USER"]),
        "wrong secret": ({**anna, **token, "kafka_password": "wrong"}, ["no token", "TIDEMILL_KAFKA_TOKEN_URL"]),
        "no issuer": ({**anna, **token, "kafka_token_url": "http://127.0.0.1:1/"}, ["no token", "TIDEMILL_KAFKA_TOKEN_URL"]),
        "mechanism": ({**anna, "kafka_mechanism": "SCRAM-SHA-256"}, ["SCRAM-SHA-512", "TIDEMILL_KAFKA_MECHANISM"]),
        "no TLS on TLS": ({"brokers": kafka.scram, **user}, ["may speak TLS", "TIDEMILL_KAFKA_TLS=true"]),
        "no user": ({"brokers": kafka.scram, **tls}, ["may want a user", "TIDEMILL_KAFKA_USER"]),
        "nothing": ({"brokers": kafka.clear}, ["may want a user", "TIDEMILL_KAFKA_USER"]),
        "TLS on plain": ({"brokers": kafka.clear, **tls, **user}, ["speaks no TLS", "leave TIDEMILL_KAFKA_TLS out"]),
        "user on plain": ({"brokers": kafka.servers, **user}, ["takes no user", "leave TIDEMILL_KAFKA_USER out"]),
        "another authority": ({**anna, "kafka_ca": str(site.stranger.ca)}, ["not trusted", "TIDEMILL_KAFKA_CA"]),
        "this machine's authorities": ({**anna, "kafka_ca": ""}, ["not trusted", "TIDEMILL_KAFKA_CA"]),
        "no certificate": ({"brokers": kafka.mtls, **tls}, ["wants one", "TIDEMILL_KAFKA_CERTIFICATE"]),
        "a stranger's": ({"brokers": kafka.mtls, **tls, **others}, ["refuses this client's certificate"]),
        "away": ({**anna, "brokers": "127.0.0.1:1"}, ["no Kafka at 127.0.0.1:1", "start it"]),
    }  # fmt: skip


def test_kafka_is_reached_in_each_way_and_each_mistake_has_a_sentence_of_its_own(site: Site) -> None:
    cases = kafka_cases(site)

    def reach(chosen: dict[str, Any]) -> str:
        try:
            broker_of(settings.load(**chosen)).connect()
        except BrokerError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(cases)) as pool:  # a wrong one takes 3 s
        answers = dict(zip(cases, pool.map(reach, [chosen for chosen, _ in cases.values()]), strict=True))
    for name, (_, words) in cases.items():
        answer = answers[name]
        assert bool(answer) == bool(words), f"{name}: {answer}"
        assert all(word in answer for word in words), f"{name}: {answer}"
        assert "\n" not in answer
        assert PASSWORD not in answer
    assert ("anna", "grant_type=client_credentials&scope=kafka") in site.issuer.asked


def test_the_monitors_client_is_configured_from_the_same_settings(site: Site) -> None:
    async def reach(chosen: dict[str, Any]) -> None:
        auth = credentials_to_aiokafka_auth(credentials(settings.load(**chosen).kafka_properties()))
        client = AIOKafkaClient(bootstrap_servers=chosen["brokers"], **auth)
        try:
            await client.bootstrap()
        finally:
            await client.close()

    async def all_of() -> None:
        ways = [chosen for chosen, words in kafka_cases(site).values() if not words]
        assert len(ways) == 5
        for way in ways:
            await reach(way)
        with pytest.raises(Exception, match="no token for Kafka from"):
            await reach(kafka_cases(site)["wrong secret"][0])

    asyncio.run(all_of())


def test_redis_is_reached_by_tls_and_each_mistake_has_a_sentence_of_its_own(site: Site, tmp_path: Path) -> None:
    anna, strict = site.redis.settings("anna"), SecuredRedis(tmp_path, site.authority, clients_show_certificates=True)
    own = site.authority.pair("featurizer")
    mine = {"redis_certificate": str(own.certificate), "redis_key": str(own.key)}
    of_strict = {"redis_url": strict.url, "redis_ca": anna["redis_ca"]}
    plain = f"redis://127.0.0.1:{site.redis.port}/0"
    cases: dict[str, tuple[dict[str, Any], list[str]]] = {
        "by TLS": (anna, []),
        "by a certificate": ({**of_strict, **mine}, []),
        "wrong password": ({**anna, "redis_password": "wrong"}, ["refuses user and password", "TIDEMILL_REDIS_USER"]),
        "another authority": ({**anna, "redis_ca": str(site.stranger.ca)}, ["not trusted", "TIDEMILL_REDIS_CA"]),
        "no TLS on TLS": ({"redis_url": anna["redis_url"].replace("rediss", "redis")}, ["to rediss://", "TIDEMILL_REDIS_URL"]),
        "TLS on plain": ({**anna, "redis_url": plain.replace("redis", "rediss", 1)}, ["redis:// where it speaks no TLS"]),
        "no certificate": (of_strict, ["TIDEMILL_REDIS_CERTIFICATE"]),
        "away": ({**anna, "redis_url": "rediss://127.0.0.1:1/0"}, ["no Redis at", "start it"]),
    }  # fmt: skip

    def reach(chosen: dict[str, Any]) -> str:
        try:
            connect(settings.load(**chosen).redis_address()).close()
        except StoreError as error:
            return str(error)
        return ""

    try:
        with ThreadPoolExecutor(len(cases)) as pool:  # one that waits for an answer takes 5 s
            answers = dict(zip(cases, pool.map(reach, [chosen for chosen, _ in cases.values()]), strict=True))
    finally:
        strict.stop()
    for name, (_, words) in cases.items():
        assert bool(answers[name]) == bool(words), f"{name}: {answers[name]}"
        assert all(word in answers[name] for word in words), f"{name}: {answers[name]}"
        assert PASSWORD not in answers[name]


# Each service has a user of its own, with what `tidemill acl` prints and no more.

#: Services of which each has a process, by what it is called there.
NAMES: dict[str, tuple[str, str | None]] = {name: (name, None) for name in topics.ALL if name != "learner"}
NAMES |= {f"learner-{model}": ("learner", model) for model in ("logreg", "slow", "baseline")}
#: What a filter of ACLs is made of.
BINDING = ("restype", "name", "resource_pattern_type", "principal", "host", "operation", "permission_type")
#: What each role is to be granted, by Kafka's own words for kinds of resources.
KINDS = {
    "--topic": ResourceType.TOPIC,
    "--group": ResourceType.GROUP,
    "--transactional-id": ResourceType.TRANSACTIONAL_ID,
    "--cluster": ResourceType.BROKER,
}
RESOURCES = {"topic": "--topic", "group": "--group", "transactional-id": "--transactional-id", "cluster": "--cluster"}


def operation(name: str) -> AclOperation:
    """Return the client's name for an operation: DescribeConfigs is DESCRIBE_CONFIGS."""
    return AclOperation[re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()]


def bindings(text: str) -> list[AclBinding]:
    """Return what a script of kafka-acls.sh grants."""
    made = []
    for line in text.splitlines():
        words = shlex.split(line)
        if not words or words[0] != "kafka-acls.sh":
            continue
        user = words[words.index("--allow-principal") + 1]
        option = next(word for word in words if word in KINDS)
        name = "kafka-cluster" if option == "--cluster" else words[words.index(option) + 1]
        pattern = ResourcePatternType.PREFIXED if "prefixed" in words else ResourcePatternType.LITERAL
        for at in [at for at, word in enumerate(words) if word == "--operation"]:
            allowed = operation(words[at + 1])
            made.append(AclBinding(KINDS[option], name, pattern, user, "*", allowed, AclPermissionType.ALLOW))
    return made


class Granted:
    """A pipeline on the secured site, each role with its own user."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.run = Running(site.kafka.servers, site.redis.url, folder, "flights", 2)
        self.pipeline, self.reference = self.run.pipeline, self.run.reference
        text = self.printed("kafka")
        self.bindings = bindings(text)
        site.kafka.add(*(principal(self.pipeline, role) for role in ROLES))
        for done in site.kafka.admin.create_acls(self.bindings).values():
            done.result(30)
        for line in self.printed("redis").splitlines():
            _, user, *rules = line.split()
            site.redis.admin.execute_command("ACL", "SETUSER", user, *rules, f">{PASSWORD}")

    def printed(self, form: str) -> str:
        done = CliRunner().invoke(cli, ["acl", self.reference, "--format", form], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    def chosen(self, role: str) -> dict[str, Any]:
        """Return the settings of a role's user."""
        user = principal(self.pipeline, role)
        return self.site.kafka.settings(user) | (self.site.redis.settings(user) if role in IN_REDIS else {})

    def env(self, role: str) -> dict[str, str]:
        own = {f"TIDEMILL_{name.upper()}": settings.as_text(value) for name, value in self.chosen(role).items()}
        return {**self.run.stack.operator_env, **own}

    def command(self, role: str, *words: str, **more: str) -> str:
        """Run a command as this role's user; returns what it prints."""
        done = CliRunner().invoke(cli, list(words), env={**self.env(role), **more}, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def broker(self, role: str, **more: Any) -> KafkaBroker:
        return broker_of(settings.load(**self.chosen(role), **more))


@pytest.fixture(scope="module")
def granted(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Granted:
    return Granted(site, tmp_path_factory.mktemp("granted"))


def records(run: Running, topic: Topic) -> list[Any]:
    """Return what is in a topic, as who may read everything."""
    return [one for batch in run.broker.read(full_range(run.broker, run.name(topic))) for one in batch]


def test_a_pipeline_works_with_a_user_for_each_service_that_has_what_is_printed_and_no_more(granted: Granted) -> None:
    run, token, key = granted.run, new_token(), new_token()
    same = {name.removeprefix("TIDEMILL_").lower(): value for name, value in run.stack.operator_env.items()}
    same = {name: value for name, value in same.items() if name in settings.Settings.model_fields}
    same |= {"status_token": token, "gateway_key": key, "snapshot_examples": "50", "snapshot_seconds": "1"}
    ports = {"status": free_port(), "gateway": free_port(), "all": free_port()}
    members = {
        name: (service, model, {**same, **granted.chosen(service), "http_port": ports.get(service, 0)})
        for name, (service, model) in NAMES.items()
    }
    file, log = granted.folder / "members.json", granted.folder / "members.log"
    file.write_text(json.dumps({"pipeline": granted.reference, "port": ports["all"], "members": members}))
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "members.py"), str(file)]
    started = [spawn(command, log)]

    def check() -> None:
        if started[-1].poll() is not None:
            assert "the Kafka client hangs" in log.read_text(), "nobody is refused anything, and all go on"
            assert len(started) < 5
            started.append(spawn(command, log))  # as an orchestrator does

    def waits_for() -> str:
        answers = [scrape.fetch(f"http://127.0.0.1:{port}/readyz") for port in ports.values()]
        return "; ".join(text or "nothing" for status, text in answers if status != 200)

    found = data.flights((1,), days=4)[::12]
    outside, read = granted.broker("consumers"), set[bytes]()
    try:
        until(lambda: not waits_for(), "not all are ready", 180, check)
        chosen = settings.load(**granted.chosen("producers"))
        sent = script(granted.pipeline, found, corrupt_every=100)
        replay = Replay(chosen.brokers, sent, 1e12, extra=chosen.kafka_properties())
        replay.run()
        assert replay.error is None
        predictions = outside.follow_topics([run.name(topics.PREDICTIONS)])

        def all_are_predicted() -> bool:
            read.update(record.value() for record in predictions.poll())
            return len(read) >= len(found)

        until(all_are_predicted, "a consumer does not see all predictions", 180, check)
        predictions.close()
        until(lambda: {r.key() for r in records(run, topics.MODELS)} >= {b"slow"}, "no version", 180, check)
        status = {"TIDEMILL_STATUS_URL": f"http://127.0.0.1:{ports['status']}", "TIDEMILL_STATUS_TOKEN": token}
        promote = ("models", "promote", granted.reference, "slow", "--why", "to see")
        assert "promoted" in granted.command("operator", *promote, **status)
        with Client(f"http://127.0.0.1:{ports['gateway']}", key) as client:
            event = {**found[0].event, "flight_id": "of-the-gateway"}
            assert client.predict(event, timeout=30).event_id == "of-the-gateway"
        until(lambda: len(records(run, topics.WINDOWS)) > 0, "the monitor writes nothing", 60, check)
        redriven = granted.command("redrive", "dlq", "redrive", granted.reference, "--limit", "1", "--yes")
        assert "sent 1 letter back" in redriven
        check()
    finally:
        end(started[-1], 30)
    assert "uthorization" not in log.read_text(), "nobody was refused anything"
    assert PASSWORD not in log.read_text()
    assert "validator" in granted.command("operator", "offsets", "list", granted.reference)
    assert "all topics exist" in granted.command("operator", "topics", granted.reference, "--create")


def test_each_right_that_is_missing_is_named_at_the_start(granted: Granted) -> None:
    """Each right of each service is taken away, one after the other, and given back."""
    admin, tried = granted.site.kafka.admin, list[str]()

    def take_away(role: str) -> None:
        broker, user = granted.broker(role), f"User:{principal(granted.pipeline, role)}"
        check_rights(granted.pipeline, broker, role)
        for right in rights(granted.pipeline, role):
            needed = [one for one in right.operations if one in ("Read", "Write", "Describe")]
            if right.kind not in ("topic", "group") or (needed == ["Describe"]):
                continue
            kind, pattern = KINDS[RESOURCES[right.kind]], ResourcePatternType.LITERAL
            for one in needed:
                if one == "Describe":  # the others imply it
                    continue
                binding = AclBinding(kind, right.name, pattern, user, "*", operation(one), AclPermissionType.ALLOW)
                own = AclBindingFilter(*(getattr(binding, name) for name in BINDING))
                for done in admin.delete_acls([own]).values():
                    assert len(done.result(30)) == 1
                missing = f"{one} on {right.kind} {right.name} ("
                until(lambda missing=missing: missing in refusal(role, broker), f"{role}: {missing} is not named", 30)
                assert f"tidemill acl {granted.pipeline.name} --service {role}" in refusal(role, broker)
                for done in admin.create_acls([binding]).values():
                    done.result(30)
                tried.append(missing)
        until(lambda: not refusal(role, broker), "what was given back is not allowed", 30)

    def refusal(role: str, broker: KafkaBroker) -> str:
        try:
            check_rights(granted.pipeline, broker, role)
        except NotAllowed as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take_away, topics.ALL))
    assert len(tried) > 70


@pytest.mark.parametrize(
    "service",
    [pytest.param(name, marks=[] if name == "gate" else pytest.mark.long) for name in topics.ALL if name != "status"],
)
def test_a_service_without_a_right_ends_in_one_line(granted: Granted, service: str) -> None:
    """Here with another service's user."""
    env = granted.env("joiner" if service == "notifier" else "notifier") | {
        "PATH": "",
        "PYTHONPATH": ":".join(sys.path),
    }
    command = [sys.executable, "-m", "tidemill.cli", "run", service, granted.reference]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"Kafka does not allow this user what the {service} needs" in last
    assert f"--service {service}" in last
    assert PASSWORD not in done.stderr


def test_who_may_not_is_refused_each_topic_to_read_and_to_write(granted: Granted) -> None:
    """By sending to each topic; who may read each, the broker says, and one that it denies is read."""
    names = [topic.name(granted.pipeline) for topic in topics.TOPICS]

    def try_all(role: str) -> dict[str, set[str]]:
        common, done = granted.broker(role).common, {"Read": set[str](), "Write": set[str]()}
        producer = Producer({**common, "enable.idempotence": False})
        answers: dict[str, int] = {}

        def delivered(name: str, error: KafkaError | None) -> None:
            answers[name] = KafkaError.NO_ERROR if error is None else error.code()

        for name in names:
            producer.produce(
                name, b"", b"key", partition=0, on_delivery=lambda error, _, name=name: delivered(name, error)
            )
        assert producer.flush(60) == 0
        assert set(answers.values()) <= {KafkaError.NO_ERROR, KafkaError.TOPIC_AUTHORIZATION_FAILED}
        done["Write"] = {name for name, code in answers.items() if code == KafkaError.NO_ERROR}
        lacks = {one.split()[3] for one in granted.broker(role).lacking(dict.fromkeys(names, ("Read",)), {})}
        done["Read"] = {*names} - lacks
        if denied := sorted(lacks & done["Write"]):
            reading = granted.broker(role).read({TopicPartition(denied[0], 0): (0, 1)})
            with pytest.raises(NotAllowed, match="uthorization failed"):
                list(reading)
        return done

    roles = [role for role in ROLES if role != OPERATOR]
    with ThreadPoolExecutor(4) as pool:
        outcomes = dict(zip(roles, pool.map(try_all, roles), strict=True))
    for role, outcome in outcomes.items():
        expected = [one for one in rights(granted.pipeline, role) if one.kind == "topic"]
        for word, actual in outcome.items():
            assert actual == {one.name for one in expected if word in one.operations}, f"{role}: {word}"


def test_a_service_may_not_be_another_one(granted: Granted) -> None:
    """Neither in its group, nor by its transactions, nor make topics or change their settings."""
    groups = {role: [one.name for one in rights(granted.pipeline, role) if one.kind == "group"] for role in topics.ALL}
    every = {name: ("Read",) for names in groups.values() for name in names if name != READING_GROUP}
    for role in topics.ALL:
        broker = granted.broker(role)
        lacks = broker.lacking({granted.run.name(topics.PROGRESS): ()}, every)
        assert {one.split()[3] for one in lacks} == every.keys() - {*groups[role]}, role
    validator = granted.broker("validator")
    validator.producer(f"{granted.pipeline.name}.validator-7").close()
    with pytest.raises(NotAllowed, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
        validator.producer(f"{granted.pipeline.name}.scorer-7")
    with pytest.raises(BrokerError, match="uthorization failed"):
        validator.create([(topics.EVENTS, f"{granted.pipeline.name}.more", 1)])


def test_a_redis_user_may_use_its_views_and_nothing_else(granted: Granted) -> None:
    admin, pipeline = granted.site.redis.admin, granted.pipeline

    def may(role: str, *words: str) -> bool:
        return admin.execute_command("ACL", "DRYRUN", principal(pipeline, role), *words) == "OK"

    writers = {"featurizer": pipeline.inline_views, "materializer": pipeline.remote_views}
    for role in IN_REDIS:
        own = [view.label for view in writers.get(role, ())]
        for view in (view.label for view in pipeline.views):
            reads = role != "materializer" or view in own
            for key in (f"{pipeline.name}:{view}:JFK", f"{pipeline.name}:{view}/partition:0"):
                assert may(role, "HGETALL", key) == reads, (role, key)
                assert may(role, "HSET", key, "a", "1") == (view in own), (role, key)
                assert not may(role, "HGETALL", key.replace(pipeline.name, "other", 1))
        for words in (["FLUSHALL"], ["KEYS", "*"], ["CONFIG", "SET", "maxmemory", "1"], ["ACL", "LIST"], ["SHUTDOWN"]):
            assert not may(role, *words), (role, words)
    view = RedisView(connect(settings.load(**granted.chosen("status")).redis_address()), pipeline.name, "origin")
    assert view.load(5) is None
    change = Change(whole=False, features={"a": 1.0}, tiles={}, gone=())
    with pytest.raises(StoreNotAllowed, match=r"Redis does not allow it.*tidemill acl"):
        view.write(5, 0, 1, {"JFK": change})
    with pytest.raises(StoreNotAllowed, match="Redis does not allow it"):
        RedisReader(view.client, "other").read({"origin": {"JFK"}}, 1)
