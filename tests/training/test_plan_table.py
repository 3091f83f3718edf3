"""The plan as a table."""

from finetune.plan import Phase, Plan
from finetune.training.plan_table import plan_table
from tests.training import tiny


def test_a_row_per_part_and_a_column_per_phase():
    phases = {"head": Phase(0, ["head"]), "all": Phase(2, ["all"], rate=0.3, norms="affine")}
    plan = Plan(phases, frozen_norms="stats", lr_decay=0.5)
    lines = [line.split("  ") for line in plan_table(tiny.module(plan, lr=0.01), 5)]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["part", "parameters", "head: epochs 0 to 1", "all: epochs 2 to 4"]
    assert [row[0] for row in cells[1:]] == ["stem", "stage1", "stage2", "stage3", "head"]
    assert cells[1][2:] == ["frozen, norms stats", "rate 0.00019, norms affine"]  # 0.01 * 0.3 * 0.5 ** 4
    assert cells[5] == ["head", "130", "rate 0.01, norms train", "rate 0.003, norms affine"]
    assert plan_table(tiny.module(plan), 1)[0].split() == ["part", "parameters", "head:", "epoch", "0"]
