"""What is minimised: divergences between occupancy measures, and the losses as pure functions of `Steps`."""

from .divergences import DIVERGENCES, MAX_RATIO, Divergence, get_divergence
from .losses import Components, ValueEstimator, bc_loss, iql_offline_loss, rewards, sequencematch_loss, telescoped_value
from .off_expert import least_reward, off_expert_loss, off_expert_loss_reference
from .reference import bc_loss_reference, iql_offline_loss_reference, sequencematch_loss_reference
from .steps import Steps
from .unlikelihood import unlikelihood_loss, unlikelihood_loss_reference

__all__ = [
    "DIVERGENCES",
    "MAX_RATIO",
    "Components",
    "Divergence",
    "Steps",
    "ValueEstimator",
    "bc_loss",
    "bc_loss_reference",
    "get_divergence",
    "iql_offline_loss",
    "iql_offline_loss_reference",
    "least_reward",
    "off_expert_loss",
    "off_expert_loss_reference",
    "rewards",
    "sequencematch_loss",
    "sequencematch_loss_reference",
    "telescoped_value",
    "unlikelihood_loss",
    "unlikelihood_loss_reference",
]
