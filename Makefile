PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.installed-docs
# waiting threads sleep instead of spinning: on a busy machine a spinning thread occupies the core that it waits for
export OMP_WAIT_POLICY ?= PASSIVE
# two workers on two cores: one thread each
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2

.PHONY: help demo demo-calculator demo-game demo-rloo demo-ppo demo-ddpo demo-frozen-lake demo-two-players stack-llama \
	test test-fast bench-quick docs docs-serve gpu-check lint type format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet -e ".[all]" -c constraints.txt
	@touch $@

demo: $(INSTALLED) ## tune a small language model towards positive film reviews (a few minutes on two cores)
	$(BIN)/python examples/sentiment/ppo_sentiment.py

demo-calculator: $(INSTALLED) ## teach a small model to use a calculator
	$(BIN)/python examples/calculator/ppo_calculator.py

demo-game: $(INSTALLED) ## teach a small model a game of many turns
	$(BIN)/python examples/guess_number/ppo_guess_number.py

demo-ddpo: $(INSTALLED) ## make the pictures of a small diffusion model brighter
	$(BIN)/python examples/ddpo/ddpo_discs.py

demo-frozen-lake: $(INSTALLED) ## teach a small model to cross Gymnasium's frozen lake
	$(BIN)/python examples/frozen_lake/group_frozen_lake.py

demo-two-players: $(INSTALLED) ## let a small model learn a game by playing against itself
	$(BIN)/python examples/two_players/self_play.py

demo-rloo: $(INSTALLED) ## RLOO with train() and a reward function
	$(BIN)/python examples/rloo/rloo.py

demo-ppo: $(INSTALLED) ## supervised tuning, a reward model, PPO with train()
	$(BIN)/python examples/ppo/ppo_tldr.py

stack-llama: $(INSTALLED) ## the StackLLaMA pipeline with a small Llama: SFT, reward model, PPO (some minutes on two cores)
	$(BIN)/python examples/stack_llama/pipeline.py

test: $(INSTALLED) ## run all tests
	$(PYTEST)

test-fast: $(INSTALLED) ## run all tests that are not marked slow
	$(PYTEST) -m "not slow"

BENCHMARKS := import_time step step_path generate scaling options soak environment demo_seeds curves entropy_drift \
	time_to_reward
bench-quick: $(INSTALLED) ## run every benchmark on a tiny case, to see that it works; times are not checked
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py --quick; done

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e ".[docs]" -c constraints.txt
	@touch $@

docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS) ## build the documentation site into build/site; a broken link or a missing name fails
	$(BIN)/mkdocs build --quiet
	$(BIN)/python -m pytest -n 0 tests/test_site.py

docs-serve: $(DOCS) ## show the documentation site, and build it anew when a file changes
	$(BIN)/mkdocs serve --no-strict

gpu-check: $(INSTALLED) ## what must be seen on a GPU, in eight minutes; WHEELS is a folder of libraries to compare with
	$(BIN)/python benchmarks/gpu_check.py $(if $(WHEELS),--wheels $(WHEELS))

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(INSTALLED) ## mypy
	$(BIN)/mypy

format: $(INSTALLED) ## rewrite the code in the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment, caches and runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis runs build *.egg-info
