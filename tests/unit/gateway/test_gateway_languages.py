"""The programs of the page are run as they stand there, each against a gateway and a river that live."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from gateway_in_memory import BOTH_KEY
from small import event
from test_gateway_connections import Served

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "gateway-clients.md").read_text()
PROGRAMS = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', PAGE, re.M | re.S))
COMMANDS = {
    "ask.sh": ["curl", "bash", "ask.sh"], "ask.mjs": ["node", "node", "ask.mjs"], "Ask.java": ["java", "java", "Ask.java"],
    "ask.go": ["go", "go", "run", "ask.go"],
}  # fmt: skip

pytestmark = pytest.mark.slow


def test_every_program_of_the_page_is_run() -> None:
    assert PROGRAMS.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "ask.go" else name for name in COMMANDS]
)  # Go compiles for half a minute
def test_a_program_prints_the_score_and_its_event_is_predicted_once(name: str, tmp_path: Path) -> None:
    tool, *command = COMMANDS[name]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    (tmp_path / name).write_text(PROGRAMS[name])
    (tmp_path / "event.json").write_text(json.dumps(event(name, 1_700_000_000_000)))
    with Served() as served:
        url = f"http://127.0.0.1:{served.server.servers[0].sockets[0].getsockname()[1]}"
        env = {**os.environ, "TIDEMILL_GATEWAY_URL": url, "TIDEMILL_GATEWAY_KEY": BOTH_KEY}
        for _ in range(2):  # the second time it is a repetition
            ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
            assert ran.returncode == 0, ran.stderr
            (prediction,) = served.shop.predictions()
            assert float(ran.stdout) == prediction["champion"]["score"]
        (tmp_path / "event.json").write_text(json.dumps(event("refused", 1_700_000_000_000, sched_hour=77)))
        ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
        assert ran.returncode != 0 or not ran.stdout, "a refused event has no score"
        assert len(served.shop.predictions()) == 1
