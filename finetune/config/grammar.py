"""Plain values in the grammar of Hydra's overrides: what is written here is read back unchanged."""

import re
from typing import Any

ENCODED = "__utf8_"
"""Prefix of encoded keys that Hydra's grammar cannot express, such as a class name with a space."""


def grammar(value: Any) -> str:
    """Plain values as Hydra's grammar writes them, the keys of mappings encoded."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{ENCODED}{str(k).encode().hex()}:{grammar(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(grammar, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    return "null" if value is None else str(value).lower()


def quoted(text: str) -> str:
    """A text in quotes. A backslash is an escape only before a quote and at the end, where it is doubled."""
    return "'" + re.sub(r"(\\*)('|\Z)", lambda match: 2 * match[1] + ("\\'" if match[2] else ""), text) + "'"


def decode_keys(value: Any) -> Any:
    """`value` with the keys of its mappings decoded."""
    if isinstance(value, list):
        return [decode_keys(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {decode_key(str(key)): decode_keys(inner) for key, inner in value.items()}


def decode_key(key: str) -> str:
    """A key as it was before `grammar` encoded it."""
    return bytes.fromhex(key.removeprefix(ENCODED)).decode() if key.startswith(ENCODED) else key
