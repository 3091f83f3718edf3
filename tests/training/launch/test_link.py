"""The line between the processes of a job: runs are handed out, a failure is known at once, nobody waits in vain."""

import threading
import time

import pytest

from finetune.errors import FinetuneError
from finetune.training.launch import link
from finetune.training.launch.link import Link, Watch, connect


@pytest.fixture
def ends():
    """Both ends of a line: rank 0, which keeps the store, and rank 1."""
    first = connect("127.0.0.1", 0, 0, 2, serve=True, prefix="test")
    second = connect("127.0.0.1", first.tcp.port, 1, 2, serve=False, prefix="test")
    yield first, second
    second.close()
    first.close()


def test_runs_are_handed_out_until_the_end(ends):
    first, second = ends
    given: list = []
    follower = threading.Thread(target=lambda: given.extend(second.orders()))
    follower.start()
    orders = [{"run": "/a", "config": {"optimizer": {"lr": 1e-4}, "logger": None}}, {"run": "/b", "config": {}}]
    for order in orders:
        first.hand(order)
    first.end(3)
    follower.join(10)
    assert given == orders
    assert second.status == 3


def test_processes_that_never_come_are_counted(ends, monkeypatch):
    monkeypatch.setattr(link, "ARRIVAL", 0.2)
    with pytest.raises(FinetuneError, match=r"1 of 2 processes have come within 0 s\. Start all of them"):
        ends[0].hand({})
    with pytest.raises(FinetuneError, match="Rank 1 ended"):
        ends[0].hand({}, lambda: "Rank 1 ended")


def test_the_first_failure_is_the_one_that_counts(ends):
    first, second = ends
    assert first.failure() is None
    assert second.fail("no room")
    assert not first.fail("the other is gone")
    assert first.failure() == "Rank 1 of 2 stopped: no room"
    assert second.failure() is None  # its own
    with pytest.raises(FinetuneError, match="no room"):
        first.meet("begin", first.failure)


def test_a_failure_is_of_its_run_alone(ends):
    first, second = ends
    second.fail("no room")
    second.store.add("present", 1)
    first.hand({})
    assert first.failure() is None


def test_who_follows_knows_when_rank_0_has_ended_or_is_gone(ends):
    first, second = ends
    first.end(1)
    assert second.failure() == "Rank 0 has ended."

    lonely = connect("127.0.0.1", 0, 0, 2, serve=True, prefix="test")
    other = Link(lonely.tcp.clone(), "test", 1, 2)
    lonely.close()
    assert other.failure() == "The connection to rank 0 is lost."


def test_no_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(link, "ARRIVAL", 0.5)
    with pytest.raises(FinetuneError, match=r"Rank 1 cannot reach rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT=9:"):
        connect("127.0.0.1", 9, 1, 2, serve=False, prefix="test")


def test_a_watch_aborts_once_another_has_failed_and_leaves_time_to_say_it_better(monkeypatch):
    monkeypatch.setattr(link, "GRACE", 0.2)
    aborted = threading.Event()
    with Watch(lambda: "gone", aborted.set):
        assert aborted.wait(5)
    aborted.clear()
    with Watch(lambda: "gone", aborted.set):
        time.sleep(0.01)  # over before the others are looked at
    assert not aborted.wait(1)
