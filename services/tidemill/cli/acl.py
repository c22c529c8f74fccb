"""`tidemill acl`: what each service may do, for those who grant it."""

from __future__ import annotations

import click

import tidemill
from tidemill.cli.shared import PIPELINE
from tidemill.errors import SettingsError


@click.command()
@PIPELINE
@click.option(
    "--format", "form", type=click.Choice(["kafka", "strimzi", "redis", "compose"]), default="kafka", show_default=True,
    help="A script of Kafka's own tools, KafkaUsers of Strimzi, lines of Redis' ACL file, or a second file for Docker "
    "Compose that has each service be its user.",
)  # fmt: skip
@click.option(
    "--service",
    "roles",
    multiple=True,
    help="Only this one; may be repeated, and be a chain, as validator+featurizer+scorer. Default: each by itself.",
)
@click.option("--quota", type=click.IntRange(0), default=0, help="Bytes a second for producers and consumers; 0: any.")
@click.option("--cluster", default="kafka", show_default=True, help="strimzi: the Kafka that the users are of.")
def acl(pipeline: str, form: str, roles: tuple[str, ...], quota: int, cluster: str) -> None:
    """Print what each service's user may do with Kafka and Redis.

    There is a user for each service, and for those outside: producers, consumers, redrive (who sends dead letters
    back), forget (who erases records), operator (who makes topics and sets offsets). A user is called
    PIPELINE.SERVICE; passwords are yours.
    """
    from tidemill.wire import rights

    declared = tidemill.load(pipeline)
    chosen = roles or rights.ROLES
    if form == "kafka":
        text = rights.kafka_text(declared, chosen, quota)
    elif form == "strimzi":
        text = rights.strimzi_text(declared, chosen, quota, cluster)
    elif form == "redis":
        text = rights.redis_text(declared, chosen)
    else:
        from tidemill.offline.scaffold import compose_users

        if roles or quota:
            raise SettingsError(
                "--format compose: it has all services, and grants nothing: leave out --service and --quota"
            )
        text = compose_users.text(declared)
    click.echo(text, nl=False)
