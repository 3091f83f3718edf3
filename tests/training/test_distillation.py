"""A teacher's part of the loss by hand, and the images that it sees."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from finetune.evaluation.classification.answers import ClassAnswers
from finetune.losses import auto
from finetune.model_file import Model
from finetune.network import NetworkSpec
from finetune.preprocessing import Preprocessing
from finetune.tasks.classification.objective import ClassObjective
from finetune.training.distillation import Distilled, Teacher, sigmoid_divergence, softmax_divergence
from tests.training import tiny

GRAY = Preprocessing(image_size=16, in_channels=1, mean=(0.5,), std=(0.25,))


def test_divergences_by_hand():
    """Teacher (3/4, 1/4), student (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2; at T = 2 logits are halved."""
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert softmax_divergence(student, teacher, 2.0).tolist() == pytest.approx([4 * divergence])
    by_class = sigmoid_divergence(student, teacher, 2.0)[0].tolist()
    assert by_class == pytest.approx([4 * divergence, 0.0], abs=1e-6)


@pytest.mark.parametrize("divergence", [softmax_divergence, sigmoid_divergence])
def test_a_divergence_has_the_gradient_of_the_cross_entropy_and_is_zero_at_agreement(divergence):
    logits = torch.randn(4, 3, dtype=torch.float64)
    assert divergence(logits, logits, 3.0).abs().max() < 1e-12
    student = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    divergence(student, logits, 1.0).sum().backward()
    softly = torch.sigmoid if divergence is sigmoid_divergence else lambda x: x.softmax(1)
    torch.testing.assert_close(student.grad, softly(student.detach()) - softly(logits))


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def model(network, preprocessing=GRAY, classes=("a", "b"), kind="multilabel"):
    spec = NetworkSpec("resnet20_cifar", len(classes), in_channels=preprocessing.in_channels)
    return Model(network, spec, preprocessing, ClassAnswers(list(classes), kind))


def test_known_labels_have_both_parts_and_unknown_ones_the_teachers_alone():
    teacher = Teacher(model(Constant(math.log(3.0), 0.0, 7.0), classes="xab"), GRAY, [0, 1])
    objective = Distilled(ClassObjective(auto("multilabel")), teacher, sigmoid_divergence, weight=0.25, temperature=1.0)
    batch = {"image": torch.zeros(1, 1, 16, 16), "target": torch.tensor([[math.nan, 1.0]])}
    total, count = objective.step(Constant(0.0, 0.0), batch)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert (total.item(), count.item()) == (pytest.approx(0.25 * divergence + 0.75 * math.log(2)), 2)
    assert objective.monitor == "val/auroc"


def test_a_teacher_of_the_same_preprocessing_gets_the_batch_itself():
    images = torch.randn(2, 1, 16, 16)
    assert Teacher(model(Constant(0.0, 0.0)), GRAY, [0, 1]).prepare(images) is images


def test_another_normalisation_and_more_channels_are_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    colour = Preprocessing(image_size=16)
    teacher = Teacher(model(Constant(0.0, 0.0), colour), GRAY, [0, 1])
    torch.testing.assert_close(teacher.prepare(GRAY(pixels)[None]), colour(pixels)[None], rtol=0, atol=1e-5)
    assert "its own normalisation" in teacher.note()
    back = Teacher(model(Constant(0.0, 0.0)), colour, [0, 1])
    torch.testing.assert_close(back.prepare(colour(pixels)[None]), GRAY(pixels)[None], rtol=0, atol=1e-5)


def test_another_size_is_a_resized_copy():
    teacher = Teacher(model(Constant(0.0, 0.0), Preprocessing(image_size=8)), GRAY, [0, 1])
    assert teacher.prepare(torch.zeros(2, 1, 16, 16)).shape == (2, 3, 8, 8)
    assert "resized from 16 to 8 px" in teacher.note()


def test_a_student_learns_from_a_teacher_alone(tmp_path):
    """All labels unknown but one of each class: the divergence on the training images falls."""
    torch.manual_seed(1)
    network = NetworkSpec("resnet20_cifar", 2, in_channels=1).build().eval()
    nn.init.normal_(network.head.fc.weight, std=3.0)
    teacher = Teacher(model(network), GRAY, [0, 1])
    module = tiny.module()
    module.objective = Distilled(
        ClassObjective(auto("multilabel")), teacher, sigmoid_divergence, weight=1.0, temperature=2.0
    )
    trainer = tiny.trainer(tmp_path, 6)
    trainer.fit(module, tiny.data())
    losses = [float(line.split(",")[4]) for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.5 * losses[0]
    assert not any("teacher" in name for name in module.state_dict())
    assert not any(value.requires_grad for value in network.parameters())
