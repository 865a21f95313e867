"""From the keyword arguments of an adaptation environment to its engine: the images of a role and a reward."""

from seggym.envs.adaptation.domains import Domain, open_role, target_train_labels
from seggym.envs.adaptation.engine import AdaptationEngine
from seggym.envs.adaptation.rewards import ORACLES, OracleReward
from seggym.envs.adaptation.settings import AdaptationSettings
from seggym.errors import SeggymError
from seggym.reward_models.error_net import ErrorNet, load_error_net
from seggym.reward_models.frozen import resolve_device


def build_engine(settings: AdaptationSettings, num_envs: int) -> AdaptationEngine:
    """The engine that ``settings`` describe.

    The labels of target_train are read for an oracle's reward alone; an error net that was trained on patients of the
    role is refused where the role is for validation or testing.
    """
    device = resolve_device(settings.device)
    domain, class_names = open_role(settings, settings.role)
    truth = domain.masks
    reward: OracleReward | ErrorNet
    if settings.reward in ORACLES:
        truth = target_train_labels(settings) if truth is None else truth
        reward = OracleReward(truth, len(class_names), settings.reward)
    else:
        reward = _error_net(settings, domain, class_names).to(device)
    return AdaptationEngine(
        domain.images, reward, len(class_names), num_envs, truth, domain.names, class_names, device=device
    )


def _error_net(settings: AdaptationSettings, domain: Domain, class_names: tuple[str, ...]) -> ErrorNet:
    assert settings.reward_model is not None
    net = load_error_net(settings.reward_model)
    net.require_classes(class_names)
    seen = sorted(set(net.patients) & set(domain.patients))
    if seen and settings.role in ("source_val", "target_val", "target_test"):
        raise SeggymError(
            f"the error net in {settings.reward_model} was trained on {len(seen)} patients of {settings.role} "
            f"({', '.join(seen[:3])}...): train one without them, or choose another role"
        )
    return net
