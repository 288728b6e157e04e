"""The two engines have one interface, and the package exports what it documents."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest

import overbooked_lock
from overbooked_lock import AsyncLockEngine, LockEngine

VERBS = [name for name in vars(LockEngine) if not name.startswith("_")]


def test_both_engines_have_the_same_verbs() -> None:
    """What one engine can do the other can."""
    assert sorted(VERBS) == sorted(name for name in dir(AsyncLockEngine) if not name.startswith("_"))


@pytest.mark.parametrize("verb", ["__init__", *VERBS])
def test_both_engines_take_the_same_arguments(verb: str) -> None:
    """Names, kinds, defaults and types are equal; what is returned too, but for what must differ."""
    sync, aio = (inspect.signature(getattr(engine, verb)) for engine in (LockEngine, AsyncLockEngine))
    different = {"client", "load_slot"}

    def comparable(signature: inspect.Signature) -> list[Any]:
        return [
            (p.name, p.kind, p.default, None if p.name in different else p.annotation)
            for p in signature.parameters.values()
        ]

    assert comparable(sync) == comparable(aio)
    if verb not in ("hold", "events"):
        assert sync.return_annotation == aio.return_annotation


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_documented(verb: str) -> None:
    """A reader of ``help()`` finds a sentence at each verb, and the async engine's are awaited."""
    for engine in (LockEngine, AsyncLockEngine):
        assert inspect.getdoc(getattr(engine, verb))
    awaited = verb not in ("hold", "events", "from_url", "embedded")
    assert inspect.iscoroutinefunction(getattr(AsyncLockEngine, verb)) is awaited
    assert not inspect.iscoroutinefunction(getattr(LockEngine, verb))


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_goes_by_its_own_name(verb: str) -> None:
    """In tracebacks and in ``help()``, and so that it can be pickled."""
    method = getattr(LockEngine, verb)
    assert method.__qualname__ == f"LockEngine.{verb}"
    assert pickle.loads(pickle.dumps(method)) == method  # noqa: S301 - our own


def test_the_package_exports_what_it_names() -> None:
    """``__all__`` is sorted, complete, and free of what is not there."""
    names = overbooked_lock.__all__
    assert names == sorted(names)
    assert all(hasattr(overbooked_lock, name) for name in names)
