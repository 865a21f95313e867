"""One number per action from any trained policy, so that all of them can be masked, sampled and compared alike."""

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

# The maskable policy of sb3-contrib is no subclass of the other.
ACTOR_CRITICS = (ActorCriticPolicy, MaskableActorCriticPolicy)


def action_scores(policy: BasePolicy, observation: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of an actor, or Q values: float32 (N, A), on the policy's device. No gradient is kept."""
    observation = {name: value.to(policy.device) for name, value in observation.items()}
    with torch.no_grad():
        if isinstance(policy, DQNPolicy):
            return policy.q_net(observation)
        assert isinstance(policy, ACTOR_CRITICS)
        return policy.get_distribution(observation).distribution.logits  # type: ignore[union-attr]


def best_legal(policy: BasePolicy, observation: dict[str, torch.Tensor], legal: torch.Tensor) -> torch.Tensor:
    """The legal action with the highest score: int64 (N,) on the device of ``legal`` bool (N, A)."""
    scores = action_scores(policy, observation).to(legal.device)
    return scores.masked_fill(~legal, -torch.inf).argmax(1)


def num_passed_scores(policy: BasePolicy) -> int:
    """How many of the features that reach the head are scores of actions already."""
    return getattr(_extractor(policy), "num_scores", 0)


def is_equivariant(policy: BasePolicy) -> bool:
    """Whether a head may do nothing but pass on the scores in the features, lest actions be told apart by number."""
    return getattr(_extractor(policy), "equivariant", False)


def _extractor(policy: BasePolicy) -> nn.Module:
    return (policy.q_net if isinstance(policy, DQNPolicy) else policy).features_extractor


def policy_heads(policy: BasePolicy) -> list[nn.Linear]:
    """The layers whose outputs are the scores: the actor's last, or the last of both Q networks."""
    if isinstance(policy, DQNPolicy):
        return [network.q_net[-1] for network in (policy.q_net, policy.q_net_target)]  # type: ignore[misc]
    assert isinstance(policy, ACTOR_CRITICS)
    assert isinstance(policy.action_net, nn.Linear)
    return [policy.action_net]
