"""What each service may do with Kafka and Redis, and no more: from the table of topics, as ACLs of several tools."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Literal, NamedTuple

from tidemill.declare.pipeline import Pipeline
from tidemill.declare.view import View
from tidemill.errors import SettingsError
from tidemill.stream.topic import READING_GROUP, Topic
from tidemill.wire import topics
from tidemill.wire.services import check_chain, group

#: Who makes topics, sets offsets and grows pipelines: a person, or the job that runs before the services.
OPERATOR = "operator"
#: Everybody that a pipeline has.
ROLES = (*topics.ALL, *topics.OUTSIDE, OPERATOR)
#: Those of others' programs, which a quota keeps from taking what the services need.
WITH_QUOTA = ("producers", "consumers")
#: Those with features in Redis: who writes them, and who reads them.
IN_REDIS = ("featurizer", "materializer", "status", "gateway", "consumers")

_READS = ("hget", "hgetall", "smembers", "get")
_WRITES = ("multi", "exec", "discard", "watch", "unwatch", "set", "del", "sadd", "srem", "hset", "hdel")
_ALWAYS = ("ping", "config|get", "time", "select")

#: How Strimzi has a user show who it is.
Authentication = Literal["scram-sha-512", "tls"]
Kind = Literal["cluster", "group", "topic", "transactional-id"]
CLUSTER = "kafka-cluster"


class Right(NamedTuple):
    """Operations, as Kafka calls them, on one thing, or on all whose names begin so. Read and Write imply Describe."""

    kind: Kind
    name: str
    operations: tuple[str, ...]
    is_prefix: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.operations)} on {self.kind} {self.name}{'*' if self.is_prefix else ''}"


#: What it takes to read without a group.
READING = Right("group", READING_GROUP, ("Describe",))


def principal(pipeline: Pipeline, role: str) -> str:
    """Return the user of a role: `flights.validator`, `flights.validator.featurizer` of a chain."""
    return f"{pipeline.name}.{role.replace('+', '.')}"


def kubernetes_name(name: str, most: int = 253) -> str:
    """Return a name as Kubernetes takes it: small letters, no '_', a letter or digit last, and `most` characters."""
    plain = re.sub(r"-+(?=\.|$)", "", name.lower().replace("_", "-"))
    if len(plain) <= most:
        return plain
    return f"{plain[: most - 9].rstrip('-.')}-{sha256(name.encode()).hexdigest()[:8]}"


def user_name(pipeline: Pipeline, role: str) -> str:
    """Return a role's user as Kubernetes names it."""
    return kubernetes_name(principal(pipeline, role))


def rights(pipeline: Pipeline, role: str) -> list[Right]:
    """Return what a role needs of Kafka; `role` may be a chain, as validator+featurizer+scorer.

    Raises SettingsError where nobody is called so, or these can't run in one process.
    """
    names = role.split("+")
    if unknown := [name for name in names if name not in ROLES]:
        raise SettingsError(f"{unknown[0]!r} is not one of {', '.join(ROLES)}")
    if len(names) > 1:
        check_chain(names)
    if role == OPERATOR:
        return list(_operator(pipeline))
    if role == "forget":
        return list(_forget(pipeline))
    operations: dict[str, set[str]] = {}
    for name in names:
        for topic, some in _topics(name):
            operations.setdefault(topic.name(pipeline), set()).update(some)
        if pipeline.forgetting is not None and name in (*topics.KEEPING_PROGRESS, "monitor", "status"):
            some = {"Read"} | ({"Write"} if name == "status" and pipeline.forgetting.every else set())
            operations.setdefault(topics.FORGOTTEN.name(pipeline), set()).update(some)
    is_service = role not in topics.OUTSIDE
    made = [Right("cluster", CLUSTER, ("DescribeConfigs",))] if is_service else []
    more = {"DescribeConfigs"} if is_service else set()
    made += [Right("topic", name, tuple(sorted(some | more))) for name, some in operations.items()]
    for name in names:
        made += _groups(pipeline, name)
    return [*made, READING]


def _topics(name: str) -> Iterator[tuple[Topic, set[str]]]:
    for topic in topics.TOPICS:
        # Whether it has worked before, a service knows by what it alone has written.
        if name in topic.readers or topic.writers == (name,) or topic in topics.LOOKED_INTO.get(name, ()):
            yield topic, {"Read"}
        if name in topic.writers:
            yield topic, {"Write"}
        if name == "status":  # it shows each topic that is not as declared
            yield topic, {"Describe"}


def _forget(pipeline: Pipeline) -> Iterator[Right]:
    """Yield what it takes to erase records: next to nothing where the pipeline does not declare that."""
    yield READING
    if pipeline.forgetting is None:
        return
    yield Right("cluster", CLUSTER, ("Describe", "DescribeConfigs"))  # how far all groups have read
    every = ("AlterConfigs", "Delete", "DescribeConfigs", "Read", "Write")
    for topic in topics.TOPICS:
        changes = topic.erasable or topic.is_raw or topic in (topics.FORGOTTEN, topics.PREDICTIONS)
        some = every if changes else ("Read",)
        yield Right("topic", topic.name(pipeline), some)
    yield Right("group", f"{pipeline.name}.", ("Describe",), is_prefix=True)
    yield Right("transactional-id", f"{pipeline.name}.forget", ("Write",))


def _groups(pipeline: Pipeline, name: str) -> Iterator[Right]:
    if name in topics.KEEPING_PROGRESS:
        for model in pipeline.model_names if name == "learner" else ("",):
            own = group(name, pipeline.name, model)
            yield Right("group", own, ("Read",))
            yield Right("transactional-id", f"{own}-", ("Write",), is_prefix=True)  # one an instance
    elif name == "monitor":
        yield Right("group", group(name, pipeline.name), ("Read",))
    elif name == "status":
        yield Right("transactional-id", f"{pipeline.name}.status.", ("Write",), is_prefix=True)  # one a process
    elif name == "redrive":
        yield Right("transactional-id", f"{pipeline.name}.redrive", ("Write",))
    elif name == "consumers":
        yield Right("group", f"{pipeline.name}.consumers.", ("Read",), is_prefix=True)


def _operator(pipeline: Pipeline) -> Iterator[Right]:
    every = ("Alter", "AlterConfigs", "Create", "DescribeConfigs", "Read", "Write")
    yield Right("cluster", CLUSTER, ("DescribeConfigs",))
    yield READING
    for kind, operations in (("topic", every), ("group", ("Read",)), ("transactional-id", ("Write",))):
        yield Right(kind, f"{pipeline.name}.", operations, is_prefix=True)  # type: ignore[arg-type]
    for name in filter(None, pipeline.raw_topics.values()):
        yield Right("topic", name, every)


def kafka_text(pipeline: Pipeline, roles: Sequence[str], quota: int = 0) -> str:
    """Return a script of Kafka's own tools that grants what these roles need."""
    lines = [
        f"# What the users of {pipeline.name} may do. Give the address of the brokers, and a file of properties of who",
        "# may grant it: BROKERS=kafka:9092 CONFIG=admin.properties sh acls.sh",
        'tool="--bootstrap-server $BROKERS --command-config $CONFIG"',
    ]
    for role in roles:
        user = principal(pipeline, role)
        lines += ["", f"# {role}"]
        for right in rights(pipeline, role):
            operations = " ".join(f"--operation {one}" for one in right.operations)
            name = "" if right.kind == "cluster" else f" {shlex.quote(right.name)}"
            how = " --resource-pattern-type prefixed" if right.is_prefix else ""
            lines.append(
                f"kafka-acls.sh $tool --add --allow-principal User:{user} {operations} --{right.kind}{name}{how}"
            )
        if quota and role in WITH_QUOTA:
            lines.append(
                f"kafka-configs.sh $tool --alter --entity-type users --entity-name {user} "
                f"--add-config producer_byte_rate={quota},consumer_byte_rate={quota}"
            )
    return "\n".join(lines) + "\n"


def strimzi_text(
    pipeline: Pipeline,
    roles: Sequence[str],
    quota: int = 0,
    cluster: str = "kafka",
    authentication: Authentication = "scram-sha-512",
) -> str:
    """Return a KafkaUser of Strimzi for each role, with the password or certificate that Strimzi makes, as YAML."""
    documents = []
    for role in roles:
        acls = []
        for right in rights(pipeline, role):
            kind = {"transactional-id": "transactionalId"}.get(right.kind, right.kind)
            resource = {"type": kind}
            if right.kind != "cluster":
                pattern = "prefix" if right.is_prefix else "literal"
                resource |= {"name": right.name, "patternType": pattern}
            acls.append({"resource": resource, "operations": list(right.operations)})
        name = user_name(pipeline, role)
        text = (
            "apiVersion: kafka.strimzi.io/v1beta2\nkind: KafkaUser\nmetadata:\n"
            f"  name: {name}\n  labels: {{strimzi.io/cluster: {cluster}}}\n"
            f"spec:\n  authentication: {{type: {authentication}}}\n"
            "  authorization:\n    type: simple\n    acls:\n"
        )
        text += "".join(f"      - {json.dumps(acl)}\n" for acl in acls)
        if quota and role in WITH_QUOTA:
            text += f"  quotas: {{producerByteRate: {quota}, consumerByteRate: {quota}}}\n"
        documents.append(text)
    return "---\n".join(documents)


def redis_text(pipeline: Pipeline, roles: Sequence[str]) -> str:
    """Return lines of Redis' file of ACLs, without passwords: none of these users can log in before it has one."""
    lines = [line for role in roles if (line := _redis_user(pipeline, role))]
    return "\n".join(lines) + "\n" if lines else ""


def _redis_user(pipeline: Pipeline, role: str) -> str:
    names = {name for name in role.split("+") if name in IN_REDIS}
    if not names or not pipeline.views:
        return ""
    written: list[View] = []
    for name, views in (("featurizer", pipeline.inline_views), ("materializer", pipeline.remote_views)):
        written += views if name in names else ()
    read = [] if names == {"materializer"} else [view for view in pipeline.views if view not in written]
    keys = [
        f"{access}~{pipeline.name}:{view.label}{mark}*"
        for access, views in (("%RW", written), ("%R", read))
        for view in views
        for mark in (":", "/")
    ]
    commands = [*_ALWAYS, *_READS, *(_WRITES if written else ())]
    allowed = " ".join(f"+{command}" for command in commands)
    return f"user {principal(pipeline, role)} on resetkeys resetchannels {' '.join(keys)} -@all {allowed}"
