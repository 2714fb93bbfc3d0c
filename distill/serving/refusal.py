"""Why a request is not answered."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """A request that cannot be answered: an HTTP status, the reason in plain words, and headers of the response."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None):
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers
