"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import os


class FinetuneError(ValueError):
    """A problem the program understands: the message names the argument, its value and the ways out.

    The command line prints it as one line of `error: ...` and exits with 1. Anything else that is raised is a bug
    and keeps its traceback.
    """


class Terminated(SystemExit):
    """SIGTERM: the program ends with 128 + 15, as a shell reports it."""

    def __init__(self) -> None:
        super().__init__(143)


class BadImage(FinetuneError):
    """An image that cannot be read: `path` and, in words for the user, the `reason`."""

    def __init__(self, path: str | os.PathLike[str], reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str]]:
        return BadImage, (self.path, self.reason)  # so that it survives the way back from a worker process


class MissingExtra(FinetuneError):
    """A package that only some data need is not installed: says for what, and how to get it."""

    def __init__(self, what: str, extra: str):
        super().__init__(f'{what}: pip install -e ".[{extra}]" in the checkout.')
        self.what, self.extra = what, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.what, self.extra)


def one_of(argument: str, value: object, choices: object) -> FinetuneError:
    """The error for a value outside a fixed set: names all three, with the nearest choice first."""
    import difflib

    names = [str(choice) for choice in choices]  # type: ignore[attr-defined]
    near = difflib.get_close_matches(str(value), names, n=5)
    hint = f" Did you mean {near[0]}?" if near else ""
    if len(names) > 20:  # a message is for reading: the near ones, and where the others stand
        near = near or names[:5]
        return FinetuneError(
            f"{argument}={value} is not known.{hint} Near: {', '.join(near)}; --help lists all {len(names)}."
        )
    return FinetuneError(f"{argument}={value} is not known.{hint} Choose from {', '.join(names)}.")
