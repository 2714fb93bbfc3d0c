"""Pages from the package's templates; in HTML, whatever a user wrote is shown as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> str:
    """Return a filled template of the package; in HTML every value is escaped unless it is a `Markup`."""
    environment = Environment(
        loader=PackageLoader("distill"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "shown": shown, "sentence": sentence}
    return environment.get_template(template).render(**values)


def shown(value: Any) -> str:
    """Return a JSON value as one readable line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def sentence(text: str) -> str:
    """Return a text with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + "."


def as_code(text: str) -> str:
    """Return a name as inline code in Markdown; backticks, line breaks and repeated spaces in it are replaced."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
