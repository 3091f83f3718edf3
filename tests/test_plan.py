"""The plan: which part learns when, worked out by hand."""

import pytest

from finetune.errors import FinetuneError
from finetune.plan import Phase, Plan

PARTS = ["stem", "stage1", "stage2", "head"]


def test_phases_follow_one_another_and_rates_decay_away_from_the_head():
    plan = Plan({"head": Phase(0, ["head"]), "all": Phase(3, ["all"], rate=0.5)}, lr_decay=0.5, head_rate=10)
    early, late = plan.at(2, PARTS), plan.at(3, PARTS)
    assert [early[p].trainable for p in PARTS] == [False, False, False, True]
    assert [early[p].rate for p in PARTS] == [0, 0, 0, 10]
    assert [late[p].rate for p in PARTS] == [0.0625, 0.125, 0.25, 5]


def test_norms_of_frozen_and_learning_parts():
    plan = Plan({"head": Phase(0, ["stage2", "head"], norms="affine")}, frozen_norms="stats")
    assert {p: s.norms for p, s in plan.at(0, PARTS).items()} == {
        "stem": "stats", "stage1": "stats", "stage2": "affine", "head": "affine",
    }  # fmt: skip


def test_a_plan_knows_whether_parts_change():
    assert not Plan().changes(PARTS)
    assert not Plan({"a": Phase(0, ["all"]), "b": Phase(2, ["backbone", "head"])}).changes(PARTS)
    assert Plan({"a": Phase(0, ["head"]), "b": Phase(2, ["all"])}).changes(PARTS)


def test_order_of_naming_does_not_matter():
    plan = Plan({"late": Phase(5, ["all"]), "early": Phase(0, ["head"])})
    assert plan.phase(4)[0] == "early"
    assert plan.phase(5)[0] == "late"


NECK = ["stem", "stage1", "stage2", "stage3", "neck", "out"]


def learning(plan: Plan, epoch: int, parts=PARTS, new=None) -> list[str]:
    return [part for part, state in plan.at(epoch, parts, new).items() if state.trainable]


def test_groups_are_counted_from_the_end_of_the_backbone():
    plan = Plan(
        {"a": Phase(0, ["new"]), "b": Phase(1, ["last", "new"]), "c": Phase(2, ["upper", "new"]), "d": Phase(3)}
    )
    assert [learning(plan, epoch, NECK, ["neck", "out"]) for epoch in range(4)] == [
        ["neck", "out"],
        ["stage3", "neck", "out"],
        ["stage2", "stage3", "neck", "out"],
        NECK,
    ]
    assert learning(plan, 2, ["stem", "stage1", "head"]) == ["stage1", "head"]  # upper has no stage but this
    assert learning(plan, 1) == ["stage2", "head"]  # the last part alone is new where nothing is said


def test_all_new_parts_have_the_heads_rate_and_no_decay():
    plan = Plan(lr_decay=0.5, head_rate=10)
    rates = {part: state.rate for part, state in plan.at(0, NECK, ["neck", "out"]).items()}
    assert rates == {"stem": 0.0625, "stage1": 0.125, "stage2": 0.25, "stage3": 0.5, "neck": 10, "out": 10}


def test_a_new_part_that_is_never_trained_is_an_error():
    probe = Plan({"probe": Phase(0, ["out"])})
    with pytest.raises(FinetuneError, match=r"train \['out'\]: neck would stay at random weights. Add new"):
        probe.check(NECK, new=["neck", "out"])
    with pytest.raises(FinetuneError, match="head would stay at random weights"):
        Plan({"a": Phase(0, ["backbone"])}).check(PARTS)
    Plan({"a": Phase(0, ["backbone"]), "b": Phase(1, ["head"])}).check(PARTS)
    assert probe.never_trained(NECK, ["neck", "out"]) == NECK[:-1]


def test_a_name_of_a_part_goes_before_that_of_a_group():
    assert learning(Plan({"a": Phase(0, ["last"])}), 0, ["stem", "last", "stage2", "head"]) == ["last"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan({}), "phases is empty"),
        (lambda: Plan({"a": Phase(0, [])}), r"finetuning.phases.a.train=\[\] leaves nothing"),
        (lambda: Plan({"a": Phase(1, ["all"])}), "no phase covers epoch 0"),
        (lambda: Plan({"a": Phase(0), "b": Phase(0)}), "both begin at epoch 0"),
        (lambda: Plan(norms="frozn"), "finetuning.norms=frozn is not known. Did you mean frozen"),
        (lambda: Plan(lr_decay=1.5), "lr_decay=1.5"),
        (lambda: Plan({"a": Phase(0, ["stage9"])}).check(PARTS), "finetuning.phases.a.train=stage9 is not known"),
        (lambda: Plan({"a": Phase(0), "b": Phase(10)}).check(PARTS, 10), "epoch=10 never comes"),
    ],
)
def test_contradictions_name_key_and_value(make, message):
    with pytest.raises(FinetuneError, match=message):
        make()


def test_a_phase_may_begin_at_a_share_of_the_epochs():
    plan = Plan({"head": Phase(0.0, ["head"]), "all": Phase(0.25, ["all"])})
    assert plan.has_shares
    assert not Plan({"head": Phase(0, ["head"]), "all": Phase(1, ["all"])}).has_shares
    assert [plan.in_epochs(n).phases["all"].epoch for n in (2, 4, 10, 100)] == [1, 1, 2, 25]
    assert plan.in_epochs(10).phases["head"].epoch == 0
    with pytest.raises(FinetuneError, match=r"all\.epoch=2\.5 must be a whole number of epochs, or a share"):
        Plan({"head": Phase(0, ["head"]), "all": Phase(2.5, ["all"])})
    with pytest.raises(
        FinetuneError, match=r"trainer\.max_steps=500 may end the training long before trainer\.max_epochs"
    ):
        plan.in_epochs(1000, 500)
    with pytest.raises(FinetuneError, match=r"trainer\.max_epochs=3 leaves a phase of finetuning no epoch"):
        Plan({"a": Phase(0), "b": Phase(0.3), "c": Phase(0.4)}).in_epochs(3)


def test_a_phase_may_have_its_own_decay():
    plan = Plan({"head": Phase(0, ["head"]), "all": Phase(1, lr_decay=0.5)}, lr_decay=0.9)
    assert [state.rate for state in plan.at(1, PARTS).values()] == [0.125, 0.25, 0.5, 1]
    with pytest.raises(FinetuneError, match=r"finetuning\.phases\.all\.lr_decay=1\.5"):
        Plan({"all": Phase(0, lr_decay=1.5)})
