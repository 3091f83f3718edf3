"""Values found before a training: the search by itself, and a fit after it that equals one that was given the value."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from finetune.__main__ import main
from finetune.config import compose
from finetune.config.settings import FitSettings, parse
from finetune.errors import FinetuneError
from finetune.steps import find
from tests.jobs.test_resume import FIT, draw


def settings(*words: str) -> FitSettings:
    made = parse(compose.plain(compose.compose(["data=csv", "data.table=t", "data.label=x", *words])))
    assert isinstance(made, FitSettings)
    return made


class Rows:
    """A data module of so many training images."""

    def __init__(self, number: int):
        self.number = number

    def rows(self, split: str) -> range:
        return range(self.number)


def largest(limit: int, *words: str, images: int = 1000, error: type[Exception] = torch.OutOfMemoryError) -> int:
    """The batch found on a device that takes `limit` images."""

    def attempt(tried: FitSettings) -> None:
        if tried.data.batch_size > limit:
            raise error("out of memory")

    return find.largest_batch(settings(*words), None, None, lambda tried: Rows(images), attempt)  # type: ignore[arg-type]


def test_the_largest_batch_is_a_doubling_of_the_configured_one():
    assert largest(100, "data.batch_size=16") == 64
    assert largest(100, "data.batch_size=24") == 96
    assert largest(64, "data.batch_size=64") == 64
    assert largest(10**6, "data.batch_size=32", images=1000) == 256  # two batches an epoch at least
    assert largest(10**6, "data.batch_size=32", images=10) == 32
    with pytest.raises(FinetuneError, match=r"data\.batch_size=16 does not fit already"):
        largest(8, "data.batch_size=16")
    with pytest.raises(TypeError):
        largest(8, "data.batch_size=16", error=TypeError)
    with pytest.raises(FinetuneError, match=r"find=batch_size needs a GPU"):
        find.largest_batch(settings("trainer.accelerator=cpu"), None, None, lambda tried: Rows(9))  # type: ignore[arg-type]


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss():
    assert find.RateSearch([1e-4, 1e-3, 1.26e-2, 1e-1], [1.0, 0.9, 0.5, 0.8]).suggestion == 1.3e-3
    with pytest.raises(FinetuneError, match="find=lr: the loss fell at no rate"):
        find.RateSearch([1e-4, 1e-3], [1.0, 1.1]).suggestion  # noqa: B018


def test_a_fit_after_the_search_equals_one_that_was_given_the_rate(tmp_path, monkeypatch, capsys):
    draw(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "STEPS", 30)
    main([*FIT, "hydra.run.dir=searched", "find=[lr]"])
    assert "find=lr: optimizer.lr=" in capsys.readouterr().out
    config = yaml.safe_load(Path("searched/config.yaml").read_text())
    rate = config["optimizer"]["lr"]
    assert config["find"] == []
    record = json.loads(Path("searched/environment.json").read_text())["found"]
    assert record["lr"] == rate
    assert len(record["curve"]) > 5
    main([*FIT, "hydra.run.dir=given", f"optimizer.lr={rate}"])
    searched, given = ((Path(run) / "predictions_val.csv").read_bytes() for run in ("searched", "given"))
    assert searched == given
    states = [
        torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("searched", "given")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
