"""What happens between the rollouts of a run: logging, validation, checkpoints and stopping.

All of it runs at the start of a rollout, the one point where a run can be stopped and go on exactly.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from seggym.files import write_atomic


class TrainingStopped(Exception):
    """The user asked the run to stop; its state has been saved."""


class MetricsFile:
    """``metrics.csv``: one row per summary of training or validation; columns that a row lacks stay empty."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self.columns = path, columns

    def begin(self, steps: int) -> None:
        """Write the header, and keep the rows of an earlier part of the run up to ``steps``."""
        rows = list(csv.DictReader(io.StringIO(self.path.read_text()))) if self.path.is_file() else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in rows if int(row["step"]) <= steps)
        write_atomic(self.path, text.getvalue().encode())

    def append(self, row: dict[str, Any]) -> None:
        """Add one row, or leave the file as it is where the disk is full."""
        text = io.StringIO()
        csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n").writerow(row)
        write_atomic(self.path, self.path.read_bytes() + text.getvalue().encode())


class Schedule:
    """Says when the next multiple of ``every`` steps has been reached; never where ``every`` is 0."""

    def __init__(self, every: int) -> None:
        self.every, self.next = every, every

    def due(self, steps: int) -> bool:
        """True once per period."""
        if not self.every or steps < self.next:
            return False
        self.next = (steps // self.every + 1) * self.every
        return True


class StatefulCallback(BaseCallback):
    """A callback that a resumed run takes up where it was."""

    def _on_step(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        raise NotImplementedError


class EpisodeLog(StatefulCallback):
    """Means over the episodes that ended, to TensorBoard and every ``every`` steps to ``metrics.csv``."""

    def __init__(self, file: MetricsFile, every: int) -> None:
        super().__init__()
        self.file, self.schedule = file, Schedule(every)
        self._episodes: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                summary = summarise(info)
                self._episodes.append(summary)
                for name, value in summary.items():
                    if not np.isnan(value):
                        self.logger.record_mean(f"episode/{name}", value)
        return True

    def _on_rollout_start(self) -> None:
        if self.schedule.due(self.num_timesteps) and self._episodes:
            names = dict.fromkeys(name for episode in self._episodes for name in episode)
            values = {name: np.array([episode.get(name, np.nan) for episode in self._episodes]) for name in names}
            means = {
                name: value[~np.isnan(value)].mean() for name, value in values.items() if not np.isnan(value).all()
            }
            self.file.append(
                {"step": self.num_timesteps, "phase": "train", "episodes": len(self._episodes), **_rounded(means)}
            )
            self._episodes.clear()

    def state_dict(self) -> dict[str, Any]:
        """What has been collected since the last row."""
        return {"next": self.schedule.next, "episodes": self._episodes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on collecting."""
        self.schedule.next, self._episodes = state["next"], list(state["episodes"])


class Validation(StatefulCallback):
    """Measure the policy every ``every`` steps and keep the one with the highest mean quality over its lines.

    ``measure`` returns the metrics of the current policy; ``keep(metrics)`` writes the snapshot.
    """

    def __init__(
        self,
        file: MetricsFile,
        every: int,
        measure: Callable[[], dict[str, float]],
        keep: Callable[[dict[str, float]], object],
    ) -> None:
        super().__init__()
        self.file, self.schedule, self.measure, self.keep = file, Schedule(every), measure, keep
        self.schedule.next = 0  # the untrained policy is the first candidate
        self.best = -np.inf
        self.last_step = -1

    def _on_rollout_start(self) -> None:
        if self.schedule.due(self.num_timesteps):
            self.run()

    def forget_step(self) -> None:
        """The policy has changed without a step: the same step may be measured again."""
        self.schedule.next, self.last_step = 0, -1

    def run(self) -> None:
        """Measure now, unless this step has been measured."""
        if self.model.num_timesteps == self.last_step:
            return
        self.last_step = self.model.num_timesteps
        metrics = self.measure()
        for name, value in metrics.items():
            self.logger.record(f"validation/{name}", value)
        self.file.append({"step": self.last_step, "phase": "validation", **_rounded(metrics)})
        better = metrics["mean_quality"] > self.best
        print(f"step {self.last_step}: validation quality {metrics['mean_quality']:.4f}{' (best)' if better else ''}")
        if better:
            self.best = metrics["mean_quality"]
            self.keep(metrics)

    def state_dict(self) -> dict[str, Any]:
        """The best so far and the next time."""
        return {"next": self.schedule.next, "best": float(self.best), "last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on comparing with the best so far."""
        self.schedule.next, self.best, self.last_step = state["next"], state["best"], state["last_step"]


class Checkpoints(StatefulCallback):
    """Call ``save`` every ``every`` steps, and stop the run where ``stop_requested`` says so.

    The last of the callbacks, so that a checkpoint knows what the others have done at the same step.
    """

    def __init__(self, every: int, save: Callable[[], object], stop_requested: Callable[[], bool]) -> None:
        super().__init__()
        self.schedule, self.save, self.stop_requested = Schedule(every), save, stop_requested

    def _on_rollout_start(self) -> None:
        stopping = self.stop_requested()
        if self.schedule.due(self.num_timesteps) or stopping:
            self.save()
        if stopping:
            raise TrainingStopped

    def state_dict(self) -> dict[str, Any]:
        """The next time."""
        return {"next": self.schedule.next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep to the times of the run."""
        self.schedule.next = state["next"]


def summarise(info: dict[str, Any]) -> dict[str, float]:
    """The numbers of an episode's last info, by the names of :func:`metric_columns`."""
    summary = {"return": info["episode"]["r"], "length": info["episode"]["l"]}
    for name in ("lines", "illegal_actions", "quality", "mean_quality"):
        if name in info:
            summary[name] = float(info[name])
    summary |= {f"reward_{name}": value for name, value in info["reward_parts"].items()}
    if "dice" in info:
        summary |= {f"dice_{index}": float(value) for index, value in enumerate(info["dice"], 1)}
    return summary


def metric_columns(num_classes: int) -> list[str]:
    """Columns of ``metrics.csv``; ``dice_1`` is the first foreground class."""
    return [
        *("step", "phase", "episodes", "return", "length", "lines", "illegal_actions", "quality", "mean_quality"),
        *("reward_quality", "reward_level", "reward_illegal"),
        *(f"dice_{index}" for index in range(1, num_classes)),
    ]


def _rounded(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in metrics.items()}
