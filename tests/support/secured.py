"""A broker and a Redis as they are in production: TLS, users, and nothing allowed but what was granted; and an issuer of tokens."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import redis
from certificates import Authority
from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion
from real_kafka import RealKafka

from tidemill.local.processes import end, free_port, spawn

#: Every user's, in these tests.
PASSWORD = "correct horse battery"
LOGIN = "org.apache.kafka.common.security"


class SecuredKafka(RealKafka):
    """A broker that allows nobody anything but the test, which comes in without TLS and is a super user.

    `scram` is by TLS, with SCRAM-SHA-512, PLAIN or a token; `clear` takes users without TLS; `mtls` wants a certificate.
    """

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.authority, server = authority, authority.pair("kafka")
        super().__init__(
            folder,
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={server.both}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={authority.ca}",
            "ssl.principal.mapping.rules=RULE:^CN=(.*?)$/$1/,DEFAULT",
            "listener.name.mtls.ssl.client.auth=required",
            "sasl.enabled.mechanisms=SCRAM-SHA-512",
            "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            f"listener.name.scram.scram-sha-512.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
            f"listener.name.clear.scram-sha-512.sasl.jaas.config={LOGIN}.scram.ScramLoginModule required;",
            "listener.name.scram.plain.sasl.jaas.config="
            f'{LOGIN}.plain.PlainLoginModule required user_anna="{PASSWORD}";',
            f"listener.name.scram.oauthbearer.sasl.jaas.config={LOGIN}.oauthbearer.OAuthBearerLoginModule required;",
            listeners={"SCRAM": "SASL_SSL", "CLEAR": "SASL_PLAINTEXT", "MTLS": "SSL"},
        )
        self.scram, self.clear, self.mtls = (f"127.0.0.1:{self.ports[name]}" for name in ("SCRAM", "CLEAR", "MTLS"))
        self.admin = AdminClient({"bootstrap.servers": self.servers})

    def add(self, *users: str) -> None:
        """Add users, all with the same password."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        made = [UserScramCredentialUpsertion(user, info, PASSWORD.encode()) for user in users]
        for done in self.admin.alter_user_scram_credentials(made).values():
            done.result(20)

    def settings(self, user: str) -> dict[str, Any]:
        """Return the settings that a service of this user has."""
        return {
            "brokers": self.scram, "kafka_tls": True, "kafka_ca": str(self.authority.ca), "kafka_user": user,
            "kafka_password": PASSWORD,
        }  # fmt: skip


class SecuredRedis:
    """A Redis with a port by TLS, and one without for the test."""

    def __init__(self, folder: Path, authority: Authority, *, clients_show_certificates: bool = False) -> None:
        server, self.port, self.tls_port = authority.pair("redis"), free_port(), free_port()
        options: Mapping[str, object] = {
            "port": self.port, "tls-port": self.tls_port, "bind": "127.0.0.1", "save": "", "appendonly": "no",
            "dir": folder, "maxmemory-policy": "noeviction", "tls-cert-file": server.certificate,
            "tls-key-file": server.key, "tls-ca-cert-file": authority.ca,
            "tls-auth-clients": "yes" if clients_show_certificates else "no",
        }  # fmt: skip
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self.process = spawn([shutil.which("redis-server") or "redis-server", *words], folder / "secured-redis.log")
        self.url, self.ca = f"rediss://127.0.0.1:{self.tls_port}/0", authority.ca
        self.admin: Any = redis.Redis(port=self.port, decode_responses=True)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.admin.ping()
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, (folder / "secured-redis.log").read_text()
                time.sleep(0.05)

    def settings(self, user: str) -> dict[str, Any]:
        """Return the settings that a service of this user has."""
        return {"redis_url": self.url, "redis_ca": str(self.ca), "redis_user": user, "redis_password": PASSWORD}

    def stop(self) -> None:
        end(self.process)


class Issuer(ThreadingHTTPServer):
    """Gives tokens to clients that know the password; its broker takes them unsigned."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Tokens)
        self.url = f"http://127.0.0.1:{self.server_port}/token"
        self.asked: list[tuple[str, str]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Tokens(BaseHTTPRequestHandler):
    server: Issuer

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers["Content-Length"])).decode()
        given = base64.b64decode(self.headers.get("Authorization", "").removeprefix("Basic ")).decode()
        user, _, password = (unquote(part) for part in given.partition(":"))
        self.server.asked.append((user, form))
        if password != PASSWORD:
            self.send_error(401)
            return
        now = int(time.time())
        claims = {"sub": user, "iat": now, "exp": now + 300, "scope": "kafka"}
        token = ".".join(_base64(one) for one in ({"alg": "none"}, claims)) + "."
        body = json.dumps({"access_token": token, "token_type": "bearer", "expires_in": 300}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _base64(content: Mapping[str, object]) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
