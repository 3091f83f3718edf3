"""One thread that owns the network: images of concurrent requests are predicted together, other work one by one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from finetune.serving.refusal import busy

Predict = Callable[[list[Any]], list[Any]]
"""Takes the items of a batch, returns their results in the same order. A result does not depend on the batch."""


@dataclass(eq=False)
class Job:
    """What the thread has to do: an item of a batch, or a function of its own."""

    item: Any = None
    alone: bool = False
    """Whether `item` is a function to call."""
    result: Future[Any] = field(default_factory=Future)


END = Job()
"""Stands for the end of the queue."""


class Batcher:
    """Collects items until there are `max_batch`, or until the first has waited for `max_wait` seconds."""

    def __init__(
        self,
        predict: Predict,
        *,
        max_batch: int = 16,
        max_wait: float = 0.005,
        max_queue: int = 64,
        expected: Callable[[], int] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ):
        """
        Args:
            max_wait: seconds.
            max_queue: items that may wait.
            expected: the number of requests that are being worked on, of which items may still come: the thread does
                not wait where it has those of all of them.
            on_batch: called with the size of each batch and its seconds.
        """
        self.predict, self.max_batch, self.max_wait = predict, max_batch, max_wait
        self.expected = expected or (lambda: max_batch)
        self.on_batch = on_batch or (lambda size, seconds: None)
        self.jobs: queue.Queue[Job] = queue.Queue(max_queue)
        self.closed = False
        self.thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self.thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        return self.jobs.qsize()

    def submit(self, item: Any) -> Future[Any]:
        """An item of a batch.

        Raises:
            Refused: the queue is full, or the server ends.
        """
        return self._put(Job(item))

    def submit_alone(self, work: Callable[[], Any]) -> Future[Any]:
        """A function that runs in the thread by itself; raises as `submit`."""
        return self._put(Job(work, alone=True))

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        if not self.closed:
            self.closed = True
            self.jobs.put(END)
            self.thread.join()

    def _put(self, job: Job) -> Future[Any]:
        if self.closed:
            raise busy("The server is ending.")
        try:
            self.jobs.put_nowait(job)
        except queue.Full:
            raise busy("The queue of images is full.") from None
        return job.result

    def _run(self) -> None:
        job = self.jobs.get()
        while job is not END:
            behind = None
            if job.alone:
                _finish([job], lambda items: [items[0]()])
            else:
                batch, behind = self._collect(job)
                start = time.perf_counter()
                size = _finish(batch, self.predict)
                self.on_batch(size, time.perf_counter() - start)
            job = behind or self.jobs.get()

    def _collect(self, first: Job) -> tuple[list[Job], Job | None]:
        """A batch, and the job behind it where that is none of a batch."""
        batch, deadline = [first], time.monotonic() + self.max_wait
        while len(batch) < self.max_batch:
            left = deadline - time.monotonic()
            wait = left > 0 and len(batch) < self.expected()
            try:
                job = self.jobs.get(timeout=left) if wait else self.jobs.get_nowait()
            except queue.Empty:
                break
            if job is END or job.alone:
                return batch, job
            batch.append(job)
        return batch, None


def _finish(jobs: list[Job], work: Predict) -> int:
    """Give each job that was not cancelled its result, or the error; returns how many there were."""
    jobs = [job for job in jobs if job.result.set_running_or_notify_cancel()]
    if not jobs:
        return 0
    try:
        results = work([job.item for job in jobs])
    except BaseException as error:
        for job in jobs:
            job.result.set_exception(error)
        return len(jobs)
    for job, result in zip(jobs, results, strict=True):
        job.result.set_result(result)
    return len(jobs)
