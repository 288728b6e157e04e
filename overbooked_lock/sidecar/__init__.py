"""The engine over Redis pub/sub, for services in any language. Needs the extra ``[http]``, whose models it shares."""

from overbooked_lock.sidecar.sidecar import Sidecar

__all__ = ["Sidecar"]
