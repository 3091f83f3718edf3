"""Small tables of detections for tests: by hand, at random, and as hypothesis draws them."""

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from finetune.evaluation.detection.detections import Detections


def boxes(*corners):
    return np.array(corners, float).reshape(-1, 4)


def table(truths, detected, classes=("a",), patients=None, **metadata):
    """Per image its true boxes [(corners, label)] and its detections [(corners, score, label)]."""
    true = [(boxes(*(c for c, *_ in image)), np.array([k for _, k, *_ in image], int)) for image in truths]
    ignored = [np.array([bool(rest) for _, _, *rest in image], bool) for image in truths]
    found = []
    for image in detected:
        scores, labels = np.array([s for _, s, _ in image], float), np.array([k for *_, k in image], int)
        found.append((boxes(*(corners for corners, _, _ in image)), scores, labels))
    samples = [f"{i}.png" for i in range(len(truths))]
    columns = pd.DataFrame(metadata) if metadata else None
    triples = [(*pair, flag) for pair, flag in zip(true, ignored, strict=True)]
    return Detections.from_arrays(samples, patients or samples, list(classes), triples, found, columns)


def random_table(rng, images=120, patients=40, classes=2, hit_rate=0.7, false=2.0, noise=2.0):
    """Lesions of 20 to 40 pixels on a grid; each is detected with `hit_rate`, false detections lie beside them."""
    truths, detected = [], []
    for _ in range(images):
        true, boxes_of_image = [], []
        for k in range(classes):
            for cell in range(rng.poisson(0.6)):
                left, top, size = 100 * cell + rng.uniform(0, 50), 100 * k + rng.uniform(0, 50), rng.uniform(20, 40)
                corners = (left, top, left + size, top + size)
                true.append((corners, k))
                if rng.random() < hit_rate:
                    moved = tuple(np.array(corners) + rng.normal(0, noise, 4) * [1, 1, 0, 0])
                    boxes_of_image.append((moved, rng.beta(3, 2), k))
            for _ in range(rng.poisson(false)):
                left = 1000 + 100 * rng.random()
                boxes_of_image.append(((left, 0, left + 30, 30), rng.beta(2, 3), k))
        truths.append(true)
        detected.append(boxes_of_image)
    people = [f"p{i:03d}" for i in rng.integers(patients, size=images)]
    return table(truths, detected, [f"c{k}" for k in range(classes)], people)


@st.composite
def worlds(draw, ignored=True):
    """Boxes on a coarse grid, so that IoUs tie, scores of few values, so that they tie; empty images and classes."""
    classes = draw(st.integers(1, 3))
    side = st.integers(1, 6).map(lambda n: 16 * n)
    corner = st.tuples(st.integers(0, 4), st.integers(0, 4), side, side).map(
        lambda b: (8 * b[0], 8 * b[1], 8 * b[0] + b[2], 8 * b[1] + b[3])
    )
    label, flag = st.integers(0, classes - 1), st.booleans() if ignored else st.just(False)
    score = st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9, 1.0]) | st.floats(0, 1)
    true = st.lists(st.tuples(corner, label, flag), max_size=4)
    detected = st.lists(st.tuples(corner, score, label), max_size=8)
    images = draw(st.lists(st.tuples(true, detected), min_size=1, max_size=5))
    names = list("abcd"[: classes + draw(st.integers(0, 1))])
    truths = [[(c, k, 1) if crowd else (c, k) for c, k, crowd in image] for image, _ in images]
    return table(truths, [image for _, image in images], names)
