"""The wheel and the sdist carry all that is needed, the scripts included."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCK_A_SLOT = """
import sys
from datetime import timedelta
import overbooked_lock
from overbooked_lock import LockEngine
assert sys.argv[1] in overbooked_lock.__file__, overbooked_lock.__file__
with LockEngine.embedded("data", unregistered="allow") as engine:
    print(engine.unlock(engine.lock("s", lock_for=timedelta(minutes=1))).released)
"""

# In a fresh environment nothing of this one may be in reach.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str, cwd: Path) -> str:
    """Runs a command to its end; returns what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=100, env=ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    return folder


def test_the_wheel_locks_a_slot_in_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    """Installed with what it depends on and nothing else of ours; no checkout in sight."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    [wheel] = built.glob("*.whl")
    pins = str(ROOT / "constraints.txt")
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, "-c", pins, f"{wheel}[embedded]", cwd=tmp_path)
    assert run(python, "-c", LOCK_A_SLOT, str(tmp_path / "venv"), cwd=tmp_path) == "True\n"


def test_what_they_carry(built: Path) -> None:
    """Every script once, the marker of a typed package, the licence; and no tests in the wheel."""
    scripts = sorted(path.relative_to(ROOT / "lua").as_posix() for path in (ROOT / "lua").rglob("*.lua"))
    [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    inside = "overbooked_lock/lua/"
    assert sorted(name.removeprefix(inside) for name in names if name.startswith(inside)) == scripts
    assert {"overbooked_lock/py.typed", "overbooked_lock/bench/report.html"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "lua/", "benchmarks")) for name in names)
    with tarfile.open(sdist) as archive:
        members = [name.partition("/")[2] for name in archive.getnames()]
    assert sorted(name.removeprefix("lua/") for name in members if name.startswith("lua/")) == scripts
    assert {"README.md", "CHANGELOG.md", "LICENSE", "Makefile", "tests/conftest.py"} <= set(members)
