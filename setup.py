"""Packaging of trl_step; tools are configured in pyproject.toml."""

import re
import subprocess
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "trl_step" / "__init__.py").read_text()).group(1)

EXTRAS = {
    "peft": ["peft>=0.17"],
    "diffusers": ["diffusers>=0.41", "peft>=0.17"],
    "tensorboard": ["tensorboard"],
    "wandb": ["wandb"],
    "trackio": ["trackio>=0.40"],
    "serve": ["starlette>=0.40", "uvicorn>=0.30"],
    "quantized": ["bitsandbytes>=0.49"],
    "gymnasium": ["gymnasium>=1.0"],
    "pettingzoo": ["pettingzoo>=1.25"],
    "textarena": ["textarena>=0.7"],
    "demo": ["rich", "tqdm", "matplotlib", "tensorboard"],
    "test": ["pytest>=8", "pytest-xdist", "hypothesis", "ruff", "mypy", "basedpyright>=1.30", "peft>=0.17",
             "diffusers>=0.41", "rich", "tqdm", "matplotlib", "tensorboard", "wandb", "trackio>=0.40",
             "starlette>=0.40", "uvicorn>=0.30", "openai>=2", "httpx", "gymnasium>=1.0", "pettingzoo>=1.25",
             "textarena>=0.7", "bitsandbytes>=0.49", "nbclient>=0.10", "ipykernel>=6"],
}  # fmt: skip
EXTRAS["all"] = sorted({package for packages in EXTRAS.values() for package in packages})
EXTRAS["docs"] = ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0", "ruff"]  # not in "all": for `make docs`
# not in "all": each brings a web interface, or clients of services, and some sixty packages
EXTRAS["openenv"] = ["openenv>=0.10"]
EXTRAS["verifiers"] = ["verifiers>=0.1.14,<0.4", "starlette>=0.40", "uvicorn>=0.30"]


def project_urls():
    """Where the project is on GitHub. No address is written down: it is that of the clone which is built, or from which
    the source distribution was built."""
    if (HERE / "PKG-INFO").exists():  # a source distribution
        return dict(re.findall(r"^Project-URL: (.+?), (.+)$", (HERE / "PKG-INFO").read_text(encoding="utf-8"), re.M))
    try:
        read = ["git", "config", "--file", HERE / ".git" / "config", "remote.origin.url"]
        origin = subprocess.check_output(read, stderr=subprocess.DEVNULL)
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, no clone, no origin
        return {}
    host = r"(?:https://|(?:ssh://)?git@)github\.com[:/]"
    found = re.fullmatch(rf"{host}([\w.-]+/[\w.-]+?)(?:\.git)?", origin.decode().strip())
    if found is None:
        return {}
    url = f"https://github.com/{found[1]}"
    pages = {"Documentation": "tree/main/docs", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}
    return {"Source": url, **{label: f"{url}/{page}" for label, page in pages.items()}}


setup(
    name="trl-step",
    version=VERSION,
    description="PPO for language models as a step API: generate, score, trainer.step(queries, responses, scores)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="reinforcement learning, language models, RLHF, PPO, GRPO, RLOO, transformers, PyTorch, agents",
    packages=[*find_packages(include=["trl_step", "trl_step.*"]), "trl_step.examples.sentiment"],
    package_dir={"trl_step.examples.sentiment": "examples/sentiment"},  # for `trl_step demo`
    package_data={"trl_step": ["py.typed"], "trl_step.examples.sentiment": ["*.grammar"]},
    entry_points={"console_scripts": ["trl_step = trl_step.commands:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.6",
        "transformers>=5.0,<6",
        "accelerate>=1.10,<2",
        "datasets>=4.0",
        "numpy>=1.26",
        "tyro>=0.9",
        "safetensors>=0.5",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
