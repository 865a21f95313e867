"""How strong the shift has to be: the lowest severity at which the source network falls short in validation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from seggym.agents.rl4seg.settings import RunSettings
from seggym.agents.rl4seg.supervised import dice_score, fit
from seggym.agents.rl4seg.trial import domain_settings, fresh_network, open_pair, seed_of
from seggym.cohorts.shifts import SEVERITIES
from seggym.envs.adaptation.domains import DomainPair, target_train_labels
from seggym.errors import SeggymError
from seggym.files import write_json
from seggym.reward_models.frozen import resolve_device
from seggym.reward_models.networks import UNet

MARGIN = 0.05
FILE = "severity.json"


def find_severity(settings: RunSettings, margin: float = MARGIN, say: Callable[[str], Any] = print) -> int | None:
    """The lowest severity at which source-only is ``margin`` of Dice below the ceiling; None where there is none.

    The source network is trained once; the ceiling, on the target's labels from there on, for every severity. Both are
    scored on target validation patients, so that test patients take no part. What was found is written to
    ``severity.json`` in the run's folder.
    """
    if not settings.domains.get("shift"):
        raise SeggymError("stage=severity needs domains.shift, found none: the domains differ in something else")
    torch.set_num_threads(settings.threads)
    device = resolve_device(settings.device)
    source: UNet | None = None
    rows: list[dict[str, float]] = []
    chosen = None
    for severity in SEVERITIES:
        shift = {**settings.domains["shift"], "severity": severity}
        domains = domain_settings(replace(settings, domains={**settings.domains, "shift": shift}))
        pair = open_pair(domains, device)
        source = _trained_source(settings, pair, device) if source is None else source
        val, target = pair.target_val, pair.target_train
        assert val.masks is not None
        score = dice_score(val.images, val.masks, len(pair.class_names))
        labels = target_train_labels(domains).to(device)
        seed = seed_of(settings, f"severity {severity}")
        high = fit(source, target.images, labels, settings.pretrain, seed, score=score).best
        low = score(source)
        rows.append({"severity": severity, "source_only": low, "ceiling": high, "gap": high - low})
        say(f"severity {severity}: source only {low:.3f}, ceiling {high:.3f}, gap {high - low:.3f}")
        if high - low >= margin:
            chosen = severity
            break
    write_json(Path(settings.out) / FILE, {"margin": margin, "chosen": chosen, "validation": rows})
    say("no severity suffices" if chosen is None else f"domains.shift.severity={chosen}")
    return chosen


def _trained_source(settings: RunSettings, pair: DomainPair, device: torch.device) -> UNet:
    source, val = pair.source_train, pair.source_val
    assert source.masks is not None
    assert val.masks is not None
    classes = len(pair.class_names)
    network = fresh_network(settings, classes, device, "severity")
    score = dice_score(val.images, val.masks, classes)
    seed = seed_of(settings, "severity")
    return fit(network, source.images, source.masks, settings.pretrain, seed, score=score).network
