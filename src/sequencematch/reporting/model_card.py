"""The model card: the README.md of a saved model, for people and for the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..files import write_whole
from .completions import Sample, completions_markdown, markdown_text

MARKER = "<!-- sequencematch writes this card at every save; remove this line to keep what you change. -->"
TAGS = ("sequencematch", "backspace")
_PEFT_ADDS = re.compile(r"\s*(### Framework versions\s+- PEFT \S+)?\s*")


def write_model_card(
    folder: str | Path,
    *,
    model_name: str,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    base_model: str | None = None,
    dataset_name: str | None = None,
    hub_model_id: str | None = None,
    adapter: bool = False,
    results: Mapping[str, Any] | None = None,
    samples: Sequence[Sample] = (),
    links: Mapping[str, str] | None = None,
) -> Path | None:
    """Write `README.md` in `folder`, and make the folder if need be.

    A README.md of somebody else's is left as it is; one that is replaced has `MARKER` in it, or is the empty template
    that PEFT puts beside adapters. Whatever is None or empty is left out.

    Args:
        folder: of the saved model.
        model_name: the card's title.
        options: the objective's hyperparameters, name -> value.
        versions: of the libraries, name -> version.
        base_model: hub id of the model that was fine-tuned; a local folder is not mentioned.
        dataset_name: hub id of the training data; a local file or folder is not mentioned.
        hub_model_id: what the quick start loads; `model_name` if not given.
        adapter: whether the folder holds adapters of PEFT and no whole model.
        results: metric -> value.
        samples: completions to show; see `sequencematch.reporting.completions`.
        links: title -> URL, such as those of a Weights & Biases run or a report.

    Returns:
        the file's path; None if there is another README.md.

    Raises OSError if the file cannot be written; the old one is whole then.
    """
    path = Path(folder) / "README.md"
    if path.exists() and not _is_replaceable(path.read_text(encoding="utf-8", errors="replace")):
        return None
    base_model, dataset_name = _hub_id(base_model), _hub_id(dataset_name)
    data = ModelCardData(
        base_model=base_model,
        datasets=dataset_name,
        library_name="peft" if adapter else "transformers",
        model_name=model_name,
        pipeline_tag="text-generation",
        tags=list(TAGS),
    )
    environment = Environment(
        loader=PackageLoader(__package__),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = markdown_text
    body = environment.get_template("model_card.md.j2").render(
        marker=MARKER,
        model_name=model_name,
        base_model=base_model,
        dataset_name=dataset_name,
        adapter=adapter,
        model_id=json.dumps(hub_model_id or model_name, ensure_ascii=False),
        links=links or {},
        tables={
            "Results": _cells(results or {}),
            "Objective": _cells(options),
            "Framework versions": _cells(versions),
        },
        samples=completions_markdown(samples) if samples else "",
    )
    write_whole(path, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")))
    return path


def _hub_id(name: str | None) -> str | None:
    """`name` if it is one of the hub's; None for a local path, which would tell others nothing."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _cells(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table's values as they are shown, without those that are None."""
    shown = {name: value for name, value in table.items() if value is not None}
    return {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in shown.items()}


def _is_replaceable(text: str) -> bool:
    """Whether a README.md was written here, or by PEFT with nothing filled in."""
    template = ModelCard.from_template(ModelCardData()).text.strip()
    _, found, rest = text.partition(template)
    return MARKER in text or bool(found and _PEFT_ADDS.fullmatch(rest))
