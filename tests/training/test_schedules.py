"""Schedules: their corners, and OneCycle compared with torch's."""

import pytest
import torch

from finetune.errors import FinetuneError
from finetune.training.schedules import Cosine, OneCycle, Step


def test_cosine_rises_and_falls_to_the_floor():
    schedule = Cosine(warmup=0.2, floor=0.1)
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 21)
    assert factors[20] == 1
    assert factors[60] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert Cosine(warmup=0).factor(0, 10) == 1


def test_one_cycle_equals_that_of_torch():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=50, pct_start=0.3, div_factor=25, final_div_factor=400
    )
    schedule = OneCycle(rise=0.3, start=1 / 25, end=1 / 10_000)
    for step in range(50):
        assert schedule.factor(step, 50) == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        if step < 49:
            reference.step()


def test_step_falls_at_shares_of_the_run():
    schedule = Step(milestones=[0.5, 0.75], gamma=0.1)
    assert [round(schedule.factor(s, 8), 4) for s in range(8)] == [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]


def test_values_out_of_range_are_named():
    with pytest.raises(FinetuneError, match=r"schedule.warmup=1.0"):
        Cosine(warmup=1.0)
    with pytest.raises(FinetuneError, match=r"schedule.gamma=2"):
        Step(gamma=2)
