"""``overbooked-lock bench``: the load harness from the command line."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from overbooked_lock.bench.options import NAMESPACE, Options, is_http
from overbooked_lock.bench.scenarios import SCENARIOS, Scenario
from overbooked_lock.cli_options import duration
from overbooked_lock.errors import OverbookedError

if TYPE_CHECKING:
    from overbooked_lock.bench.results import Run

CHECK_FAILED = 10
"""The exit code of ``--check`` where an invariant is broken or a limit missed."""

HELP = """Put load on a deployment, and see what it bears and whether it keeps its promises.

It registers slots of its own, plays a scenario on them, counts again in the store, and removes what it made.
"""


def _defaults(kind: type[Scenario]) -> str:
    slots = kind.slots(kind.callers)
    return f"{kind.callers:,} callers, {slots:,} slot{'' if slots == 1 else 's'}"


EPILOG = "\n".join(
    ["[bold]Scenarios[/bold], and how many callers and slots each has unless told"]
    + [f"{name} ({_defaults(kind)}): {kind.summary}\n" for name, kind in SCENARIOS.items()]
    + [
        f"With --check the exit code is {CHECK_FAILED} if something is broken that must hold, an operation failed, an "
        "arrival was dropped, or a limit was missed."
    ]
)

_TARGET, _LOAD, _LIMITS = "What is measured", "The load", "Limits, and how to tell"


def bench(
    context: typer.Context,
    scenario: Annotated[str, typer.Option(metavar="NAME", help="What callers do: see below.")] = "onsale",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="redis://, rediss:// or unix:// for engines on that server; http:// or https:// for a server that "
            "speaks the API. Without it, a private server that lives as long as the run.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="OVERBOOKED_LOCK_API_KEY",
            help="A secret API key, for http://. A command line can be read by others, the environment not.",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    sidecar: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Ask the sidecar of this name, over the Redis of --url.", rich_help_panel=_TARGET
        ),
    ] = None,
    namespace: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="How the run's own namespace begins; it ends in the run's id.", rich_help_panel=_TARGET
        ),
    ] = NAMESPACE,
    run_for: Annotated[
        timedelta | None,
        typer.Option(
            "--duration",
            parser=duration,
            metavar="DURATION",
            show_default="10s",
            help="How long load is given: 10s, 1m.",
            rich_help_panel=_LOAD,
        ),
    ] = None,  # typer would parse a default, too
    warm_up: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="1s",
            help="How long before that, unmeasured: first on other slots, then callers come one after the other.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    callers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="the scenario's, see below",
            help="Closed loop: so many callers, each of which waits for its answer before it goes on.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="Open loop: so many arrivals a second, whether or not those before have been served. Latencies count "
            "from when an arrival was due.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    arrivals: Annotated[
        Literal["poisson", "constant"],
        typer.Option(help="How the arrivals of --rate are spread.", rich_help_panel=_LOAD),
    ] = "poisson",
    backlog: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="So many arrivals of --rate may be under way; one more is dropped and counted.",
            rich_help_panel=_LOAD,
        ),
    ] = 10_000,
    processes: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="half of the cores, at most 4",
            help="How many processes give the load.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            show_default="the scenario's, see below",
            help="How many slots there are.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Decides when arrivals are due and what callers want.", rich_help_panel=_LOAD),
    ] = 1,
    max_p99: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="The 99th percentile of each operation may be at most this.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    min_rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="At least so many operations a second.", rich_help_panel=_LIMITS),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help=f"Exit with {CHECK_FAILED} if anything must hold and does not, or a limit is missed.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print all that was found as one JSON document; how it goes still on stderr.",
            rich_help_panel=_LIMITS,
        ),
    ] = False,
    report_to: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write one page of HTML with plots, for people who were not there: out.html. A file that is there is "
            "replaced.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415  slow to import

        from overbooked_lock.bench import harness, terminal  # noqa: PLC0415  an extra

        if report_to is not None:
            from overbooked_lock.bench import report  # noqa: PLC0415  matplotlib is slow to import

            report.check(report_to)
    except ModuleNotFoundError as missing:
        raise OverbookedError(
            f'the load harness is an extra, and {missing.name} is missing: pip install "overbooked-lock[bench]"'
        ) from missing
    source = context.get_parameter_source("key")
    if not is_http(url) and source is not None and source.name == "ENVIRONMENT":
        key = None  # it is there for other runs
    given = {"duration": run_for, "warm_up": warm_up, "processes": processes}
    options = Options(
        scenario=scenario,
        url=url,
        key=key,
        sidecar=sidecar,
        namespace=namespace,
        callers=callers,
        rate=rate,
        arrivals=arrivals,
        backlog=backlog,
        slots=slots,
        seed=seed,
        max_p99=max_p99,
        min_rate=min_rate,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]  # each its own
    )
    with terminal.Progress(Console(stderr=True, highlight=False), options) as progress:
        run = harness.run(options, progress)
    if as_json:
        typer.echo(json.dumps({"data": run.model_dump(mode="json"), "meta": {}, "success": True}))
    else:
        # What reads a pipe wants each line whole.
        terminal.show(Console(highlight=False, width=None if sys.stdout.isatty() else 200), run)
    if report_to is not None:
        _write_report(run, report_to)
    return CHECK_FAILED if check and not run.passed else 0


def _write_report(run: Run, path: Path) -> None:
    from overbooked_lock.bench import report  # noqa: PLC0415  matplotlib is slow to import

    try:
        report.write(run, path)
    except OSError as error:
        raise OverbookedError(f"the report could not be written: {error}") from error
    typer.echo(f"overbooked-lock bench: the report is in {path}", err=True)
