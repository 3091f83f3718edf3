"""The one kind of error that a user is meant to read."""


class FinetuneError(ValueError):
    """A problem the program understands: the message names the argument, its value and the ways out.

    The command line prints it as one line of `error: ...` and exits with 1. Anything else that is raised is a bug
    and keeps its traceback.
    """


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
