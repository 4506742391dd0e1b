"""Every option of training, on top of transformers' TrainingArguments."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import get_args

import torch
from transformers import TrainingArguments

from ..errors import InputError
from ..models import TreeAttention
from ..objectives import ValueEstimator, get_divergence, least_reward
from ..rollouts import SamplingConfig

OBJECTIVES = ("mle", "bc", "sequencematch", "iql_offline", "unlikelihood")
WITHOUT_MISTAKES = ("mle", "unlikelihood")
"""Objectives that learn from the expert as it is, and need no deletion."""
NOISE_SOURCES = ("none", "uniform", "model", "rollout", "task")


@dataclass
class SequenceMatchConfig(TrainingArguments):
    """Options of `SequenceMatchTrainer`. Raises InputError if a value is impossible or two contradict each other."""

    # The objective
    objective: str = field(
        default="sequencematch",
        metadata={"help": "mle (no noise), bc (MLE on noised trajectories), sequencematch, iql_offline, or "
                  "unlikelihood (MLE, and a penalty on tokens of the context; no noise)."},
    )  # fmt: skip
    divergence: str = field(
        default="lecam",
        metadata={"help": "Divergence of sequencematch: lecam (the paper's chi2-mixture in closed form), chi2_mixture "
                  "(the paper's, sampled; needs rollout_steps), chi2, kl, reverse_kl, js or hellinger."},
    )  # fmt: skip
    alpha: float = field(default=0.01, metadata={"help": "Weight of the policy's entropy; 0 is discounted MLE."})
    gamma: float = field(default=0.998, metadata={"help": "Discount per action, in (0, 1)."})
    value_estimator: str = field(
        default="expert",
        metadata={"help": "Whose trajectories the initial state's value is read from: expert, or mixed (half of "
                  "it from rollouts, as in the paper: the same mean, more variance)."},
    )  # fmt: skip
    terminal_value: str = field(
        default="learned",
        metadata={"help": "Value of the absorbing state: learned (logsumexp at the eos node) or zero."},
    )
    iql_lambda: float = field(default=0.1, metadata={"help": "Weight of the squared reward in iql_offline."})
    unlikelihood_weight: float = field(default=1.0, metadata={"help": "Weight of the penalty in unlikelihood."})

    off_expert_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of holding the rewards of what rollouts do off the expert's way to those of the "
                  "optimum, -2/alpha for lecam; needs rollout_steps, and completions that their prompts determine."},
    )  # fmt: skip
    counterfactual_weight: float = field(
        default=0.0,
        metadata={"help": "How much, in that term, every deletion counts that rollouts could have taken there: it "
                  "teaches to delete without any demonstration."},
    )  # fmt: skip

    # The schedule
    bc_warmup_steps: int = field(default=0, metadata={"help": "Optimizer steps of behavioural cloning alone."})
    bc_anneal_steps: int = field(
        default=0, metadata={"help": "Steps over which the weight of BC then falls linearly from 1 to bc_final_weight."}
    )
    bc_final_weight: float = field(default=0.0, metadata={"help": "Weight of BC after that, in [0, 1]."})

    # Noise
    deletions: dict | str | None = field(
        default=None,
        metadata={"help": "Deletion actions, token: length (a number or all); {} for none. Tokens that the tokenizer "
                  "has already (reserved ones) are used without growing the embeddings. None: those that the model "
                  "has, or else <bksp>: 1; for mle and unlikelihood none are added."},
    )  # fmt: skip
    noise_source: str | None = field(
        default=None,
        metadata={"help": "Where the expert's mistakes come from: none, uniform, model, rollout or task. None: "
                  "uniform, as in the paper, or none for mle, unlikelihood and without deletions."},
    )  # fmt: skip
    noise_rate: float = field(
        default=0.001,
        metadata={"help": "Probability of a mistake, at each expert step (for rollout noise, in each example; for task "
                  "noise, as the task says)."},
    )  # fmt: skip
    noise_max_run: int = field(default=1, metadata={"help": "Longest run of wrong tokens (uniform and model noise)."})
    noise_action_weight: float = field(
        default=1.0, metadata={"help": "How much wrong tokens are imitated, in [0, 1]; 0 teaches undoing them only."}
    )

    # Rollouts of the policy
    rollout_steps: int = field(
        default=0,
        metadata={
            "help": "Sample rollouts every so many optimizer steps after the warm-up, if the objective uses any."
        },
    )
    num_generations: int = field(
        default=1, metadata={"help": "Rollouts for each prompt of the step's batch; they share its states in training."}
    )
    max_completion_length: int = field(default=256, metadata={"help": "Most surviving tokens of a rollout."})
    max_actions: int | None = field(
        default=None, metadata={"help": "Most actions of a rollout, deletions included; None derives it."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature of rollouts."})
    top_k: int = field(default=0, metadata={"help": "Rollouts sample from the k likeliest actions; 0 is all."})
    top_p: float = field(default=1.0, metadata={"help": "Rollouts sample from the likeliest actions of this mass."})
    generation_batch_size: int = field(default=64, metadata={"help": "Rollouts sampled at a time."})
    policy_batch_share: float = field(
        default=1.0,
        metadata={"help": "Policy trajectories in a batch, as a share of the expert's: their half of the objective is "
                  "a mean, so fewer cost less and change its variance only."},
    )  # fmt: skip
    replay_buffer_size: int = field(default=4096, metadata={"help": "Most rollouts kept."})
    max_staleness: int | None = field(
        default=None, metadata={"help": "Drop rollouts older than so many optimizer steps; None keeps them."}
    )

    # vLLM
    use_vllm: bool = field(default=False, metadata={"help": "Sample the policy's rollouts on vLLM."})
    vllm_mode: str = field(
        default="colocate", metadata={"help": "colocate (vLLM in this process) or server (see vllm_server_base_url)."}
    )
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "Addresses of vLLM's servers, http://host:8000, several separated by commas."}
    )
    vllm_server_timeout: float = field(
        default=240.0,
        metadata={"help": "Seconds that a request to them may take, and that they are waited for while none answers."},
    )
    vllm_weights_dir: str | None = field(
        default=None,
        metadata={"help": "Folder through which weights go to vLLM, which its servers must see too; a fast local one "
                  "(/dev/shm) on one machine. None: output_dir/vllm."},
    )  # fmt: skip
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "Share of the accelerator's memory that a vLLM in this process takes."}
    )
    vllm_tensor_parallel_size: int = field(default=1, metadata={"help": "Accelerators that it spreads over."})
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "Longest string that it takes; None: as long as the model's."}
    )
    async_rollouts: bool = field(
        default=False,
        metadata={"help": "Roll out on vLLM's servers while training goes on: what one refresh asks for (see "
                  "rollout_steps) arrives at the next."},
    )  # fmt: skip

    # Speed
    tree_attention: str = field(
        default="auto",
        metadata={"help": "Attention over state trees: auto, tiled (SDPA, tile by tile), flex (FlexAttention; CUDA), "
                  "or dense (one mask for the whole batch: the slow reference)."},
    )  # fmt: skip

    # Logs
    log_completions: bool = field(
        default=False,
        metadata={"help": "Sample completions at every log, and report them with their deletions visible."},
    )
    num_completions_to_print: int = field(default=4, metadata={"help": "How many, with log_completions."})

    # Model and tokenizer
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained, where the model is given as an id or folder."}
    )
    eos_token: str | None = field(
        default=None,
        metadata={"help": "The token that ends a completion (for chats, a turn), in place of the tokenizer's."},
    )
    pad_token: str | None = field(default=None, metadata={"help": "The padding token, in place of the tokenizer's."})
    chat_template_path: str | None = field(
        default=None, metadata={"help": "Chat template: a Jinja file, or a folder or id whose tokenizer has one."}
    )

    # Data
    dataset_text_field: str = field(default="text", metadata={"help": "Name of the text column."})
    max_length: int | None = field(default=1024, metadata={"help": "Most tokens of prompt and completion together."})
    truncate_long: bool = field(
        default=False, metadata={"help": "Cut examples longer than max_length instead of failing."}
    )
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the data set."})
    completion_only_loss: bool | None = field(
        default=None,
        metadata={"help": "False imitates the prompts of prompt and completion columns as well; None and True do not."},
    )
    assistant_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Of conversations the assistant's turns are imitated, nothing else; False is refused."},
    )
    packing: bool = field(
        default=True,
        metadata={"help": "Known from TRL, without effect: examples always share rows, and never see one another."},
    )

    def __post_init__(self) -> None:
        # The trainer reads its own columns, whatever the model's forward is called with.
        self.remove_unused_columns = False
        # Without an accelerator there is nothing to pin memory for, and torch warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.deletions = None if self.deletions is None else parse_mapping(self.deletions, "deletions")
        self.model_init_kwargs = parse_mapping(self.model_init_kwargs, "model_init_kwargs")
        if self.objective == "unlikelihood" and self.deletions is None:
            self.deletions = {}  # where None would have one added; what the model has already stays
        if self.noise_source is None:
            without = self.objective in WITHOUT_MISTAKES or self.deletions == {}
            self.noise_source = "none" if without else "uniform"
        # Said outright, or transformers refuses bf16, and each of several processes trains alone.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and self.world_size == 1:
            raise InputError(
                "several processes were started, but none knows of the others; set use_cpu: true on CPUs, or check the "
                "accelerate config"
            )
        # Every rank reads its own share of a streamed data set: examples are no tensors that one rank could send.
        if self.accelerator_config.dispatch_batches is None:  # type: ignore[union-attr]
            self.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        self._check_choices()
        self._check_ranges()
        if self.objective in WITHOUT_MISTAKES and self.noise_source != "none":
            raise InputError(
                f"objective '{self.objective}' learns from the expert without mistakes; set noise_source: none, or use "
                "bc"
            )
        if self.assistant_only_loss is False:
            raise InputError(
                "assistant_only_loss: false would imitate the user as well, whose turns are no actions of the model; "
                "leave it out"
            )
        self._check_vllm()
        if self.off_expert_weight:
            if self.objective != "sequencematch":
                raise InputError(f"off_expert_weight is a part of sequencematch, and not of '{self.objective}'")
            least_reward(get_divergence(self.divergence), self.alpha)
        elif self.counterfactual_weight:
            raise InputError("counterfactual_weight counts within off_expert_weight; set that above 0")
        if self.uses_rollouts_in_objective and not self.rollout_steps:
            raise InputError(
                f"{self._what_needs_rollouts} needs rollouts; set rollout_steps, or use divergence: lecam without it"
            )

    def _check_vllm(self) -> None:
        on_servers = self.use_vllm and self.vllm_mode == "server"
        if on_servers != bool(self.vllm_server_base_url):
            raise InputError(
                "vllm_server_base_url goes with use_vllm and vllm_mode: server; set all three, or none of them"
            )
        if self.async_rollouts and not on_servers:
            raise InputError("async_rollouts needs vLLM on servers; set use_vllm, vllm_mode: server and their address")
        if self.async_rollouts and (self.noise_source == "rollout" or self.log_completions):
            raise InputError(
                "async_rollouts has vLLM to itself; use another noise_source than rollout, and log_completions: false"
            )

    @property
    def uses_rollouts_in_objective(self) -> bool:
        """Whether the policy's own trajectories enter the objective."""
        return self.objective == "sequencematch" and self._what_needs_rollouts is not None

    @property
    def _what_needs_rollouts(self) -> str | None:
        reasons = {
            "off_expert_weight": self.off_expert_weight > 0,
            "value_estimator 'mixed'": self.value_estimator == "mixed",
            "divergence 'chi2_mixture'": self.divergence == "chi2_mixture",
        }
        return next((what for what, given in reasons.items() if given), None)

    def bc_weight(self, step: int) -> float:
        """The weight of behavioural cloning at optimizer step `step` (paper, algorithm 1)."""
        if self.objective != "sequencematch":
            return 1.0
        done = step - self.bc_warmup_steps
        if done < 0:
            return 1.0
        progress = 1.0 if self.bc_anneal_steps == 0 else min(done / self.bc_anneal_steps, 1.0)
        return 1.0 + progress * (self.bc_final_weight - 1.0)

    def _check_choices(self) -> None:
        get_divergence(self.divergence)
        choices = {
            "objective": OBJECTIVES,
            "noise_source": NOISE_SOURCES,
            "terminal_value": ("learned", "zero"),
            "value_estimator": get_args(ValueEstimator),
            "tree_attention": get_args(TreeAttention),
            "vllm_mode": ("colocate", "server"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")

    def _check_ranges(self) -> None:
        rules = {
            "alpha": (self.alpha >= 0, "at least 0"),
            "gamma": (0 < self.gamma < 1, "between 0 and 1, both excluded"),
            "off_expert_weight": (self.off_expert_weight >= 0, "at least 0"),
            "counterfactual_weight": (self.counterfactual_weight >= 0, "at least 0"),
            "iql_lambda": (self.iql_lambda >= 0, "at least 0"),
            "unlikelihood_weight": (self.unlikelihood_weight >= 0, "at least 0"),
            "bc_warmup_steps": (self.bc_warmup_steps >= 0, "at least 0"),
            "bc_anneal_steps": (self.bc_anneal_steps >= 0, "at least 0"),
            "bc_final_weight": (0 <= self.bc_final_weight <= 1, "between 0 and 1"),
            "noise_rate": (0 <= self.noise_rate <= 1, "between 0 and 1"),
            "noise_max_run": (self.noise_max_run >= 1, "at least 1"),
            "noise_action_weight": (0 <= self.noise_action_weight <= 1, "between 0 and 1"),
            "rollout_steps": (self.rollout_steps >= 0, "at least 0"),
            "num_generations": (self.num_generations >= 1, "at least 1"),
            "policy_batch_share": (0 < self.policy_batch_share <= 1, "above 0 and up to 1"),
            "replay_buffer_size": (self.replay_buffer_size >= 1, "at least 1"),
            "max_staleness": (self.max_staleness is None or self.max_staleness >= 0, "at least 0"),
            "generation_batch_size": (self.generation_batch_size >= 1, "at least 1"),
            "num_completions_to_print": (self.num_completions_to_print >= 1, "at least 1"),
            "max_length": (self.max_length is None or self.max_length >= 1, "at least 1"),
        }
        for name, (fine, rule) in rules.items():
            if not fine:
                raise InputError(f"{name} must be {rule}, not {getattr(self, name)}")
        self.sampling()

    @property
    def samples_rollouts(self) -> bool:
        """Whether training ever samples from the policy."""
        return self.noise_source == "rollout" or self.uses_rollouts_in_objective

    def sampling(self) -> SamplingConfig:
        """How rollouts are sampled."""
        return SamplingConfig(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            max_completion_length=self.max_completion_length,
            max_actions=self.max_actions,
        )


def parse_mapping(value: str | dict | None, name: str) -> dict:
    """A mapping option: a mapping in YAML, JSON text on the command line. Raises InputError if it is neither."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"{name} must be a mapping in YAML or JSON text: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a mapping, not {value!r}")
    return value
