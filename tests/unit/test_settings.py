"""Where settings come from: an option, a variable, a line in .env, the default; and the port of the probes."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
import redis
from certificates import Authority
from click.testing import CliRunner

from tidemill import probes, settings
from tidemill.cli.main import cli
from tidemill.errors import SettingsError
from tidemill.features.redis import shown_url
from tidemill.settings import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TIDEMILL_{name.upper()}", raising=False)
        monkeypatch.delenv(f"TIDEMILL_{name.upper()}_FILE", raising=False)
    return tmp_path


def test_an_option_wins_over_a_variable_that_over_the_file_and_that_over_the_default(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.load().brokers == "localhost:9092"
    (folder / ".env").write_text(
        "# where it runs\nOTHERS=1\nTIDEMILL_PARTITIONS_OF_OTHERS=2\n\nTIDEMILL_BROKERS='file:1'\nTIDEMILL_KAFKA={\"a\": 1}\n"
    )
    assert (settings.load().brokers, settings.load().kafka) == ("file:1", {"a": 1})
    monkeypatch.setenv("TIDEMILL_BROKERS", "variable:1")
    assert settings.load(brokers=None).brokers == "variable:1"
    assert settings.load(brokers="option:1").brokers == "option:1"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"TIDEMILL_MAX_DELAY_MS=many", ["max_delay_ms", "TIDEMILL_MAX_DELAY_MS"]),
        (b"TIDEMILL_KAFKA={", ["kafka", "JSON"]),
        (b"TIDEMILL_BROKERS=\xff\xfe", [".env"]),
        (b'# keys\nTIDEMILL_KAFKA_PASSWORD="hushhush', [".env", "line 2", "quotes"]),
        (b"A=1\nexport TIDEMILL_KAFKA_PASSWORD 'hushhush'\n", [".env", "line 2", "NAME=value"]),
    ],
)
def test_what_is_wrong_in_the_file_is_one_line(folder: Path, content: bytes, words: list[str]) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"^[^\n]+$") as caught:
        settings.load()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "hushhush" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("TIDEMILL_INSTANCE=a", "a"),
        ("export TIDEMILL_INSTANCE = a  # here", "a"),
        ('TIDEMILL_INSTANCE="a"', "a"),
        ("TIDEMILL_INSTANCE='a'", "a"),
        ("TIDEMILL_INSTANCE=b\nTIDEMILL_INSTANCE=a", "a"),
        ("TIDEMILL_STORE_URL=$A/${A}", "$A/1"),
        ('TIDEMILL_STORE_URL="${A}#2"', "1#2"),
        ("TIDEMILL_STORE_URL='$A/${A}#2'", "$A/${A}#2"),
        ("TIDEMILL_STORE_URL='${A}'\nTIDEMILL_STORE_URL=${A}", "1"),
        ("what others write\nTIDEMILL_INSTANCE=a", "a"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte order mark"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_lines_of_the_file_are_read_as_docker_compose_reads_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, value: str, mark: bytes, ends: str
) -> None:
    monkeypatch.setenv("A", "1")
    (folder / ".env").write_bytes(mark + (line + "\n").replace("\n", ends).encode())
    chosen = settings.load()
    assert getattr(chosen, "store_url" if "STORE_URL" in line else "instance") == value


def test_a_name_that_is_almost_a_setting_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(settings.misspelt()) == []
    monkeypatch.setenv("TIDEMILL_BROKER", "a:1")
    monkeypatch.setenv("TIDEMILL_STATUS_PORT_8000_TCP", "tcp://10.0.0.1:8000")  # Kubernetes names services so
    (folder / ".env").write_text("TIDEMILL_KAFKA_PASWORD_FILE=a\nTIDEMILL_OTHERS=1\nTIDEMILL_KAFKA_PASSWORD_FILE=a\n")
    assert list(settings.misspelt()) == [
        ("TIDEMILL_BROKER", "TIDEMILL_BROKERS"),
        ("TIDEMILL_KAFKA_PASWORD_FILE", "TIDEMILL_KAFKA_PASSWORD_FILE"),
    ]


def test_an_unknown_setting_by_name_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"'broker' is no setting: expected one of brokers"):
        settings.load(broker="localhost:9092")


def test_help_shows_the_defaults() -> None:
    text = " ".join(CliRunner().invoke(cli, ["run", "--help"]).output.split())
    assert "[TIDEMILL_BROKERS; default: localhost:9092]" in text
    assert "[TIDEMILL_HTTP_PORT; default: auto]" in text
    assert "[TIDEMILL_FUSE; default: true]" in text
    assert "[TIDEMILL_REGISTRY_URL]" in text


@pytest.mark.slow
def test_services_on_one_machine_have_a_port_each_without_being_told() -> None:
    assert settings.load().http_port is settings.load(http_port="auto").http_port is None
    assert settings.load(http_port="0").http_port == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = taken.getsockname()[1]
        ports = range(first, first + 20)
        servers = [probes.serve_on_a_free_port(probes.Health(), ports) for _ in range(2)]
        used = [server.server_port for server in servers if server]
        assert len(set(used)) == 2
        assert first not in used
        for port in used:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
                assert answer.read() == b"ok\n"
        for server in servers:
            assert server
            assert server.server_address[0] == "127.0.0.1"
            server.shutdown()
            server.server_close()


def test_where_no_port_is_free_it_is_said_and_the_service_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert probes.serve_on_a_free_port(probes.Health(), [taken.getsockname()[1]]) is None
    assert "no port is free" in caplog.text


def test_a_secret_may_be_in_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "password").write_text("se cret\n")
    (folder / "kafka").write_text('{"client.rack": "a"}\n')
    (folder / ".env").write_text("TIDEMILL_KAFKA_PASSWORD_FILE=password\nTIDEMILL_KAFKA_USER=anna\n")
    monkeypatch.setenv("TIDEMILL_KAFKA_FILE", "kafka")
    chosen = settings.load()
    assert chosen.kafka_password.get_secret_value() == "se cret"
    assert chosen.kafka_properties() == {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "anna",
        "sasl.password": "se cret",
        "client.rack": "a",
    }
    monkeypatch.setenv("TIDEMILL_KAFKA_PASSWORD", "another")  # the environment wins over .env, file or not
    assert settings.load().kafka_password.get_secret_value() == "another"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"KAFKA_PASSWORD_FILE": "nowhere"},
            ["kafka_password", "TIDEMILL_KAFKA_PASSWORD_FILE=nowhere", "No such file"],
        ),
        ({"KAFKA_PASSWORD_FILE": "binary"}, ["kafka_password", "TIDEMILL_KAFKA_PASSWORD_FILE=binary"]),
        ({"KAFKA_PASSWORD_FILE": "a", "KAFKA_PASSWORD": "verysecret"}, ["kafka_password", "both"]),
        ({"KAFKA_FILE": "password"}, ["kafka", "JSON"]),
        ({"BROKERS_FILE": "password"}, ["TIDEMILL_BROKERS_FILE", "no secret", "set TIDEMILL_BROKERS"]),
        ({"KAFKA_USER": "a"}, ["kafka_password", "TIDEMILL_KAFKA_USER"]),
        ({"KAFKA_PASSWORD": "verysecret"}, ["kafka_user", "TIDEMILL_KAFKA_PASSWORD"]),
        ({"KAFKA_CA": "ca.pem"}, ["kafka_ca", "TIDEMILL_KAFKA_TLS=true"]),
        ({"KAFKA_CA": "password", "KAFKA_TLS": "true"}, ["kafka_ca", "PEM"]),
        ({"KAFKA_CERTIFICATE": "anna.crt", "KAFKA_TLS": "true"}, ["kafka_key", "TIDEMILL_KAFKA_CERTIFICATE"]),
        (
            {"KAFKA_CERTIFICATE": "anna.crt", "KAFKA_KEY": "bob.key", "KAFKA_TLS": "1"},
            ["kafka_certificate", "anna.crt", "bob.key"],
        ),
        (
            {"KAFKA_CERTIFICATE": "bob.crt", "KAFKA_KEY": "bob.key", "KAFKA_TLS": "1"},
            ["kafka_certificate", "password is another"],
        ),
        (
            {"KAFKA_USER": "a", "KAFKA_PASSWORD": "verysecret", "KAFKA_MECHANISM": "OAUTHBEARER"},
            ["kafka_token_url", "OAUTHBEARER"],
        ),
        ({"KAFKA_TOKEN_URL": "http://idp"}, ["kafka_token_url", "TIDEMILL_KAFKA_MECHANISM=OAUTHBEARER"]),
        ({"REDIS_CA": "ca.pem"}, ["redis_ca", "rediss://"]),
        ({"REDIS_USER": "a"}, ["redis_password", "TIDEMILL_REDIS_USER"]),
        (
            {"REDIS_PASSWORD": "verysecret", "REDIS_URL": "redis://:verysecret@a:1"},
            ["redis_password", "TIDEMILL_REDIS_URL"],
        ),
        ({"HTTP_CERTIFICATE": "anna.crt"}, ["http_key", "TIDEMILL_HTTP_CERTIFICATE"]),
    ],
    ids=str,
)
def test_security_that_is_half_set_or_contradicts_itself_is_named_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], words: list[str]
) -> None:
    authority = Authority(folder, "ca")
    authority.pair("anna")
    authority.pair("bob", password="of its key")
    (folder / "password").write_text("verysecret")
    (folder / "binary").write_bytes(b"\xff\xfe")
    for name, value in given.items():
        monkeypatch.setenv(f"TIDEMILL_{name}", value)
    with pytest.raises(SettingsError, match=r"^[^\n]+$") as caught:
        settings.load()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "verysecret" not in str(caught.value)


def test_redis_address_has_all_that_its_client_needs(folder: Path) -> None:
    authority = Authority(folder, "ca")
    pair = authority.pair("anna")
    chosen = settings.load(
        redis_url="rediss://redis:6380/1",
        redis_user="an/na",
        redis_password="p@ss:word",
        redis_ca=str(authority.ca),
        redis_certificate=str(pair.certificate),
        redis_key=str(pair.key),
    )
    made = redis.Redis.from_url(chosen.redis_address()).connection_pool.connection_kwargs
    assert (made["host"], made["port"], made["db"]) == ("redis", 6380, 1)
    assert (made["username"], made["password"]) == ("an/na", "p@ss:word")
    assert made["ssl_ca_certs"] == str(authority.ca)
    assert (made["ssl_certfile"], made["ssl_keyfile"]) == (str(pair.certificate), str(pair.key))
    assert shown_url(chosen.redis_address()) == "redis:6380/1"
    assert settings.load().redis_address() == "redis://localhost:6379/0"
