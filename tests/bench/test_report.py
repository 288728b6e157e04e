"""The report of a run: one page that needs nothing else, for people who were not there."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest
import redis
from matplotlib.figure import Figure

from overbooked_lock import EmbeddedServer
from overbooked_lock.bench import Options, Run, plots, report, run
from overbooked_lock.bench.results import BatchSize, Bottleneck, SlotContention, contention_of
from overbooked_lock.bench.verdicts import Verdict
from overbooked_lock.errors import InvalidArgument

VOID = {"meta", "link", "img", "br", "input"}
PLOTS = {"percentiles", "throughput", "latency-over-time", "cpu", "busiest", "demand", "batches"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its text, and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        """The values of an attribute, of every element that has it."""
        return [value for _, attributes in self.elements if (value := attributes.get(attribute))]

    @property
    def plots(self) -> set[str]:
        """The names of the plots that are drawn."""
        return {
            str(attributes["aria-labelledby"]).split("-title")[0] for tag, attributes in self.elements if tag == "svg"
        }


@pytest.fixture(scope="module")
def onsale(lock_server: EmbeddedServer) -> Run:
    """A short on-sale."""
    return run(
        Options(
            scenario="onsale",
            url=lock_server.url,
            duration=timedelta(seconds=0.5),
            warm_up=timedelta(0),
            processes=1,
            callers=20,
            slots=30,
        )
    )


def test_the_page_has_every_plot_and_every_answer(onsale: Run) -> None:
    """Each plot has a title and words for who can't see it; identifiers are there once; the verdict stands first."""
    page = Page(report.page(onsale))
    assert page.plots == PLOTS
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    for named in page.all("aria-labelledby"):
        assert set(named.split()) <= set(ids)
    for reference in (*page.all("href"), *page.all("xlink:href")):
        if reference.startswith("#"):
            assert reference[1:] in ids
    shown = " ".join(page.text.split())
    for sentence in (*onsale.conclusion, *(one.said for one in onsale.invariants), "nobody was sold a seat"):
        assert sentence in shown
    assert shown.index("each of them once") < shown.index("What must hold")
    assert onsale.versions["redis-py"] in shown
    assert "✗" not in shown


@pytest.mark.parametrize("kind", get_args(Bottleneck.model_fields["kind"].annotation))
def test_the_bottleneck_and_where_it_ran_stand_beside_the_verdict(onsale: Run, kind: str) -> None:
    """Whoever was it: above all that is read later."""
    bottleneck = onsale.bottleneck.model_copy(update={"kind": kind})
    shown = " ".join(Page(report.page(onsale.model_copy(update={"bottleneck": bottleneck}))).text.split())
    above = shown[: shown.index("What must hold")]
    named = {"server": "Redis server", "harness": "Harness", "machine": "This machine", "load": "None"}
    assert f"Bottleneck{named.get(kind, 'Unknown')}" in above
    assert f"cores: {onsale.machine.cores}" in above
    assert f"redis-py {onsale.versions['redis-py']}" in above
    assert str(onsale.target.server) in above


@pytest.mark.parametrize("most", [4, 12])
def test_bars_of_batches_are_named_by_ranges_that_do_not_overlap(onsale: Run, most: int) -> None:
    """However many there are."""
    batches = [BatchSize(operations=2**power, batches=1) for power in range(most + 1)]
    [svg] = [one.svg for one in plots.of(onsale.model_copy(update={"batches": batches})) if one.name == "batches"]
    assert svg is not None
    shown = "".join(Page(svg).text.split())
    first, last = f"{2**most:,}", f"{2 ** (most + 1) - 1:,}"
    for name in ("2\N{EN DASH}3", "4\N{EN DASH}7", f"{first}\N{EN DASH}{last}"):
        assert name in shown
    assert "+" not in shown


@pytest.mark.parametrize("most", [12, 48_000])
def test_every_slot_that_was_wanted_has_a_bar_to_be_seen(onsale: Run, most: int) -> None:
    """Also beside one that was wanted tens of thousands of times."""
    contention = contention_of(["a", "b", "c"], [most, 3, 1], [most // 10, 1, 1])
    axes = Figure().subplots()
    said = plots._draw_busiest(axes, onsale.model_copy(update={"contention": contention}))
    assert f"{most:,} times" in said
    widths = [patch.get_window_extent().width for patch in axes.patches]
    assert len(widths) == 6
    assert min(widths) > axes.get_window_extent().width / 50
    assert ("logarithmic" in axes.get_xlabel()) is (most == 48_000)


def test_the_page_loads_nothing(onsale: Run) -> None:
    """No address in it but those of data and of its own parts; no scripts; a browser is told to refuse both."""
    html = report.page(onsale)
    page = Page(html)
    assert not re.search("https?://|@import", html)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.elements}
    for reference in (*page.all("src"), *page.all("href"), *page.all("xlink:href"), *re.findall(r"url\((.*?)\)", html)):
        assert reference.startswith(("#", "data:"))
    assert any(policy.startswith("default-src 'none'") for policy in page.all("content"))


def test_the_page_carries_the_run(onsale: Run) -> None:
    """As a file to be saved: what ``--json`` prints."""
    [saved] = [one for one in Page(report.page(onsale)).all("href") if one.startswith("data:")]
    assert Run.model_validate_json(base64.b64decode(saved.partition("base64,")[2])) == onsale


def test_a_plot_without_data_is_left_out_and_said_to_be(onsale: Run) -> None:
    """Over HTTP nobody knows of batches or of the server's CPU; a short run has no seconds."""
    nothing = onsale.contention.model_copy(update={"busiest": []})
    empty = onsale.model_copy(
        update={
            "batches": [],
            "seconds": [],
            "operations": [],
            "spans": [],
            "contention": nothing,
            "server_cpu": None,
            "harness_cpu": [],
        }
    )
    page = Page(report.page(empty))
    assert page.plots == set()
    for said in ("can't be seen from here: another process", "The run was too short", "No slot was asked for"):
        assert said in page.text
    assert Page(report.page(empty.model_copy(update={"batches": [BatchSize(operations=3, batches=2)]}))).plots == {
        "batches"
    }


@pytest.mark.parametrize("name", ['"><script>alert(1)</script>', "$\\frac{1}$", "</svg>&amp;", "x" * 300])
def test_names_from_outside_are_only_text(onsale: Run, name: str) -> None:
    """Whatever a slot or an address is called, it is shown as it is, or shortened."""
    hostile = onsale.model_copy(
        update={
            "target": onsale.target.model_copy(update={"address": name}),
            "failures": {name: 1},
            "contention": onsale.contention.model_copy(
                update={"busiest": [SlotContention(slot=name, attempts=2, wins=1, refusals=1)]}
            ),
        }
    )
    page = Page(report.page(hostile))
    assert name in page.text
    assert page.text.count(name[:20]) >= 5
    assert page.plots == PLOTS
    assert "script" not in {tag for tag, _ in page.elements}


@pytest.mark.parametrize(
    ("which", "verdict", "state", "says"),
    [
        (
            "invariants",
            Verdict("no double booking", False, "2 of 9"),
            "bad",
            "has happened: BROKEN: no double booking.",
        ),
        ("invariants", Verdict("no double booking", None, "2 of 9"), "open", "can't be told: no double booking."),
        ("limits", Verdict("p99 at most 1.00 ms", False, "it is 3.00 ms"), "bad", "a limit was missed: it is 3.00 ms."),
    ],
)
def test_the_verdict_comes_first(onsale: Run, which: str, verdict: Verdict, state: str, says: str) -> None:
    """Also a bad one, and in words, not in colours alone."""
    html = report.page(onsale.model_copy(update={which: [verdict]}))
    assert f'<p class="verdict {state}">' in html
    shown = " ".join(Page(html).text.split())
    assert shown.index(says) < shown.index("Operations a second")
    assert ("nobody was sold a seat" in shown) is (which == "limits")


def test_no_password_is_shown(lock_server: EmbeddedServer, play: Callable[..., Run], tmp_path: Path) -> None:
    """The address is there without it, also in the data to be saved."""
    url = lock_server.url.replace("unix://", "unix://:hidden-word@")
    with redis.Redis.from_url(lock_server.url) as admin:
        admin.config_set("requirepass", "hidden-word")
        try:
            found = play("hotspot", url=url)
        finally:
            with redis.Redis.from_url(url) as operator:
                operator.config_set("requirepass", "")
    report.write(found, tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text()
    assert lock_server.url in html
    [saved] = [one for one in Page(html).all("href") if one.startswith("data:")]
    assert "hidden-word" not in html + base64.b64decode(saved.partition("base64,")[2]).decode()
    assert Page(html).plots == PLOTS - {"demand"}


def test_where_it_is_written_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that exists, and a file that may be written; one that is there is replaced."""
    there = tmp_path / "out.html"
    report.check(there)
    assert not there.exists()
    there.touch()
    report.check(there)
    monkeypatch.chdir(tmp_path)
    report.check(Path("out.html"))
    with pytest.raises(InvalidArgument, match="report must be a file in a folder that exists"):
        report.check(tmp_path / "none" / "out.html")
    with pytest.raises(InvalidArgument, match="is a folder"):
        report.check(tmp_path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # who tests may be root, who may write everywhere
    with pytest.raises(InvalidArgument, match="may be written"):
        report.check(there)
