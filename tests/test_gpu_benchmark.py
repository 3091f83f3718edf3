"""The benchmark of a GPU: its code on a CPU, its search for a batch, and what it leaves behind when it is cut off."""

import time

import pytest
import torch

from benchmarks import gpu, gpu_items, results
from benchmarks.gpu_clock import TimeUp, largest, time_limit
from benchmarks.gpu_report import Report
from finetune.backbones import build

CPU = torch.device("cpu")


def test_the_whole_benchmark_in_tiny_sizes(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(gpu_items, "kinds", lambda name: ["timm", "standard", "lean", "minimal"])
    monkeypatch.setattr(
        gpu_items, "network", lambda kind, name: build(name, memory="standard" if kind == "timm" else kind).train()
    )
    report = gpu.main(["--device", "cpu", "--quick", "--models", "resnet20_cifar"])
    assert report.notes == ["resnet20_cifar: the largest batch is for CUDA alone."]
    assert {part: len(rows) for part, rows in report.rows.items()} == {
        "training": 4, "fit": 1, "compiled": 3, "inference": 7
    }  # fmt: skip
    assert report.figures["resnet20_cifar timm time"] == 1
    assert 0 < report.figures["resnet20_cifar fit share"] < 3
    assert "| densenet121 lean, time over timm | at most 1.00 | not measured |  |" in capsys.readouterr().out
    assert not results.RESULTS.exists()


def test_rows_are_written_as_they_come(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path / "RESULTS.md")
    results.RESULTS.write_text("# Results\n\n## Other\n\nas it was\n")
    report = Report("python -m benchmarks.gpu", CPU, write=True)
    figures = {"densenet121 lean peak": 0.25, "densenet121 lean time": 1.1}
    report.add("training", "densenet121", "lean", 64, 900, "1.10 [1.09-1.11]", 900, "0.25", figures=figures)
    text = results.RESULTS.read_text()
    assert "as it was" in text
    assert "Not complete" in text
    assert "| densenet121 | lean | 64 | 900 | 1.10 [1.09-1.11] | 900 | 0.25 |" in text
    assert "| densenet121 lean, peak over timm | at most 0.30 | 0.25 | yes |" in text
    assert "| densenet121 lean, time over timm | at most 1.00 | 1.10 | no |" in text
    report.end()
    assert "Not complete" not in results.RESULTS.read_text()


def test_an_item_that_fails_or_takes_too_long_is_a_note(monkeypatch):
    def forever(name, options, report):
        while True:
            time.sleep(0.01)

    def broken(name, options, report):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(gpu, "PARTS", {"training": forever, "fit": broken})
    report = Report("", CPU, write=False)
    gpu.run(["a", "b"], ["training", "fit"], gpu.Options(CPU, seconds=0.05), 1, report)
    assert report.notes == [
        "training of a: stopped after 0 s.",
        "training of b: stopped after 0 s.",
        "fit of a: RuntimeError: no such kernel",
    ]
    gpu.run(["a"], ["fit"], gpu.Options(CPU, seconds=1), -1, report)
    assert report.notes[-1] == "fit of a: not begun after -1 minutes."
    with pytest.raises(TimeUp), time_limit(0.01):
        time.sleep(1)


@pytest.mark.parametrize("limit", [0, 3, 8, 9, 63, 64, 100, 1000, 2047, 2048, 5000])
def test_the_largest_batch_is_right_to_an_eighth(limit):
    tried = []
    size = largest(lambda images: tried.append(images) or images <= limit, 8)
    assert size <= min(limit, 2048)
    assert size == 0 if limit < 8 else size >= min(limit, 2048) / 1.2
    assert len(tried) < 16


def test_a_gpu_is_needed_for_figures(capsys):
    for words in (["--device", "cpu"], *([] if torch.cuda.is_available() else [[]])):
        with pytest.raises(SystemExit):
            gpu.main(words)
    assert "--device cpu goes with --quick alone" in capsys.readouterr().err
