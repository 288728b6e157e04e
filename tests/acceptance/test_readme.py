"""Every code block of the README does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


def environment(folder: Path) -> dict[str, str]:
    """A newcomer's, with a data folder of its own."""
    scripts = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}", "XDG_DATA_HOME": str(folder / "data")}


def run(*command: str, folder: Path) -> str:
    """Runs a command as a newcomer would, with a data folder of its own; returns what it printed."""
    env = environment(folder)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_block_is_known() -> None:
    """No block escapes these tests."""
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert (len(PROGRAMS), len(COMMANDS)) == (3, 12)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (PROGRAMS[0], r'\{"_object":"slot","available":true.*fencing token \d+\ntaken until 20'),
        (PROGRAMS[1], r"^1 of 1000 has the court$"),
        (PROGRAMS[2], r"^writing with fencing token \d+$"),
    ],
)
def test_the_programs_run(program: str, says: str, tmp_path: Path) -> None:
    """As printed, in an empty folder."""
    assert re.search(says, run(sys.executable, "-W", "error", "-c", program, folder=tmp_path))


def test_the_commands_run(tmp_path: Path) -> None:
    """In their order, on one data folder."""
    lines = [line for line in COMMANDS if line.startswith("overbooked-lock") and not line.endswith(" serve")]
    output = [run("bash", "-c", line, folder=tmp_path) for line in lines]
    assert "court-1-18h" in output[2]
    assert output[4].endswith("mine while this runs\n")
    assert "sk_" in output[5]
    assert "no seat was sold twice" in output[6]


def test_it_serves(tmp_path: Path) -> None:
    """What is printed there, on a port that is free, and asked as it is printed."""
    [serve] = [line for line in COMMANDS if line.endswith(" serve")]
    [curl] = [line for line in COMMANDS if line.startswith("curl")]
    with subprocess.Popen(
        ["/bin/bash", "-c", f"exec {serve} --port 0"],
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        url = server.stdout.readline().split()[-1]
        try:
            answer = run("bash", "-c", curl.replace("http://127.0.0.1:8080", url) + " --silent", folder=tmp_path)
        finally:
            server.terminate()
    assert answer.startswith('{"data": {"status": "ready"}')
    assert server.returncode == 0


def test_make_has_the_two_commands() -> None:
    """``make run`` and ``make test`` are there; that they work is seen by running them."""
    for line in COMMANDS:
        if line.startswith("make"):
            assert run(*line.split(), "--dry-run", folder=ROOT)


def test_the_extras_are_there() -> None:
    """What the README installs, the package offers."""
    [line] = [line for line in COMMANDS if line.startswith("pip")]
    [extras] = re.findall(r"\[(.*)\]", line)
    assert set(extras.split(",")) <= set(metadata("overbooked-lock").get_all("Provides-Extra") or [])
