"""What is shipped: the wheel holds the schemas, and finds them without the repository; an editable install finds the repository's."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tidemill.encoding import schema_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
        timeout=240,
    )
    (found,) = folder.glob("tidemill-*.whl")
    return found


def test_an_editable_install_reads_the_schemas_of_the_repository() -> None:
    assert schema_files.root() == ROOT / "schemas"


def test_the_wheel_has_every_schema(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".avsc")}
    assert inside == {f"tidemill/schemas/{p.relative_to(ROOT / 'schemas')}" for p in (ROOT / "schemas").rglob("*.avsc")}
    assert len(inside) >= 9


def test_a_pipeline_loads_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.path_importer_cache.clear()\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import tidemill, tidemill.encoding.schema_files as s\n"
        "assert str(s.root()).startswith(sys.argv[1]), s.root()\n"
        "print(tidemill.load('flights').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "flights", done.stderr
