"""Reading a `Recipe` from YAML and writing it back; all mistakes are reported at once, each with its file and line.

The YAML is version 1.2, through ruamel.yaml: `3e-4` is a number, `no` is a string, a duplicate key is an error.
"""

from __future__ import annotations

import copy
import io
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from distill.errors import STEERING, RecipeError, did_you_mean, one_line
from distill.recipe import training_fields
from distill.recipe.schema import Data, Recipe
from distill.recipe.section import Section
from distill.recipe.shipped import recipe_file, shipped

DEEPEST = 100  # levels; a recipe has four or five
SECRETS = ("token", "secret", "password")  # messages do not repeat the values of these keys
MOST_VALUES = 100_000  # after aliases are expanded; a recipe has a few dozen values
MAX_RECIPE_BYTES = 1_000_000  # far above any recipe, so that a data file given by mistake is not parsed as YAML
# A file may hold only one of these keys. If --set names another one, that replaces the one in the file.
_EXCLUSIVE = {"data": ("dataset", "files"), "student": ("model", "layers", "config", "ngrams", "prune")}
KeyPath = tuple[str | int, ...]
LABEL_NAMES = ("data", "label_names")
TYPED = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float"))


class Place(NamedTuple):
    """Where a value was written: its line (0 for the command line) and how messages name the place."""

    line: int
    shown: str


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in the YAML file `path`, changed by `overrides` ("dotted.key=YAML value"), with all defaults.

    `path` may be the name of a recipe that comes with distill. Paths in a recipe are relative to the working directory.
    Raises `RecipeError` with every mistake: unreadable file, YAML error, unknown key, wrong type or value, unknown
    TrainingArguments field.
    """
    path = recipe_file(path)
    values, lines = _parse_file(path)
    places: dict[KeyPath, Place] = {at: Place(line, f"{path}:{line}") for at, line in lines.items()}
    mistakes: list[tuple[int, str]] = []
    for override in overrides:
        try:
            key, value = _parse_override(override)
            _put(values, key, value)
        except ValueError as error:
            mistakes.append((0, f"--set {override[:100]}: {one_line(error)}"))
            continue
        is_secret = key[-1].lower().split("_")[-1] in SECRETS
        places[key] = Place(0, f"--set {'.'.join(key)}" if is_secret else f"--set {override}")
    return _validate(values, places, mistakes, name=str(path))


def load_data(path: Path) -> Data:
    """Return the section `data` of a recipe, without a look at the others, for which transformers is needed."""
    values, lines = _parse_file(path)
    places: dict[KeyPath, Place] = {at: Place(line, f"{path}:{line}") for at, line in lines.items()}
    return _validate({key: values[key] for key in ("data",) if key in values}, places, [], name=str(path)).data


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe without its `sweep`, with these dotted keys set; raises `RecipeError` if it is not valid."""
    changed = recipe.model_copy(update={"sweep": None}).model_dump(mode="json", exclude_none=True)
    for key, value in values.items():
        _put(changed, tuple(key.split(".")), value)
    return _validate(changed, {}, [], name=", ".join(f"{key} {value}" for key, value in values.items()))


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that `load_recipe` reads back to an equal recipe."""
    return as_yaml(recipe.model_dump(mode="json", exclude_none=True))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return JSON as YAML in the order of its keys."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
    yaml.width = 120
    stream = io.StringIO()
    # `distill check` prints this text, so marks that change the direction of writing must be escaped.
    yaml.allow_unicode = not STEERING.search(json.dumps(values, ensure_ascii=False))
    yaml.dump(values, stream)
    return stream.getvalue()


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_RECIPE_BYTES + 1)
    except FileNotFoundError as error:
        known = ", ".join(shipped())
        raise RecipeError(f"{path}: {error.strerror}; recipes that come with distill: {known}") from None
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes, so it is not a recipe")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from None


def _parse_file(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    try:
        values, lines = _parse(_read(path))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        problem = (error.problem or str(error.context)).splitlines()[0]
        raise RecipeError(f"{place}: {problem}") from None
    except (YAMLError, ValueError) as error:  # e.g. a control character, or thousands of digits
        raise RecipeError(f"{path}: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: wants keys and values at the top (data:, teacher:, student: ...)")
    return values, lines


class _PlainValues(SafeConstructor):
    """Builds only values that JSON has too. Dates stay text, as in YAML 1.2; tags such as !!binary are errors."""


_PlainValues.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)
for _kind in ("binary", "set", "omap", "pairs"):
    _PlainValues.add_constructor(f"tag:yaml.org,2002:{_kind}", SafeConstructor.construct_undefined)


def _parse(text: str, at: KeyPath = ()) -> tuple[Any, dict[KeyPath, int]]:
    """Return the values of a YAML text that belongs at a key path, and the line (from 1) of each path in it.

    Class names stay text as written: in data.label_names TRUE, 007 and 1.0 are names, not YAML values.
    """
    yaml, lines, names = YAML(typ="safe", pure=True), {}, {}
    yaml.Constructor = _PlainValues
    try:
        root = yaml.compose(text)
        for count, (path, node) in enumerate(_nodes(root, at)):  # before too many values are built
            if count == MOST_VALUES:
                raise ValueError("too many values for a recipe after its aliases are expanded")
            if len(path) > DEEPEST:
                raise RecursionError
            lines[path] = node.start_mark.line + 1
            if path[:-1] == LABEL_NAMES and isinstance(node, ScalarNode) and node.tag in TYPED:
                names[path[-1]] = node.value
        values = yaml.constructor.construct_document(root) if root else None
        return _with_names(values, LABEL_NAMES[len(at) :], names) if names else values, lines
    except KeyError as error:  # of a tag that does not fit its value, as !!bool 5
        raise ValueError(f"{one_line(error)} has a tag of another type") from None
    except RecursionError:
        raise ValueError("nested too deeply for a recipe") from None


def _with_names(values: Any, at: KeyPath, names: Mapping[str | int, str]) -> Any:
    """Return a copy of `values` with the class names, at the key path `at`, as they are written."""
    if at:
        return {**values, at[0]: _with_names(values[at[0]], at[1:], names)}
    return [names.get(index, value) for index, value in enumerate(values)]


def _nodes(node: Node | None, at: KeyPath) -> Iterator[tuple[KeyPath, Node]]:
    """Yield the path of each value with its first node: its key if it has one, else the value. Aliases are expanded."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise MarkedYAMLError(problem="wants a name as key", problem_mark=key.start_mark)
            yield (*at, key.value), key
            yield from _nodes(value, (*at, key.value))
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield (*at, index), value
            yield from _nodes(value, (*at, index))


def _parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if parts[:2] == ("sweep", "keys") and len(parts) > 2:  # the rest is one key, which contains dots
        parts = (*parts[:2], ".".join(parts[2:]))
    if not equals or not all(parts):
        raise ValueError("wants dotted.key=value")
    if STEERING.search(key):
        raise ValueError("wants a key of letters and digits")
    if len(parts) > DEEPEST:
        raise ValueError("nested too deeply for a recipe")
    try:
        return parts, _parse(text, parts)[0]
    except YAMLError:
        raise ValueError(f"{text[:50]!r} is not a YAML value") from None


def _put(values: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    section, exclusive = values.get(key[0]), _EXCLUSIVE.get(key[0], ())
    if isinstance(section, dict) and value is not None and set(key[1:2]) & set(exclusive):
        for name in exclusive:
            if name != key[1]:
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
    try:
        recipe, faults = _faults(values)
    except ValueError as error:  # a hexadecimal number with thousands of digits
        raise RecipeError(f"{name}: {one_line(error)}") from None
    if recipe:
        faults += list(_faults_of_trials(recipe, values, faults))
    for at, problem in faults:
        # The nearest place that is known: the key itself, or the section that lacks it.
        place = next((places[at[:n]] for n in range(len(at), 0, -1) if at[:n] in places), Place(0, name))
        key = f"{'.'.join(map(str, at))}: " if at else ""
        mistakes.append((place.line, f"{place.shown}: {key}{problem}"))
    if mistakes or recipe is None:
        raise RecipeError(*(text for _, text in sorted(mistakes, key=lambda mistake: mistake[0])))
    return _fill_training(recipe)


def _faults(values: Mapping[str, Any]) -> tuple[Recipe | None, list[tuple[KeyPath, str]]]:
    """Return the recipe, or None if it is not valid, and each fault with its key."""
    recipe, faults = None, []
    try:
        # JSON mode, because only there strict mode accepts a list for a tuple.
        recipe = Recipe.model_validate_json(json.dumps(values))
    except ValidationError as error:
        # pydantic adds a part "[key]" if a mapping's key is wrong, rather than its value.
        faults = [(tuple(p for p in fault["loc"] if p != "[key]"), _explain(fault)) for fault in error.errors()]
    for stage in ("teacher", "student"):
        section = values.get(stage)
        training = section.get("training") if isinstance(section, dict) else None
        if isinstance(training, dict):
            for name, problem in training_fields.problems({str(k): v for k, v in training.items()}):
                faults.append(((stage, "training", name), problem))
    return recipe, faults


def _faults_of_trials(
    recipe: Recipe, values: Mapping[str, Any], known: Sequence[tuple[KeyPath, str]]
) -> Iterator[tuple[KeyPath, str]]:
    """Yield what would be wrong with the recipe in a trial of its sweep: try each candidate value in its place."""
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
        if len(found) > 1 and len(set(found.values())) == 1:  # the key is wrong, not its values
            yield ("sweep", "keys", key), next(iter(found.values()))
        else:
            yield from ((("sweep", "keys", key, which), problem) for which, problem in found.items())


def _fill_training(recipe: Recipe) -> Recipe:
    updates: dict[str, Any] = {}
    for name in ("teacher", "student"):
        if stage := getattr(recipe, name):
            # At thresholds of 0.5, exact match may be 0 in every evaluation, and the first would stay the best.
            metric = "log_loss" if recipe.data.has_several_labels else "accuracy"
            training = training_fields.with_defaults(stage.training, seed=recipe.data.seed, metric=metric)
            updates[name] = stage.model_copy(update={"training": training})
    return recipe.model_copy(update=updates)


def _explain(fault: Any) -> str:
    """Return one line for a pydantic fault: the rule and the value, or the key that was probably meant."""
    if fault["type"] == "extra_forbidden":
        *section, key = fault["loc"]
        return f"unknown key; {did_you_mean(str(key), _keys(section), 'known:')}"
    if fault["type"] == "missing":
        return "missing"
    if fault["type"] == "json_invalid":  # json.dumps made it, so only half a pair can be wrong
        return "half a surrogate pair (\\ud800 to \\udfff) is not text"
    if fault["type"] == "value_error":  # from our own validators, which name the value themselves
        return str(fault["ctx"]["error"])
    rule = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{rule}, got {fault['input']!r}"


def _keys(section: Sequence[str | int]) -> list[str]:
    model: Any = Recipe
    parts = iter(section)
    for part in parts:
        annotation = model.model_fields[part].annotation
        options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        if typing.get_origin(annotation) is dict:  # the next part of the path is one of its keys
            options = typing.get_args(annotation)[1:]
            next(parts)
        model = next(option for option in options if isinstance(option, type) and issubclass(option, Section))
    return list(model.model_fields)
