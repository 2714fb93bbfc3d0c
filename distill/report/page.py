"""Pages from the package's templates; in HTML, whatever a user wrote is shown as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

LONGEST = 1_000  # characters of a user's text on a page: it is to be read, and mailed


def render(template: str, **values: Any) -> str:
    """Return a filled template of the package; in HTML every value is escaped unless it is a `Markup`."""
    environment = Environment(
        loader=PackageLoader("distill"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "number": _number,
        "shown": shown,
        "shortened": shortened,
        "sentence": sentence,
    }
    return environment.get_template(template).render(**values)


def inlined_script(name: str) -> dict[str, Any]:
    """Return a script of the package for a page: its `source`, and the `digest` by which the page allows it alone."""
    from markupsafe import Markup

    source = resources.files("distill").joinpath("templates", name).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return {"source": Markup(source), "digest": f"sha256-{digest}"}


def shown(value: Any) -> str:
    """Return a JSON value as one readable line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}"


def shortened(text: str) -> str:
    """Return a text, or its beginning if it is longer than `LONGEST`."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def sentence(text: str) -> str:
    """Return a text with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + "."


def as_code(text: str) -> str:
    """Return a name as inline code in Markdown; backticks, line breaks and repeated spaces in it are replaced."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
