"""Settings: what operations decide (brokers, secrets, guarantees), from TIDEMILL_* environment variables or options.

An option wins over its variable, a variable over the same line in a file `.env` in the working folder, and that over
the default. The declaration says what a pipeline is; this table says where and how it runs.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

from dotenv.parser import parse_stream
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as NotJson

from tidemill import tokens, webhooks
from tidemill.errors import SettingsError, described
from tidemill.security import Secured

if TYPE_CHECKING:
    from tidemill.keys import Keyring

#: Where `tidemill up` notes, for commands in the same folder, where what it runs is. It holds a lock on the file.
RUNNING_FILE = Path(".tidemill/up.env")


def running_here() -> dict[str, str]:
    """Return the settings of what `tidemill up` runs from this folder; none where it runs nothing."""
    try:
        with RUNNING_FILE.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                lines = (line.partition("=") for line in file.read().splitlines())
                return {name.removeprefix("TIDEMILL_").lower(): value for name, _, value in lines}
    except OSError:
        pass
    return {}


#: A file in the working folder: TIDEMILL_<NAME>=value, a line each; others' lines are not looked at.
ENV_FILE = ".env"


def _literal_lines() -> dict[str, str]:
    """Return the values between single quotes of `.env`, as they stand; `${NAME}` is what it names in all others.

    So Docker Compose reads the file as well. Raises SettingsError for a line of ours that is none.
    """
    literal: dict[str, str] = {}
    for line in parse_stream(StringIO(Path(ENV_FILE).read_text(encoding="utf-8-sig"))):
        text = line.original.string
        if line.error and "TIDEMILL_" in text:
            number = line.original.line + text[: text.index("TIDEMILL_")].count("\n")
            raise SettingsError(f"{ENV_FILE}, line {number}: expected NAME=value, with quotes at both ends or at none")
        name = (line.key or "").lower()
        literal.pop(name, None)
        if line.value and re.search(r"=\s*'", text):
            literal[name] = line.value
    return literal


def misspelt() -> Iterator[tuple[str, str]]:
    """Yield each variable, and name of `.env`, that is almost a setting's, and which is meant."""
    names = {f"TIDEMILL_{name.upper()}" for name in Settings.model_fields}
    names |= {f"TIDEMILL_{name.upper()}_FILE" for name in Settings.model_fields if is_secret(name)}
    given = {name for name in os.environ if name.startswith("TIDEMILL_")}
    if Path(ENV_FILE).is_file():
        lines = parse_stream(StringIO(Path(ENV_FILE).read_text(encoding="utf-8-sig")))
        given |= {line.key for line in lines if line.key and line.key.startswith("TIDEMILL_")}
    for name in sorted(given - names):
        for meant in get_close_matches(name, sorted(names), n=1, cutoff=0.9):
            yield name, meant


def is_secret(name: str) -> bool:
    """Whether a setting may hold a secret: then TIDEMILL_<NAME>_FILE may name a file with its value."""
    return Settings.model_fields[name].annotation is SecretStr or name == "kafka"


class _SecretFiles(PydanticBaseSettingsSource):
    """The values of TIDEMILL_<NAME>_FILE: the text of that file, without the line break at its end."""

    def __init__(self, settings_cls: type[BaseSettings], given: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._given: dict[str, str] = {name: text for name, text in getattr(given, "env_vars", {}).items() if text}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        path = self._given.get(f"tidemill_{field_name}_file")
        variable = f"TIDEMILL_{field_name.upper()}"
        if path is None:
            return None, field_name, False
        if not is_secret(field_name):
            raise SettingsError(
                f"{variable}_FILE: {field_name} is no secret, and is not read from a file; set {variable}"
            )
        if f"tidemill_{field_name}" in self._given:
            raise SettingsError(
                f"setting {field_name}: {variable} and {variable}_FILE are both set; expected one of them"
            )
        try:
            text = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"setting {field_name}: {variable}_FILE={path} can't be read: {described(error)}"
            ) from None
        return (_json(text, field_name) if field_name == "kafka" else text), field_name, False

    def __call__(self) -> dict[str, Any]:
        values = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in values.items() if value is not None}


class Settings(Secured, BaseSettings):
    """One instance's settings. Each is read from TIDEMILL_<NAME>; an option of the command wins over it."""

    model_config = SettingsConfigDict(
        env_prefix="TIDEMILL_", env_file=ENV_FILE, env_file_encoding="utf-8", extra="ignore", hide_input_in_errors=True
    )

    registry_url: SecretStr = Field(
        SecretStr(""), description="validator: schema registry, http(s)://[user:password@]host:port; empty: none"
    )
    registry_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        30.0, description="validator: how often the registry's subjects are read again"
    )
    store_url: str = Field(
        ".tidemill/artifacts", description="artifact store: a folder, s3://..., or what fsspec knows"
    )
    signing_key: SecretStr = Field(
        SecretStr(""),
        description="learner, gate, status, monitor: private key, its file, or the folder of all",
    )
    verify_keys: str = Field(
        ".tidemill/keys/public/verify.json",
        description="public keys of what is signed: a file that `tidemill keys new` makes, or its JSON",
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field("exactly_once", description="delivery guarantee")
    instance: str = Field(
        "0", pattern=r"^[A-Za-z0-9._-]+$", description="which instance of the service this is; a stable name"
    )
    http_port: Annotated[
        Annotated[int, Field(ge=0, le=65535)] | None, BeforeValidator(lambda port: None if port == "auto" else port)
    ] = Field(
        None,
        description="port of /metrics, /livez, /readyz; auto: the first from 9464 that is free, for this machine "
        "alone; 0: none",
    )
    max_delay_ms: Annotated[int, Field(ge=1, le=10_000)] = Field(
        20,
        description="how long a record may wait for a step's batch and commit; 10 times that, up to 200 ms, where no "
        "prediction waits",
    )
    snapshot_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        10.0, description="learner: publish a version at least this often"
    )
    snapshot_examples: Annotated[int, Field(ge=1)] = Field(10_000, description="learner: or after this many examples")
    state_dir: str = Field(
        "",
        description="joiner: folder for what waits for its label, so that memory does not grow with it; empty: memory",
    )
    archive_url: str = Field(
        ".tidemill/archive", description="archiver: where Parquet files go: a folder, s3://..., or what fsspec knows"
    )
    archive_format: Literal["parquet", "delta", "iceberg"] = Field(
        "parquet", description="archiver: files of Parquet, or tables of Delta Lake or Iceberg"
    )
    archive_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        60.0, description="archiver: how old its newest rows may be"
    )
    fuse: bool = Field(
        True, description="validator: stop where too much is refused; false: make dead letters of it all"
    )
    services: dict[str, str] = Field(
        {}, description="status: base URL of each service by its name, as JSON, whose /readyz and /metrics are read"
    )
    status_tokens: SecretStr = Field(
        SecretStr(""),
        description="status: who may do what, as NAME:ROLE:SHA256 entries; make one by `tidemill tokens new NAME`",
    )
    status_token: SecretStr = Field(
        SecretStr(""),
        description="token that commands are sent with; status itself knows its holder as `admin`, with all rights",
    )
    status_bind: str = Field(
        "127.0.0.1",
        description="status: address that it listens on; 0.0.0.0 is every one of this machine",
    )
    status_read: Literal["auto", "anyone", "token"] = Field(
        "auto", description="status: who may read; auto: anyone where it listens on 127.0.0.1, else a token is needed"
    )
    status_hosts: str = Field(
        "", description="status: host names that it answers to besides localhost, comma-separated"
    )
    status_pipelines: dict[str, str] = Field(
        {}, description="status: base URL of the status service of each other pipeline that its page lists, as JSON"
    )
    status_url: str = Field(
        "http://localhost:8000",
        pattern=r"^https?://[^\s/]+/?$",
        description="where the status service answers, for commands",
    )
    gateway_keys: SecretStr = Field(
        SecretStr(""),
        description="gateway: who may send and read, as NAME:ROLE:SHA256 entries, or a file of them; make one by "
        "`tidemill tokens new NAME --role produce+read`",
    )
    gateway_key: SecretStr = Field(
        SecretStr(""),
        description="key that clients of the gateway send; the gateway itself knows its holder as `application`, who "
        "may send and read",
    )
    gateway_bind: str = Field(
        "127.0.0.1", description="gateway: address that it listens on; 0.0.0.0 is every one of this machine"
    )
    gateway_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="gateway: most records a second that one key may send, and entities that it may read; 0: any"
    )
    gateway_url: str = Field(
        "http://localhost:8001", pattern=r"^https?://[^\s/]+/?$", description="where the gateway answers, for clients"
    )
    notify: SecretStr = Field(
        SecretStr(""),
        description="notifier: who is told of alerts, decisions and open circuit breakers, as JSON by name, or a file "
        "of it",
    )
    notify_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        24.0, description="notifier: how long it tries to deliver one notice"
    )
    access_log: bool = Field(
        True, description="status, gateway, --show-personal: write who has read or commanded what to the topic `access`"
    )
    replication: Annotated[int, Field(ge=-1)] = Field(
        -1, description="replication factor of created topics; -1: the broker's own"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level of log lines")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what is given, and below it where `tidemill up` runs what commands in this folder are for."""
        running: dict[str, Any] = dict(running_here())
        if "kafka" in running:
            running["kafka"] = _json(running["kafka"], "kafka")
        here = InitSettingsSource(settings_cls, running)
        if isinstance(dotenv_settings, DotEnvSettingsSource) and Path(ENV_FILE).is_file():
            dotenv_settings.env_vars = {**dotenv_settings.env_vars, **_literal_lines()}
        env_files, dotenv_files = (_SecretFiles(settings_cls, source) for source in (env_settings, dotenv_settings))
        return init_settings, env_files, env_settings, dotenv_files, dotenv_settings, file_secret_settings, here

    @field_validator("registry_url")
    @classmethod
    def _registry_url(cls, url: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(url.get_secret_value())
            well = not url.get_secret_value() or (parts.scheme in ("http", "https", "mock") and bool(parts.hostname))
            _ = parts.port  # raises where it is no number
        except ValueError:
            well = False
        if not well:
            raise ValueError("expected http(s)://[user:password@]host:port, mock://name, or nothing for none")
        return url

    @field_validator("status_bind", "gateway_bind")
    @classmethod
    def _status_bind(cls, address: str) -> str:
        try:
            return str(ipaddress.ip_address(address))
        except ValueError:
            raise ValueError("expected an IP address, as 127.0.0.1 or 0.0.0.0") from None

    @field_validator("status_token", "gateway_key")
    @classmethod
    def _status_token(cls, token: SecretStr) -> SecretStr:
        if token.get_secret_value() and (weakness := tokens.weakness(token.get_secret_value())):
            raise ValueError(f"{weakness}: make one by `tidemill tokens new NAME`")
        return token

    @field_validator("status_tokens")
    @classmethod
    def _status_tokens(cls, entries: SecretStr) -> SecretStr:
        tokens.parse_holders(entries.get_secret_value())
        return entries

    @field_validator("gateway_keys")
    @classmethod
    def _gateway_keys(cls, entries: SecretStr) -> SecretStr:
        text = entries.get_secret_value()
        if text and ":" not in text:
            try:
                text = Path(text).read_text()
            except (OSError, ValueError):  # without what it was: it may be a key
                raise ValueError("neither NAME:ROLE:SHA256 entries nor a file that can be read") from None
        tokens.parse_holders(text, tokens.Permission)
        return SecretStr(text)

    @field_validator("notify")
    @classmethod
    def _notify(cls, receivers: SecretStr) -> SecretStr:
        webhooks.read_receivers(receivers.get_secret_value())
        return receivers

    @field_validator("status_hosts")
    @classmethod
    def _status_hosts(cls, hosts: str) -> str:
        if not re.fullmatch(r"(?:[\w.-]+(?:,[\w.-]+)*)?", hosts, re.ASCII):
            raise ValueError("expected names without scheme and port, comma-separated, as status,status.example.org")
        return hosts

    @field_validator("status_pipelines")
    @classmethod
    def _status_pipelines(cls, pipelines: dict[str, str]) -> dict[str, str]:
        for name, url in pipelines.items():
            if not re.fullmatch(r"https?://[^\s/]+/?", url):
                raise ValueError(f"{name}: expected a URL without a path, as https://status.orders.example.org")
        return {name: url.rstrip("/") for name, url in pipelines.items()}

    def registry_place(self) -> str:
        """Return where the registry is, without its user and password; empty for none."""
        parts = urlsplit(self.registry_url.get_secret_value())
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def token_holders(self) -> tokens.Tokens:
        """Return who holds a token of the status service."""
        holders = tokens.parse_holders(self.status_tokens.get_secret_value())
        if token := self.status_token.get_secret_value():
            holders.setdefault(tokens.token_hash(token), tokens.Holder("admin", tokens.Role.ADMIN))
        return tokens.Tokens(holders)

    def key_holders(self) -> tokens.Tokens:
        """Return who holds a key of the gateway."""
        holders = tokens.parse_holders(self.gateway_keys.get_secret_value(), tokens.Permission)
        if key := self.gateway_key.get_secret_value():
            both = tokens.Permission.PRODUCE | tokens.Permission.READ
            holders.setdefault(tokens.token_hash(key), tokens.Holder("application", both))
        return tokens.Tokens(holders)

    def receivers(self) -> dict[str, webhooks.Receiver]:
        """Return who is told of notices, by name."""
        return webhooks.read_receivers(self.notify.get_secret_value())

    def keyring(self, service: str = "") -> Keyring:
        """Return the keys that verify and, for a service that signs, its private key.

        Raises SettingsError where there are none.
        """
        from tidemill.keys import KEY_OWNERS, Keyring

        signs = service in KEY_OWNERS
        keys = Keyring(self.verify_keys, self.signing_key.get_secret_value() if signs else "", service)
        if signs and not keys.can_sign:
            raise SettingsError(
                f"signing_key is not set, and the {service} signs: set TIDEMILL_SIGNING_KEY to its private key; "
                f"`tidemill keys new` makes one"
            )
        return keys


def load(**options: Any) -> Settings:
    """Return the settings; options that are None come from the environment, or `.env`.

    Raises SettingsError with the key.
    """
    if unknown := options.keys() - Settings.model_fields.keys():
        raise SettingsError(f"{min(unknown)!r} is no setting: expected one of {', '.join(Settings.model_fields)}")
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except NotJson as error:
        raise _not_json(next(name for name in _OBJECTS if f'"{name}"' in str(error))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{ENV_FILE} can't be read: {described(error)}") from None
    except ValidationError as error:
        raise SettingsError("; ".join(_sentence(dict(e)) for e in error.errors(include_url=False))) from None


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise _not_json(name) from None


#: What settings that are JSON objects have.
_OBJECTS = {
    "status_pipelines": "base URLs by pipeline",
    "services": "base URLs by service",
    "kafka": "librdkafka properties",
}


def _not_json(name: str) -> SettingsError:
    return SettingsError(f"setting {name}: not a JSON object of {_OBJECTS[name]}; set TIDEMILL_{name.upper()}")


def default_text(name: str) -> str:
    """Return a setting's default as people write it; empty where it is empty."""
    return "" if (default := Settings.model_fields[name].default) == {} else as_text(default)


def as_text(value: Any) -> str:
    """Return a setting's value as people write it."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, (bool, dict)):
        return json.dumps(value)
    return "auto" if value is None else str(value)


def _sentence(error: dict[str, Any]) -> str:
    name = str(error["loc"][0])
    secret = name in Settings.model_fields and is_secret(name)
    shown = "" if secret or "input" not in error else f" ({error['input']!r})"
    return f"setting {name}{shown}: {error['msg'].removeprefix('Value error, ')}; set TIDEMILL_{name.upper()}"
