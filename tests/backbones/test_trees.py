"""Trees of named tuples: flattened and rebuilt, leaf by leaf."""

import pytest

from finetune.backbones.lean.chain import ResidualParams
from finetune.backbones.lean.dense import DenseLayerParams
from finetune.backbones.lean.steps import ConvParams, NormParams
from finetune.backbones.lean.trees import any_needed, need_input_grad, tree_flatten, tree_of_none, tree_unflatten

TREE = ResidualParams(before=(), main=(ConvParams(1, None), NormParams(2, 3), ()), shortcut=(ConvParams(4, 5),))


def test_leaves_are_listed_depth_first_and_none_is_one():
    assert tree_flatten(TREE) == [1, None, 2, 3, None, None, 4, 5]
    assert tree_flatten(()) == []


def test_a_tree_is_rebuilt_with_its_types():
    rebuilt = tree_unflatten(tree_of_none(TREE), iter(tree_flatten(TREE)))
    assert rebuilt == TREE
    assert type(rebuilt) is ResidualParams
    assert [type(item) for item in rebuilt.main] == [ConvParams, NormParams, tuple]
    assert rebuilt.main[1].bias == 3


def test_two_trees_are_taken_from_one_list_in_turn():
    leaves = iter([1, 2, 3, 4, 5])
    structure = tree_of_none(ConvParams(0, 0))
    assert tree_unflatten(structure, leaves) == ConvParams(1, 2)
    assert tree_unflatten((structure,), leaves) == (ConvParams(3, 4),)
    assert next(leaves) == 5


def test_a_tree_of_none_has_no_leaf_left():
    assert tree_of_none(TREE) == ResidualParams(
        (), (ConvParams(None, None), NormParams(None, None), ()), (ConvParams(None, None),)
    )


@pytest.mark.parametrize(
    ("needs", "answer"),
    [
        (True, True),
        (None, False),
        ((), False),
        (NormParams(False, False), False),
        (DenseLayerParams(NormParams(False, False), False, (ConvParams(True, False),)), True),
    ],
)
def test_any_leaf_that_is_needed_counts(needs, answer):
    assert any_needed(needs) is answer


def test_an_inputs_gradient_is_needed_for_x_or_for_any_parameter_before():
    frozen, trained = ConvParams(False, False), ConvParams(True, False)
    assert need_input_grad(False, (frozen, trained, frozen)) == [False, False, True, True]
    assert need_input_grad(True, (frozen, frozen)) == [True, True, True]
    assert need_input_grad(False, ()) == [False]
