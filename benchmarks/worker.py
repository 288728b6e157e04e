"""A process for each side that is measured, so that none pays for another's threads, garbage or imports.

``python -m benchmarks.worker MODULE URL`` connects, and says ``{"versions": …}``. From then on it reads a line of JSON,
``{"names": […], "seconds": …}``, has one caller for each name lock and unlock it for that long, over and over, all at
the same time, and says ``{"pairs": …, "seconds": …}``. It ends with its input. ``peers/redlock.mjs`` does the same in
Node.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import uvloop

from benchmarks.measuring import CALLERS

HERE = Path(__file__).parent
PATIENCE = 30.0  # seconds for a process to end


@dataclass(frozen=True)
class Turn:
    """What the callers of a process did together."""

    pairs: int
    seconds: float

    @property
    def seconds_a_pair(self) -> float:
        return self.seconds / self.pairs


class Missing(Exception):
    """A side can't be measured here; the text says why."""


class Worker:
    """A process that measures a side: a module of Python, or a program for Node.

    It starts at once; ``connect()`` waits until it is ready.
    """

    def __init__(self, program: str, url: str) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", program, url]
        if program.endswith(".mjs"):
            command = [shutil.which("node") or "node", "--expose-gc", str(HERE / program), url]
        self.versions: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._absent = ""
        try:
            self._process = subprocess.Popen(
                command,
                cwd=HERE.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError:
            self._absent = f"there is no {Path(command[0]).name} here"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def connect(self) -> None:
        """Raises Missing, with what the process said of itself, if it can't measure."""
        self.versions = self._hear()["versions"]

    def turn(self, names: list[str], seconds: float) -> Turn:
        """One caller for each name, for that long. Raises Missing if the process ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"names": names, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return Turn(**self._hear())

    def _hear(self) -> dict[str, Any]:
        if self._process is None:
            raise Missing(self._absent)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._process.stderr.read().splitlines()
            errors = [line.strip() for line in lines if "Error" in line.partition(":")[0]]
            raise Missing((errors or lines or ["its process ended"])[-1].replace(f"{HERE.parent}/", ""))
        heard: dict[str, Any] = json.loads(line)
        return heard


# What runs in the process.

Pair = Callable[[str], Awaitable[None]]


def main(module_name: str, url: str) -> None:
    side = importlib.import_module(module_name)
    versions = {package: version(package) for package in side.PACKAGES}

    if inspect.isasyncgenfunction(inspect.unwrap(side.connect)):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_async(side.connect(url, CALLERS), versions))
        return
    with side.connect(url, CALLERS) as pair:
        _say(versions=versions)
        for line in sys.stdin:
            order = json.loads(line)
            _tidy()
            pairs, start = 0, time.perf_counter()
            [name] = order["names"]
            while (now := time.perf_counter()) < start + order["seconds"] or not pairs:
                pair(name)
                pairs += 1
            _say(pairs=pairs, seconds=now - start)


async def _serve_async(connected: Any, versions: dict[str, str]) -> None:
    async with connected as pair:
        _say(versions=versions)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            _tidy()
            start = time.perf_counter()
            pairs = await asyncio.gather(*(_call(pair, name, start + order["seconds"]) for name in order["names"]))
            _say(pairs=sum(pairs), seconds=time.perf_counter() - start)


async def _call(pair: Pair, name: str, end: float) -> int:
    pairs = 0
    while time.perf_counter() < end or not pairs:
        await pair(name)
        pairs += 1
    return pairs


def _tidy() -> None:
    """What a turn left behind is not for the next one to collect, nor to look through."""
    gc.collect()
    gc.freeze()


def _say(**message: object) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
