"""The sidecar: what happens to a request between the channel that it comes on and the one that its answer goes to.

A message that is heard is read at once, and becomes a task. The task claims the request in the store, works on it with
the engine, and has the answer kept and published in one step. Sidecars of one name hear the same messages: the one that
claims a request works on it, and renews its claim while it does; the others look again when the lease should be over,
and go on if it is. All that a request can ask for may be done twice by one who took over: verbs are idempotent by their
lock_key, and what is created has an id that follows from the request's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from overbooked_lock import AsyncLockEngine, arguments
from overbooked_lock.calls import Call as StoreCall
from overbooked_lock.calls import Settings
from overbooked_lock.errors import BookingExists, InvalidArgument, OverbookedError, SlotExists, StoreUnavailable
from overbooked_lock.http.envelopes import InternalError, failure
from overbooked_lock.sidecar import requests
from overbooked_lock.sidecar.claims import Claimed, RequestAnswer, RequestClaim, answer_request, claim_request
from overbooked_lock.sidecar.operations import MODELS, OPS, Call, Reply
from overbooked_lock.sidecar.requests import Address, Channels, Heard
from overbooked_lock.subscription import Subscription

log = logging.getLogger("overbooked_lock.sidecar")

LEASE = 1.0
"""Seconds after which a claim that nobody renewed is over: what its death costs those who wait for an answer."""

MOST_REQUESTS = 1000
KEEP_ANSWERS_FOR = timedelta(minutes=2)

GRACE = 10.0
"""Seconds that requests under way have when the sidecar is stopped: twice what an engine takes at most."""

_RENEW_EVERY = LEASE / 3
_WATCHED_PER_REQUEST = 10
"""How many requests of other sidecars are watched for each that may be under way."""


Build = Callable[[Settings, Any], StoreCall[Any]]


class Busy(OverbookedError):
    """More requests than may be under way at a time. Nothing was done: ask again, with the same id."""

    code, status = "E062", 429
    reason = "busy"

    def __init__(self) -> None:
        super().__init__("too many requests are under way: ask again in a moment, with the same id")


class Sidecar:
    """Answers requests from Redis pub/sub with an engine, from ``async with`` on until its end.

    In the meantime it tells of the locks that end by their date, too. At the end it hears no more, and answers what is
    under way, for up to 10 seconds.

    Args:
        engine: Where the slots are. Whoever made it closes it, after the sidecar.
        name: Goes into the channels' names. Sidecars of one name share their work, and must share store and namespace.
        max_requests: How many may be under way at a time; who asks for one more is told to come again.
        keep_answers: How long a request that comes again gets the same answer.

    Attributes:
        counts: What happened so far, by what it is: ``heard``, ``answered``, ``busy``, ``again``, …

    Raises:
        InvalidArgument: An argument is wrong.
    """

    def __init__(
        self,
        engine: AsyncLockEngine,
        name: str,
        *,
        max_requests: int = MOST_REQUESTS,
        keep_answers: timedelta = KEEP_ANSWERS_FOR,
    ) -> None:
        if max_requests < 1:
            raise InvalidArgument("max_requests", "must be at least 1")
        self._engine = engine
        self.channels = Channels(name)
        self._most = max_requests
        self._keep_ms = arguments.positive_milliseconds(keep_answers, "keep_answers")
        self._under_way: set[asyncio.Task[None]] = set()
        self._answering: set[tuple[str, str, str]] = set()
        self._claims: dict[RequestClaim, float] = {}
        self._watched: set[asyncio.TimerHandle] = set()
        self._short_answers = 0
        self._owner, self._serial = secrets.token_hex(8), itertools.count()
        self._subscription: Subscription | None = None
        self._subscribed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._beside: list[asyncio.Task[None]] = []
        self._warned: set[str] = set()
        self.counts: Counter[str] = Counter()

    @property
    def subscribed(self) -> bool:
        """Whether it hears what is published now."""
        return self._subscribed.is_set()

    @property
    def under_way(self) -> int:
        """How many requests are worked on."""
        return len(self._under_way)

    async def wait_subscribed(self) -> None:
        """Returns when it hears what is published."""
        await self._subscribed.wait()

    async def __aenter__(self) -> Self:
        pool, timeout = self._engine._coalescer._pool, self._engine._timeout  # noqa: SLF001 - our own
        self._subscription = Subscription(pool, self.channels.requests, timeout, self._hear, self._turn)
        loop = asyncio.get_running_loop()
        self._listening = loop.create_task(self._subscription.run(), name="overbooked-lock sidecar")
        # As a server does: the ends of locks are told of in time, whether or not anybody asks for anything.
        sweeping = self._engine._listener.keep_sweeping()  # noqa: SLF001 - our own
        self._beside = [loop.create_task(work) for work in (self._keep_renewing(), sweeping)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._subscription is not None  # noqa: S101
        assert self._listening is not None  # noqa: S101
        await self._subscription.unsubscribe()
        self._listening.cancel()
        await asyncio.wait([self._listening])
        for watched in self._watched:
            watched.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=GRACE)
        tasks = [*self._under_way, *self._beside]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What is heard

    def _turn(self, subscribed: bool) -> None:
        if subscribed:
            self._subscribed.set()
        else:
            self._subscribed.clear()

    def _hear(self, message: bytes) -> None:
        self.counts["heard"] += 1
        try:
            heard = requests.read(message, self.channels, MODELS)
        except requests.Refused as refused:
            self._refuse(refused.error, refused.address, "invalid")
        except Exception as error:  # noqa: BLE001 - one message must not end the subscription
            self._failed(error, "?")
        else:
            if heard.delivery in self._answering:
                self.counts["repeated"] += 1  # its sender is impatient, and gets the answer when there is one
            elif len(self._under_way) >= self._most:
                self._refuse(Busy(), heard.address, "busy")
            else:
                self._start(heard, asyncio.get_running_loop().time() + heard.seconds, again=False)

    def _start(self, heard: Heard, give_up_at: float, *, again: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(heard, give_up_at, again=again))
        self._under_way.add(task)
        self._answering.add(heard.delivery)
        task.add_done_callback(self._under_way.discard)
        task.add_done_callback(lambda _: self._answering.discard(heard.delivery))

    def _refuse(self, error: OverbookedError, address: Address | None, kind: str) -> None:
        """Tells the sender, if it is known, what is wrong: without a task, and so often only as the store keeps up."""
        self.counts[kind] += 1
        about = error.argument if isinstance(error, InvalidArgument) else kind
        self._warn_once(kind, "a request was refused: %s, %s", error.code, about)
        if address is None or self._short_answers >= self._most:
            self.counts["untold"] += 1
            return
        answer = RequestAnswer("sidecar", "", "0", 0, address.channel, _failure(error, address.id))
        with contextlib.suppress(StoreUnavailable):  # closed
            told = self._enqueue(answer_request, answer)
            self._short_answers += 1
            told.add_done_callback(self._told)

    def _told(self, told: asyncio.Future[Any]) -> None:
        self._short_answers -= 1
        if told.cancelled() or told.exception() is not None:
            self.counts["untold"] += 1

    def _warn_once(self, kind: str, text: str, *facts: object) -> None:
        """A line for the first of its kind until the next report: whoever may publish must not fill the log."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(text, *facts)

    def report(self) -> None:
        """Writes what happened so far into the log, as one line."""
        self._warned.clear()
        log.info("sidecar", extra={"facts": {"name": self.channels.name, "under_way": self.under_way, **self.counts}})

    # What is asked for

    async def _answer(self, heard: Heard, give_up_at: float, *, again: bool) -> None:
        claim = RequestClaim(
            f"sidecar:{heard.key}", f"{self._owner}-{next(self._serial)}", heard.fingerprint, int(LEASE * 1000)
        )
        keep_ms = self._keep_ms
        channel = heard.address.channel
        try:
            async with asyncio.timeout_at(give_up_at):
                if OPS[heard.op].claimed:
                    claimed = await self._claim(claim)
                    if claimed.state == "working":
                        self._look_again(heard, give_up_at, claimed.lease_ms / 1000)
                        return
                    if claimed.state == "other":
                        raise InvalidArgument("id", "was used with another request")
                    if claimed.state == "answered":
                        if again and claimed.channel == channel:
                            return  # whoever worked on it has told
                        self.counts["again"] += 1
                        text, keep_ms = claimed.text, 0
                    else:
                        self.counts["taken_over"] += again
                        self._claims[claim] = asyncio.get_running_loop().time()
                        text = _text(await self._work(heard), heard.address.id)
                else:
                    text, keep_ms = _text(await self._work(heard), heard.address.id), 0
        except Exception as error:  # noqa: BLE001 - every request is answered
            problem = self._failed(error, heard.address.id)
            if claim not in self._claims or isinstance(problem, InternalError | StoreUnavailable):
                keep_ms = 0  # asked again, it may succeed
            text = _failure(problem, heard.address.id)
            self.counts[problem.code] += 1
        finally:
            self._claims.pop(claim, None)
        try:
            answer = RequestAnswer(claim.name, claim.owner, claim.fingerprint, keep_ms, channel, text)
            receivers = await self._run(answer_request, answer)
        except StoreUnavailable:
            self.counts["untold"] += 1  # its sender sees the deadline
        else:
            self.counts["answered"] += 1
            self.counts["unheard"] += receivers == 0

    async def _work(self, heard: Heard) -> Reply:
        try:
            return await OPS[heard.op].handler(Call(self._engine, self.channels.name, heard.key), heard.body)
        except (SlotExists, BookingExists):
            if getattr(heard.body, "slot_id", None) is not None and heard.op == "create_slot":
                raise
            # What has the id that follows from the request's own was not made by this request.
            raise InvalidArgument("id", "was used with another request") from None

    def _failed(self, error: Exception, request_id: str) -> OverbookedError:
        """The error as the sender is told of it."""
        if isinstance(error, TimeoutError):
            return StoreUnavailable("unknown", "the deadline passed")
        if isinstance(error, InvalidArgument) and error.argument == "lock_for":
            return InvalidArgument("lock_for_ms", str(error).removeprefix("lock_for "))
        if isinstance(error, OverbookedError) and error.status != 500:
            return error
        # Without its message: that may quote what it was given, a lock_key perhaps.
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("%s in request %s\n%s", type(error).__name__, request_id, where)
        return InternalError()

    # Claims

    async def _claim(self, claim: RequestClaim) -> Claimed:
        while True:
            asked_at = time.monotonic()
            outcome = await self._run(claim_request, claim)
            if isinstance(outcome, OverbookedError):
                raise outcome
            claimed: Claimed = outcome
            # A claim whose lease was over on its way here (we were stopped, say) is another's by now, perhaps.
            if claimed.state != "claimed" or time.monotonic() - asked_at < LEASE:
                return claimed

    def _look_again(self, heard: Heard, give_up_at: float, seconds: float) -> None:
        """Somebody works on it: look whether there is an answer when their lease should be over."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(seconds, 0.0) + 0.005
        if due >= give_up_at:
            return
        if len(self._watched) >= self._most * _WATCHED_PER_REQUEST:
            self.counts["unwatched"] += 1
            return
        handle: asyncio.TimerHandle

        def look() -> None:
            self._watched.discard(handle)
            self._start(heard, give_up_at, again=True)

        handle = loop.call_at(due, look)
        self._watched.add(handle)

    async def _keep_renewing(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            now = asyncio.get_running_loop().time()
            old = [claim for claim, since in self._claims.items() if now - since >= _RENEW_EVERY / 2]
            with contextlib.suppress(StoreUnavailable):  # another may take over, and does the same
                await asyncio.gather(*(self._run(claim_request, claim) for claim in old))

    async def _run(self, build: Build, request: RequestClaim | RequestAnswer) -> Any:
        [outcome] = await self._enqueue(build, request)
        return outcome

    def _enqueue(self, build: Build, request: RequestClaim | RequestAnswer) -> asyncio.Future[Any]:
        return self._engine._coalescer.enqueue(build, [request])  # noqa: SLF001 - our own


def _text(reply: Reply, request_id: str) -> str:
    """The envelope as over HTTP, with the request's id and the fencing tokens in front."""
    facts: dict[str, Any] = {"id": request_id, **(reply.fencing or {})}
    return f"{json.dumps(facts)[:-1]},{reply.answer.body().decode()[1:]}"


def _failure(error: OverbookedError, request_id: str) -> str:
    envelope, _ = failure(error, request_id)
    return f"{json.dumps({'id': request_id})[:-1]},{envelope.decode()[1:]}"
