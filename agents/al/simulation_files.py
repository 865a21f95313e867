"""The two YAML files of the simulation of active learning with images, as arguments of ``run_al.py``.

``model_config`` has architecture and training, ``al_config`` strategy, query and simulation; their groups may also be
written flat. docs/active_learning.md has the table.
"""

import math
from typing import Any

from seggym.agents.al.translation import Keys, argument

_STRATEGIES = {
    "least_confident": "least_confidence",
    "least_confidence": "least_confidence",
    "margin": "margin",
    "entropy": "entropy",
}
# Of drawn images these many train; the others validate and test.
_TRAINING_SHARE = 0.67


def translate_both(models: Keys | None, loop: Keys | None) -> list[str]:
    """Arguments of ``run_al.py`` that mean what the two files say; None for one that is not there."""
    found = ["experiment=classification"]
    if models is not None:
        found += _model(models)
    return found + (_loop(loop) if loop is not None else [])


def _model(file: Keys) -> list[str]:
    shape, training = file.group_of("architecture"), file.group_of("training_params")
    layers = shape.take("conv_layers", [])
    widths = [layer.get("out_channels") if isinstance(layer, dict) else None for layer in layers]
    if any(not isinstance(width, int) for width in widths) or len(widths) == 1:
        raise shape.refused("conv_layers", "at least two entries with out_channels")
    found = ["model=classifier"]
    if widths:
        found.append(argument("model.options.widths", widths))
    if "num_classes" in shape:
        found.append(argument("cohort.options.classes", shape.take("num_classes")))
    shape.take("num_classes")
    shape.set_aside("drawn images have one channel, those of a folder three", "input_channels")
    shape.set_aside("one linear layer follows the last convolution", "fc_layers")
    for key, name in (
        ("learning_rate", "learning_rate"),
        ("batch_size", "batch"),
        ("weight_decay", "weight_decay"),
        ("dropout_rate", "dropout"),
    ):
        value = _either(file, training, key)
        if value is not None:
            found.append(argument(f"model.options.{name}", value))
    first, later = (
        _either(file, training, "num_epochs_initial"),
        _either(file, training, "num_epochs_active_retraining"),
    )
    if first is not None or later is not None:
        found.append("++model.iterations_by=epochs")
        found.append(argument("model.options.iterations", later if later is not None else first))
        found.append(argument("model.first_iterations", first))
    # That program goes on training one network.
    found.append("++model.options.start=fine_tune")
    training.require("AdamW is the only optimiser", ["Adam", "AdamW"], "optimizer")
    training.require("cross-entropy is the only loss", ["CrossEntropyLoss"], "loss_function")
    if "device" in file:
        found.append(argument("device", file.take("device")))
    file.take("device")
    file.set_aside("the learner is model=classifier", "model_name", "model_type")
    for keys in (file, shape, training):
        keys.finish()
    return found


def _loop(file: Keys) -> list[str]:
    query, simulation = file.group_of("query_params"), file.group_of("simulation_params")
    kind = file.choose(
        "active_learning_strategy",
        "UncertaintySampling",
        {"UncertaintySampling": "uncertainty", "RandomSampling": "random"},
    )
    method = _either(file, query, "uncertainty_method", "least_confident")
    if method not in _STRATEGIES:
        raise query.refused("uncertainty_method", f"one of {', '.join(_STRATEGIES)}")
    initial = _either(file, simulation, "initial_labeled_size", 20)
    found = ["strategy=random" if kind == "random" else f"strategy={_STRATEGIES[method]}"]
    found.append(argument("policy.initial", initial))
    found.append(argument("policy.queries", _either(file, simulation, "num_total_queries", 20)))
    found.append(argument("policy.per_query", _either(file, query, "n_instances_per_query", 10)))
    pool = _either(file, simulation, "unlabeled_pool_size")
    if pool is not None:
        found.append(argument("cohort.options.count", math.ceil((pool + initial) / _TRAINING_SHARE)))
    seed = _either(file, simulation, "random_seed")
    if seed is not None:
        found.append(argument("seed", seed))
    for keys in (file, query, simulation):
        keys.finish()
    return found


def _either(file: Keys, group: Keys, key: str, default: Any = None) -> Any:
    """A number or a word of the group, or of the file itself."""
    return group.take(key, file.take(key, default))
