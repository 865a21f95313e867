"""Environments. Importing this package registers them; nothing else is loaded until one is made."""

from typing import Any

import gymnasium

from .. import __version__ as _guard  # noqa: F401  a bare `import envs` would load every module a second time

_KSPACE = "seggym.envs.kspace.environment:KSpaceEnv"
_KSPACE_VECTOR = "seggym.envs.kspace.environment:KSpaceVectorEnv"
_VOLUME = "seggym.envs.kspace.volumes.environment:KSpaceVolumeEnv"
_VOLUME_VECTOR = "seggym.envs.kspace.volumes.environment:KSpaceVolumeVectorEnv"
_SELECTION = "seggym.envs.selection.environment:SelectionEnv"
_SELECTION_VECTOR = "seggym.envs.selection.environment:SelectionVectorEnv"
_ADAPTATION = "seggym.envs.adaptation.environment:AdaptationEnv"
_ADAPTATION_VECTOR = "seggym.envs.adaptation.environment:AdaptationVectorEnv"
_INSTANCES = "seggym.envs.selection.instances:InstanceSelectionEnv"
_INSTANCES_VECTOR = "seggym.envs.selection.instances:InstanceSelectionVectorEnv"
_PHANTOM_SCAN = {"matrix": 128, "crop": 96}
# What a scanner meets: the echo anywhere near the centre, tilted hearts, either axis, beats out of step.
_HARD_SCAN = {
    "matrix": 128,
    "crop": 96,
    "echo_shift": 12.0,
    "orientation": 45.0,
    "field_of_view": [1.0, 1.25],
    "phase_encode": "random",
    "corruption": 0.25,
}
# Raw k-space: its coils compressed to four virtual ones, nothing simulated on top.
_MEASURED_SCAN = {"coils": 4, "snr": None, "phase": [0.0, 0.0], "echo_shift": 0.0}
_HARD = {
    "acquisition": _HARD_SCAN,
    "remeasure": "any",
    "budget": 24,
    "observation": ["image", "acquired", "budget", "energy", "corrupted", "axis"],
}

# id -> (entry point, vector entry point, keyword arguments: plain JSON values)
ENVIRONMENTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "KSpaceSeg-ACDC-v0": (_KSPACE, _KSPACE_VECTOR, {"cohort": "acdc", "reward_model": "acdc"}),
    "KSpaceSeg-Phantom-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {"cohort": "phantom", "reward_model": "phantom", "acquisition": _PHANTOM_SCAN},
    ),
    "KSpaceSeg-ACDC-Hard-v0": (_KSPACE, _KSPACE_VECTOR, {"cohort": "acdc", "reward_model": "acdc-hard", **_HARD}),
    "KSpaceSeg-Phantom-Hard-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {"cohort": "phantom", "reward_model": "phantom-hard", **_HARD},
    ),
    "KSpaceSeg-ACDC-Radial-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {"cohort": "acdc", "reward_model": "acdc-radial", "acquisition": {"trajectory": "radial"}},
    ),
    "KSpaceSeg-Phantom-Radial-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {
            "cohort": "phantom",
            "reward_model": "phantom-radial",
            "acquisition": {**_PHANTOM_SCAN, "trajectory": "radial"},
        },
    ),
    # 256 squares of 8 x 8 points: single ones would be 16,384 actions that each bring next to nothing.
    "KSpaceSeg-Phantom-Points-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {
            "cohort": "phantom",
            "reward_model": "phantom-points",
            "acquisition": {**_PHANTOM_SCAN, "trajectory": "points", "block": 8},
        },
    ),
    "KSpaceSeg-Folder-v0": (_KSPACE, _KSPACE_VECTOR, {"cohort": "folder", "reward_model": "folder"}),
    "KSpaceRecon-ACDC-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {"cohort": "acdc", "reward_model": None, "lambda_seg": 0.0, "lambda_recon": 1.0},
    ),
    "KSpaceRecon-Phantom-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {
            "cohort": "phantom",
            "reward_model": None,
            "lambda_seg": 0.0,
            "lambda_recon": 1.0,
            "acquisition": _PHANTOM_SCAN,
        },
    ),
    "KSpaceRecon-Raw-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {
            "cohort": "raw",
            "reward_model": None,
            "lambda_seg": 0.0,
            "lambda_recon": 1.0,
            "acquisition": _MEASURED_SCAN,
        },
    ),
    "KSpaceSeg-CMRxRecon-v0": (
        _KSPACE,
        _KSPACE_VECTOR,
        {"cohort": "cmrxrecon", "reward_model": "cmrxrecon", "acquisition": _MEASURED_SCAN},
    ),
    # Slots for the deepest volumes of the cohorts.
    "KSpaceSeg3D-ACDC-v0": (
        _VOLUME,
        _VOLUME_VECTOR,
        {"cohort": "acdc", "reward_model": "acdc", "max_slices": 21},
    ),
    "KSpaceSeg3D-Phantom-v0": (
        _VOLUME,
        _VOLUME_VECTOR,
        {"cohort": "phantom", "reward_model": "phantom", "acquisition": _PHANTOM_SCAN, "max_slices": 10},
    ),
    # Which sample to annotate next. At 2 mm a pixel, 96 of them hold the heart of all but .2 % of the labelled voxels.
    "ALSelect-ACDC-v0": (_SELECTION, _SELECTION_VECTOR, {"cohort": "acdc", "spacing": 2.0}),
    "ALSelect-Phantom-v0": (
        _SELECTION,
        _SELECTION_VECTOR,
        {"cohort": "phantom", "spacing": 2.0, "encoder": "phantom-encoder"},
    ),
    "ALSelect-MSCMR-v0": (_SELECTION, _SELECTION_VECTOR, {"cohort": "mscmr", "spacing": 2.0}),
    # Whole slices: the liver, and what moves in a video, may be anywhere.
    "ALSelect-CHAOS-v0": (_SELECTION, _SELECTION_VECTOR, {"cohort": "chaos"}),
    "ALSelect-DAVIS-v0": (_SELECTION, _SELECTION_VECTOR, {"cohort": "davis"}),
    "ALSelect-Classification-v0": (
        _SELECTION,
        _SELECTION_VECTOR,
        {"cohort": "images", "size": 32, "learner": "classifier", "metric": "accuracy"},
    ),
    # Every object of an image is outlined.
    "ALSelect-Instances-v0": (
        _INSTANCES,
        _INSTANCES_VECTOR,
        {"cohort": "instances", "size": 64, "learner": "instances", "metric": "map"},
    ),
    # A label map as the action. From one view of the heart to the other.
    "SegAdapt-CAMUS-v0": (
        _ADAPTATION,
        _ADAPTATION_VECTOR,
        {"cohort": "camus", "size": 128, "source_frames": ["2CH"], "target_frames": ["4CH"]},
    ),
    "SegAdapt-ACDC-v0": (
        _ADAPTATION,
        _ADAPTATION_VECTOR,
        {"cohort": "acdc", "size": 96, "spacing": 2.0, "shift": {"kinds": ["gamma", "bias", "blur"], "severity": 3}},
    ),
    "SegAdapt-Phantom-v0": (
        _ADAPTATION,
        _ADAPTATION_VECTOR,
        {
            "cohort": "echo",
            "size": 64,
            "shift": {"kinds": ["gain", "gamma", "speckle", "attenuation"], "severity": 3},
        },
    ),
}


def register_envs() -> None:
    """Register every id of :data:`ENVIRONMENTS` with Gymnasium; calling it again changes nothing."""
    for name, (entry_point, vector_entry_point, kwargs) in ENVIRONMENTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point, vector_entry_point=vector_entry_point, kwargs=kwargs)
