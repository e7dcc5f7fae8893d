"""`trl_step serve`: a saved policy behind OpenAI's API."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer

from trl_step.models import AutoModelForCausalLMWithValueHead
from trl_step.sampling import Endpoint, LocalSampler, ServeSettings


def serve_folder(folder: Path, settings: ServeSettings) -> int:
    """Serve the model in `folder`, print URL and token, and return after Ctrl-C.

    Without a `max_length` the model's positions are the limit.

    Raises:
        SystemExit: there is no such folder, or what is in it cannot be loaded or served.
    """
    if not folder.is_dir():
        raise SystemExit(f"trl_step serve: there is no folder {folder} (looked for {folder.absolute()})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), dtype="auto").eval()
    except (OSError, ValueError) as error:
        raise SystemExit(f"trl_step serve: {folder} cannot be loaded: {error}") from error
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    if settings.max_length is None:
        config = model.pretrained_model.config.get_text_config()
        settings = replace(settings, max_length=getattr(config, "max_position_embeddings", None))
    sampler = LocalSampler(model, tokenizer)
    try:
        endpoint = Endpoint(sampler.sample, tokenizer, settings, takes_seeds=True)
    except (OSError, ImportError) as error:
        raise SystemExit(f"trl_step serve: {error}") from error
    with endpoint:
        print(f"url    {endpoint.url}\ntoken  {endpoint.token}\nmodel  {settings.model_name}", flush=True)
        try:
            wait()
        except KeyboardInterrupt:
            print("closing")
    return 0


def wait() -> None:
    """Until Ctrl-C."""
    while True:
        time.sleep(3600)
