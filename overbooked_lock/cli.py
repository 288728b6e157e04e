"""The command line, ``overbooked-lock``: what operators and shell scripts want of the engine.

A command is a function that gets an engine and its own options, and returns an :class:`Answer`. ``_command`` adds
the options that all of them have, and prints the answer: for a person, or with ``--json`` as the Overbooked API
writes it. ``docs/cli.md`` is the reference.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NoReturn

try:
    import platformdirs
    import rich  # noqa: F401  only looked for: what draws is imported where something is drawn
    import typer
except ImportError:
    # Here and not in main(): the commands below are made with typer.
    sys.stderr.write('overbooked-lock: the command line is an extra: pip install "overbooked-lock[cli]"\n')
    raise SystemExit(2) from None

from overbooked_lock import __version__
from overbooked_lock.api_keys import ApiKeyInfo
from overbooked_lock.bench import command as bench
from overbooked_lock.cli_options import Rate, date, duration, json_object, rate
from overbooked_lock.engine import LockEngine
from overbooked_lock.errors import (
    EmbeddedServerError,
    InvalidArgument,
    LockKeyInvalid,
    LockLost,
    OverbookedError,
    SlotExists,
    SlotHasBookings,
    SlotLocked,
    SlotNotFound,
    SlotNotLockable,
    StoreCorrupt,
    StoreUnavailable,
)
from overbooked_lock.events import Event, Reader
from overbooked_lock.holding import Hold
from overbooked_lock.models import Lock, NewSlot, Slot, given_date, utc_date

if TYPE_CHECKING:
    from rich.text import Text


class _WrongUsage(OverbookedError):
    """What typer has against a command line."""

    code, status = "E013", 400


class _NoSuchKey(OverbookedError):
    """There is no API key to revoke."""

    code, status = "E055", 404

    def __init__(self, key_id: str) -> None:
        super().__init__(f"no API key has the id {key_id!r}")


EXITS: Mapping[int, tuple[str, tuple[type[OverbookedError], ...]]] = {
    0: ("done", ()),
    1: ("anything else went wrong", ()),
    2: ("the command line is wrong", (InvalidArgument, _WrongUsage)),
    3: ("another key holds the slot", (SlotLocked,)),
    4: ("no such slot, or no such API key", (SlotNotFound, _NoSuchKey)),
    5: ("the slot can't be locked: it is not lockable, disabled or full", (SlotNotLockable,)),
    6: ("the lock key is not the lock's, or the lock is lost", (LockKeyInvalid, LockLost)),
    7: ("the store is unavailable", (StoreUnavailable, EmbeddedServerError)),
    8: ("another slot has this id, or bookings stand on the slot", (SlotExists, SlotHasBookings)),
    9: ("the store holds something else in the slot's place", (StoreCorrupt,)),
    bench.CHECK_FAILED: ("bench --check: something that must hold is broken, or a limit missed", ()),
}
"""What each exit code says, and the errors that end in it."""

KILL_AFTER = timedelta(seconds=10)
NOT_EXECUTABLE, NOT_FOUND, INTERRUPTED, PIPE_BROKEN = 126, 127, 130, 141  # as shells have them


class Answer(NamedTuple):
    """What a command has to say: ``data`` and ``meta`` to a program; to a person a table if it has rows, and a text."""

    data: Any
    text: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    meta: Mapping[str, int] | None = None


SlotId = Annotated[str, typer.Argument(metavar="SLOT", help="The slot's id.")]
LockKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        envvar="OVERBOOKED_LOCK_KEY",
        help="The holder's secret. In the environment it stays one; a command line can be read by others.",
    ),
]
For = Annotated[
    timedelta | None,
    typer.Option("--for", parser=duration, metavar="DURATION", help="For how long: 90s, 15m, 1h30m, 500ms."),
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", parser=date, metavar="DATE", help="Or else until when: 2030-06-01T18:00Z."),
]
Wait = Annotated[
    timedelta | None,
    typer.Option(parser=duration, metavar="DURATION", help="How long to wait for a slot that another key holds."),
]
Fair = Annotated[
    bool, typer.Option("--fair", help="Wait in line: who came first gets the slot first. Goes with --wait.")
]
SidecarName = Annotated[
    str, typer.Option("--name", metavar="NAME", help="The sidecar's: goes into the names of its channels.")
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="OVERBOOKED_LOCK_URL",
        help="Redis or Valkey: redis://, rediss:// or unix://. Without it, a server of your own in your home.",
        rich_help_panel="Common options",
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        envvar="OVERBOOKED_LOCK_NAMESPACE",
        help="Goes before every key.",
        rich_help_panel="Common options",
    ),
]


@dataclass(frozen=True)
class Common:
    """The options that every command has."""

    url: Url = None
    namespace: Namespace = ""
    unregistered: Annotated[
        Literal["refuse", "allow"],
        typer.Option(help="What to do with a slot that was never created.", rich_help_panel="Common options"),
    ] = "refuse"
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Answer with one JSON document, errors too.", rich_help_panel="Common options"),
    ] = False

    def engine(self) -> LockEngine:
        """The engine they name. Raises InvalidArgument, EmbeddedServerError."""
        options: dict[str, Any] = {"namespace": self.namespace, "unregistered": self.unregistered}
        if self.url is not None:
            return LockEngine.from_url(self.url, **options)
        return LockEngine.embedded(_data_folder(), **options)


def _data_folder() -> Path:
    return platformdirs.user_data_path("overbooked-lock")


# Commands

app = typer.Typer(
    name="overbooked-lock",
    help="Locks slots until a date, on Redis or Valkey.\n\n"
    "--url or OVERBOOKED_LOCK_URL says where; without either, a server of your own keeps its data in your home. "
    "This and --json are options of every command, and come after its name.",
    epilog="\n".join(
        ["[bold]Exit codes[/bold]"]
        + [f"{code:3}  {meaning}" for code, (meaning, _) in EXITS.items()]
        + ["129  ended with SIGHUP", f"{INTERRUPTED}  interrupted with Ctrl-C", "143  ended with SIGTERM"]
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)
slot_commands = typer.Typer(no_args_is_help=True, help="Create, show, open, close and remove slots.")
key_commands = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

Verb = Callable[..., Answer | int]
"""What a command does with an engine and its options: gives an answer, or an exit code if it has nothing to say."""

_COMMON = [
    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for parameter in inspect.signature(Common, eval_str=True).parameters.values()
]


def _command(group: typer.Typer, name: str) -> Callable[[Verb], Verb]:
    """Makes a verb a command of ``group``: it need not know of the common options, nor of how answers are printed."""

    def register(verb: Verb) -> Verb:
        def run(**given: Any) -> int:
            common = Common(**{parameter.name: given.pop(parameter.name) for parameter in _COMMON})
            with common.engine() as engine:
                answer = verb(engine, **given)
                if isinstance(answer, int):
                    return answer
                # Before the engine closes: even if that fails, the key of a lock must have been told.
                _show(answer, as_json=common.as_json)
                return 0

        _, *own = inspect.signature(verb, eval_str=True).parameters.values()
        run.__signature__ = inspect.Signature([*own, *_COMMON])  # type: ignore[attr-defined]  # typer reads it
        run.__doc__ = verb.__doc__
        group.command(name)(run)
        return verb

    return register


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"overbooked-lock {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@_command(app, "lock")
def _lock(
    engine: LockEngine,
    slot: SlotId,
    lock_for: For = None,
    lock_until: Until = None,
    lock_key: LockKey = None,
    wait: Wait = None,
    fair: Fair = False,
) -> Answer:
    """Lock a slot, and print the key that unlocks it.

    Without a key, one is made. The key that holds a slot can lock it again, to a later date.
    """
    lock = engine.lock(slot, lock_key=lock_key, lock_for=lock_for, lock_until=lock_until, wait=wait, fair=fair)
    # A key of the caller's own is not repeated: that would only show it to more people.
    return _lock_answer(lock, with_key=lock_key is None)


@_command(app, "unlock")
def _unlock(
    engine: LockEngine,
    slot: SlotId,
    lock_key: LockKey = None,
    fencing_token: Annotated[
        int | None, typer.Option(metavar="N", help="Unlock only the lock that has this fencing token.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Unlock, whoever holds the slot.")] = False,
) -> Answer:
    """Unlock a slot. A lock that has ended already is no error."""
    if force and fencing_token is not None:
        raise InvalidArgument("fencing_token", "can't be given with --force, which ends any lock")
    if not force and lock_key is None:
        raise InvalidArgument("lock_key", "or --force must be given")
    unlocked = (
        engine.force_unlock(slot) if force else engine.unlock(slot, lock_key=lock_key, fencing_token=fencing_token)
    )
    data = {"slot_id": slot, "released": unlocked.released, "slot": _slot_data(unlocked.slot)}
    return Answer(data, "unlocked" if unlocked.released else "there was no such lock any more")


@_command(app, "extend")
def _extend(
    engine: LockEngine, slot: SlotId, lock_for: For = None, lock_until: Until = None, lock_key: LockKey = None
) -> Answer:
    """Move the end of a lock to a later date."""
    if lock_key is None:
        raise InvalidArgument("lock_key", "must be given")
    return _lock_answer(
        engine.extend(slot, lock_key=lock_key, lock_for=lock_for, lock_until=lock_until), with_key=False
    )


@_command(app, "locks")
def _locks(engine: LockEngine) -> Answer:
    """Show which slots are locked, and until when.

    A lock key is shown as a short hash, to tell one holder from another.
    """
    data = [
        asdict(lock) | {"locked_until": utc_date(lock.locked_until), "locked_since": utc_date(lock.locked_since)}
        for lock in engine.list_locks()
    ]
    rows = [[lock[name] for name in ("slot_id", "locked_until", "locked_since", "key_hash")] for lock in data]
    return Answer(data, "" if data else "no slot is locked", ["SLOT", "LOCKED UNTIL", "SINCE", "KEY HASH"], rows)


@_command(app, "hold")
def _hold(
    engine: LockEngine,
    slot: SlotId,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="What to run, after two dashes.")],
    lock_for: Annotated[
        timedelta,
        typer.Option(
            "--for",
            parser=duration,
            metavar="DURATION",
            help="How long the lock lasts when nobody renews it: what a crash costs the next in line.",
        ),
    ],
    wait: Wait = None,
    fair: Fair = False,
    max_lifetime: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="DURATION", help="Renew the lock no longer than this."),
    ] = None,
    kill_after: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="10s",
            help="How long the command has to end when the lock is lost: SIGTERM, and then SIGKILL.",
        ),
    ] = None,  # typer would parse a default, too
    conflict_exit_code: Annotated[
        int, typer.Option(metavar="N", min=0, max=255, help="The exit code if another key holds the slot.")
    ] = 1,
) -> int:
    """Run a command while holding a slot, and exit as it does.

    The lock is renewed while the command runs. If it is lost all the same, the command is ended: exit code 6.

    A command that is not found ends in 127, one that can't be run in 126.

    overbooked-lock hold nightly-report --unregistered allow --for 1m -- ./report.sh
    """
    try:
        with engine.hold(slot, lock_for=lock_for, wait=wait, fair=fair, max_lifetime=max_lifetime) as hold:
            return _run(command, hold, KILL_AFTER if kill_after is None else kill_after)
    except SlotLocked as conflict:
        _report(conflict)
        return conflict_exit_code


@app.command("watch")
def _watch(
    slot: Annotated[str | None, typer.Option(metavar="ID", help="Only this slot's events.")] = None,
    resource: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this resource's slots.")] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="EVENT", help="Begin after the event with this id; 0-0.0 is the beginning."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: Url = None,
    namespace: Namespace = "",
) -> int:
    """Show what happens to slots, as it happens, until Ctrl-C.

    Times are local. With --json each line is an event, whose id --since takes.
    """
    from rich.console import Console  # noqa: PLC0415  slow to import, and most commands need none of it

    console = Console(highlight=False, emoji=False, soft_wrap=True)
    with Common(url, namespace).engine() as engine:
        engine.list_slots(limit=1)  # says so where there is no store; one that goes away later is waited for
        followed = engine._follow(Reader(since, slot, resource))  # noqa: SLF001 - our own
        try:
            for at, events in enumerate(followed):
                if not at:
                    typer.echo("overbooked-lock: watching, until Ctrl-C", err=True)
                for event in events:
                    with console.capture() as shown:  # left to itself, it has an exit of its own for broken pipes
                        console.print(event.model_dump_json() if as_json else _event_line(event), markup=False)
                    sys.stdout.write(shown.get())
                sys.stdout.flush()
        except BrokenPipeError:
            # Who read has seen enough, as head(1) does. What is still to be written must not fail at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_BROKEN
    return 0


@app.command("demo")
def _demo(
    seconds: Annotated[float, typer.Option(metavar="N", min=0.5, help="How long the race lasts.")] = 5,
    contenders: Annotated[int, typer.Option(metavar="N", min=2, help="How many go for the slots.")] = 400,
    slots: Annotated[int, typer.Option(metavar="N", min=1, max=512, help="How many slots there are.")] = 36,
    processes: Annotated[int, typer.Option(metavar="N", min=1, help="How many processes they run in.")] = 4,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="A Redis or Valkey to run it on. Without it a private one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Give the figures as one JSON document.")] = False,
) -> int:
    """Watch a race for slots, and what a crash costs."""
    from rich.console import Console  # noqa: PLC0415  slow to import, and most commands need none of it

    from overbooked_lock import demo  # noqa: PLC0415

    figures = demo.run(
        Console(highlight=False, quiet=as_json),
        seconds=seconds,
        contenders=contenders,
        slots=slots,
        processes=processes,
        url=url,
    )
    if as_json:
        _show(Answer(asdict(figures), ""), as_json=True)
    return 0 if figures.clean else 1


@app.command("serve")
def _serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="On which port; 0 takes a free one.")] = 8080,
    workers: Annotated[int, typer.Option(metavar="N", min=1, help="How many processes.")] = 1,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="The certificate, as PEM.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", exists=True, dir_okay=False, help="Its key, as PEM.")
    ] = None,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="Speak plain HTTP to other machines: behind a proxy with TLS.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Public keys may only lock, unlock, book and read slots.")
    ] = False,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--origin", metavar="ORIGIN", show_default="any", help="Web pages that may call it; can be repeated."
        ),
    ] = None,
    trusted_proxies: Annotated[
        list[str] | None,
        typer.Option(
            "--trusted-proxy",
            metavar="CIDR",
            show_default="none",
            help="A proxy whose X-Forwarded-For is believed; can be repeated.",
        ),
    ] = None,
    rate_limit: Annotated[
        Rate | None,
        typer.Option(
            parser=rate,
            metavar="N/DURATION",
            show_default="100/10s",
            help="Requests of a public key and address: so many, refilled in so long; or off.",
        ),
    ] = None,  # typer would parse a default, too
    max_locks: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=1000, help="Live locks of a public key and address; 0: any number."),
    ] = 20,
    max_streams: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=100_000, help="Open streams of a public key and address; 0: any number."),
    ] = 20,
    heartbeat: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="15s",
            help="After how long a silence a stream shows that it lives.",
        ),
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="How to log, on stderr.")] = "text",
    sample_day: Annotated[
        bool,
        typer.Option("--sample-day", help="Open slots for tomorrow, make a pair of API keys, print what to try."),
    ] = False,
    url: Url = None,
    namespace: Namespace = "",
) -> int:
    """Serve the HTTP API, until SIGTERM or Ctrl-C."""
    try:
        from overbooked_lock.http import server  # noqa: PLC0415  an extra
    except ImportError as missing:
        raise OverbookedError('the HTTP API is an extra: pip install "overbooked-lock[http]"') from missing
    limit = Rate(100, 10) if rate_limit is None else rate_limit
    server.serve(
        server.Settings(
            url=url,
            folder=_data_folder(),
            namespace=namespace,
            host=host,
            port=port,
            tls_cert=tls_cert,
            tls_key=tls_key,
            allow_plain_http=allow_plain_http,
            workers=workers,
            log_format=log_format,
            sample_day=sample_day,
            app={
                "strict": strict,
                "origins": origins or ("*",),
                "trusted_proxies": trusted_proxies or (),
                "rate_limit": limit if limit.requests else None,
                "max_locks": max_locks or None,
                "max_streams": max_streams or None,
                **({} if heartbeat is None else {"heartbeat": heartbeat}),
            },
        )
    )
    return 0


@app.command("sidecar")
def _sidecar(
    name: SidecarName,
    max_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests under way at a time; one more is told to come again.")
    ] = 1000,
    keep_answers: Annotated[
        timedelta | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            show_default="2m",
            help="How long a request that comes again gets the same answer.",
        ),
    ] = None,  # typer would parse a default, too
    health_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", dir_okay=False, help="A file that is written every 2 s while all is well."),
    ] = None,
    log_format: Annotated[Literal["text", "json"], typer.Option(help="How to log, on stderr.")] = "text",
    unregistered: Annotated[
        Literal["refuse", "allow"], typer.Option(help="What to do with a slot that was never created.")
    ] = "refuse",
    url: Url = None,
    namespace: Namespace = "",
) -> int:
    """Answer requests from Redis pub/sub, until SIGTERM or Ctrl-C.

    A service in any language that has a Redis client can use it.
    """
    process = _part_of_http("sidecar.process")
    process.run(
        process.Settings(
            name=name,
            url=url,
            folder=_data_folder(),
            namespace=namespace,
            unregistered=unregistered,
            max_requests=max_requests,
            keep_answers=process.KEEP_ANSWERS_FOR if keep_answers is None else keep_answers,
            health_file=health_file,
            log_format=log_format,
        )
    )
    return 0


@app.command("acl")
def _acl(
    name: SidecarName,
    client: Annotated[
        str, typer.Option(metavar="NAME", help="A client's name, as it says in its requests.")
    ] = "client",
    namespace: Namespace = "",
    as_json: Annotated[bool, typer.Option("--json", help="Answer with one JSON document, errors too.")] = False,
) -> int:
    """Print the Redis ACL rules of a sidecar's user and of a client's, with the least rights that do.

    Put a password in the place of <password>, and say what is printed to redis-cli.
    """
    acl = _part_of_http("sidecar.acl")
    users = {
        f"sidecar-{name}": acl.sidecar_rules(name, namespace),
        f"{client}-of-{name}": acl.client_rules(name, client),
    }
    lines = [
        " ".join(["ACL SETUSER", user, "reset", "on", "'><password>'", *(_quoted(rule) for rule in rules)])
        for user, rules in users.items()
    ]
    _show(Answer(users, "\n\n".join(lines)), as_json=as_json)
    return 0


def _quoted(rule: str) -> str:
    return f"'{rule}'" if rule[0] in "(&~" else rule


def _part_of_http(module: str) -> Any:
    """A module that needs the extra. Raises OverbookedError."""
    try:
        return importlib.import_module(f"overbooked_lock.{module}")
    except ImportError as missing:
        raise OverbookedError('the sidecar is in an extra: pip install "overbooked-lock[http]"') from missing


@_command(slot_commands, "create")
def _create_slot(
    engine: LockEngine,
    resource_id: Annotated[str, typer.Option("--resource", metavar="ID", help="What is booked: a room, a court.")],
    start_date: Annotated[datetime, typer.Option("--start", parser=date, metavar="DATE", help="When it begins.")],
    end_date: Annotated[datetime, typer.Option("--end", parser=date, metavar="DATE", help="When it is over.")],
    capacity: Annotated[int, typer.Option(metavar="N", help="How many bookings it takes.")] = 1,
    metadata: Annotated[
        dict[str, Any] | None, typer.Option(parser=json_object, metavar="JSON", help="Facts of your own.")
    ] = None,
    not_lockable: Annotated[bool, typer.Option("--not-lockable", help="It can't be locked.")] = False,
    slot_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Its id. Without it, a UUID.")] = None,
) -> Answer:
    """Create a slot.

    One that is there already and says the same is no error.
    """
    new = NewSlot(
        resource_id=resource_id,
        start_date=start_date,
        end_date=end_date,
        capacity=capacity,
        metadata=metadata or {},
        lockable=not not_lockable,
        id=str(uuid.uuid4()) if slot_id is None else slot_id,
    )
    return _slot_answer(engine.create_slot(new))


@_command(slot_commands, "show")
def _show_slot(engine: LockEngine, slot: SlotId, lock_key: LockKey = None) -> Answer:
    """Show a slot, to anybody or to its holder."""
    return _slot_answer(engine.get_slot(slot, lock_key=lock_key))


@_command(slot_commands, "list")
def _list_slots(
    engine: LockEngine,
    resource_id: Annotated[str | None, typer.Option("--resource", metavar="ID", help="Only this resource's.")] = None,
    start_date: Annotated[
        datetime | None,
        typer.Option("--start", parser=date, metavar="DATE", help="Only those that begin then or later."),
    ] = None,
    end_date: Annotated[
        datetime | None, typer.Option("--end", parser=date, metavar="DATE", help="Only those that are over by then.")
    ] = None,
    available: Annotated[
        bool | None, typer.Option("--available/--unavailable", help="Only those that can be booked now, or can't.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many on a page, up to 512.")] = 50,
    page: Annotated[int, typer.Option(metavar="N", help="Which page.")] = 1,
    lock_key: LockKey = None,
) -> Answer:
    """List slots in the order of their start."""
    found = engine.list_slots(
        resource_id=resource_id,
        start_date=start_date,
        end_date=end_date,
        available=available,
        limit=limit,
        page=page,
        lock_key=lock_key,
    )
    data = [slot.model_dump(mode="json") for slot in found.slots]
    rows = [
        [slot.id, slot.resource_id, given_date(slot.start_date), given_date(slot.end_date), _state(slot)]
        for slot in found.slots
    ]
    text = "" if 0 < found.total == len(rows) else f"{len(rows)} of {found.total} slots, page {page}"
    meta = {"limit": found.limit, "page": found.page, "total": found.total}
    return Answer(data, text, ["SLOT", "RESOURCE", "START", "END", "STATE"], rows, meta)


@_command(slot_commands, "enable")
def _enable_slot(engine: LockEngine, slot: SlotId) -> Answer:
    """Open a slot for locks and bookings."""
    return _slot_answer(engine.enable_slot(slot))


@_command(slot_commands, "disable")
def _disable_slot(engine: LockEngine, slot: SlotId) -> Answer:
    """Close a slot for locks and bookings.

    A lock on it stays until its date.
    """
    return _slot_answer(engine.disable_slot(slot))


@_command(slot_commands, "delete")
def _delete_slot(engine: LockEngine, slot: SlotId) -> Answer:
    """Remove a slot, and the lock on it."""
    if not engine.delete_slot(slot):
        raise SlotNotFound(slot)
    return Answer({"id": slot, "deleted": True}, "deleted")


@_command(slot_commands, "prune")
def _prune_slots(
    engine: LockEngine,
    before: Annotated[datetime, typer.Option(parser=date, metavar="DATE", help="Those that were over by then.")],
) -> Answer:
    """Remove the slots that are over, and neither locked nor booked."""
    pruned = engine.prune_slots(before)
    return Answer({"pruned": pruned}, f"slots removed: {pruned}")


@_command(key_commands, "create")
def _create_key(
    engine: LockEngine,
    public: Annotated[bool, typer.Option("--public", help="A key that anybody may see, in a browser.")] = False,
    secret: Annotated[bool, typer.Option("--secret", help="A key for servers.")] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="What you call it.")] = "",
) -> Answer:
    """Create an API key, and print it: this once, since the store keeps no more than its hash."""
    if public == secret:
        raise InvalidArgument("public", "or --secret must be given, and not both")
    made = engine.create_api_key("public" if public else "secret", name=name)
    facts = _key_facts(made) | {"key": made.key}
    return Answer(facts, _lines(facts) + "\nThis key is not shown again: keep it now.")


@_command(key_commands, "list")
def _list_keys(engine: LockEngine) -> Answer:
    """List the API keys by age: their ids, and never the keys."""
    data = [_key_facts(info) for info in engine.list_api_keys()]
    return Answer(
        data,
        "" if data else "there is no API key",
        ["ID", "KIND", "NAME", "CREATED"],
        [[*one.values()] for one in data],
    )


@_command(key_commands, "revoke")
def _revoke_key(engine: LockEngine, key_id: Annotated[str, typer.Argument(metavar="ID", help="Its id.")]) -> Answer:
    """Revoke an API key, at once and for good."""
    if not engine.revoke_api_key(key_id):
        raise _NoSuchKey(key_id)
    return Answer({"id": key_id, "revoked": True}, "revoked")


app.command("bench", help=bench.HELP, epilog=bench.EPILOG)(bench.bench)

# After its own commands, so that the help begins with locks.
app.add_typer(slot_commands, name="slot")
app.add_typer(key_commands, name="keys")


# What commands say


def _slot_data(slot: Slot | None) -> dict[str, Any] | None:
    return None if slot is None else slot.model_dump(mode="json")


def _slot_answer(slot: Slot) -> Answer:
    facts = {
        "slot": slot.id,
        "resource": slot.resource_id,
        "start": given_date(slot.start_date),
        "end": given_date(slot.end_date),
        "state": _state(slot),
        "bookings": f"{slot.num_active_bookings} of {slot.capacity}",
    }
    if slot.metadata:
        facts["metadata"] = json.dumps(slot.metadata, ensure_ascii=False)
    return Answer(_slot_data(slot), _lines(facts))


def _state(slot: Slot) -> str:
    if slot.status == "disabled":
        return "disabled"
    if slot.locked_until is not None:
        return f"{'yours' if slot.available else 'locked'} until {utc_date(slot.locked_until)}"
    if slot.num_active_bookings >= slot.capacity:
        return "full"
    return "available" if slot.lockable else "available, not lockable"


def _lock_answer(lock: Lock, *, with_key: bool) -> Answer:
    facts: dict[str, Any] = {
        "slot_id": lock.slot_id,
        "locked_until": utc_date(lock.locked_until),
        "fencing_token": lock.fencing_token,
    }
    if with_key:
        facts["lock_key"] = lock.lock_key
    return Answer(
        facts | {"already_held": lock.already_held, "slot": _slot_data(lock.slot)},
        _lines({name.removesuffix("_id").replace("_", " "): value for name, value in facts.items()}),
    )


_COLORS = {
    "locked": "yellow",
    "extended": "yellow",
    "unlocked": "green",
    "expired": "magenta",
    "booked": "blue",
    "cancelled": "cyan",
    "slot_deleted": "red",
}


def _event_line(event: Event) -> Text:
    from rich.text import Text  # noqa: PLC0415  slow to import, and most commands need none of it

    facts = [event.slot_id if event.resource_id is None else f"{event.slot_id} of {event.resource_id}"]
    if event.locked_until is not None and event.type != "expired":
        facts.append(f"until {_local(event.locked_until)}")
    if event.fencing_token is not None:
        facts.append(f"token {event.fencing_token}")
    return Text.assemble(
        (_local(event.at), "dim"), "  ", (f"{event.type:<12}", _COLORS.get(event.type, "")), "  ", ", ".join(facts)
    )


def _local(date: datetime) -> str:
    return date.astimezone().isoformat(" ", "milliseconds")[:23]


def _key_facts(info: ApiKeyInfo) -> dict[str, str]:
    return {"id": info.id, "kind": info.kind, "name": info.name, "created_at": utc_date(info.created_at)}


def _lines(facts: Mapping[str, object]) -> str:
    return "\n".join(f"{name:<15}{value}" for name, value in facts.items())


def _show(answer: Answer, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"data": answer.data, "meta": answer.meta or {}, "success": True}))
        return
    if answer.rows:
        _draw(answer.head, answer.rows)
    if answer.text:
        typer.echo(answer.text)


def _draw(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415  slow to import, and most commands need none of it
    from rich.table import Table  # noqa: PLC0415

    # What reads a pipe wants whole ids, each on its line, however wide that is.
    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


# Running a command


def _run(command: Sequence[str], hold: Hold, kill_after: timedelta) -> int:
    """Runs a command until it ends, and ends it if the hold is lost; returns its exit code as a shell has it."""
    facts = {"OVERBOOKED_LOCK_SLOT": hold.slot_id, "OVERBOOKED_LOCK_FENCING_TOKEN": str(hold.fencing_token)}
    try:
        running = _Command(command, os.environ | facts)
    except OSError as error:
        _report(OverbookedError(f"{command[0]} can't be run: {error.strerror}"))
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    over = threading.Event()

    def end_if_lost() -> None:
        hold.lost.wait()
        running.send(signal.SIGTERM)
        if not over.wait(kill_after.total_seconds()):
            running.send(signal.SIGKILL)

    threading.Thread(target=end_if_lost, daemon=True).start()
    try:
        return running.wait()
    finally:
        over.set()


class _Command:
    """A running command. It gets the signals that we get."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        # A group of its own, so that a command of several processes is ended whole. Not at a terminal: only the
        # group in front can read what is typed.
        self._shares_group = _in_foreground()
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, self._pass_on)
        self._process = subprocess.Popen(words, env=environment, process_group=None if self._shares_group else 0)
        for early in self._early:
            self.send(early)

    def wait(self) -> int:
        """Its exit code, 128 and the signal if it died of one."""
        assert self._process is not None  # noqa: S101 - for the type
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Sends it a signal, or nothing if it has ended."""
        if self._process is None:
            self._early.append(number)
        elif self._shares_group:
            self._process.send_signal(number)
        else:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        # What is typed at a terminal reaches the whole group, and once is enough.
        if not (self._shares_group and number == signal.SIGINT):
            self.send(number)


def _in_foreground() -> bool:
    with suppress(OSError), Path("/dev/tty").open("rb") as terminal:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    return False


# The way out


def main() -> int:
    """Runs the command line of this process; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, _leave)  # in order: nothing stays locked, no server stays behind
    try:
        return int(app(standalone_mode=False))
    except typer.TyperException as error:
        if message := error.format_message():  # else nothing was asked for, and the help has been shown
            _report(_WrongUsage(_reworded(message)))
        return error.exit_code
    except OverbookedError as error:
        _report(error)
        return next((code for code, (_, kinds) in EXITS.items() if isinstance(error, kinds)), 1)
    except KeyboardInterrupt:
        return INTERRUPTED


_TYPERS_WORDS = {
    r"^Invalid value for '(.+?)': (?:Value error, )?": r"\1 ",
    r"Input should be a valid number\b.*": "must be a number",
    r"Input should be a valid integer\b.*": "must be a whole number",
    r"Input should be (greater|less) than or equal to": r"must be \1 than or equal to",
    r"'.*' is not one of (.*?)\.?$": r"must be one of \1",
}


def _reworded(message: str) -> str:
    """What typer has against an option, as we say it: the option, and what is allowed."""
    for theirs, ours in _TYPERS_WORDS.items():
        message = re.sub(theirs, ours, message)
    return message


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _report(error: OverbookedError) -> None:
    words = _own_words()
    if "--json" not in words:
        return typer.echo(f"overbooked-lock: {_in_our_words(error)}", err=True)
    facts = {"code": error.code, "message": _in_our_words(error), "status": error.status}
    # What we hold a slot for has stdout to itself.
    return typer.echo(json.dumps({"error": facts, "success": False}), err=words[0] == "hold")


def _own_words() -> list[str]:
    """The command line, without the command that it runs."""
    words = sys.argv[1:]
    return words[: words.index("--")] if "--" in words else words


_OUR_WORDS = {
    "slot_id": "SLOT",
    "lock_key": "--lock-key",
    "lock_for": "--for",
    "lock_until": "--until",
    "resource_id": "--resource",
    "start_date": "--start",
    "end_date": "--end",
    "fencing_token": "--fencing-token",
    "max_lifetime": "--max-lifetime",
    "wait": "--wait",
    "max_p99": "--max-p99",
    "min_rate": "--min-rate",
    "warm_up": "--warm-up",
    "keep_answers": "--keep-answers",
    "url": "--url",
    "rate": "--rate",
    "tls_cert": "--tls-cert",
    "tls_key": "--tls-key",
    "trusted_proxies": "--trusted-proxy",
    "origins": "--origin",
    "key_id": "ID",
    "timedelta": "duration",
    "datetime": "date",
    "int": "integer",
}


def _in_our_words(error: OverbookedError) -> str:
    """The message of an error, with the names that options have here."""
    if not isinstance(error, InvalidArgument):
        return str(error)
    text = re.sub(r"\w+", lambda word: _OUR_WORDS.get(word[0], word[0]), str(error))
    if error.argument in _OUR_WORDS:
        return text
    return f"--{error.argument.replace('_', '-')}{text.removeprefix(error.argument)}"
