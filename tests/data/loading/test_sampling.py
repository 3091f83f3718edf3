import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.loading.sampling import EpochBatchSampler, EvalBatchSampler, row_weights
from finetune.errors import FinetuneError


def epoch(sampler: EpochBatchSampler, number: int) -> list[list[tuple[int, int]]]:
    sampler.set_epoch(number)
    return list(sampler)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(1, 20), st.integers(0, 5), st.integers(0, 3))
def test_every_sample_once_in_batches_of_nearly_equal_size(n, size, seed, number):
    rows = np.arange(n) * 3
    sampler = EpochBatchSampler(rows, size, seed=seed)
    batches = epoch(sampler, number)
    assert len(batches) == len(sampler) == -(-n // size)
    assert sorted(row for batch in batches for _, row in batch) == rows.tolist()
    assert {e for batch in batches for e, _ in batch} == {number}
    lengths = [len(batch) for batch in batches]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_order_follows_from_seed_and_epoch():
    one, two = EpochBatchSampler(range(50), 8, seed=1), EpochBatchSampler(range(50), 8, seed=1)
    wanted = [epoch(one, k) for k in range(4)]
    assert epoch(two, 3) == wanted[3]  # a run that is resumed at epoch 3
    assert list(two) == wanted[3]
    rows = [[row for batch in batches for _, row in batch] for batches in wanted]
    assert len({tuple(order) for order in rows}) == 4
    assert epoch(EpochBatchSampler(range(50), 8, seed=2), 0) != wanted[0]
    straight = EpochBatchSampler(range(5), 2, shuffle=False)
    assert epoch(straight, 1) == [[(1, 0), (1, 1)], [(1, 2), (1, 3)], [(1, 4)]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_each_batch(world):
    whole = epoch(EpochBatchSampler(range(30), 8, seed=5), 2)
    parts = [epoch(EpochBatchSampler(range(30), 8, seed=5, rank=r, world_size=world), 2) for r in range(world)]
    for number, batch in enumerate(whole):
        shares = [part[number] for part in parts]
        assert sorted(key for share in shares for key in share) == sorted(batch)
        assert all(shares)  # nobody idles while the others wait


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 5))
def test_evaluation_batches_do_not_depend_on_the_ranks(n, size, world):
    rows = list(range(100, 100 + n))
    alone = list(EvalBatchSampler(rows, size))
    assert [row for batch in alone for row in batch] == rows
    parts = [EvalBatchSampler(rows, size, rank=r, world_size=world) for r in range(world)]
    assert len({len(part) for part in parts}) == 1  # ranks wait for each other
    shared = [batch for part in parts for batch in part]
    assert all(batch in alone for batch in shared)
    assert {tuple(batch) for batch in shared} == {tuple(batch) for batch in alone}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 5), st.integers(1, 3))
def test_batches_of_a_step_together_are_the_batch_of_their_size(n, size, k, world):
    if size < world or n < world:
        return
    large = epoch(EpochBatchSampler(range(n), k * size, seed=3), 1)
    try:
        options = {"seed": 3, "accumulate": k, "world_size": world}
        parts = [EpochBatchSampler(range(n), size, rank=rank, **options) for rank in range(world)]
    except FinetuneError:  # too few images for so many processes, with single batches too
        with pytest.raises(FinetuneError):
            EpochBatchSampler(range(n), size, world_size=world)
        return
    shares = [epoch(part, 1) for part in parts]
    batches = [sorted(key for share in batch for key in share) for batch in zip(*shares, strict=True)]
    assert len(batches) == len(parts[0])
    assert all(share for part in shares for share in part)
    assert max(map(len, batches)) <= size
    if min(map(len, large)) >= k * world:
        steps = [sorted(key for batch in batches[i : i + k] for key in batch) for i in range(0, len(batches), k)]
        assert steps == [sorted(batch) for batch in large]
    else:  # an image or less for each process and batch: single batches, the last step holds fewer
        assert len(batches) == -(-n // size)


def test_no_rows():
    assert list(EpochBatchSampler([], 4)) == []
    assert list(EvalBatchSampler([], 4)) == []
    assert len(EvalBatchSampler([], 4, rank=1, world_size=2)) == 0


def test_impossible_sizes_are_named():
    with pytest.raises(FinetuneError, match=r"data.batch_size=0"):
        EpochBatchSampler(range(4), 0)
    with pytest.raises(FinetuneError, match=r"data.batch_size=2 over all processes .*trainer.devices=3"):
        EpochBatchSampler(range(4), 2, world_size=3)
    with pytest.raises(FinetuneError, match="rank=2"):
        EvalBatchSampler(range(4), 2, rank=2, world_size=2)


def test_rare_classes_are_drawn_as_often_as_common_ones():
    targets = np.eye(2)[[0] * 90 + [1] * 10]
    weights = row_weights(targets, "balanced")
    assert weights.mean() == pytest.approx(1)
    assert weights[:90].sum() == pytest.approx(weights[90:].sum())
    half_way = row_weights(targets, "sqrt")
    assert half_way[95] / half_way[0] == pytest.approx(3)
    assert row_weights(targets, "none") is None
    with pytest.raises(FinetuneError, match=r"data\.sampler=balance"):
        row_weights(targets, "balance")
    sampler = EpochBatchSampler(range(100), 20, weights=weights)
    drawn = [row for batch in sampler for _, row in batch]
    assert len(drawn) == 100
    assert 35 < sum(row >= 90 for row in drawn) < 65
    assert list(sampler) == list(EpochBatchSampler(range(100), 20, weights=weights))
    halves = [EpochBatchSampler(range(100), 20, weights=weights, rank=rank, world_size=2) for rank in range(2)]
    assert sorted(row for half in halves for batch in half for _, row in batch) == sorted(drawn)


def test_weights_of_several_findings_at_once():
    """The rarest finding decides; images without any are a class of their own; unknown is not positive."""
    targets = np.array([[1, 1], [1, 0], [0, 0], [np.nan, 0], [1, 0]])
    weights = row_weights(targets, "balanced")
    np.testing.assert_allclose(weights / weights[1], [3, 1, 1.5, 1.5, 1])
