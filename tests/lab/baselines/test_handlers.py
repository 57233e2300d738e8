# SPDX-License-Identifier: Apache-2.0
"""The learning rate and the end follow iterations or time; only a finished training is recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from contourdiff_lab.baselines.handlers import CyclePictures, TrainingBudget, record_training


class Clock:
    """A clock that moves when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("contourdiff_lab.baselines.handlers.time.perf_counter", clock)
    return clock


def run(
    budget: TrainingBudget, optimizer: torch.optim.Optimizer, clock: Clock, seconds: float = 0.0
) -> list[float]:
    """Rates of 5 epochs of 4 iterations, each of some seconds."""
    rates: list[float] = []

    def step(engine: Engine, batch: object) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        clock.now += seconds

    engine = Engine(step)
    budget.attach(engine)
    engine.run(range(4), max_epochs=5)
    engine.state.rates = rates
    return rates


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)


def test_the_rate_is_constant_and_then_falls_linearly_to_zero(clock: Clock) -> None:
    rates = run(TrainingBudget({"a": (opt := optimizer())}), opt, clock)
    assert rates[:10] == [0.4] * 10
    assert rates[10:] == pytest.approx([0.4 * (1 - number / 10) for number in range(1, 11)])


def test_time_shortens_the_training_and_its_decay(clock: Clock) -> None:
    """Two minutes at 12 s an iteration are 10 of 20 iterations; the rate falls over the last five."""
    rates = run(TrainingBudget({"a": (opt := optimizer())}, minutes=2), opt, clock, seconds=12)
    assert len(rates) == 10
    assert rates == pytest.approx(
        [0.4 * min(1, 2 * (1 - number / 10)) for number in range(10)], abs=0.09
    )
    assert rates[:5] == [0.4] * 5
    assert rates[-1] == pytest.approx(0.4 * 0.2)


def test_time_counts_over_resumes(clock: Clock) -> None:
    budget = TrainingBudget({"a": optimizer()}, minutes=2)
    run(budget, optimizer(), clock, seconds=3)
    assert budget.state_dict() == {"seconds": 60}
    clock.now += 1000  # it did not run
    resumed = TrainingBudget({"a": (opt := optimizer())}, minutes=2)
    resumed.load_state_dict({"seconds": 60})
    assert len(run(resumed, opt, clock, seconds=15)) == 4


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_a_budget_without_time_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="minutes must be positive, or null for no limit"):
        TrainingBudget({}, minutes)


@pytest.mark.parametrize("stop", [None, 3])
def test_only_a_finished_training_is_recorded(stop: int | None, tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    if stop:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=stop), engine.terminate)
    budget = TrainingBudget({})
    budget.attach(engine)
    engine.run(range(4), max_epochs=2)
    record_training("cyclegan", engine, budget, nn.Linear(3, 2), tmp_path, 5, {"seed": 1})
    path = tmp_path / "trained.json"
    assert path.is_file() == (stop is None)
    if path.is_file():
        record = json.loads(path.read_text())
        assert record.pop("seconds") >= 0
        expected = {"method": "cyclegan", "iterations": 8, "images": 40, "parameters": 8}
        assert record == {**expected, "settings": {"seed": 1}}


def test_pictures_are_drawn_at_intervals_and_at_the_end(tmp_path: Path) -> None:
    networks = nn.ModuleDict({"ct_to_mr": nn.Identity(), "mr_to_ct": nn.Identity()})
    slices = [{"image": torch.full((1, 4, 4), -1.0 + number)} for number in range(3)]
    engine = Engine(lambda engine, batch: None)
    CyclePictures(networks, slices, slices[:1], str(tmp_path), interval=2, count=2).attach(engine)  # type: ignore[arg-type]
    engine.run(range(1), max_epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"translations_0000{epoch}.png" for epoch in (2, 3)
    ]
