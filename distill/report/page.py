"""Pages from the package's templates; in HTML, self-contained, whatever a user wrote is shown as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(template: str, **values: Any) -> str:
    """Return a template of the package filled in; in HTML every value is escaped but markup of our own making."""
    environment = Environment(
        loader=PackageLoader("distill"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "shown": shown, "sentence": _sentence}
    return environment.get_template(template).render(**values)


def shown(value: Any) -> str:
    """Return JSON as a person would write it on a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}%}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def as_code(text: str) -> str:
    """Return a name as Markdown shows it, whatever is in it."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
