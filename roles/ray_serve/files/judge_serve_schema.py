"""Walk a Serve config beside the installed models and name every key that Ray would silently ignore.

Known keys come from the models themselves (pydantic models, dataclasses). Each level is validated on its own, after
its children: a child that failed is left out, so that one mistake is told once and the other levels are still judged.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

# A checker judges one value: (value, path, problems) -> (value without unknown keys, whether it passed).
Checker = Callable[[Any, str, "Problems"], tuple[Any, bool]]
# Fields whose annotation says less than Ray checks later: (class that has the field, field) -> checker.
SPECIAL: dict[tuple[type, str], Checker] = {}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One mistake: path in the config, value found there, what is wrong, what to do."""

    variable: str
    value: Any
    problem: str
    do: str


class Problems:
    """The problems found so far; the same problem at the same place counts once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Problem] = {}

    def add(self, variable: str, value: Any, problem: str, do: str) -> None:
        """Note a problem; a second one with the same place and text is dropped."""
        self._found.setdefault((variable, problem), Problem(variable, value, problem, do))

    def add_unknown(self, path: str, key: Any, value: Any, known: typing.Iterable[str]) -> str | None:
        """Note a key that the installed version does not know; return the nearest right name, if one is near."""
        names = sorted(known)
        near = next(iter(difflib.get_close_matches(str(key), names, n=1, cutoff=0.6)), None)
        do = f"Did you mean `{near}`?" if near else f"Remove it, or use one of: {', '.join(names)}."
        self.add(join(path, key), value, f"Unknown key `{key}`: the installed version does not have it.", do)
        return near

    def add_error(self, path: str, value: Any, error: BaseException) -> None:
        """Note an exception that Ray or vLLM raised about the value at the path."""
        self.add(path, value, f"{type(error).__name__}: {error}", "Correct this part of the config.")

    def drop(self, variable: str) -> None:
        """Forget what was noted at exactly this path."""
        self._found = {key: found for key, found in self._found.items() if key[0] != variable}

    def below(self, path: str) -> bool:
        """Say whether something at this path or below it was noted."""
        return any(variable == path or variable.startswith((f"{path}.", f"{path}[")) for variable, _ in self._found)

    def in_order(self) -> list[Problem]:
        """Return all problems by path, list positions as numbers."""
        return sorted(self._found.values(), key=lambda found: (_order(found.variable), found.problem))


def _order(path: str) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\[(\d+)\]|([^.\[\]]+)", path)
    return [(0, int(number), "") if number else (1, 0, name) for number, name in parts]


def join(path: str, key: Any) -> str:
    """Return the path of a key or of a list position below a path."""
    return f"{path}[{key}]" if isinstance(key, int) and not isinstance(key, bool) else f"{path}.{key}"


def fields_of(model: Any) -> dict[str, Any]:
    """Return the keys that a model takes, aliases included, with their annotations."""
    if not issubclass(model, BaseModel):
        return {field.name: field.type for field in dataclasses.fields(model) if field.init}
    fields = {}
    for name, info in model.model_fields.items():
        for key in {name, info.alias, info.validation_alias}:
            if isinstance(key, str):
                fields[key] = info.annotation
    return fields


def members(annotation: Any) -> Iterator[Any]:
    """Yield what a Union or Annotated is made of; any other annotation yields itself."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from members(member)
    else:
        yield annotation


def is_model(annotation: Any) -> bool:
    """Say whether an annotation is a class whose keys can be listed."""
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation))


def _pick(models: list[Any], value: Mapping[Any, Any]) -> Any:
    """Return the model of a discriminated union that the literal fields (`kind`) point at, else the richest."""
    for model in models:
        for name, annotation in fields_of(model).items():
            if typing.get_origin(annotation) is typing.Literal and value.get(name) in typing.get_args(annotation):
                return model
    return max(models, key=lambda model: len(fields_of(model)))


def check(annotation: Any, value: Any, path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge a value by the models inside its annotation; what no model describes is left to its parent's model."""
    options = list(members(annotation))
    models = [option for option in options if is_model(option)]
    if isinstance(value, dict) and models:
        return check_model(_pick(models, value), value, path, problems)
    if models and len(models) == len(options):
        problems.add(path, value, f"Must be a mapping, not {type(value).__name__}.", "Give keys and values here.")
        return value, False
    inner: list[Any] = []
    for option in options:
        origin, args = typing.get_origin(option), typing.get_args(option)
        if origin in (list, tuple) and args and isinstance(value, list):
            inner = [(position, args[0]) for position in range(len(value))]
        elif origin is dict and len(args) == 2 and isinstance(value, dict):
            inner = [(key, args[1]) for key in value]
    if not inner:
        return value, True
    judged = {key: check(option, value[key], join(path, key), problems) for key, option in inner}
    clean = [item for item, _ in judged.values()] if isinstance(value, list) else {k: v for k, (v, _) in judged.items()}
    return clean, all(passed for _, passed in judged.values())


def check_model(model: Any, value: dict[Any, Any], path: str, problems: Problems) -> tuple[Any, bool]:
    """Judge a mapping by a pydantic model or dataclass."""
    special = {name: checker for (owner, name), checker in SPECIAL.items() if issubclass(model, owner)}
    extra = getattr(model, "model_config", {}).get("extra")
    validate = adapter(model).validate_python
    return check_fields(fields_of(model), validate, value, path, problems, special=special, is_open=extra == "allow")


def check_fields(
    fields: Mapping[str, Any],
    validate: Callable[[Any], Any],
    value: dict[Any, Any],
    path: str,
    problems: Problems,
    *,
    special: Mapping[str, Checker] | None = None,
    is_open: bool = False,
) -> tuple[Any, bool]:
    """Judge a mapping: unknown keys, then each known key, then all of it by `validate`."""
    clean: dict[Any, Any] = {}
    passed: dict[Any, Any] = {}
    guessed: dict[Any, Any] = {}
    for key, item in value.items():
        if key not in fields:
            if is_open:
                passed[key] = clean[key] = item
            else:
                near = problems.add_unknown(path, key, item, fields)
                # Taken as meant, so that the misspelt key is not told again as a missing one.
                if near is not None and near not in value:
                    guessed[near] = item
            continue
        # A null is the parent's to accept or refuse.
        checker = (special or {}).get(key)
        if item is None:
            clean[key], good = item, True
        elif checker:
            clean[key], good = checker(item, join(path, key), problems)
        else:
            clean[key], good = check(fields[key], item, join(path, key), problems)
        if good:
            passed[key] = clean[key]
    good = run(validate, {**guessed, **passed}, {**guessed, **value}, path, problems, told=guessed)
    return {**guessed, **clean}, good and len(passed) == len(clean)


def run(
    validate: Callable[[Any], Any], passed: Any, value: Any, path: str, problems: Problems, told: Collection[Any] = ()
) -> bool:
    """Run a validator of Ray or vLLM; what it raises, except about the keys told already, becomes problems."""
    try:
        validate(copy.deepcopy(passed))
    except ValidationError as error:
        _add_validation_error(error, value, path, problems, told)
        return False
    except (Exception, SystemExit) as error:  # noqa: BLE001
        if not told:
            problems.add_error(path, value, error)
        return False
    return True


def _add_validation_error(
    error: ValidationError, value: Any, path: str, problems: Problems, told: Collection[Any]
) -> None:
    """Note the errors, those of one place together, except about keys told already and children left out."""
    places: dict[str, tuple[Any, list[str]]] = {}
    for detail in error.errors(include_url=False):
        if detail["loc"] and detail["loc"][0] in told:
            continue
        where, there, known = path, value, True
        for step in detail["loc"]:
            # Steps that are not in the value name a branch of a union.
            if isinstance(there, (dict, list)) and _has(there, step):
                where, there = join(where, step), there[step]
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        cause = getattr(detail.get("ctx", {}).get("error"), "__cause__", None)
        if detail["type"] in ("missing", "missing_argument"):
            # Given, but left out because it failed: told already.
            known = not (isinstance(value, dict) and len(detail["loc"]) == 1 and detail["loc"][0] in value)
            where, message = join(where, detail["loc"][-1]), "This key is required."
            there = None
        if known:
            places.setdefault(where, (there, []))[1].append(f"{message}: {cause}" if cause else message)
    for where, (there, messages) in places.items():
        text = " or: ".join(dict.fromkeys(messages))
        required = text == "This key is required."
        problems.add(where, there, text, "Add it." if required else "Correct the value, or remove the key.")


def _has(there: Any, step: Any) -> bool:
    if isinstance(there, dict):
        return step in there
    return isinstance(step, int) and step < len(there)


@functools.cache
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return a validator for an annotation, whatever classes it names."""
    try:
        return TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 (pydantic asks for this setting only where a foreign class (torch.dtype) is named)
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
