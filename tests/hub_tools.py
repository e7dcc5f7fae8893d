"""A hub that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Hub:
    """Stands in for `huggingface_hub.HfApi`; `uploads` are the file names of each upload."""

    def __init__(self) -> None:
        self.uploads: list[set[str]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def __call__(self, **kwargs: Any) -> Hub:
        self.calls.append(("HfApi", kwargs))
        return self

    def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **kwargs}))
        return type("Repo", (), {"repo_id": f"me/{repo_id.split('/')[-1]}"})

    def upload_folder(self, folder_path: str, **kwargs: Any) -> str:
        self.calls.append(("upload_folder", kwargs))
        if self.error is not None:
            raise self.error
        self.uploads.append({path.name for path in Path(folder_path).iterdir()})
        return "https://hub/commit/1"
