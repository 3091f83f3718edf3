"""The connection between the processes of a job: runs are sent, a failure is known at once, no wait is in vain."""

import threading
import time

import pytest

from finetune.errors import FinetuneError
from finetune.training.launch import link
from finetune.training.launch.link import Link, Watch, connect


@pytest.fixture
def ends():
    """Both ends of a connection: rank 0, which holds the store, and rank 1."""
    first = connect("127.0.0.1", 0, 0, 2, serve=True, prefix="test")
    second = connect("127.0.0.1", first.tcp.port, 1, 2, serve=False, prefix="test")
    yield first, second
    second.close()
    first.close()


def test_runs_are_sent_until_the_end(ends):
    first, second = ends
    received: list = []
    follower = threading.Thread(target=lambda: received.extend(second.orders()))
    follower.start()
    orders = [{"run": "/a", "config": {"optimizer": {"lr": 1e-4}, "logger": None}}, {"run": "/b", "config": {}}]
    for order in orders:
        first.send_run(order)
    first.end(3)
    follower.join(10)
    assert received == orders
    assert second.status == 3


def test_missing_processes_are_counted(ends, monkeypatch):
    monkeypatch.setattr(link, "ARRIVAL", 0.2)
    with pytest.raises(FinetuneError, match=r"1 of 2 processes have connected within 0 s\. Start all of them"):
        ends[0].send_run({})
    with pytest.raises(FinetuneError, match="Rank 1 ended"):
        ends[0].send_run({}, lambda: "Rank 1 ended")


def test_the_first_failure_counts(ends):
    first, second = ends
    assert first.failure() is None
    assert second.report_failure("no room")
    assert not first.report_failure("the other is gone")
    assert first.failure() == "Rank 1 of 2 stopped: no room"
    assert second.failure() is None  # not for the rank that failed
    with pytest.raises(FinetuneError, match="no room"):
        first.wait_for_all("begin", first.failure)


def test_a_failure_belongs_to_its_run_only(ends):
    first, second = ends
    second.report_failure("no room")
    second.store.add("present", 1)
    first.send_run({})
    assert first.failure() is None


def test_followers_know_when_rank_0_has_ended_or_is_lost(ends):
    first, second = ends
    first.end(1)
    assert second.failure() == "Rank 0 has ended."

    closing = connect("127.0.0.1", 0, 0, 2, serve=True, prefix="test")
    other = Link(closing.tcp.clone(), "test", 1, 2)
    closing.close()
    assert other.failure() == "The connection to rank 0 is lost."


def test_no_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(link, "ARRIVAL", 0.5)
    with pytest.raises(FinetuneError, match=r"Rank 1 cannot reach rank 0 at MASTER_ADDR=127.0.0.1, MASTER_PORT=9:"):
        connect("127.0.0.1", 9, 1, 2, serve=False, prefix="test")


def test_a_watch_aborts_after_a_failure_and_leaves_time_for_a_better_message(monkeypatch):
    monkeypatch.setattr(link, "GRACE", 0.2)
    aborted = threading.Event()
    with Watch(lambda: "gone", aborted.set):
        assert aborted.wait(5)
    aborted.clear()
    with Watch(lambda: "gone", aborted.set):
        time.sleep(0.01)  # over before the first check
    assert not aborted.wait(1)
