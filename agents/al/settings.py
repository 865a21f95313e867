"""The values of an active-learning run, checked before anything is computed: data, model, strategy, policy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from seggym.agents.strategies.naming import nearest
from seggym.agents.strategies.registry import make_strategy
from seggym.agents.strategies.strategy import Strategy
from seggym.configs.checking import build
from seggym.envs.selection.settings import Costs, SelectionSettings
from seggym.errors import SeggymError

_CHOICES = {
    "iterations_by": ("fixed", "fraction", "epochs"),
    "weights": ("last", "best"),
    "validation_labels": ("given", "counted"),
}


@dataclass(frozen=True)
class DataSettings:
    """Slices: ``size`` pixels square of ``spacing`` mm (None: the whole slice, resized), annotated by ``unit``.

    ``encoder`` gives the embeddings (None: trained without labels on the pool, and kept). ``costs`` are fields of
    :class:`seggym.envs.selection.settings.Costs`.
    """

    size: int = 96
    spacing: float | None = None
    unit: str = "slice"
    encoder: str | None = None
    costs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    """What is trained in every round: ``learner`` (unet, probe or classifier) with its ``options``.

    ``iterations_by`` says what ``options.iterations`` counts: iterations of every training (fixed), of a training with
    the whole pool, of which a round gets its share (fraction, as in CoreCLR), or passes over the annotated images
    (epochs). ``first_iterations`` replaces them in round 0. ``weights`` are the last ones, or the best ones by
    validation every ``validate_every`` iterations.
    """

    learner: str = "unet"
    ann_type: str = "mask"
    scribbles: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    iterations_by: str = "fixed"
    first_iterations: int | None = None
    weights: str = "last"
    validate_every: int = 50


@dataclass(frozen=True)
class PolicySettings:
    """How much is annotated when.

    ``budgets`` are cumulative, a training each: shares of the pool (fractions) or numbers of samples (whole numbers).
    Instead of them ``initial`` samples and then ``queries`` queries of ``per_query``. ``validation_labels``, where
    they choose the best weights, are given to everybody or counted in the budget. ``full`` also trains with the whole
    pool, for comparison.
    """

    budgets: Sequence[float] | None = None
    initial: int | None = None
    queries: int | None = None
    per_query: int | None = None
    validation_labels: str = "given"
    full: bool = True


@dataclass(frozen=True)
class LoopSettings:
    """A run: one strategy, one seed. ``chooser`` holds the name of the strategy (``type``) and its options."""

    run_dir: str
    name: str
    seed: int
    cohort: str
    cohort_options: Mapping[str, Any]
    split: str | None
    datadir: str | None
    data: DataSettings
    model: ModelSettings
    policy: PolicySettings
    chooser: Mapping[str, Any]
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        for group in (self.model, self.policy):
            for key, allowed in _CHOICES.items():
                value = getattr(group, key, allowed[0])
                if value not in allowed:
                    raise SeggymError(f"{key}={value!r} is unknown; {nearest(str(value), allowed)}")
        if self.model.learner == "probe" and (self.model.iterations_by, self.model.weights) != ("fixed", "last"):
            raise SeggymError(
                f"iterations_by={self.model.iterations_by} and weights={self.model.weights} are for networks, found "
                "learner=probe, which is solved in closed form; leave both out"
            )
        if self.model.validate_every < 1 or (self.model.first_iterations or 1) < 1 or self.threads < 1:
            raise SeggymError("model.validate_every, model.first_iterations and threads must be at least 1")
        if "validate_every" in self.model.options:
            raise SeggymError("model.options.validate_every is set by model.weights=best and model.validate_every")
        if self.seed < 0:
            raise SeggymError(f"seed={self.seed} must not be negative")
        self.strategy  # noqa: B018  raises for a name or an option that there is not

    @property
    def classification(self) -> bool:
        """Whether a sample is an image with one label."""
        return self.cohort == "images"

    @property
    def strategy(self) -> Strategy:
        """The strategy, made anew."""
        options = dict(self.chooser)
        return make_strategy(str(options.pop("type", "random")), **options)

    @property
    def costs(self) -> Costs:
        """Minutes of annotation."""
        return build(Costs, self.data.costs, "data.costs.")

    def selection(self, initial: int = 1, spare: int = 1) -> SelectionSettings:
        """The environment behind the run: ``initial`` samples are annotated at its start, ``spare`` are left."""
        options = dict(self.model.options)
        if self.model.weights == "best":
            options["validate_every"] = self.model.validate_every
        return SelectionSettings(
            cohort=self.cohort,
            data_root=self.datadir,
            cohort_options=dict(self.cohort_options),
            split=self.split,
            # All patients of the train role are the pool; those of val take the place of a reward set.
            shares=(0.0, 1.0, 0.0),
            size=self.data.size,
            spacing=self.data.spacing,
            unit=self.data.unit,
            ann_type=self.model.ann_type,
            scribbles=self.model.scribbles,
            learner=self.model.learner,
            learner_options=options,
            encoder=self.data.encoder,
            initial=initial,
            budget=spare,
            action="pool",
            metric="accuracy" if self.classification else "dice",
            costs=asdict(self.costs),
            scored=("reward", "test"),
            device=self.device,
        )

    def identity(self) -> dict[str, Any]:
        """All that the results follow from, plain JSON; where the run lies is no part of it."""
        content = asdict(self)
        return {key: value for key, value in content.items() if key != "run_dir"}


def loop_settings(values: Mapping[str, Any]) -> LoopSettings:
    """The run that the configuration ``values`` (plain) describe; raises :class:`SeggymError` for what is wrong."""
    chosen = {name: values[name] for name in ("data_geometry", "model_uncertainty") if values[name]}
    if len(chosen) > 1:
        raise SeggymError(
            "data_geometry and model_uncertainty are both set, expected one of them: a round is chosen by geometry or "
            "by uncertainty; set the other to null"
        )
    for name, group in chosen.items():
        if not isinstance(group, Mapping) or not isinstance(group.get("type"), str):
            raise SeggymError(f"{name}={group!r} must name a strategy, as in {name}.type=kcenter")
    cohort = values["cohort"]
    return build(
        LoopSettings,
        {
            "cohort": cohort["name"],
            "cohort_options": cohort["options"] or {},
            "split": cohort["split"],
            "data": build(DataSettings, values["data"], "data."),
            "model": build(ModelSettings, values["model"], "model."),
            "policy": build(PolicySettings, values["policy"], "policy."),
            "chooser": next(iter(chosen.values()), {"type": "random"}),
            **{key: values[key] for key in ("run_dir", "name", "seed", "datadir", "threads", "device")},
        },
    )


def sample_counts(policy: PolicySettings, pool: int, given: int = 0, counted: int = 0) -> list[int]:
    """Samples of the pool that are annotated when each round is trained.

    ``given`` samples are annotated from the start whatever the policy says (0: the policy says how many); ``counted``
    are labels outside the pool that the budgets must pay for as well.
    """
    if policy.budgets is not None:
        if any(value is not None for value in (policy.initial, policy.queries, policy.per_query)):
            raise SeggymError("policy has budgets and also initial, queries or per_query; set one of the two to null")
        budgets = list(policy.budgets)
        if not budgets or any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in budgets):
            raise SeggymError(f"policy.budgets={budgets} must be a list of shares of the pool or of numbers of samples")
        # Rounded first: 0.07 * 100 is 7.000000000000001, and 0.29 * 100 less than 29.
        counts = [value if isinstance(value, int) else int(round(value * pool, 6)) for value in budgets]
        if any(isinstance(value, float) and not 0 < value <= 1 for value in budgets):
            raise SeggymError(f"policy.budgets={budgets} must be shares between 0 and 1; numbers of samples are whole")
        counts = [count - counted for count in counts]
    else:
        if policy.queries is None or policy.per_query is None or (policy.initial is None and not given):
            raise SeggymError("policy needs budgets, or initial, queries and per_query; set the one or the other")
        if policy.queries < 0 or policy.per_query < 1 or (policy.initial is not None and policy.initial < 1):
            raise SeggymError(
                f"policy.initial={policy.initial}, queries={policy.queries} and per_query={policy.per_query} must be "
                "positive numbers"
            )
        if counted:
            raise SeggymError(
                "policy.validation_labels=counted needs policy.budgets: numbers of queries pay for no more"
            )
        first = policy.initial or given
        counts = [first + number * policy.per_query for number in range(policy.queries + 1)]
    if given and counts[0] != given:
        raise SeggymError(
            f"the first budget is {counts[0]} samples, expected {given}, the images that are labelled from the start; "
            "set it to that, or use policy.queries and policy.per_query"
        )
    if counts[0] < 1:
        what = f" after the {counted} labels of validation that are counted" if counted else ""
        raise SeggymError(
            f"the first budget leaves {counts[0]} of {pool} samples{what}, expected at least 1; raise policy.budgets"
        )
    if counts[-1] > pool:
        raise SeggymError(
            f"the last budget is {counts[-1]} samples, but the pool has {pool}; lower policy.budgets, or queries and "
            "per_query"
        )
    repeated = [number for number in range(1, len(counts)) if counts[number] <= counts[number - 1]]
    if repeated:
        number = repeated[0]
        raise SeggymError(
            f"round {number} has {counts[number]} samples and round {number - 1} has {counts[number - 1]} of a pool of "
            f"{pool}, expected more in every round: budgets are cumulative; raise the later ones"
        )
    return counts
