"""A YAML file to a `Recipe` and back, every mistake reported at once with its file and line.

YAML 1.2 through ruamel.yaml: `3e-4` is a number, `no` a string, an equal key twice an error.
"""

from __future__ import annotations

import copy
import difflib
import io
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from distill.errors import STEERING, RecipeError, one_line
from distill.recipe import training_fields as training_arguments
from distill.recipe.schema import Recipe
from distill.recipe.section import Section

BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}
DEEPEST = 100  # open brackets; a recipe has two or three
SECRETS = ("token", "secret", "password")  # keys whose values are not repeated
MOST_VALUES = 100_000  # once aliases are written out; a recipe has some dozens
MAX_RECIPE_BYTES = 1_000_000  # far above any recipe; keeps a data file given by mistake from being parsed as YAML
# In one file both are an error, but --set of one drops the other that the file holds.
_EXCLUSIVE = {
    ("data", "dataset"): ("data", "files"),
    ("data", "files"): ("data", "dataset"),
    ("student", "model"): ("student", "layers", "config"),
    ("student", "layers"): ("student", "model", "config"),
    ("student", "config"): ("student", "model", "layers"),
}
KeyPath = tuple[str | int, ...]
LABEL_NAMES = ("data", "label_names")


class Place(NamedTuple):
    """Where a value was written: its line (0 for the command line) and the text that says so."""

    line: int
    shown: str


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in the YAML file `path` with `overrides` ("dotted.key=YAML value") on top, defaults filled in.

    Raises `RecipeError` with every mistake: unreadable file, YAML fault, unknown key, wrong type or value, unknown
    TrainingArguments field.
    """
    text = _read(path)
    values, lines = _parse(text, str(path))
    places: dict[KeyPath, Place] = {at: Place(line, f"{path}:{line}") for at, line in lines.items()}
    mistakes: list[tuple[int, str]] = []
    for override in overrides:
        try:
            key, value = _parse_override(override)
            _put(values, key, value)
        except ValueError as error:
            mistakes.append((0, f"--set {override[:100]}: {error}"))
            continue
        is_secret = key[-1].lower().split("_")[-1] in SECRETS
        places[key] = Place(0, f"--set {'.'.join(key)}" if is_secret else f"--set {override}")
    return _validate(values, places, mistakes, name=str(path))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with these dotted keys set, without its search, checked anew; raises `RecipeError`."""
    changed = recipe.model_copy(update={"sweep": None}).model_dump(mode="json", exclude_none=True)
    for key, value in values.items():
        _put(changed, tuple(key.split(".")), value)
    return _validate(changed, {}, [], name=", ".join(f"{key} {value}" for key, value in values.items()))


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.width = 120
    stream, values = io.StringIO(), recipe.model_dump(mode="json", exclude_none=True)
    # What turns the direction of writing must not stand in it as it is: printed, it would.
    yaml.allow_unicode = not STEERING.search(json.dumps(values, ensure_ascii=False))
    yaml.dump(values, stream)
    return stream.getvalue()


def _read(path: Path | str) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
    except IsADirectoryError:
        raise RecipeError(f"{path}: a folder, not a recipe file") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}", hint="recipes that come with distill are in recipes/") from None
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes, which no recipe is")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from None


def _parse(text: str, name: str) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """Return the plain values of a YAML text and the line (from 1) of each key path."""
    if _is_too_deep(text):
        raise RecipeError(f"{name}: nested too deeply for a recipe")
    try:
        values = _plain(text)
        root = YAML(typ="rt", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = (error.problem or str(error.context)).splitlines()[0]
        raise RecipeError(f"{place}: {problem}") from None
    except (YAMLError, ValueError) as error:  # e.g. a control character, or thousands of digits
        raise RecipeError(f"{name}: {one_line(error)}") from None
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply for a recipe") from None
    if _written_out(values) > MOST_VALUES:
        raise RecipeError(f"{name}: its aliases write out to more values than any recipe has")
    if not isinstance(values, dict):
        raise RecipeError(f"{name}: wants keys and values at the top (data:, teacher:, student: ...)")
    return _as_written(values, root), dict(_lines(root, (), set()))


class _PlainValues(SafeConstructor):
    """What JSON has too; a date is text, since YAML 1.2 has none, and what asks to be more (!!binary) is refused."""


_PlainValues.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
for _kind in ("binary", "set", "omap", "pairs"):
    _PlainValues.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_undefined)


def _plain(text: str) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainValues
    return yaml.load(text)


def _as_written(values: Any, node: Node | None, at: KeyPath = ()) -> Any:
    """`values` with class names as they stand in the file: TRUE, 007 and 1.0 are names there, and no YAML values."""
    if at == LABEL_NAMES and isinstance(values, list) and isinstance(node, SequenceNode):
        return [
            one if one is None or not isinstance(inner, ScalarNode) else inner.value
            for one, inner in zip(values, node.value, strict=True)
        ]
    if len(at) < len(LABEL_NAMES) and isinstance(values, dict) and isinstance(node, MappingNode):
        part = LABEL_NAMES[len(at)]
        for key, inner in node.value:
            if key.value == part and part in values:
                values[part] = _as_written(values[part], inner, (*at, part))
    return values


def _is_too_deep(text: str) -> bool:
    """The scanner takes the square of the depth: a file of brackets would keep it busy for hours before it gave up."""
    steps = (BRACKETS.get(character, 0) for character in text)
    return max(accumulate(steps, lambda depth, step: max(0, depth + step), initial=0)) > DEEPEST


def _written_out(value: Any) -> int:
    """How many values there are once each alias is replaced by what it stands for, counted no further than needed."""
    inner, count = [value], 0
    while inner and count <= MOST_VALUES:
        one = inner.pop()
        count += 1
        inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return count


def _lines(node: Node | None, at: KeyPath, seen: set[int]) -> Iterator[tuple[KeyPath, int]]:
    if id(node) in seen:  # an alias, perhaps of a node that holds it
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*at, str(key.value)), key.start_mark.line + 1
            yield from _lines(value, (*at, str(key.value)), seen)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value.start_mark.line + 1
            yield from _lines(value, (*at, index), seen)


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if parts[:2] == ("sweep", "keys") and len(parts) > 2:  # what follows is the name of one key
        parts = (*parts[:2], ".".join(parts[2:]))
    if not equals or not all(parts):
        raise ValueError("wants dotted.key=value")
    if STEERING.search(key):
        raise ValueError("wants a key of letters and digits")
    if len(parts) > DEEPEST or _is_too_deep(text):
        raise ValueError("nested too deeply for a recipe")
    try:
        value = _plain(text)
        if parts == LABEL_NAMES[: len(parts)]:
            value = _as_written(value, YAML(typ="rt", pure=True).compose(text), parts)
    except (YAMLError, ValueError, RecursionError):
        raise ValueError(f"{text[:50]!r} is not a YAML value") from None
    if _written_out(value) > MOST_VALUES:
        raise ValueError("its aliases write out to more values than any recipe has")
    return parts, value


def _put(values: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    for exclusive, dropped in _EXCLUSIVE.items():
        section = values.get(dropped[0])
        if key[: len(exclusive)] == exclusive and value is not None and isinstance(section, dict):
            for name in dropped[1:]:
                section.pop(name, None)
    for part in key[:-1]:
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ValueError(f"{part} is not a section")
        values = inner
    values[key[-1]] = value


def _validate(
    values: dict[str, Any], places: dict[KeyPath, Place], mistakes: list[tuple[int, str]], *, name: str
) -> Recipe:
    def report(at: KeyPath, problem: str) -> None:
        # The nearest place known: that of the key itself, or of the section that lacks it.
        place = next((places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in places), Place(0, name))
        key = f"{'.'.join(map(str, at))}: " if at else ""
        mistakes.append((place.line, f"{place.shown}: {key}{problem}"))

    try:
        recipe, faults = _faults(values)
    except ValueError as error:  # an alias that holds itself
        raise RecipeError(f"{name}: {one_line(error)}") from None
    for at, problem in faults:
        report(at, problem)
    for at, problem in _faults_of_trials(recipe, values, faults) if recipe else ():
        report(at, problem)
    if mistakes or recipe is None:
        raise RecipeError(*(text for _, text in sorted(mistakes, key=lambda mistake: mistake[0])))
    return _fill_training(recipe)


def _faults(values: Mapping[str, Any]) -> tuple[Recipe | None, list[tuple[KeyPath, str]]]:
    """Return the recipe, None where it cannot be made, and what is wrong, each with its key."""
    recipe, faults = None, []
    try:
        # JSON mode, because strict mode takes a YAML list for a tuple only there.
        recipe = Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        # pydantic marks a fault of a mapping's key, rather than of its value, by one more part.
        faults = [(tuple(p for p in fault["loc"] if p != "[key]"), _explain(fault)) for fault in error.errors()]
    for stage in ("teacher", "student"):
        section = values.get(stage)
        training = section.get("training") if isinstance(section, dict) else None
        if isinstance(training, dict):
            for name, problem in training_arguments.problems({str(k): v for k, v in training.items()}):
                faults.append(((stage, "training", name), problem))
    return recipe, faults


def _faults_of_trials(
    recipe: Recipe, values: Mapping[str, Any], known: Sequence[tuple[KeyPath, str]]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what would be wrong with the recipe in a trial: each value that a key may take is put in its place."""
    for key, space in recipe.sweep.keys.items() if recipe.sweep else ():
        found: dict[str | int, str] = {}
        for which, value in space.candidates().items():
            changed = {**copy.deepcopy(values), "sweep": None}
            try:
                _put(changed, tuple(key.split(".")), value)
            except ValueError as error:
                found[which] = str(error)
                continue
            for fault in _faults(changed)[1]:
                if fault not in known:
                    found[which] = fault[1]
        if len(found) > 1 and len(set(found.values())) == 1:  # the key is wrong, not what it may take
            yield ("sweep", "keys", key), next(iter(found.values()))
        else:
            yield from ((("sweep", "keys", key, which), problem) for which, problem in found.items())


def _fill_training(recipe: Recipe) -> Recipe:
    def filled(stage: Any) -> Any:
        training = training_arguments.with_defaults(stage.training, seed=recipe.data.seed)
        return stage.model_copy(update={"training": training})

    stages = {name: getattr(recipe, name) for name in ("teacher", "student")}
    return recipe.model_copy(update={name: filled(stage) for name, stage in stages.items() if stage})


def _explain(fault: Any) -> str:
    """One line for a pydantic fault: the rule, the value got, and the key that was probably meant."""
    if fault["type"] == "extra_forbidden":
        *section, key = fault["loc"]
        close = difflib.get_close_matches(str(key), _keys(section), n=1)
        return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known: {', '.join(_keys(section))}"
    if fault["type"] == "missing":
        return "missing"
    if fault["type"] == "value_error":  # our own validators say the value themselves
        return str(fault["ctx"]["error"])
    rule = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{rule}, got {fault['input']!r}"


def _keys(section: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    parts = iter(section)
    for part in parts:
        annotation = model.model_fields[part].annotation
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        if typing.get_origin(annotation) is dict:  # the next part is one of its keys
            options = typing.get_args(annotation)[1:]
            next(parts)
        model = next(option for option in options if isinstance(option, type) and issubclass(option, Section))
    return list(model.model_fields)
