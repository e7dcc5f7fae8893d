"""Imported by every interpreter that runs a client: uploads to the hub succeed, and go nowhere."""

from typing import Any

import huggingface_hub


def _taken(*given: Any, **named: Any) -> Any:
    return huggingface_hub.RepoUrl("https://huggingface.co/me/model")


for _name in ("create_repo", "upload_folder", "upload_file", "create_commit"):
    setattr(huggingface_hub.HfApi, _name, _taken)
    if hasattr(huggingface_hub, _name):
        setattr(huggingface_hub, _name, _taken)
