"""No expression of ours takes a long text much longer than to read it: quadratic ones took a minute for 100,000 digits."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

#: Tries every module's expressions on long texts that nearly match; a quadratic one takes a minute of CPU, all together some seconds.
TRY = """
import importlib, pkgutil, re, resource, sys
import tidemill
CPU_SECONDS, LENGTH = 10, 100_000
PARTS = ["1", "a", "A", ".", " ", ",", "-", "_", "/", "=", "@", "+", "\\t", "0", '"', "\\n"]
PARTS += ["a.", "a,", "1,", "1.", "a=b,", "1e", "-1", "a "]
count = 0
for module in pkgutil.walk_packages(tidemill.__path__, "tidemill."):
    if ".cli.__main__" in module.name or "re.compile(" not in module.module_finder.find_spec(module.name).loader.get_source(module.name):
        continue
    try:
        inside = vars(importlib.import_module(module.name))
    except ImportError:
        continue
    for name, value in list(inside.items()):
        if isinstance(value, re.Pattern):
            count += 1
            print(module.name, name, value.pattern, flush=True)
            resource.setrlimit(resource.RLIMIT_CPU, (int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + CPU_SECONDS, -1))
            for part in PARTS:
                text = part * (LENGTH // len(part))
                for one in (text + "!", "1" + text + "\\0", "a=" + text + "\\x7f"):
                    one = one if isinstance(value.pattern, str) else one.encode()
                    value.fullmatch(one), value.match(one)
print(count)
"""


def test_no_expression_takes_time_by_the_square_of_a_text() -> None:
    done = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]} {done.stderr[-1000:]}"
    assert int(lines[-1]) > 20
