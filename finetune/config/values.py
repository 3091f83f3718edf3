"""A value compared with the type of the argument that receives it, and an error that names both."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from finetune.errors import FinetuneError


def check_call(where: str, node: Mapping[str, Any], callee: Callable[..., Any]) -> None:
    """Every key of `node` is an argument of `callee`, and its value has the argument's type."""
    parameters = inspect.signature(callee).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        hints = get_type_hints(callee.__init__ if inspect.isclass(callee) else callee)
    except (NameError, TypeError, AttributeError):  # a library's own annotations that cannot be resolved
        hints = {}
    for key, value in node.items():
        if str(key).startswith("_"):
            continue
        if key not in parameters:
            if open_ended:
                continue
            raise unknown_key(where, key, value, list(parameters))
        if key in hints and not _has_target(value):
            check_value(f"{where}.{key}", value, hints[key])


def _has_target(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return (isinstance(value, Mapping) and "_target_" in value) or any(_has_target(v) for v in inner)


def unknown_key(where: str, key: str, value: Any, known: list[str]) -> FinetuneError:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    key = f"{where}.{key}" if where else key
    return FinetuneError(f"{key}={value}: there is no such key.{hint} Known here: {', '.join(known)}.")


def check_value(argument: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`.

    Raises:
        FinetuneError: naming argument, value and the expected type.
    """
    if value is None and hint in SCALAR_TYPES.values():
        raise null(argument, hint.__name__)
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # pydantic has no schema for this library's annotation: nothing to compare with
        return value
    if hint is bool and not isinstance(value, bool):
        raise FinetuneError(f"{argument}={value} must be true or false.")
    try:
        read = adapter.validate_python(value)
        if type(read) is not type(value) and isinstance(value, bool | float | str) and isinstance(read, int | float):
            adapter.validate_python(value, strict=True)  # 1e3, true and '4' are not converted
        return read
    except ValidationError as error:
        raise type_error_of(argument, value, error.errors()) from None


SCALAR_TYPES = {"int": int, "float": float, "bool": bool, "string": str}


def type_error_of(argument: str, value: Any, details: Iterable[Any]) -> FinetuneError:
    """The error for a value of another type, from pydantic's details."""
    details = list(details)
    kinds = [detail["type"].removesuffix("_type").removesuffix("_parsing") for detail in details]
    if value is None and len(kinds) == 1 and kinds[0] in SCALAR_TYPES:
        return null(argument, SCALAR_TYPES[kinds[0]].__name__)
    if kinds == ["bool"]:
        return FinetuneError(f"{argument}={value} must be true or false.")
    texts = sorted({detail["msg"].removeprefix("Input should be ") for detail in details})
    return FinetuneError(f"{argument}={value} should be {' or '.join(texts)}.")


def null(argument: str, kind: str) -> FinetuneError:
    return FinetuneError(f"{argument}=null must be given a value ({kind}).")
