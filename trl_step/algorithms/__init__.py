"""Layer 2: the algorithm. Tensors in, tensors out; nothing here knows of models, devices or processes.

One legend for every shape in this package:

    B  samples of a batch                      b  samples of a mini-batch
    Q  tokens of a query                       R  tokens of a response
    T  predicted positions: position t holds what the model says about token t + 1
    N  selected positions of a batch, flattened row by row (usually the response tokens)
    D  width of the hidden states              V  size of the vocabulary

`old_` marks what the policy said when the responses were rolled out, `ref_` the reference model, no prefix the policy
now. A `score` belongs to a sample, a `reward` to a token. `mask` is 1 where a token counts. The files in the order of
a step: `kl`, `rewards`, `advantages/`, `losses/`, `objective`, `stats`; `diagnosis/` judges the
statistics.

The algorithm is PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) with the per-token KL reward of
Ziegler et al. 2019, https://arxiv.org/abs/1909.08593.
"""
