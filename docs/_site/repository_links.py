"""A hook of MkDocs: a page may link to any file of the repository, as it does where the repository is read.

What is linked becomes part of the site under `repository/`: Markdown and notebooks as pages, an image as it is, code as
a page that shows it.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
"""The target of a link, without its heading; links to other sites have a colon."""
AS_IT_IS = (".md", ".png", ".svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside of docs/, and what those link to."""
    seen: set[str] = set()
    pages = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    while pages:
        for target in _linked_from(*pages.pop()) - seen:
            seen.add(target)
            files.append(_as_file(target, config))
            if target.endswith(".md"):
                pages.append((target, (ROOT / target).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where the files are in the site."""
    path = page.file.src_uri.removeprefix("repository/")
    path = path if page.file.src_uri != path else f"docs/{path}"
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = _target(path, link.group(1))
        return posixpath.relpath(_in_the_site(target), here) if (ROOT / target).is_file() else link.group(1)

    parts = CODE.split(markdown)
    return "".join(part if i % 2 else LINK.sub(moved, part) for i, part in enumerate(parts))


def _target(page: str, link: str) -> str:
    """The path in the repository that a page's link means; a folder means its README.md."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return f"{target}/README.md" if (ROOT / target / "README.md").is_file() else target


def _linked_from(page: str, text: str) -> set[str]:
    """Paths of the files outside of docs/ that a page links to."""
    found = {_target(page, link) for link in LINK.findall(CODE.sub("", text))}
    return {target for target in found if not target.startswith("docs/") and (ROOT / target).is_file()}


def _in_the_site(target: str) -> str:
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"repository/{target}" + ("" if target.endswith(AS_IT_IS) else ".md")


def _as_file(target: str, config: MkDocsConfig) -> File:
    path = ROOT / target
    if target.endswith(AS_IT_IS):
        file = File.generated(config, _in_the_site(target), abs_src_path=str(path))
    elif path.suffix == ".ipynb":
        file = File.generated(config, _in_the_site(target), content=_notebook(path))
    else:
        code = path.read_text(encoding="utf-8")
        language = path.suffix.removeprefix(".") or "text"
        shown = f"# {path.name}\n\n`{target}`\n\n````{language}\n{code}````\n"
        file = File.generated(config, _in_the_site(target), content=shown)
    file.inclusion = InclusionLevel.NOT_IN_NAV
    return file


def _notebook(path: Path) -> str:
    """The cells of a notebook and what they showed, as a page."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(f"![what the cell draws](data:image/png;base64,{data['image/png'].strip()})")
            elif "text/markdown" in data:
                parts.append("".join(data["text/markdown"]))
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"
