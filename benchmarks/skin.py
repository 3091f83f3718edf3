"""Synthetic dermoscopic images: a stand-in for skin lesions where no real set is at hand.

Each is drawn from (seed, number) alone and shows another lesion: plain skin with a slow colour gradient, fine texture
and creases, one dark blob near the middle whose shape, colour, size, edge and inner texture vary, sometimes hairs and
dark corners; then focus blur, sensor noise and JPEG. They share what misleads a search for copies: little but one
centred blob. With plain=True there is no texture, crease or hair, and all is out of focus: the hardest case. They are
no patients, and nothing but such a search is to be judged by them.
"""

import io

import cv2
import numpy as np
from PIL import Image

SHAPE = (450, 600)  # height and width, as in HAM10000


def lesion(number: int, seed: int = 0, *, plain: bool = False) -> np.ndarray:
    """RGB uint8 (450, 600, 3)."""
    random = np.random.default_rng((seed, number, int(plain)))
    skin = np.array([random.uniform(190, 215) if plain else random.uniform(175, 235), 0.0, 0.0], np.float32)
    skin[1] = skin[0] * (0.75 if plain else random.uniform(0.62, 0.84))
    skin[2] = skin[0] * (0.7 if plain else random.uniform(0.55, 0.84))
    image = np.broadcast_to(skin, (*SHAPE, 3)).copy()
    tint = np.array([1.0, random.uniform(0.8, 1.2), random.uniform(0.8, 1.2)], np.float32)
    image += random.uniform(*((1, 5) if plain else (3, 14))) * field(random, 2.2)[..., None] * tint
    if not plain:
        image += np.exp(random.uniform(-0.9, 1.4)) * field(random, random.uniform(20, 70))[..., None]
        if random.random() < 0.5:  # creases of the skin
            creases = field(random, (random.uniform(8, 20), random.uniform(40, 90)))
            image += random.uniform(0.5, 3) * creases[..., None]

    inside, depth = blob(random)
    colour = skin * shade(random)
    texture = random.uniform(*((0, 2) if plain else (2, 14))) * field(random, random.uniform(5, 18))
    if not plain and random.random() < 0.6:  # a pigment network or globules
        texture += random.uniform(1, 10) * field(random, random.uniform(20, 60))
    centre = random.uniform(-0.25, 0.25) * depth  # darker or paler towards the middle
    body = colour * (1 + centre[..., None]) + texture[..., None] * random.uniform(0.6, 1.1, 3).astype(np.float32)
    image += inside[..., None] * (body - image)

    if not plain:
        if random.random() < 0.45:
            image = hairs(image, random, int(random.integers(1, 16)))
        image *= corners(random)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), random.uniform(*((1.0, 4.0) if plain else (0.4, 2.0))))
    image += random.uniform(0.3, 1.5 if plain else 3.5) * random.standard_normal(image.shape, np.float32)
    file = io.BytesIO()
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=int(random.integers(85, 97)))
    return np.asarray(Image.open(file).convert("RGB"))


def field(random: np.random.Generator, cells: float | tuple[float, float]) -> np.ndarray:  # -> SHAPE, deviation 1
    """Smooth noise with about so many bumps across the height (and the width)."""
    height, width = SHAPE
    rows, columns = (cells, cells * width / height) if isinstance(cells, float | int) else cells
    small = random.standard_normal((max(2, round(rows)), max(2, round(columns))), np.float32)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return (large - large.mean()) / max(float(large.std()), 1e-6)


def blob(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """How much of each pixel is lesion, and how deep inside it lies, from -1 at the edge to 1 in the middle."""
    height, width = SHAPE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y -= height / 2 + height * random.normal(0, 0.05)
    x -= width / 2 + width * random.normal(0, 0.05)
    turn, stretch = random.uniform(0, np.pi), random.uniform(1.0, 1.5)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    distance, angle = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch)), np.arctan2(across, along)
    radius = height * random.uniform(0.12, 0.4)
    wave = sum(
        random.normal(0, random.choice([0.03, 0.1])) / order * np.cos(order * angle + random.uniform(0, 2 * np.pi))
        for order in range(2, 9)
    )
    outside = distance - radius * (1 + wave)
    softness = random.uniform(3, 0.35 * radius)
    inside = random.uniform(0.75, 1.0) / (1 + np.exp(np.clip(outside / softness * 2, -30, 30)))
    return inside.astype(np.float32), np.clip(-1 - 2 * outside / radius, -1, 1).astype(np.float32)


def shade(random: np.random.Generator) -> np.ndarray:  # -> (3,)
    """What a lesion leaves of the skin's colour: brown mostly, sometimes nearly black, sometimes pink."""
    kind = random.random()
    if kind < 0.7:
        red = random.uniform(0.5, 0.85)
        return np.array([red, red * random.uniform(0.7, 0.95), red * random.uniform(0.65, 0.95)], np.float32)
    if kind < 0.85:
        return np.float32(random.uniform(0.2, 0.45)) * np.array([1.0, 0.85, 0.85], np.float32)
    return np.array([random.uniform(0.85, 1.02), random.uniform(0.5, 0.8), random.uniform(0.55, 0.85)], np.float32)


def hairs(image: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    height, width = SHAPE
    t = np.linspace(0, 1, 40)[:, None]
    mask = np.zeros(SHAPE, np.uint8)
    for _ in range(count):
        start, bend, end = random.uniform((-0.1, -0.1), (1.1, 1.1), (3, 2)) * (width, height)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        cv2.polylines(mask, [curve.round().astype(np.int32)], False, 255, int(random.integers(1, 4)), cv2.LINE_AA)
    part = mask[..., None].astype(np.float32) / 255 * random.uniform(0.4, 0.9)
    return image + part * (np.array([50, 35, 30], np.float32) * random.uniform(0.6, 1.8) - image)


def corners(random: np.random.Generator) -> np.ndarray:  # -> SHAPE, between 0 and 1
    """Light falls off from the middle; some dermoscopes leave the corners black."""
    height, width = SHAPE
    y, x = np.mgrid[:height, :width].astype(np.float32)
    away = np.hypot((y - height / 2) / height, (x - width / 2) / height)
    light = 1 - random.uniform(0.0, 0.35) * away**2
    if random.random() < 0.15:
        light /= 1 + np.exp(np.clip((away - random.uniform(0.55, 0.75)) * random.uniform(40, 200), -30, 30))
    return light.astype(np.float32)
