"""Rows of the worth table: a stage's metric on held-out clips against what it replaces.

A proof measures named series, one value per seed and clip, on each process's share of the clips;
claims then say which series must beat which. A stage whose claims do not all hold is reported as
failed by name.
"""

import torch
from pydantic import ConfigDict
from safetensors.torch import load, save
from torch import Tensor

from videoldm_core.records import Record
from videoldm_core.training.exchange import of_all_processes


class WorthRow(Record):
    """One claim of one stage, with its evidence."""

    model_config = ConfigDict(allow_inf_nan=True)  # what a model that diverged measures

    stage: str
    metric: str
    unit: str
    higher_is_better: bool
    value: tuple[float, float]  # mean over seeds and clips, spread (deviation of the seeds' means)
    baselines: tuple[tuple[str, float, float, bool], ...]  # name, mean, spread, must be beaten
    passed: bool


class Claim(Record):
    """The series `value` is better than each of `beats` (worse by at most `slack`)."""

    metric: str
    unit: str
    higher_is_better: bool
    value: str
    beats: tuple[str, ...]
    beside: tuple[str, ...] = ()  # shown, not judged
    slack: float = 0.0  # how much worse is still accepted, in the metric's unit

    def judge(self, stage: str, series: dict[str, Tensor]) -> WorthRow:
        """The row for measured series, each (seeds, clips)."""
        mean, spread = summary(series[self.value])
        baselines, passed = [], True
        for name in (*self.beats, *self.beside):
            other, other_spread = summary(series[name])
            gain = mean - other if self.higher_is_better else other - mean
            must = name in self.beats
            # `not >` so that a NaN fails.
            passed = passed and (not must or gain > -self.slack)
            baselines.append((name, other, other_spread, must))
        return WorthRow(
            stage=stage,
            metric=self.metric,
            unit=self.unit,
            higher_is_better=self.higher_is_better,
            value=(mean, spread),
            baselines=tuple(baselines),
            passed=passed,
        )


def summary(values: Tensor) -> tuple[float, float]:
    """Mean over seeds and clips of (seeds, clips), and the deviation of the seeds' means."""
    means = values.double().mean(dim=1)
    spread = means.std().item() if len(means) > 1 else 0.0
    return means.mean().item(), spread


def gather_series(series: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins the clips of all processes; every process calls it and gets the whole."""
    if not torch.distributed.is_initialized():
        return series
    own = save({name: values.contiguous() for name, values in series.items()})
    world = [load(share) for share in of_all_processes(own)]
    return {name: torch.cat([share[name] for share in world], dim=1) for name in series}
