"""Services in one process, each with settings of its own; the file that is named has them, the pipeline and a port."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tidemill import load, logs, settings
from tidemill.runtime.host import Host
from tidemill.runtime.together import Member, Together

if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    logs.setup("members", "INFO")
    members = {
        name: Member(service, model, settings.load(**chosen))
        for name, (service, model, chosen) in given["members"].items()
    }
    Together(load(given["pipeline"]), members).run(given["port"], Host())
