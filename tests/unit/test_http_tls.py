"""Probes, metrics and applications by TLS: whoever knows the authority reads them, and nobody else."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import Authority
from fastapi import FastAPI

from tidemill import probes, settings
from tidemill.errors import SettingsError
from tidemill.runtime.host import Host
from tidemill.watch.status import scrape
from tidemill.web.connections import Server, server_config
from tidemill.web.health import router

pytestmark = pytest.mark.slow


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.chdir(tmp_path)
    return Authority(tmp_path)


def chosen(authority: Authority, **more: object) -> settings.Settings:
    pair = authority.pair("validator")
    return settings.load(
        http_certificate=str(pair.certificate), http_key=str(pair.key), http_ca=str(authority.ca), **more
    )


@pytest.fixture
def probe_port(authority: Authority) -> Iterator[int]:
    server = probes.serve(0, probes.Health(), tls=chosen(authority).server_context())
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_the_status_service_reads_probes_by_tls_of_each_address_behind_a_name(
    authority: Authority, probe_port: int
) -> None:
    tls, url = chosen(authority).client_context(), f"https://127.0.0.1:{probe_port}/livez"
    assert scrape.fetch(url, tls, "validator") == (200, "ok\n")
    assert scrape.fetch(url.replace("https", "http"), tls, "validator")[0] == 0
    status, why = scrape.fetch(url, tls, "scorer")  # another pod has this address
    assert (status, "scorer" in why) == (0, True)
    strangers = Authority(authority.folder, "stranger")
    status, why = scrape.fetch(url, settings.load(http_ca=str(strangers.ca)).client_context(), "validator")
    assert (status, "certificate" in why) == (0, True)


def test_who_never_shakes_hands_holds_up_nobody(authority: Authority, probe_port: int) -> None:
    with socket.create_connection(("127.0.0.1", probe_port)), socket.create_connection(("127.0.0.1", probe_port)):
        began = time.monotonic()
        tls = chosen(authority).client_context()
        assert scrape.fetch(f"https://127.0.0.1:{probe_port}/livez", tls, "validator") == (200, "ok\n")
        assert time.monotonic() - began < probes.PROBE_SECONDS.max


def test_a_host_serves_probes_as_the_settings_say(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    Host().serve(chosen(authority, http_port=port), probes.Health())
    assert scrape.fetch(f"https://127.0.0.1:{port}/livez", chosen(authority).client_context(), "validator")[0] == 200


def test_applications_are_served_by_tls(authority: Authority) -> None:
    application, stops = FastAPI(), list[Callable[..., None]]()
    application.include_router(router)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = server_config(application, "127.0.0.1", port, tls=chosen(authority).server_context())
    server = Server(config, stops.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        context = chosen(authority).client_context()
        with urllib.request.urlopen(f"https://localhost:{port}/livez", context=context, timeout=5) as answer:
            assert answer.read() == b"ok\n"
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(f"https://localhost:{port}/livez", context=ssl.create_default_context(), timeout=5)
    finally:
        stops[0]()
        thread.join(20)


def test_a_key_with_a_password_ends_in_one_line_and_not_in_a_question(authority: Authority) -> None:
    pair = authority.pair("locked", password="of the key")
    with pytest.raises(
        SettingsError, match=r"^setting http_certificate: .*locked\.crt.*set TIDEMILL_HTTP_CERTIFICATE$"
    ):
        settings.load(http_certificate=str(pair.certificate), http_key=str(pair.key))
