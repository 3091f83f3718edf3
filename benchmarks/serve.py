"""job=serve under load: 50 clients at once, with batches and without in turn, and 2,000 broken uploads.

python -m benchmarks.serve RUN IMAGE [--rounds 3] [--seconds 12] [--clients 50]

Locust is the client (pip install locust). Both servers run all the time, and one is asked at a time: A B A B ...
Clients and server share the machine, as the result says.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import httpx

from benchmarks.results import machine, write_section

TITLE = "Serving"
SETTINGS = {"batches": ["max_batch=16"], "single": ["max_batch=1"]}
BROKEN = 2000


def start(run: Path, folder: Path, words: list[str]) -> tuple[subprocess.Popen, str]:
    """A server on a free port, and its address."""
    command = [sys.executable, "-m", "finetune", "job=serve", f"model={run.resolve()}", "port=0", "threads=1", *words]
    process = subprocess.Popen([*command, f"hydra.run.dir={folder}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"page: (http://\S+)", line):
            drain(process)
            return process, match[1]
    raise SystemExit("the server did not start")


def drain(process: subprocess.Popen) -> None:
    """Read what the server prints, so that it never waits."""
    threading.Thread(target=lambda: [None for _ in process.stdout or []], daemon=True).start()


def load(address: str, image: Path, clients: int, seconds: int) -> dict:
    """Requests per second, errors and quantiles of the latency in milliseconds."""
    words = ["-f", str(Path(__file__).with_name("serve_load.py")), "--headless", "--json", "--loglevel", "ERROR"]
    words += ["-u", str(clients), "-r", str(clients), "-t", f"{seconds}s", "--host", address]
    environment = {**os.environ, "SERVE_IMAGE": str(image)}
    done = subprocess.run([sys.executable, "-m", "locust", *words], capture_output=True, text=True, env=environment)
    if not done.stdout.strip():
        raise SystemExit(done.stderr)
    (stats,) = json.loads(done.stdout)
    times = sorted((float(ms), count) for ms, count in stats["response_times"].items())
    total = sum(count for _, count in times)

    def quantile(share: float) -> float:
        seen = 0
        for ms, count in times:
            seen += count
            if seen >= share * total:
                return ms
        return times[-1][0]

    span = stats["last_request_timestamp"] - stats["start_time"]
    return {
        "rate": stats["num_requests"] / span, "errors": stats["num_failures"], "requests": stats["num_requests"],
        "p50": quantile(0.5), "p99": quantile(0.99),
    }  # fmt: skip


def mean_batch(address: str) -> float:
    """Images per batch, over all batches so far."""
    text = httpx.get(f"{address}/metrics").text
    total, count = (float(re.search(rf"finetune_batch_size_{end} (\S+)", text)[1]) for end in ("sum", "count"))
    return total / max(count, 1)


def send_broken(address: str) -> tuple[Counter, float]:
    """Statuses of broken uploads, and the seconds that they took."""
    from tests.serving import broken

    items = broken.uploads(BROKEN, seed=1)
    statuses: Counter = Counter()
    begun = time.perf_counter()
    with httpx.Client(base_url=address, timeout=60) as client:
        for _, data in items:
            statuses[client.post("/predict", files={"image": data}).status_code] += 1
    return statuses, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=12)
    parser.add_argument("--clients", type=int, default=50)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        servers = {name: start(given.run, Path(folder) / name, words) for name, words in SETTINGS.items()}
        try:
            for _, address in servers.values():
                load(address, given.image, given.clients, 3)  # warm
            rounds = []
            for number in range(given.rounds):
                rounds.append(
                    {n: load(address, given.image, given.clients, given.seconds) for n, (_, address) in servers.items()}
                )
                print(number, rounds[-1], flush=True)
            sizes = {name: mean_batch(address) for name, (_, address) in servers.items()}
            statuses, seconds = send_broken(servers["batches"][1])
            alive = httpx.post(
                f"{servers['batches'][1]}/predict", files={"image": given.image.read_bytes()}, timeout=30
            ).status_code
            card = httpx.get(f"{servers['batches'][1]}/model").json()
        finally:
            for process, _ in servers.values():
                process.send_signal(signal.SIGTERM)
            codes = [process.wait(30) for process, _ in servers.values()]
    write_section(TITLE, text(given, card, rounds, sizes, statuses, seconds, alive, codes))


def text(given, card, rounds, sizes, statuses, seconds, alive, codes) -> str:
    ratios = [each["batches"]["rate"] / each["single"]["rate"] for each in rounds]
    rows = []
    for name in SETTINGS:
        of = [each[name] for each in rounds]
        figures = [", ".join(f"{each[key]:.0f}" for each in of) for key in ("rate", "p50", "p99")]
        errors = f"{sum(each['errors'] for each in of)} of {sum(each['requests'] for each in of):,}"
        rows.append(f"| {name} | {sizes[name]:.1f} | {' | '.join(figures)} | {errors} |")
    refused = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    words = f"--rounds {given.rounds} --seconds {given.seconds} --clients {given.clients}"
    what = f"{card['backbone']} at {card['image_size']} px, `threads=1`"
    size, pairs = given.image.stat().st_size / 1e3, ", ".join(f"{ratio:.2f}" for ratio in ratios)
    table = "\n".join(rows)
    ended = " and ".join(map(str, codes))
    return f"""`python -m benchmarks.serve RUN IMAGE {words}`

`job=serve` of {what}, asked without a pause by {given.clients} clients of locust on the same machine, a JPEG of
{size:.0f} kB. Two servers, `max_batch=16` and `max_batch=1`, one asked at a time, in turn; one value per round.

| setting | images per batch | requests/s | median, ms | p99, ms | errors |
| --- | --- | --- | --- | --- | --- |
{table}

Batches answer {statistics.median(ratios):.2f} times as many requests (pairs: {pairs}). {BROKEN:,} broken uploads, one
after the other, in {seconds:.0f} s: status {refused}; a whole image after them: {alive}. SIGTERM ended both servers
with status {ended}.

{machine()}."""


if __name__ == "__main__":
    main()
