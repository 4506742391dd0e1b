"""One training run from flat options: the same for the command line, a YAML file and the demo."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from datasets import DatasetDict, IterableDatasetDict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from ..data import load_splits
from ..errors import InputError, reason_of
from ..models import require_bitsandbytes
from ..models.loading import attention_of, load_tokenizer
from ..tasks import Task, build_tokenizer, get_task, split
from .config import SequenceMatchConfig, parse_mapping
from .trainer import SequenceMatchTrainer


@dataclass
class RunArguments(ScriptArguments):
    """What a run is made of, beside the options of the model and of training."""

    task: str | None = field(
        default=None,
        metadata={"help": "Built-in task to draw data from, in place of dataset_name: star or arithmetic."},
    )
    task_options: dict | str | None = field(
        default=None, metadata={"help": "Options of the task: a mapping in YAML, JSON text on the command line."}
    )
    train_size: int = field(default=10_000, metadata={"help": "Training questions drawn from the task."})
    test_size: int = field(
        default=500, metadata={"help": "Test questions drawn from the task, none of them trained on."}
    )
    task_seed: int = field(default=0, metadata={"help": "Seed of the task's questions."})
    from_scratch: dict | str | None = field(
        default=None,
        metadata={"help": "Build a new model from this config (model_type and its sizes) in place of "
                  "model_name_or_path; its tokenizer is the task's characters, or model_name_or_path's."},
    )  # fmt: skip
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check model, data and tokens, estimate the memory, show examples, and train nothing."},
    )


_OPTIONS: Any = (RunArguments, SequenceMatchConfig, ModelConfig)


class _Parser(TrlParser):
    """TRL's parser, whose complaints become one sentence."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)

    def set_defaults_with_config(self, **options: Any) -> list[str]:
        known = {action.dest: action for action in self._actions}
        for key, value in options.items():
            if key not in known:
                _refuse_unknown(key, set(known))
            _check_number(key, value, known[key].type)
        return super().set_defaults_with_config(**options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            _refuse_unknown(unknown[0], {action.dest for action in self._actions})
        return parsed, unknown


def _check_number(key: str, value: Any, kind: Any) -> None:
    """Raise InputError if YAML gives anything but a number where one is due; argparse sees to text."""
    numbers: dict[Any, tuple] = {int: (int,), float: (int, float)}
    if kind not in numbers or value is None or isinstance(value, str):
        return
    if isinstance(value, bool) or not isinstance(value, numbers[kind]):
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{key} must be {what}, not {value!r}")


@dataclass
class Run:
    """The parsed options of one run."""

    data: RunArguments
    training: SequenceMatchConfig
    model: ModelConfig

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Run:
        """From command-line flags, with `--config FILE` for YAML; flags win. Raises InputError for unknown keys."""
        if argv and argv[-1] == "--config":
            raise InputError("--config needs the name of a YAML file after it")
        parser = _Parser(_OPTIONS, prog="sequencematch train")
        # TRL's parser knows `--config FILE` and silently passes over `--config=FILE`.
        flags = [part for flag in argv for part in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
        try:
            return cls(*parser.parse_args_and_config(flags))
        except FileNotFoundError as error:
            raise InputError(f"there is no configuration file '{error.filename}'; check the path") from None
        except OSError as error:
            raise InputError(f"the configuration file '{error.filename}' cannot be read: {error.strerror}") from None
        except yaml.YAMLError as error:
            raise InputError(f"the configuration file is no valid YAML: {' '.join(str(error).split())}") from None
        except InputError:
            raise
        except (ValueError, TypeError) as error:
            raise InputError(" ".join(str(error).split())) from None

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Run:
        """From a mapping with the keys of a YAML file. Raises InputError for unknown keys."""
        parser = _Parser(_OPTIONS)
        known = {action.dest for action in parser._actions}
        for key in options:
            if key not in known:
                _refuse_unknown(key, known)
        return cls(*parser.parse_dict(options))


def _refuse_unknown(key: str, known: set[str]) -> NoReturn:
    close = difflib.get_close_matches(key.lstrip("-"), known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else "see sequencematch train --help"
    raise InputError(f"there is no option '{key.lstrip('-')}'; {hint}")


def make_trainer(run: Run) -> SequenceMatchTrainer:
    """Load or build everything a run names. Raises InputError before anything is written."""
    set_seed(run.training.seed)
    task = make_task(run.data)
    train, test = _splits(run.data, task)
    tokenizer = _tokenizer(run, task)
    if run.model.load_in_4bit or run.model.load_in_8bit:
        require_bitsandbytes()
    try:
        peft_config = get_peft_config(run.model)
    except ValueError as error:
        raise InputError(
            f"use_peft needs the peft package ({reason_of(error)}); pip install 'sequencematch[peft]'"
        ) from error
    return SequenceMatchTrainer(
        _model(run, tokenizer),
        run.training,
        train_dataset=train,
        eval_dataset=test if run.training.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=peft_config,
        quantization_config=get_quantization_config(run.model),
        task=task,
    )


def make_task(data: RunArguments) -> Task | None:
    """The built-in task that a run draws its data from, if it does."""
    return get_task(data.task, **parse_mapping(data.task_options, "task_options")) if data.task else None


def _splits(data: RunArguments, task: Task | None) -> tuple[Any, Any]:
    splits: DatasetDict | IterableDatasetDict
    if task is not None:
        splits = split(task, data.train_size, data.test_size, data.task_seed)
    elif data.dataset_name:
        splits = load_splits(data.dataset_name, data.dataset_config, data.dataset_streaming)
    else:
        raise InputError("there is no data to train on; set dataset_name (an id, folder or file) or task")
    if data.dataset_train_split not in splits:
        raise InputError(f"the data set has the splits {', '.join(splits)}; set dataset_train_split to one of them")
    return splits[data.dataset_train_split], splits.get(data.dataset_test_split)


def _tokenizer(run: Run, task: Task | None) -> PreTrainedTokenizerBase:
    if run.model.model_name_or_path:
        return load_tokenizer(run.model.model_name_or_path)
    if task is None:
        raise InputError("there is no model to train; set model_name_or_path, or a task and from_scratch")
    return build_tokenizer(task.alphabet)


def _model(run: Run, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | str:
    """A new model, or the id or folder from which the trainer loads one with the options of `ModelConfig`."""
    sizes = parse_mapping(run.data.from_scratch, "from_scratch")
    if sizes:
        return _new_model(sizes, tokenizer)
    if not run.model.model_name_or_path:
        raise InputError("there is no model to train; set model_name_or_path, or from_scratch to build one")
    options = {
        "dtype": run.model.dtype,
        "attn_implementation": run.model.attn_implementation,
        "revision": run.model.model_revision,
    }
    run.training.model_init_kwargs = {**options, **run.training.model_init_kwargs}  # type: ignore[dict-item]
    return run.model.model_name_or_path


def _new_model(sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    sizes = dict(sizes)
    model_type = sizes.pop("model_type", None)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    try:
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **special, **sizes)
        unknown = [key for key in sizes if key not in type(config)().to_dict() and key != "head_dim"]
        if unknown:
            raise ValueError(f"a {model_type} config has no '{unknown[0]}'")
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention_of(config))
    except Exception as error:
        raise InputError(f"from_scratch makes no model: {' '.join(str(error).split())[:300]}") from error
