"""A schema registry over real HTTP, in a thread: the part of Confluent's REST API that clients use, for tests.

Apicurio's and Confluent's own servers are not to be had from Maven Central as something that runs by itself.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from tidemill.local.processes import free_port


class RegistryServer:
    """One registry; `stop` and `start` are for tests of what happens when it goes away. `requests` is what it was asked."""

    def __init__(self, *, guids: bool = True, login: str = "") -> None:
        self.port = free_port()
        self.url = f"http://{login + '@' if login else ''}127.0.0.1:{self.port}"
        self.guids, self.login = guids, login
        self.schemas: list[dict[str, Any]] = []
        self.subjects: dict[str, list[int]] = {}
        self.levels: dict[str, str] = {}
        self.requests: list[str] = []
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=self.port, log_level="critical", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def add(self, subject: str, schema: str, kind: str = "AVRO", references: Any = ()) -> int:
        """Register a schema by hand; returns its id."""
        wanted = {"schema": schema, "schemaType": kind, "references": list(references)}
        ids = [number for number, known in enumerate(self.schemas, 1) if known == wanted]
        if not ids:
            self.schemas.append(wanted)
            ids = [len(self.schemas)]
        versions = self.subjects.setdefault(subject, [])
        if ids[0] not in versions:
            versions.append(ids[0])
        return ids[0]

    def guid(self, number: int) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_OID, self.schemas[number - 1]["schema"])

    def _shown(self, subject: str, version: int) -> dict[str, Any]:
        number = self.subjects[subject][version - 1]
        guid = {"guid": str(self.guid(number))} if self.guids else {}
        return {"subject": subject, "version": version, "id": number, **guid, **self.schemas[number - 1]}

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def note(request: Request, call_next: Any) -> Any:
            import base64

            self.requests.append(f"{request.method} {request.url.path}")
            wanted = f"Basic {base64.b64encode(self.login.encode()).decode()}"
            if self.login and request.headers.get("authorization") != wanted:
                return _error(401, 40101, "Unauthorized")
            return await call_next(request)

        @app.get("/subjects/{subject}/versions")
        def versions(subject: str) -> Any:
            if subject not in self.subjects:
                return _error(404, 40401, f"Subject '{subject}' not found.")
            return list(range(1, len(self.subjects[subject]) + 1))

        @app.get("/subjects/{subject}/versions/{version}")
        def version(subject: str, version: int) -> Any:
            if not 0 < version <= len(self.subjects.get(subject, [])):
                return _error(404, 40402, f"Version {version} not found.")
            return self._shown(subject, version)

        @app.post("/subjects/{subject}/versions")
        async def register(subject: str, request: Request) -> Any:
            given = json.loads(await request.body())
            return {
                "id": self.add(subject, given["schema"], given.get("schemaType", "AVRO"), given.get("references", ()))
            }

        @app.post("/subjects/{subject}")
        async def look_up(subject: str, request: Request) -> Any:
            given = json.loads(await request.body())
            for place, number in enumerate(self.subjects.get(subject, []), 1):
                if self.schemas[number - 1]["schema"] == given["schema"]:
                    return self._shown(subject, place)
            return _error(404, 40403, "Schema not found")

        @app.get("/schemas/ids/{number}")
        def by_id(number: int) -> Any:
            return self.schemas[number - 1] if number <= len(self.schemas) else _error(404, 40403, "Schema not found")

        @app.get("/config/{subject}")
        def config(subject: str) -> Any:
            if subject not in self.levels:
                return _error(404, 40408, f"Subject '{subject}' does not have subject-level compatibility configured")
            return {"compatibilityLevel": self.levels[subject]}

        @app.put("/config/{subject}")
        async def configure(subject: str, request: Request) -> Any:
            self.levels[subject] = json.loads(await request.body())["compatibility"]
            return {"compatibility": self.levels[subject]}

        return app


def _error(status: int, code: int, message: str) -> JSONResponse:
    return JSONResponse({"error_code": code, "message": message}, status)
