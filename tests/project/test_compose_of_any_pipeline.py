"""`tidemill compose`: the file of any pipeline runs what is there, by commands and settings that exist; no engine is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import Authority
from click.testing import CliRunner
from test_deployment import COMPOSE, ONCE, accepts, accepts_variables, addresses_wrong, model_of, public
from test_kubernetes_of_any_pipeline import project, small

from tidemill import load, probes
from tidemill.cli.compose import compose
from tidemill.offline.scaffold import files
from tidemill.wire import topics

pytestmark = pytest.mark.slow
TLS = {
    "TIDEMILL_HTTP_CERTIFICATE": "/tls/tls.crt",
    "TIDEMILL_HTTP_KEY": "/tls/tls.key",
    "TIDEMILL_HTTP_CA": "/tls/ca.crt",
}


def written(target: str, *options: str) -> dict[str, Any]:
    done = CliRunner().invoke(compose, [target, *options], catch_exceptions=False)
    assert done.exit_code == 0
    return dict(yaml.safe_load(done.output))


def own(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: one for name, one in made["services"].items() if one["image"].startswith("tidemill:")}


@pytest.mark.parametrize("options", [(), ("--http-tls",)], ids=["", "tls"])
@pytest.mark.parametrize("target", ["flights", "delays", "own"])
def test_it_runs_every_service_and_a_learner_for_every_model(
    tmp_path: Path, target: str, options: tuple[str, ...]
) -> None:
    target = project(tmp_path / "own") if target == "own" else target
    made, pipeline = written(target, *options), load(target)
    is_file = target.endswith(".py")
    assert made.keys() == COMPOSE.keys()
    named = "/pipeline/pipeline.py" if is_file else target
    commands = {name: one["command"] for name, one in own(made).items()}
    for name, command in commands.items():
        accepts([target if word == named else word for word in command])
        assert name == "keys" or named in command
        mounts = {volume.split(":")[1] for volume in own(made)[name]["volumes"]}
        assert ("/pipeline" in mounts, "/tls" in mounts) == (is_file, bool(options))
        environment = {**own(made)[name]["environment"]}
        tls = {key: environment.pop(key) for key in TLS if key in environment}
        assert tls == (TLS if options else {})
        accepts_variables(environment)
    run = [command for name, command in commands.items() if name not in ONCE]
    assert {command[1] for command in run} == {*topics.ALL}
    assert sorted(model_of(c) for c in run if c[1] == "learner") == sorted(pipeline.model_names)
    ports = {name: int(one["environment"]["TIDEMILL_HTTP_PORT"]) for name, one in own(made).items() if name not in ONCE}
    status = dict(own(made)["status"]["environment"])
    if options:
        assert "http://" not in status["TIDEMILL_SERVICES"]
        status["TIDEMILL_SERVICES"] = status["TIDEMILL_SERVICES"].replace("https://", "http://")
    assert addresses_wrong(status, ports) == []
    assert [port for one in made["services"].values() for port in public(one)] == []
    open_ports = {name: one["ports"] for name, one in own(made).items() if "ports" in one}
    assert open_ports == {
        "status": ["127.0.0.1:${STATUS_PORT:-8000}:8080"],
        "gateway": ["127.0.0.1:${GATEWAY_PORT:-8001}:8080"],
    }
    for one in made["services"].values():
        assert {volume.split(":")[0] for volume in one["volumes"] if volume[0] != "."} <= made["volumes"].keys()


@pytest.mark.parametrize("name", ["null", "on", "a--_"])
def test_odd_names_of_models_are_names_in_it(name: str) -> None:
    pipeline = small("odd", name, "logreg-2")
    made = yaml.safe_load(files.compose(pipeline, "package.null:on"))
    learners = {service: one["command"] for service, one in made["services"].items() if "learner" in service}
    assert {service: command[-1] for service, command in learners.items()} == {
        f"learner-{model}": model for model in pipeline.model_names
    }
    assert all(command[2] == "package.null:on" for command in learners.values())
    assert json.loads(made["services"]["status"]["environment"]["TIDEMILL_SERVICES"]).keys() >= learners.keys()


@pytest.mark.parametrize("is_well", [True, False])
def test_the_health_check_asks_by_tls(tmp_path: Path, *, is_well: bool) -> None:
    class Health(probes.Health):
        def alive(self) -> str | None:
            return None

        def ready(self) -> str | None:
            return None if is_well else "it waits"

    made, authority = written("flights", "--http-tls"), Authority(tmp_path)
    pair = authority.pair("localhost")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TIDEMILL_HTTP_CERTIFICATE", str(pair.certificate))
        environment.setenv("TIDEMILL_HTTP_KEY", str(pair.key))
        from tidemill import settings

        server = probes.serve(0, Health(), address="127.0.0.1", tls=settings.load().server_context())
    try:
        python, flag, code = made["services"]["scorer"]["healthcheck"]["test"][1:]
        assert (python, flag) == ("python", "-c")
        code = code.replace(":8080", f":{server.server_port}")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
        assert done.returncode == (0 if is_well else 1), done.stderr
    finally:
        server.shutdown()
        server.server_close()
