"""Images of two tables: by their names, the end of their paths, their file names; never one for two."""

import pytest

from finetune.errors import FinetuneError
from finetune.evaluation.image_names import match_images


@pytest.mark.parametrize(
    ("asked", "known", "rows", "way"),
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
def test_the_strictest_way_that_matches_any(asked, known, rows, way):
    found, by = match_images(asked, known)
    assert found.tolist() == rows
    assert by == way


@pytest.mark.parametrize(
    ("asked", "known", "said"),
    [
        (["a.png"], ["x/a.png", "y/a.png"], "a.png of predictions may be x/a.png or y/a.png of labels"),
        (["x/a.png", "y/a.png"], ["a.png"], "a.png of labels may be x/a.png or y/a.png of predictions"),
        (["p/a.png"], ["x/a.png", "y/a.png"], "p/a.png of predictions may be"),
    ],
)
def test_an_image_that_may_be_two_is_an_error(asked, known, said):
    with pytest.raises(FinetuneError, match=said):
        match_images(asked, known)
