"""The cases for timing a step, and the minimum arithmetic of each. Plain Python, so that every peer can import it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

VOCABULARY = 50257
PPO_EPOCHS = 4


@dataclass(frozen=True)
class Case:
    """A batch of random tokens on a GPT-2 shape; lengths are (shortest, longest), drawn uniformly."""

    name: str
    layers: int
    width: int
    samples: int
    query: tuple[int, int]
    response: tuple[int, int]
    mini_batch: int = 8
    shared_layers: int = 0
    lora: bool = False
    vocabulary: int = VOCABULARY

    def arguments(self) -> dict:
        """As a dictionary for JSON."""
        return asdict(self)

    def lengths(self) -> list[tuple[int, int]]:
        """(query, response) lengths of each sample: evenly spaced, then shuffled by a fixed rule, for every peer."""

        def spread(low: int, high: int, stride: int) -> list[int]:
            steps = max(self.samples - 1, 1)
            return [low + round((high - low) * ((i * stride) % self.samples) / steps) for i in range(self.samples)]

        return list(zip(spread(*self.query, 5), spread(*self.response, 3)))  # noqa: B905  (Python 3.9 peers)

    def flops(self) -> float:
        """Minimum floating-point operations of one step; a multiply-add counts 2."""
        d, epochs = self.width, PPO_EPOCHS
        totals = [q + r for q, r in self.lengths()]
        trunk = sum(24 * self.layers * d * d * s + 2 * self.layers * d * s * s for s in totals)
        head = 2 * d * self.vocabulary * sum(r for _, r in self.lengths())
        if self.lora:  # frozen weights: the backward pass needs one product, not two
            return (2 + 2 * epochs) * (trunk + head)
        frozen = self.shared_layers / self.layers
        per_epoch = 2 if frozen else 3  # the tied head is frozen together with the bottom layers
        return frozen * trunk + (2 + 3 * epochs) * (1 - frozen) * trunk + (2 + per_epoch * epochs) * head


def _case(name: str, layers: int, width: int, samples: int, query: tuple, response: tuple, **options: object) -> Case:
    return Case(name, layers, width, samples, query, response, **options)


CASES = {
    case.name: case
    for case in (
        _case("small", 4, 256, 16, (64, 64), (64, 64)),
        _case("fixed", 6, 512, 16, (64, 64), (64, 64)),
        _case("ragged", 4, 256, 32, (16, 96), (8, 96)),
        _case("long-prompt", 4, 256, 16, (240, 256), (32, 64)),
        _case("shared", 6, 512, 16, (64, 64), (64, 64), shared_layers=3),
        _case("lora", 6, 512, 16, (64, 64), (64, 64), lora=True),
    )
}


def quick(case: Case) -> Case:
    """The same case, small enough to see in seconds that everything works."""
    return replace(case, layers=2, width=32, samples=4, mini_batch=2, query=(4, 8), response=(2, 6),
                   shared_layers=min(case.shared_layers, 1), vocabulary=500)  # fmt: skip
