"""A second file for Docker Compose: each service as a user of its own, at a Kafka and a Redis that want that."""

from __future__ import annotations

from tidemill.declare.pipeline import Pipeline
from tidemill.wire import rights, topics

_HEAD = """\
# Each service of {name} as a user of its own, at your Kafka and Redis, by TLS. With TIDEMILL_BROKERS and
# TIDEMILL_REDIS_URL=rediss://... in .env:
#   docker compose -f docker-compose.yml -f THIS_FILE up
# Compose 2.24.4 or later. In ./secrets, or the folder that TIDEMILL_SECRETS names, readable for user 10001: the files
# kafka-ca.pem and redis-ca.pem, and passwords as SERVICE.kafka and SERVICE.redis; of the topics' job, operator.kafka.
# `tidemill acl` says what each user may do.
"""
_KAFKA = """\
      TIDEMILL_BROKERS: ${{TIDEMILL_BROKERS:?host:port of Kafka}}
      TIDEMILL_KAFKA_TLS: "true"
      TIDEMILL_KAFKA_CA: /run/secrets/kafka-ca
      TIDEMILL_KAFKA_MECHANISM: ${{TIDEMILL_KAFKA_MECHANISM:-SCRAM-SHA-512}}
      TIDEMILL_KAFKA_TOKEN_URL: ${{TIDEMILL_KAFKA_TOKEN_URL:-}}
      TIDEMILL_KAFKA_TOKEN_SCOPE: ${{TIDEMILL_KAFKA_TOKEN_SCOPE:-}}
      TIDEMILL_KAFKA_USER: {user}
      TIDEMILL_KAFKA_PASSWORD_FILE: /run/secrets/kafka-{role}
"""
_REDIS = """\
      TIDEMILL_REDIS_URL: ${{TIDEMILL_REDIS_URL:?rediss://host:port/db}}
      TIDEMILL_REDIS_CA: /run/secrets/redis-ca
      TIDEMILL_REDIS_USER: {user}
      TIDEMILL_REDIS_PASSWORD_FILE: /run/secrets/redis-{role}
"""


def text(pipeline: Pipeline) -> str:
    """Return the file, for a docker-compose.yml of this pipeline."""
    made = [_HEAD.format(name=pipeline.name), "services:\n"]
    made += [f"  {server}: !reset null\n" for server in ("kafka", "redis")]
    services = {name: name for name in topics.ALL if name != "learner"}
    services |= {f"learner-{model}": "learner" for model in pipeline.model_names} | {"topics": rights.OPERATOR}
    secrets = {"kafka-ca": "kafka-ca.pem", "redis-ca": "redis-ca.pem"}
    for service, role in services.items():
        user, mounted = rights.principal(pipeline, role), ["kafka-ca", f"kafka-{role}"]
        secrets[f"kafka-{role}"] = f"{role}.kafka"
        environment = _KAFKA.format(user=user, role=role)
        if role in rights.IN_REDIS:
            environment += _REDIS.format(user=user, role=role)
            secrets[f"redis-{role}"] = f"{role}.redis"
            mounted += ["redis-ca", f"redis-{role}"]
        before = "keys" if service == "topics" else "topics"
        made.append(
            f"\n  {service}:\n    depends_on: !override {{{before}: {{condition: service_completed_successfully}}}}\n"
            f"    secrets: [{', '.join(mounted)}]\n    environment:\n{environment}"
        )
    made.append("\nsecrets:\n")
    made += [f"  {name}: {{file: '${{TIDEMILL_SECRETS:-./secrets}}/{file}'}}\n" for name, file in secrets.items()]
    return "".join(made)
