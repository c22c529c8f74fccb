"""Security on the wire: how Kafka, Redis and HTTP are reached and served, and what each client is made of for that.

Every setting is here, checked where it is read, and each kind of client has one function that makes its configuration:
`kafka_properties` for librdkafka (the monitor's Faust is configured from the same properties), `redis_address` for
redis-py, `client_context` and `server_context` for HTTP.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from tidemill.errors import SettingsError

#: What a URL of Redis begins with where it is reached by TLS.
REDIS_TLS = "rediss"


class Secured(BaseModel):
    """The settings of how servers are reached, and how this process is."""

    brokers: str = Field(
        "localhost:9092", pattern=r"^[^\s,:]+:\d+(,[^\s,:]+:\d+)*$", description="Kafka, host:port[,host:port]"
    )
    kafka: dict[str, Any] = Field({}, description="more librdkafka properties, as JSON; they win", repr=False)
    kafka_tls: bool = Field(False, description="Kafka: whether its port speaks TLS")
    kafka_ca: str = Field(
        "", description="Kafka: PEM file of the authorities that sign its certificate; empty: this machine's"
    )
    kafka_certificate: str = Field(
        "", description="Kafka: PEM file of this client's certificate, by which Kafka knows it (mTLS)"
    )
    kafka_key: str = Field("", description="Kafka: PEM file of that certificate's private key")
    kafka_key_password: SecretStr = Field(SecretStr(""), description="Kafka: password of that key, where it has one")
    kafka_user: str = Field("", description="Kafka: SASL user; with OAUTHBEARER the client's id. Empty: no SASL")
    kafka_password: SecretStr = Field(
        SecretStr(""), description="Kafka: that user's password; with OAUTHBEARER the client's secret"
    )
    kafka_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="Kafka: SASL mechanism; SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or OAUTHBEARER"
    )
    kafka_token_url: str = Field(
        "", pattern=r"^(https?://\S+)?$", description="Kafka: where OAUTHBEARER has its tokens from (OIDC)"
    )
    kafka_token_scope: str = Field("", description="Kafka: scope that tokens are asked for, where there is one")
    redis_url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"), description="Redis, the online feature store; rediss:// is by TLS"
    )
    redis_user: str = Field("", description="Redis: ACL user; empty: that of the URL, or the default one")
    redis_password: SecretStr = Field(SecretStr(""), description="Redis: password, where it is not in the URL")
    redis_ca: str = Field(
        "", description="Redis: PEM file of the authorities that sign its certificate; empty: this machine's"
    )
    redis_certificate: str = Field("", description="Redis: PEM file of this client's certificate (mTLS)")
    redis_key: str = Field("", description="Redis: PEM file of that certificate's private key")
    http_certificate: str = Field(
        "", description="PEM file of the certificate that this service's HTTP port is served with; empty: no TLS"
    )
    http_key: str = Field("", description="PEM file of that certificate's private key")
    http_ca: str = Field(
        "",
        description="PEM file of the authorities that sign what https:// services of TIDEMILL_SERVICES, the status "
        "service and the schema registry show; empty: this machine's",
    )

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, url: SecretStr) -> SecretStr:
        """Refuse here what Redis' client would refuse later, with the password in its message."""
        try:
            parts = urlsplit(url.get_secret_value())
            well = parts.scheme in ("redis", REDIS_TLS, "unix") and bool(parts.hostname or parts.scheme == "unix")
            _ = parts.port  # raises where it is no number
            if parts.scheme != "unix" and (number := parts.path.replace("/", "")):
                well &= number.isascii() and number.isdecimal()  # Redis' client takes any other one as 0
        except ValueError:
            well = False
        if not well or "password=" in parts.query:
            raise ValueError("expected redis://[:password@]host:port/db, rediss:// or unix://")
        return url

    @field_validator(
        "kafka_ca", "kafka_certificate", "kafka_key", "redis_ca", "redis_certificate", "redis_key",
        "http_certificate", "http_key", "http_ca",
    )  # fmt: skip
    @classmethod
    def _file(cls, path: str) -> str:
        if path:
            try:
                Path(path).read_bytes()
            except (OSError, ValueError) as error:
                raise ValueError(f"expected a PEM file that can be read: {getattr(error, 'strerror', error)}") from None
        return path

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Refuse what is each well by itself, and not together. Raises SettingsError."""
        self._kafka_together()
        self._redis_together()
        _both(self, "http_key", "http_certificate")
        self._check_files("http")
        return self

    def _kafka_together(self) -> None:
        for name in ("kafka_ca", "kafka_certificate", "kafka_key"):
            if getattr(self, name) and not self.kafka_tls:
                raise _wrong(name, "TLS to Kafka is off; set TIDEMILL_KAFKA_TLS=true, or leave it out")
        _both(self, "kafka_key", "kafka_certificate")
        self._check_files("kafka", self.kafka_key_password.get_secret_value())
        _both(self, "kafka_password", "kafka_user")
        is_token = self.kafka_user and self.kafka_mechanism == "OAUTHBEARER"
        if is_token and not self.kafka_token_url:
            raise _wrong("kafka_token_url", "OAUTHBEARER needs the address of its tokens")
        if self.kafka_token_url and not is_token:
            raise _wrong("kafka_token_url", "it is of TIDEMILL_KAFKA_MECHANISM=OAUTHBEARER and TIDEMILL_KAFKA_USER")

    def _redis_together(self) -> None:
        parts = urlsplit(self.redis_url.get_secret_value())
        for name in ("redis_ca", "redis_certificate", "redis_key"):
            if getattr(self, name) and parts.scheme != REDIS_TLS:
                raise _wrong(name, f"TIDEMILL_REDIS_URL is {parts.scheme}://, without TLS; expected rediss://")
        _both(self, "redis_key", "redis_certificate")
        self._check_files("redis")
        if self.redis_user and not self.redis_password.get_secret_value():
            raise _wrong("redis_password", "TIDEMILL_REDIS_USER has none")
        if self.redis_password.get_secret_value() and "@" in parts.netloc:
            raise _wrong("redis_password", "TIDEMILL_REDIS_URL has a password as well; expected one of them")

    def _check_files(self, of: str, password: str = "") -> None:
        """Raise SettingsError where authorities, or a client's certificate and its key, are no such thing."""
        ca, certificate = getattr(self, f"{of}_ca"), getattr(self, f"{of}_certificate")
        context = _trusting(of, ca) if ca else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if certificate:
            _load(context, of, certificate, getattr(self, f"{of}_key"), password)

    def kafka_properties(self) -> dict[str, Any]:
        """Return librdkafka's properties for every client of the cluster."""
        made = {"security.protocol": ("SASL_" if self.kafka_user else "") + ("SSL" if self.kafka_tls else "PLAINTEXT")}
        if self.kafka_tls:
            made |= {
                "ssl.ca.location": self.kafka_ca,
                "ssl.certificate.location": self.kafka_certificate,
                "ssl.key.location": self.kafka_key,
                "ssl.key.password": self.kafka_key_password.get_secret_value(),
            }
        if self.kafka_user:
            made["sasl.mechanism"] = self.kafka_mechanism
            password = self.kafka_password.get_secret_value()
            if self.kafka_mechanism == "OAUTHBEARER":
                made |= {
                    "sasl.oauthbearer.method": "oidc",
                    "sasl.oauthbearer.client.id": self.kafka_user,
                    "sasl.oauthbearer.client.secret": password,
                    "sasl.oauthbearer.token.endpoint.url": self.kafka_token_url,
                    "sasl.oauthbearer.scope": self.kafka_token_scope,
                }
            else:
                made |= {"sasl.username": self.kafka_user, "sasl.password": password}
        if made == {"security.protocol": "PLAINTEXT"}:
            return self.kafka
        return {name: value for name, value in made.items() if value} | self.kafka

    def redis_address(self) -> str:
        """Return Redis' URL with user, password and certificates, as redis-py takes it."""
        parts = urlsplit(self.redis_url.get_secret_value())
        if password := self.redis_password.get_secret_value():
            parts = parts._replace(netloc=f"{quote(self.redis_user, '')}:{quote(password, '')}@{parts.netloc}")
        tls = {
            "ssl_ca_certs": self.redis_ca,
            "ssl_certfile": self.redis_certificate,
            "ssl_keyfile": self.redis_key,
        }
        query = parse_qsl(parts.query) + [(name, path) for name, path in tls.items() if path]
        return urlunsplit(parts._replace(query=urlencode(query)))

    def client_context(self) -> ssl.SSLContext:
        """Return what HTTP clients know servers by."""
        return _trusting("http", self.http_ca)

    def server_context(self) -> ssl.SSLContext | None:
        """Return what the HTTP port of a service is served with; None without TLS."""
        if not self.http_certificate:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        _load(context, "http", self.http_certificate, self.http_key)
        return context


def _trusting(of: str, ca: str) -> ssl.SSLContext:
    """Return a context that trusts the authorities of a file, or this machine's. Raises SettingsError."""
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise _wrong(f"{of}_ca", f"{ca}: expected certificates in PEM ({_reason(error)})") from None


def _load(context: ssl.SSLContext, of: str, certificate: str, key: str, password: str = "") -> None:
    try:
        context.load_cert_chain(certificate, key, password=password)  # without a password, OpenSSL asks the terminal
    except (ssl.SSLError, OSError) as error:
        why = f"{certificate}: it and {key} are no certificate and its key in PEM, or the key's password is another"
        raise _wrong(f"{of}_certificate", f"{why} ({_reason(error)})") from None


def _reason(error: OSError) -> str:
    return str(getattr(error, "reason", "") or error.strerror or error).lower().replace("_", " ")


def _both(settings: Secured, one: str, other: str) -> None:
    """Raise SettingsError where one of two is set that belong together."""
    values = {name: getattr(settings, name) for name in (one, other)}
    are_set = {name: bool(v.get_secret_value() if isinstance(v, SecretStr) else v) for name, v in values.items()}
    if are_set[one] != are_set[other]:
        lacking, given = (other, one) if are_set[one] else (one, other)
        raise _wrong(lacking, f"it is empty, and TIDEMILL_{given.upper()} is set; expected both or none")


def _wrong(name: str, why: str) -> SettingsError:
    return SettingsError(f"setting {name}: {why}; set TIDEMILL_{name.upper()}")
