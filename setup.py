"""Packaging of seggym: the top-level folders are installed as ``seggym.<folder>``, never under their bare names."""

from setuptools import setup

FLOORS = [
    "agents",
    "agents.al",
    "agents.algorithms",
    "agents.annotate",
    "agents.maskal",
    "agents.pixel",
    "agents.rl4seg",
    "agents.rl4seg.baselines",
    "agents.rllib",
    "agents.strategies",
    "configs",
    "configs.adaptation",
    "configs.maskal",
    "configs.selection",
    "cohorts",
    "cohorts.validity",
    "cohorts.annotations",
    "envs",
    "envs.adaptation",
    "envs.kspace",
    "envs.kspace.volumes",
    "envs.selection",
    "kspace",
    "kspace.reconstruction",
    "reward_models",
    "reward_models.instances",
]

PHANTOM_MODELS = ["phantom", "phantom_hard", "phantom_radial", "phantom_points", "phantom_encoder"]

setup(
    packages=["seggym", *(f"seggym.{floor}" for floor in FLOORS)],
    # What package_data names and nothing else; otherwise setuptools warns of every folder of data as a missing package.
    include_package_data=False,
    package_dir={"seggym": "seggym", **{f"seggym.{floor}": floor.replace(".", "/") for floor in FLOORS}},
    package_data={
        "seggym": ["py.typed"],
        "seggym.agents.annotate": ["page.*"],
        "seggym.configs.adaptation": ["*.yaml", "*/*.yaml"],
        "seggym.configs": ["*.yaml", "*/*.yaml"],
        "seggym.cohorts.validity": ["*.yaml"],
        "seggym.configs.maskal": ["*.yaml"],
        "seggym.configs.selection": ["*.yaml", "*/*.yaml"],
        "seggym.reward_models": [f"{name}/{depth}" for name in PHANTOM_MODELS for depth in ("*", "*/*")],
    },
)
