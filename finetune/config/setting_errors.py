"""An error of pydantic about the settings of a job in terms of the key, its value and the choices."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune.config.values import type_error_of, unknown_key
from finetune.errors import FinetuneError, one_of


def explained(error: ValidationError, group: type[BaseModel], config: Mapping[str, Any]) -> FinetuneError:
    """The first of the errors, as one for the user."""
    first = error.errors()[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), FinetuneError):
        return cause
    path, value, known = _locate(first["loc"], group, config)
    key, kind = ".".join(path), first["type"]
    if kind == "extra_forbidden":
        return unknown_key(".".join(path[:-1]), path[-1], value, known)
    if kind == "missing":
        return FinetuneError(f"{key} has no value.")
    key_errors = [detail for detail in error.errors() if detail["loc"][: len(path)] == first["loc"][: len(path)]]
    choices = [choice for detail in key_errors for choice in _choices(detail)]
    if choices:
        return one_of(key, value, choices)
    bounds = {"greater_than_equal": "must be {ge} or more", "greater_than": "must lie between 0 and 1"}
    bounds["less_than"] = bounds["greater_than"]
    if path[-1].startswith("teacher_"):  # 1 is a weight, and a temperature has no upper bound
        bounds |= {"greater_than": "must be above 0", "less_than_equal": "must be {le:g} or less"}
    if kind in bounds:
        return FinetuneError(f"{key}={value} {bounds[kind].format(**first['ctx'])}.")
    return type_error_of(key, value, key_errors)


def _locate(location: tuple[int | str, ...], group: Any, config: Mapping[str, Any]) -> tuple[list[str], Any, list[str]]:
    """The dotted key of an error, its value, and the keys known beside it."""
    path: list[str] = []
    value: Any = config
    known: list[str] = []
    for name in location:
        if not (isinstance(group, type) and issubclass(group, BaseModel)):
            break  # within a value
        known = [key for key in group.model_fields if key not in ("resolved", "options")]
        path.append(str(name))
        value = value.get(name) if isinstance(value, Mapping) else None
        group = group.model_fields[str(name)].annotation if name in group.model_fields else None
    return path, value, known


def _choices(detail: Any) -> list[str]:
    """The values that a Literal has."""
    if detail["type"] != "literal_error":
        return []
    return [part.strip(" '") for part in detail["ctx"]["expected"].replace(" or ", ", ").split(",")]
