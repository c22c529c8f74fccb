"""Where settings come from: an option, a variable, a line in .env, the default; and the port of the probes."""

from __future__ import annotations

import socket
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from tidemill import probes, settings
from tidemill.cli.main import cli
from tidemill.errors import SettingsError
from tidemill.settings import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TIDEMILL_{name.upper()}", raising=False)
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
    ],
)
def test_what_is_wrong_in_the_file_is_one_line(folder: Path, content: bytes, words: list[str]) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(SettingsError, match=r"^[^\n]+$") as caught:
        settings.load()
    assert all(word in str(caught.value) for word in words), str(caught.value)


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
