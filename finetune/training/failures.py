"""What ends a training from outside, as one error with its ways out: memory, the disk, a signal."""

import contextlib
import errno
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from finetune.errors import FinetuneError, Terminated

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WRITER = "PytorchStreamWriter"  # of torch's errors when a checkpoint cannot be written
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not get memory, of a device or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for lack of space."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, RuntimeError) and WRITER in str(error)


@contextlib.contextmanager
def explained(config: Mapping[str, Any], where: Any, hint: str | None = None) -> Iterator[None]:
    """Inside, a lack of memory or of space on the disk is an error that names the settings to change.

    Args:
        config: the resolved configuration.
        where: the run folder.
        hint: a sentence on how to go on; None where there is no way.
    """
    try:
        yield
    except FinetuneError:
        raise
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error):
            raise FinetuneError(memory_sentence(config, str(error))) from error
        if is_disk_full(error):
            again = f" Free some space. {hint}" if hint else ""
            raise FinetuneError(
                f"The disk of {where} has no space left ({str(error).splitlines()[0]}). Checkpoints of earlier epochs "
                f"are whole.{again}"
            ) from error
        raise


def memory_sentence(config: Mapping[str, Any], reason: str) -> str:
    """What filled the memory, and what to change."""
    data, backbone, trainer = (config.get(name) or {} for name in ("data", "backbone", "trainer"))
    batch, memory = int(data.get("batch_size") or 1), backbone.get("memory", "auto")
    ways = [] if memory == "minimal" else [f"backbone.memory={'minimal' if memory == 'lean' else 'lean'}"]
    if batch > 1:
        groups = 2 * int(trainer.get("accumulate_grad_batches") or 1)
        ways.append(f"data.batch_size={batch // 2} trainer.accumulate_grad_batches={groups} (the same steps)")
    ways.append(f"a smaller data.image_size than {data.get('image_size')}")
    if str(trainer.get("precision", "32-true")).startswith("32") and torch.cuda.is_available():
        ways.append("trainer.precision=16-mixed")
    first_line = reason.splitlines()[0] if reason else "no reason given"
    return (
        f"Out of memory with data.batch_size={batch}, data.image_size={data.get('image_size')}, "
        f"backbone.memory={memory}, trainer.precision={trainer.get('precision')} ({first_line}). "
        f"Ways out: {'; '.join(ways)}."
    )


def end_on_sigterm() -> None:
    """Let SIGTERM, as of a cluster that takes a machine back, raise `Terminated` in the main thread.

    Lightning sets a handler of its own in each fit, which ends the fit after the current batch and waits for the other
    processes in a collective: call this again once a fit has begun.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the clearing up
    raise Terminated
