"""Pictures to learn from: a disc on a dark background, and the prompt that describes it; two rewards of pictures."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import torch
from PIL import Image

SIDE = 16
"""pixels"""
COLORS = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 0.9, 0.2),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (1.0, 0.9, 0.1),
}
SIZES = {"small": (2.0, 3.5), "large": (4.0, 6.0)}
"""least and greatest radius, in pixels"""


def draw_prompt(numbers: random.Random) -> str:
    """Such as "a small red disc"."""
    return f"a {numbers.choice(list(SIZES))} {numbers.choice(list(COLORS))} disc"


def paint(prompt: str, numbers: random.Random) -> torch.Tensor:
    """A picture that the prompt describes, [3, SIDE, SIDE] float32, 0 to 1; the disc is anywhere inside."""
    _, size, color, _ = prompt.split()
    radius = numbers.uniform(*SIZES[size])
    x, y = (numbers.uniform(radius, SIDE - radius) for _ in range(2))
    places = torch.arange(SIDE) + 0.5
    distance = ((places[None, :] - x) ** 2 + (places[:, None] - y) ** 2).sqrt()
    inside = (radius - distance + 0.5).clamp(0, 1)  # its edge is soft
    return 0.05 + inside * (torch.tensor(COLORS[color])[:, None, None] - 0.05)


def brightness(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[torch.Tensor, dict]:
    """The mean of each picture's pixels, 0 to 1."""
    return images.float().mean(dim=(1, 2, 3)), {}


def compressibility(images: torch.Tensor, prompts: Any, metadata: Any) -> tuple[list[float], dict]:
    """Minus the size of each picture as a JPEG file, in bytes / 1000."""
    sizes = []
    for pixels in (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="JPEG", quality=95)
        sizes.append(-len(file.getvalue()) / 1000)
    return sizes, {}


REWARDS = {"brightness": brightness, "compressibility": compressibility}
