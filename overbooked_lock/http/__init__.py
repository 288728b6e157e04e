"""The engine over HTTP, as the published Overbooked API has it. Needs the extra ``[http]``."""

from overbooked_lock.http.app import create_app

__all__ = ["create_app"]
