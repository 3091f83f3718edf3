"""Batches: the same answers whatever is in them, bounded queues, heat maps beside them, an orderly end."""

import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest

from finetune.serving.batching import Batcher
from finetune.serving.refusal import Refused
from tests.serving.served import Server, draw, encode, upload


def test_concurrent_requests_share_batches_and_get_their_own_answers(runs):
    images = [draw(number) for number in range(300, 332)]
    alone = Server(runs["multilabel"], max_batch=1)
    together = Server(runs["multilabel"], max_batch=8, max_wait=0.05)
    requests = [upload(encode(image)) for image in images]
    expected = [response.json() for response in alone.ask(*requests)]
    answers = [response.json() for response in together.ask(*requests, at_once=True)]
    for one, other, image in zip(expected, answers, images, strict=True):
        for a, b in zip(one["classes"], other["classes"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)
            assert a["calibrated"] == pytest.approx(b["calibrated"], abs=1e-6)
        assert one["decision"] == other["decision"]
        row = together.model.predict([image]).iloc[0]
        assert other["classes"][0]["probability"] == pytest.approx(row["prob_Pneumonia"], abs=1e-6)
    (metrics,) = together.ask({"url": "/metrics"})
    assert "finetune_batch_size_sum 32.0" in metrics.text
    batches = next(line for line in metrics.text.splitlines() if line.startswith("finetune_batch_size_count"))
    assert float(batches.split()[1]) < 16
    (single,) = alone.ask({"url": "/metrics"})
    assert "finetune_batch_size_count 32.0" in single.text
    alone.close()
    together.close()


def test_a_single_client_does_not_wait_for_others(runs):
    server = Server(runs["multilabel"], max_wait=5.0)
    start = time.perf_counter()
    assert server.predict(encode(draw(1))).status_code == 200
    assert time.perf_counter() - start < 2.5
    server.close()


def test_heat_maps_and_predictions_at_once(runs):
    server = Server(runs["multilabel"])
    requests = [
        upload(encode(draw(400 + n)), "/predict?heatmap=Pneumonia" if n % 5 == 0 else "/predict") for n in range(20)
    ]
    responses = server.ask(*requests, at_once=True)
    assert [r.status_code for r in responses] == [200] * 20
    assert [r.json()["heat_map"] is not None for r in responses] == [n % 5 == 0 for n in range(20)]
    many = server.ask(*[upload(encode(draw(n)), "/predict?heatmap=Pneumonia") for n in range(30)], at_once=True)
    codes = {r.status_code for r in many}
    assert codes == {200, 503}
    assert all(r.headers["retry-after"] == "1" for r in many if r.status_code == 503)
    server.close()


def hold(batcher: Batcher):
    """Occupy the thread until the event is set."""
    release, begun = threading.Event(), threading.Event()

    def work():
        begun.set()
        release.wait(10)

    done = batcher.submit_alone(work)
    begun.wait(10)
    return release, done


def test_a_full_queue_refuses_and_a_cancelled_item_is_left_out():
    sizes = []
    batcher = Batcher(lambda items: items, max_batch=8, max_queue=3, on_batch=lambda n, _: sizes.append(n))
    release, _ = hold(batcher)
    items = [batcher.submit(number) for number in range(3)]
    with pytest.raises(Refused) as refused:
        batcher.submit(3)
    assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
    assert len(batcher) == 3
    items[1].cancel()
    release.set()
    batcher.close()
    assert [items[0].result(), items[2].result()] == [0, 2]
    assert sizes == [2]
    with pytest.raises(Refused, match="ending"):
        batcher.submit(4)


def test_an_error_is_that_of_its_batch_alone():
    def predict(items):
        if "bad" in items:
            raise ZeroDivisionError
        return items

    batcher = Batcher(predict, max_batch=1)
    bad, good = batcher.submit("bad"), batcher.submit("good")
    wait([bad, good], timeout=10)
    assert isinstance(bad.exception(), ZeroDivisionError)
    assert good.result() == "good"
    batcher.close()


def test_what_waits_is_finished_at_the_end_with_work_between_batches():
    batcher = Batcher(lambda items: [2 * item for item in items], max_batch=4, max_wait=0.2, expected=lambda: 100)
    release, _ = hold(batcher)
    before = [batcher.submit(number) for number in range(2)]
    alone = batcher.submit_alone(lambda: "alone")
    after = [batcher.submit(number) for number in range(6)]
    release.set()
    batcher.close()
    assert [f.result() for f in before] == [0, 2]
    assert alone.result() == "alone"
    assert [f.result() for f in after] == list(np.arange(6) * 2)
