"""Kafka and Redis with TLS and users: how each is reached, and what is said where it is reached wrongly."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from certificates import Authority
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from real_kafka import missing
from secured import PASSWORD, Issuer, SecuredKafka, SecuredRedis

from tidemill import settings
from tidemill.errors import BrokerError, StoreError
from tidemill.features.redis import connect
from tidemill.runtime.run import broker_of
from tidemill.watch.monitor.credentials import credentials

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
