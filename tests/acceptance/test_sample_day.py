"""``serve --sample-day``, which ``make run`` calls: what it prints can be pasted, and what was done stays."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "overbooked-lock")
PATIENCE = 20.0  # seconds


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Starts it with its data in a folder; gives what it prints."""
    environment = {"PATH": os.defpath, "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    words = [PROGRAM, "serve", "--port", "0", "--sample-day"]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            printed = ""
            while "Ctrl-C" not in printed:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                printed += line
            yield printed
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0


def paste(printed: str) -> list[httpx.Response]:
    """Sends what the printed commands would send."""
    answers = []
    for command in re.findall(r"^curl (?:.*\\\n)*.*", printed, re.MULTILINE):
        words = shlex.split(command.removesuffix("; echo").replace("\\\n", ""))
        options = dict(zip(words[3::2], words[4::2], strict=True))
        assert options.keys() == {"-H", "-d"}
        headers = dict(word.split(": ", 1) for flag, word in pairwise(words) if flag == "-H")
        answers.append(httpx.post(words[2], content=options["-d"], headers=headers, timeout=PATIENCE))
    return answers


def test_what_it_prints_works_when_pasted(tmp_path: Path) -> None:
    """A lock, a refusal that says until when, an unlock, a booking; the docs page is there."""
    with running(tmp_path) as printed:
        locked, refused, unlocked, booked = paste(printed)
        docs = re.search(r"http\S+/docs", printed)
        assert docs is not None
        assert httpx.get(docs[0]).status_code == 200
    assert [answer.status_code for answer in (locked, refused, unlocked, booked)] == [200, 422, 200, 200]
    assert locked.json()["data"]["resource_id"] == "court-1"
    assert refused.json()["error"]["details"]["locked_until"] == locked.json()["data"]["locked_until"]
    assert unlocked.json()["data"]["locked_until"] is None
    assert booked.json()["data"]["slot_id"] == locked.json()["data"]["id"]


def test_starting_again_keeps_the_data_and_changes_the_keys(tmp_path: Path) -> None:
    """The last pair of keys is no longer taken; what was booked still is."""
    with running(tmp_path) as first:
        booking = paste(first)[-1].json()["data"]
    with running(tmp_path) as second:
        url = re.search(r"base URL +(\S+)", second)
        keys = [re.search(r"public key +(\S+)", printed) for printed in (first, second)]
        assert url is not None
        [old, new] = [key[1] for key in keys if key is not None]
        answers = [
            httpx.get(f"{url[1]}/bookings/{booking['id']}", headers={"Authorization": f"Bearer {key}"})
            for key in (old, new)
        ]
        assert [answer.status_code for answer in answers] == [401, 200]
        assert answers[1].json()["data"] == booking
        assert paste(second)[-1].json()["data"]["slot_id"] != booking["slot_id"]
