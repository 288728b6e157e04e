"""The sides that are compared: one module each, which says how its documentation wants it to be used.

A module's ``connect(url, callers)`` is a context manager, async for those that are, and yields ``pair(name)``, which
locks a name that is free and unlocks it. ``PACKAGES`` are the distributions whose versions are told.
"""
