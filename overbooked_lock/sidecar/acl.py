"""Which rights a sidecar and its clients need in Redis, as ACL rules: these and no more."""

from __future__ import annotations

from overbooked_lock import arguments
from overbooked_lock.errors import InvalidArgument
from overbooked_lock.keys import Keys
from overbooked_lock.sidecar.requests import Channels

_OF_CONNECTIONS = ("auth", "hello", "ping", "select")

COMMANDS = (
    "del", "eval", "evalsha", "exists", "get", "hdel", "hget", "hgetall", "hlen", "hmget", "hset", "info",
    "mget", "pexpireat", "pttl", "publish", "set", "subscribe", "time", "type", "unsubscribe", "xadd", "xlen",
    "zadd", "zcard", "zcount", "zlexcount", "zrange", "zrangebylex", "zrangebyscore", "zrem",
)  # fmt: skip
"""What a sidecar sends, and what its scripts call: those of API keys and of lists for operators are not among them.

Neither is ``msetex``, which ``lock`` does without where it may not: servers that don't have it refuse such a rule."""


def sidecar_rules(name: str, namespace: str = "") -> list[str]:
    """The rules of a sidecar's user. Raises InvalidArgument."""
    channels, keys = Channels(name), Keys(namespace)
    prefix = f"{arguments.namespace(namespace)}:" if namespace else ""
    kinds = ("slot", "slots", "booking", "bookings", "holder", "answer")
    return [
        "resetchannels",
        *(f"~{prefix}{kind}:*" for kind in kinds),
        f"&{keys.events}",
        f"&{channels.requests}",
        f"&{channels.replies}*",
        "-@all",
        *(f"+{command}" for command in sorted((*_OF_CONNECTIONS, *COMMANDS))),
    ]


def client_rules(name: str, client: str) -> list[str]:
    """The rules of a client's user, for Redis 7.0 or newer, or Valkey. Raises InvalidArgument.

    What a user may do with a channel is the same for listening and for telling; a selector, in parentheses, keeps the
    two apart. The client can tell requests and hear its own answers, and no more: requests carry lock_keys.
    """
    channels = Channels(name)
    if not channels.may_reply_to(channels.of(client)) or ":" in client:
        raise InvalidArgument("client", "must be 1 to 64 letters, digits, '_', '.' or '-'")
    own = channels.of(client)
    return [
        "resetchannels",
        f"&{own}",
        f"&{own}:*",
        "-@all",
        *(f"+{command}" for command in sorted((*_OF_CONNECTIONS, "subscribe", "unsubscribe"))),
        f"(resetchannels &{channels.requests} -@all +publish)",
    ]
