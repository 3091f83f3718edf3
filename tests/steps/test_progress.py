"""Lines of progress where there is no terminal."""

from finetune.steps import prepare


def test_rate_and_time_left_are_of_what_this_run_does(monkeypatch):
    clock, lines = [100.0], []
    monkeypatch.setattr(prepare.time, "monotonic", lambda: clock[0])
    with prepare.report_progress("Predicting", lines.append) as report:
        report(4000, 10_000)  # done by a run that was stopped
        clock[0] += 20
        report(5000, 10_000)
        clock[0] += 1
        report(5100, 10_000)  # too soon for a line
        clock[0] += 979
        report(9_000, 10_000)
        report(10_000, 10_000)
    assert lines == [
        "  5,000 of 10,000 images after 20 s (50 images/s, 2 min left)",
        "  9,000 of 10,000 images after 1000 s (5 images/s, 3 min left)",
    ]
    assert [prepare.duration(seconds) for seconds in (99.4, 120, 7200)] == ["99 s", "2 min", "2.0 h"]
