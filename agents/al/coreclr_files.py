"""``exp.yml`` of CoreCLR (github.com/arvindmvepa/al-seg) as arguments of ``run_al.py``.

Every key of its constructors is known: what this package does otherwise is set aside with a note, and what it cannot do
is refused. docs/active_learning.md has the table.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from seggym.agents.al.translation import Keys, argument
from seggym.errors import SeggymError

_COHORTS = {
    "ACDC": ("acdc", []),
    "MSCMR": ("mscmr", []),
    "CHAOS": ("chaos", []),
    "CHAOS_CT": ("chaos", []),
    "CHAOS_MR": ("chaos", ["++cohort.options.modality=mr"]),
    "CHAOS_MRI": ("chaos", ["++cohort.options.modality=mr"]),
    "DAVIS": ("davis", []),
}
_MODELS = {
    "dmpls": ("scribble", False),
    "db_dmpls": ("scribble", True),
    "strong": ("mask", False),
    "db_strong": ("mask", True),
}
# Weights of distances between metadata, which that program adds to those of features.
_METADATA = (
    "patient_wt",
    "phase_wt",
    "group_wt",
    "height_wt",
    "weight_wt",
    "slice_rel_pos_wt",
    "slice_mid_wt",
    "slice_pos_wt",
)
_PASSES = 40


def translate(file: Keys) -> list[str]:
    """Arguments of ``run_al.py`` that mean what ``file`` says."""
    model, policy = file.group_of("model"), file.group_of("policy")
    geometry, uncertainty = file.group_of("data_geometry"), file.group_of("model_uncertainty")
    file.set_aside("results go to <exp_dir>/seggym, or to run_dir=", "exp_dir")
    file.finish()
    found, dropout, members = _model(model)
    found += _policy(policy)
    kind = policy.choose("policy_type", "ranked", {"random": "random", "ranked": "ranked"})
    chosen = _geometry(geometry)
    asked = _uncertainty(uncertainty, model, dropout, members)
    for keys in (model, policy, geometry, uncertainty):
        keys.finish()
    if chosen and asked:
        raise SeggymError(
            f"{file.path} has data_geometry and model_uncertainty, expected one of them: a round is chosen by geometry "
            "or by uncertainty; leave one out, or make its type pass"
        )
    if kind == "random":
        chosen = asked = []
        found.append("strategy=random")
    elif not chosen and not asked:
        raise SeggymError(
            f"{file.path} has policy_type ranked without data_geometry or model_uncertainty, expected one of them; add "
            "it, or set policy_type: random"
        )
    return [*found, *chosen, *asked]


def _model(model: Keys) -> tuple[list[str], bool, int]:
    """Arguments; whether the model is asked by Monte Carlo dropout; members of its ensemble."""
    kind = model.take("model_type", "dmpls")
    if kind not in _MODELS:
        raise model.refused("model_type", f"one of {', '.join(_MODELS)}: lvm_med and spml need networks of their own")
    ann_type, dropout = _MODELS[kind]
    given = model.choose(
        "ann_type",
        "label" if ann_type == "mask" else "scribble",
        {"label": "mask", "mask": "mask", "scribble": "scribble"},
    )
    if given != ann_type:
        raise model.refused("ann_type", f"{'label' if ann_type == 'mask' else 'scribble'} for model_type {kind}")
    cohort, options = model.choose("dataset", "ACDC", _COHORTS)
    network = "unet" if ann_type == "mask" else "unet_cct"
    model.require(f"the network of {kind}", [network], "seg_model")
    members = model.number("ensemble_size", 1)
    size = model.take("patch_size", [256, 256])
    if not isinstance(size, Sequence) or len(size) != 2 or size[0] != size[1]:
        raise model.refused("patch_size", "two equal numbers of pixels")
    supervision = "" if cohort == "davis" else "_weak" if ann_type == "scribble" else "_strong"
    found = [f"experiment={cohort}{supervision}", "model=wsl4mis", f"++model.ann_type={ann_type}", *options]
    found += [argument("data.size", size[0]), "++data.spacing=null", argument("model.options.ensemble", members)]
    found.append(argument("model.options.batch", model.number("batch_size", 6)))
    found.append(argument("model.options.iterations", model.number("max_iterations", 60000)))
    found += ["++model.iterations_by=fraction", "++model.weights=best", "++model.validate_every=200"]
    if "data_root" in model:
        found.append(f"datadir={model.take('data_root')}")
    model.take("data_root")
    model.set_aside("SGD there, AdamW here: model.options.learning_rate is another number", "base_lr")
    model.set_aside("what a strategy sees of the network is its own affair", "inf_train_type", "feature_decoder_index")
    model.set_aside("the cohort says it", "in_chns", "num_classes")
    model.set_aside("device=auto finds a GPU", "gpus")
    model.set_aside("all randomness follows from policy.seed", "seed", "deterministic", "tag")
    model.set_aside("validation is every model.validate_every=200 iterations", "val_every")
    return found, dropout, int(members)


def _policy(policy: Keys) -> list[str]:
    rounds = policy.take("rounds")
    if (
        not isinstance(rounds, Sequence)
        or not rounds
        or any(not isinstance(entry, Sequence) or not entry for entry in rounds)
    ):
        raise policy.refused("rounds", "a list of [fraction, 0]")
    for entry in rounds:
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in entry[:2])
        if not numbers or (len(entry) > 1 and entry[1] != 0) or any(entry[2:]):
            raise policy.refused(
                "rounds",
                "entries [fraction, 0]: pseudo labels, other splits and rounds without training are not offered",
            )
    budgets = [round(total, 6) for total in accumulate(float(entry[0]) for entry in rounds)]
    found = [argument("policy.budgets", budgets), argument("seed", int(policy.number("seed", 0)))]
    policy.require("pseudo labels are not offered", [False], "pseudolabels")
    policy.require("the highest utility is chosen", ["desc"], "rank_type")
    policy.set_aside("the same command always goes on where it stopped", "resume")
    policy.set_aside("files have names of their own", "save_im_score_file", "tag")
    for name, keys in (
        ("ensemble_kwargs", ("inf_test", "inf_train", "inf_val", "train", "cur_total_oracle_split")),
        ("uncertainty_kwargs", ("delete_preds",)),
        ("geometry_kwargs", ()),
    ):
        group = policy.group_of(name)
        group.require("no step can be left out", [False], "skip")
        group.set_aside("every network is scored on val and test, and predictions are not kept", *keys)
        group.finish()
    return found


def _geometry(geometry: Keys) -> list[str]:
    """Arguments of the strategy; none for pass."""
    kind = geometry.choose(
        "data_geometry_type",
        "pass",
        {name: name for name in ("pass", "kcenter_greedy", "coregcn", "vaal", "typiclust")},
    )
    geometry.set_aside("all randomness follows from policy.seed", "seed")
    geometry.set_aside("the cohort and the device say it", "dataset_type", "in_chns", "gpus", "patch_size")
    if kind == "pass":
        return []
    found = {"kcenter_greedy": _kcenter, "coregcn": _coregcn, "vaal": _vaal, "typiclust": _typiclust}[kind](geometry)
    preset, *options = found
    return [f"strategy={preset}", *(argument(f"data_geometry.{key}", value) for key, value in options)]


def _kcenter(keys: Keys) -> list[Any]:
    _coreset(keys)
    contrastive, features = bool(keys.take("contrastive", False)), bool(keys.take("feature_model", False))
    parameters = keys.group_of("feature_model_params")
    if contrastive:
        return ["coreclr", *_coreclr(parameters)]
    parameters.set_aside(
        "the embeddings are those of data.encoder",
        *("encoder", "pretrained", "inf_batch_size", "fuse_image_data", "fuse_image_data_size_prop", "patch_size"),
        *("batch_size", "seed", "num_epochs", "use_patient", "use_phase", "use_slice_pos", "lr", "loss_wt"),
    )
    parameters.finish()
    learner = bool(keys.take("use_model_features", False))
    return ["kcenter_learner" if learner else "kcenter" if features else "kcenter_pixels"]


def _coreset(keys: Keys) -> None:
    """What all coresets have in common."""
    keys.require("choice with a temperature is not offered", ["kcenter_greedy", "gpu_kcenter_greedy"], "alg_string")
    keys.require("distances are Euclidean", ["euclidean"], "metric")
    keys.set_aside(
        "left out: it compares images within the scribbles of unlabelled images, which nobody has", "use_labels"
    )
    keys.set_aside(
        "part of the distance within scribbles, which is left out",
        *("label_wt", "default_pos_val", "pos_wt", "normalize_pos_by_label_ct", "max_dist", "extra_feature_wt"),
        *("wt_max_dist_mult", "uncertainty_score_file"),
    )
    keys.set_aside("left out: without model_uncertainty that program ends in round 1", "use_uncertainty")
    why = "metadata and uncertainty are not mixed into distances of features (strategy=metadata_kcenter has them alone)"
    keys.require(why, [0], *_METADATA, "uncertainty_wt")
    coreset = keys.group_of("coreset_kwargs")
    coreset.set_aside("for a choice with a temperature, which is not offered", "temp_init", "temp_scale")
    coreset.finish()


def _coreclr(keys: Keys) -> list[tuple[str, Any]]:
    """Options of CoreCLR's encoder: groups, and which of their members each loss pulls together."""
    named = [("slice", "use_slice_pos"), ("volume", "use_phase"), ("patient", "use_patient")]
    groups = [group for group, key in named if keys.take(key, False)]
    size = 1 + len(groups)
    weights = [0.0] * len(groups)
    for number in (1, 2, 3):
        loss, weight = keys.take(f"pos_loss{number}"), keys.number(f"pos_loss{number}_wt", 0.1)
        masked = list(keys.take(f"pos_loss{number}_mask", []))
        if not loss:
            continue
        members = size - len(masked)
        if members < 2 or sorted(masked) != list(range(members, size)):
            raise keys.refused(f"pos_loss{number}_mask", f"the last members of a group of {size}, at least two left")
        weights[members - 2] += weight
    keys.require("NT-Xent weighs 1 here", [1, 1.0], "loss_wt")
    keys.require("losses that push members apart are not offered", [False], "neg_loss")
    keys.take("neg_loss_wt"), keys.take("neg_loss_mask")
    found: list[tuple[str, Any]] = [("groups", groups), ("weights", [round(weight, 6) for weight in weights])]
    # Images of a batch there, groups of a batch here; the losses need two.
    found.append(("groups_per_batch", max(int(keys.number("batch_size", 64)) // size, 2)))
    for key, name in (
        ("lr", "learning_rate"),
        ("weight_decay", "weight_decay"),
        ("temperature", "temperature"),
        ("projection_dim", "projection"),
        ("seed", "seed"),
    ):
        if key in keys:
            found.append((name, keys.number(key)))
        keys.take(key)
    keys.set_aside(
        "a small encoder that starts from nothing, not a ResNet of natural images",
        "encoder",
        "pretrained",
        "inf_batch_size",
    )
    keys.set_aside("data_geometry.steps says how long the encoder is trained", "num_epochs", "patience", "tol")
    keys.set_aside("data_geometry.size is the size of its images", "patch_size")
    keys.set_aside(
        "left out: distances are those of the features alone", "fuse_image_data", "fuse_image_data_size_prop"
    )
    keys.set_aside("groups are drawn anew for every batch", "reset_sampler_every_epoch")
    keys.set_aside("features are kept by content", "cl_model_save_name", "cl_prev_path", "debug", "gpus")
    keys.set_aside("only the images themselves are used", "reg_data_dir")
    keys.finish()
    return found


def _options(keys: Keys, names: dict[str, str]) -> list[tuple[str, Any]]:
    """Numbers that only have another name here."""
    found = [(name, keys.number(key)) for key, name in names.items() if key in keys]
    for key in names:
        keys.take(key)
    return found


def _coregcn(keys: Keys) -> list[Any]:
    _coreset(keys)
    keys.require("all unlabelled samples are nodes", ["all"], "subset_size")
    keys.require("nodes are joined by their features alone", [None], "adj_sim_wt_metric")
    keys.require("the features are not trained with the graph", [False], "train_feature_model")
    keys.set_aside("the first samples are random for every strategy", "starting_sample", "use_random_start")
    keys.set_aside("that program does not use it", "s_margin", "train_feature_layer_index", "lr_feature_model")
    keys.set_aside(
        "nodes have the learner's features",
        "feature_model",
        "use_model_features",
        "feature_model_params",
        "contrastive",
    )
    keys.set_aside("nodes have the learner's features", "feature_model_batch_size", "feature_model_ignore_layer")
    names = {"hidden_units": "hidden", "dropout_rate": "dropout", "lr_gcn": "learning_rate", "wdecay": "weight_decay"}
    return [
        "coregcn",
        *_options(keys, names | {"lambda_loss": "balance", "num_epochs_gcn": "epochs", "num_gcn_epochs": "epochs"}),
    ]


def _vaal(keys: Keys) -> list[Any]:
    keys.set_aside("data_geometry.steps says how long the networks are trained", "num_epochs")
    keys.require("one step each", [2], "vae_steps_per")
    keys.require("one step each", [1], "discriminator_steps_per")
    keys.set_aside("that program does not use it", "use_model_features", "num_workers")
    names = {"latent_dim": "latent", "batch_size": "batch", "lr": "learning_rate", "vae_beta": "beta"}
    return ["vaal", *_options(keys, names | {"adversary_param": "adversary"})]


def _typiclust(keys: Keys) -> list[Any]:
    keys.set_aside(
        "the embeddings are those of data.encoder",
        "feature_model",
        "feature_model_params",
        "use_model_features",
        "contrastive",
    )
    keys.set_aside("left out, as above", "use_labels", "alg_string", "metric", "feature_model_batch_size")
    names = {"min_cluster_size": "min_cluster_size", "max_num_clusters": "max_clusters", "k_nn": "neighbours"}
    return ["typiclust", *_options(keys, names)]


def _uncertainty(keys: Keys, model: Keys, dropout: bool, members: int) -> list[str]:
    """Arguments of the strategy; none for pass."""
    score = model.take("db_score_func")
    kind = keys.choose("model_uncertainty_type", "pass", {name: name for name in ("pass", "ensemble", "stochastic")})
    keys.set_aside("all randomness follows from policy.seed", "seed")
    function = keys.take("score_func", keys.take("scoring_method", "mean_score" if score else "entropy_w_label_probs"))
    if kind == "pass":
        return []
    if kind == "stochastic":
        keys.set_aside("a batch has the size of the query", "sbatch_size")
    known = {
        "entropy_w_label_probs": "ensemble_entropy" if dropout or members > 1 else "entropy",
        "ensemble_variance_ratio": "ensemble_variance",
        "mean_score": {"bald_score": "bald", "entropy_score": "ensemble_entropy"}.get(score, ""),
    }
    strategy = known.get(function, "")
    if not strategy:
        raise keys.refused(
            "score_func", "entropy_w_label_probs, ensemble_variance_ratio, or mean_score of bald_score or entropy_score"
        )
    count = _PASSES if dropout else max(members, 2)
    if kind == "stochastic":
        return ["strategy=stochastic_batches", argument("model_uncertainty.uncertainty", strategy)]
    options = [] if strategy == "entropy" else [argument("model_uncertainty.members", count)]
    return [f"strategy={strategy}", *options]
