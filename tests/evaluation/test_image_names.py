"""Images of two tables are matched by names, the end of paths, or file names, and never ambiguously."""

import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.image_names import match_images


@pytest.mark.parametrize(
    ("images", "known", "rows", "rule"),
    [
        (["b.png", "c.png"], ["a.png", "b.png"], [1, -1], ""),
        (["/d/x/a.png", "/d/y/a.png"], ["y/a.png", "x/a.png"], [1, 0], "the end of their paths"),
        (["a.png"], ["/d/x/a.png"], [0], "the end of their paths"),
        (["d\\x\\a.png"], ["x/a.png"], [0], "the end of their paths"),
        (["p/a.png", "p/b.png"], ["q/b.png", "q/a.png"], [1, 0], "their file names"),
        (["p/a.png"], ["a"], [0], "their file names without the ending"),
        (["xa.png"], ["a.png"], [-1], ""),
    ],
)
def test_the_strictest_rule_with_any_match_is_used(images, known, rows, rule):
    matches, used_rule = match_images(images, known)
    assert matches.tolist() == rows
    assert used_rule == rule


@pytest.mark.parametrize(
    ("images", "known", "message"),
    [
        (["a.png"], ["x/a.png", "y/a.png"], "a.png of predictions may be x/a.png or y/a.png of labels"),
        (["x/a.png", "y/a.png"], ["a.png"], "a.png of labels may be x/a.png or y/a.png of predictions"),
        (["p/a.png"], ["x/a.png", "y/a.png"], "p/a.png of predictions may be"),
    ],
)
def test_an_ambiguous_image_is_an_error(images, known, message):
    with pytest.raises(FinetuneError, match=message):
        match_images(images, known)
