"""The cases for timing a step, and the minimum arithmetic of each. Plain Python, so that every peer can import it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

VOCABULARY = 50257
PPO_EPOCHS = 4


@dataclass(frozen=True)
class Case:
    """A batch of random tokens on a GPT-2 shape; lengths are (shortest, longest), drawn uniformly.

    Args:
        algorithm: "gae" (PPO with a value head and the clipped loss), "grpo" and "gspo" (group advantages without a
            critic), or "own-loss" (as "gae", with the clipped loss written by the user)
        group: samples with the same query, one after the other
        like: the case with "gae" that has the same sizes; empty: this one
    """

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
    algorithm: str = "gae"
    group: int = 1
    like: str = ""

    @property
    def shape(self) -> str:
        """Cases of equal shape differ in the algorithm only."""
        return self.like or self.name

    @property
    def grouped(self) -> bool:
        """Whether advantages are taken within groups, without a critic."""
        return self.algorithm in ("grpo", "gspo")

    def arguments(self) -> dict:
        """As a dictionary for JSON."""
        return asdict(self)

    def lengths(self) -> list[tuple[int, int]]:
        """(query, response) lengths of each sample: evenly spaced, then shuffled by a fixed rule, for every peer."""

        def spread(low: int, high: int, stride: int) -> list[int]:
            steps = max(self.samples - 1, 1)
            return [low + round((high - low) * ((i * stride) % self.samples) / steps) for i in range(self.samples)]

        queries, responses = spread(*self.query, 5), spread(*self.response, 3)
        return [(queries[i - i % self.group], responses[i]) for i in range(self.samples)]

    def flops(self) -> float:
        """Minimum floating-point operations of one step; a multiply-add counts 2, and a query of a group runs once."""
        d, epochs = self.width, PPO_EPOCHS

        def of(tokens: int) -> int:
            return 24 * self.layers * d * d * tokens + 2 * self.layers * d * tokens * tokens

        lengths = self.lengths()
        trunk = sum(of(q + r) for q, r in lengths) - sum(of(q) for i, (q, _) in enumerate(lengths) if i % self.group)
        head = 2 * d * self.vocabulary * sum(r for _, r in lengths)
        if self.lora:  # frozen weights: the backward pass needs one product, not two
            return (2 + 2 * epochs) * (trunk + head)
        frozen = self.shared_layers / self.layers
        per_epoch = 2 if frozen else 3  # the tied head is frozen together with the bottom layers
        return frozen * trunk + (2 + 3 * epochs) * (1 - frozen) * trunk + (2 + per_epoch * epochs) * head


def _case(name: str, layers: int, width: int, samples: int, query: tuple, response: tuple, **options: object) -> Case:
    return Case(name, layers, width, samples, query, response, **options)


def _like(name: str, case: Case, algorithm: str, group: int = 1) -> Case:
    return replace(case, name=name, algorithm=algorithm, group=group, like=case.name)


_GAE = {
    case.name: case
    for case in (
        _case("small", 4, 256, 16, (64, 64), (64, 64)),
        _case("fixed", 6, 512, 16, (64, 64), (64, 64)),
        _case("ragged", 4, 256, 32, (16, 96), (8, 96)),
        _case("long-prompt", 4, 256, 16, (240, 256), (32, 64)),
        _case("shared", 6, 512, 16, (64, 64), (64, 64), shared_layers=3),
        _case("lora", 6, 512, 16, (64, 64), (64, 64), lora=True),
        # head and layers in the proportion of a model of a billion parameters
        _case("group-long-prompt", 6, 512, 32, (256, 256), (32, 64), mini_batch=32, group=8, vocabulary=8192),
    )
}
_OTHERS = (
    _like("grpo", _GAE["small"], "grpo", group=4),
    _like("gspo", _GAE["small"], "gspo", group=4),
    _like("own-loss", _GAE["small"], "own-loss"),
    _like("grpo-fixed", _GAE["fixed"], "grpo", group=4),
    _like("gspo-fixed", _GAE["fixed"], "gspo", group=4),
    _like("own-loss-fixed", _GAE["fixed"], "own-loss"),
    _like("grpo-lora", _GAE["lora"], "grpo", group=4),
)
CASES = {**_GAE, **{case.name: case for case in _OTHERS}}


def families(names: list[str]) -> list[list[Case]]:
    """The named cases, those of equal shape together."""
    found: dict[str, list[Case]] = {}
    for name in names:
        found.setdefault(CASES[name].shape, []).append(CASES[name])
    return list(found.values())


def quick(case: Case) -> Case:
    """The same case, small enough to see in seconds that everything works."""
    return replace(case, layers=2, width=32, samples=4, mini_batch=2, query=(4, 8), response=(2, 6),
                   shared_layers=min(case.shared_layers, 1), vocabulary=500, group=min(case.group, 2))  # fmt: skip


def quick_names() -> list[str]:
    """The cases that are still different from each other when they are small."""
    seen = {}
    for name, case in CASES.items():
        seen.setdefault(replace(quick(case), name="", like=""), name)
    return list(seen.values())


def comparable(case: Case) -> Case:
    """The same algorithm on a small batch that is one mini-batch, whatever order a library draws.

    Queries have equal lengths, as some libraries count the positions of padding.
    """
    return replace(quick(case), samples=8, mini_batch=8, query=(6, 6), width=64, group=4)
