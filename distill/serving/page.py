"""The page on which a text can be tried, and the policy that keeps it from asking anybody but its own server."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import NamedTuple

NOTHING_ELSE = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Page(NamedTuple):
    """A page with its styles and its script, and its Content-Security-Policy."""

    html: str
    policy: str


def try_page() -> Page:
    """Return the page; its policy allows the styles and the script that it was written with, and no other."""
    html = resources.files("distill").joinpath("templates", "try.html").read_text(encoding="utf-8")
    allowed = [f"{tag}-src {_hash(html, tag)}" for tag in ("style", "script")]
    return Page(html, "; ".join([NOTHING_ELSE, *allowed, "connect-src 'self'", "img-src data:"]))


def _hash(html: str, tag: str) -> str:
    """Return the hash by which a policy knows the content of the page's only element `tag`."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
