"""A text-classification pipeline that can return its scores in the order of the labels."""

from __future__ import annotations

from typing import Any

from transformers import TextClassificationPipeline


class AllScoresPipeline(TextClassificationPipeline):
    """`pipeline("sentiment-analysis", ..., pipeline_class=AllScoresPipeline)`: takes one more argument, `sort_scores`.

    `top_k=None, sort_scores=False` is what `return_all_scores=True` was before transformers 5: entry i of a text's list
    is label i, and a single text gets a list around its list. `top_k=None` alone puts the highest score first, so
    that `output[1]` is a different label from text to text.
    """

    def _sanitize_parameters(
        self, sort_scores: bool = True, top_k: int | str | None = "", **parameters: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(top_k=top_k, **parameters)
        if not sort_scores:
            if top_k is not None:
                raise ValueError(f"sort_scores=False goes with top_k=None, not with top_k={top_k!r}")
            postprocess["_legacy"] = True  # transformers' own switch: unsorted
        return preprocess, forward, postprocess

    def __call__(self, inputs: Any, **parameters: Any) -> Any:
        """Like `TextClassificationPipeline`, with `sort_scores`.

        Raises:
            ValueError: `sort_scores=False` without `top_k=None`.
        """
        result = super().__call__(inputs, **parameters)
        return [result] if isinstance(inputs, str) and parameters.get("sort_scores") is False else result
