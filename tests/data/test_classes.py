import pytest

from finetune.data.classes import check_classes, check_type, class_name, doubt, in_order
from finetune.errors import FinetuneError


def test_a_whole_number_is_the_same_class_with_and_without_decimals():
    cells = ["2.0", " 2 ", "10.00", "-1.0", "2.5", "nan", "NaN", "", "1.0.0", "a.0", "007"]
    assert [class_name(cell) for cell in cells] == ["2", "2", "10", "-1", "2.5", "", "", "", "1.0.0", "a.0", "007"]


def test_numbers_are_in_order_of_their_size():
    assert in_order({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert in_order({"10.5", "9,5"}) == ["9,5", "10.5"]
    assert in_order({"10", "9", "b"}) == ["10", "9", "b"]


@pytest.mark.parametrize(
    ("names", "images", "looks"),
    [
        ([str(n) for n in range(5)], 5, ""),  # grades
        ([str(n) for n in range(10)], 10, ""),  # digits
        ([str(n) for n in range(0, 950, 5)], 1200, "190 distinct numbers from 0 to 945 (whole numbers)"),
        ([str(n) for n in range(11)] + ["unknown"], 5000, "11 distinct numbers from 0 to 10 (whole numbers)"),
        (["0.5", "1"], 100, "2 distinct numbers from 0.5 to 1 (decimals)"),
        (["0,5", "1"], 100, "2 distinct numbers from 0.5 to 1 (decimals)"),
        (["1e-3"], 100, "1 distinct numbers from 0.001 to 0.001 (decimals)"),
        ([f"class {n}" for n in range(20)], 20, ""),
        ([f"breed {n}" for n in range(120)], 240, ""),
        (
            [f"id {n:03d}" for n in range(121)],
            240,
            "121 distinct texts in 240 images, e.g. 'id 000', 'id 001', 'id 002'",
        ),
        (["inf", "infinity", "1_0", "٣"], 4, ""),
    ],
)
def test_what_does_not_look_like_classes(names, images, looks):
    assert doubt(names, images) == looks
    check_classes("x", names, images, "class")
    if looks:
        with pytest.raises(FinetuneError, match=r"data.label=x holds .*data.label_type=class"):
            check_classes("x", names, images, None)


def test_types_of_a_label():
    check_type(None, "x")
    check_type("class", "x")
    with pytest.raises(FinetuneError, match="nothing here learns a number yet, only classes and findings"):
        check_type("number", "months")
    with pytest.raises(FinetuneError, match=r"data.label_type=klass is not known. Did you mean class"):
        check_type("klass", "x")
