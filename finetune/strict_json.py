"""JSON text to a dataclass: every key known, every value of its declared type, or a one-line error.

For text that comes from a file: it may be damaged or malicious. The dataclass bounds its values
in `__post_init__`; `__pydantic_config__ = {"extra": "forbid"}` makes an unknown key an error.
"""

import reprlib
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from finetune.errors import FinetuneError

T = TypeVar("T")

MAX_CHARACTERS = 16 * 2**20
"""Longest text that is parsed."""
MAX_VALUES = 500_000
"""Limit of values in a text, counted by its commas; each wrong value takes half a kilobyte of memory."""


def read(kind: type[T], text: str) -> T:
    """The value of the dataclass `kind` that the text describes.

    Raises:
        FinetuneError: too long, no JSON, nested too deeply, or a value that is missing, unknown, of another type or out
            of its bounds.
    """
    if len(text) > MAX_CHARACTERS:
        raise FinetuneError(f"it is {len(text):,} characters long, more than the limit of {MAX_CHARACTERS:,}.")
    if text.count(",") > MAX_VALUES:
        raise FinetuneError(f"it holds more values than the limit of {MAX_VALUES:,}.")
    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise FinetuneError(sentence(error)) from None


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong, and how many there are."""
    count = error.error_count()
    if count > 100:  # listing them would take more memory than the text
        return f"{count:,} values in it are invalid."
    first, *further = error.errors(include_url=False)
    where = one_line(".".join(str(part) for part in first["loc"]), 100)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "json_invalid":
        message = f"no JSON, {message.removeprefix('Invalid JSON: ')}"
    elif first["type"] == "missing":
        message = "is missing"
    elif first["type"] == "unexpected_keyword_argument":
        message = "there is no such key"
    elif first["type"] != "value_error":
        message = f"{reprlib.repr(first['input'])}, {message[:1].lower()}{message[1:]}"
    message = one_line(message)
    more = f" ({len(further)} more)" if further else ""
    return f"{where + ': ' if where else ''}{message}{more}."


def one_line(text: object, limit: int = 300) -> str:
    """The text on one line, truncated: values from a file may be anything."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]} ..."
