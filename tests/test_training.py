import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import count, pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sameguard import precision, training
from sameguard.errors import ConfigurationError, TrainingError
from sameguard.training import FitConfig, RunControl, TrainingPausedError, schedule_factor, seeded, train

CONFIG = FitConfig(epochs=6, batch_size=8, learning_rate=1e-2, precision="fp32", warmup_epochs=1)


class Line(nn.Module):
    """y = w x + b on noisy inputs: the noise comes from the step's generator, so a resume that loses its state shows."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(3):
            self.layer = nn.Linear(4, 1)
        self.norm = nn.BatchNorm1d(4)
        self.data = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        self.steps = 0

    def step(self, indices, generator, epoch):
        self.steps += 1
        inputs = self.data[indices]
        noisy = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
        return F.mse_loss(self.layer(self.norm(noisy)), inputs.sum(1, keepdim=True))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(control: RunControl, config: FitConfig = CONFIG, model: Line | None = None) -> Line:
    model = model or Line()
    train(model, model.step, 40, config, control, stage="line")
    return model


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


@pytest.mark.parametrize("stop_after", [1, 4, 5, 17])
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch, stop_after):
    whole = run(RunControl())
    clock = count()
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    stopped = Line()
    deadline = float(next(clock)) + 3 + stop_after  # the clock ticks once for each look: a few at the start, one for each step
    with pytest.raises(TrainingPausedError, match=r"line stopped at step \d+ of 30: the time budget is spent; saved to"):
        run(RunControl(tmp_path, deadline=deadline), model=stopped)
    assert 0 < stopped.steps < 30
    resumed = Line()
    run(RunControl(tmp_path, resume=True), model=resumed)
    assert resumed.steps == 30 - stopped.steps
    assert equal(whole, resumed)


def test_a_finished_run_is_not_trained_again_on_resume(tmp_path):
    first = run(RunControl(tmp_path))
    again = Line()
    run(RunControl(tmp_path, resume=True), model=again)
    assert again.steps == 0
    assert equal(first, again)


def test_without_resume_a_run_starts_anew(tmp_path):
    run(RunControl(tmp_path))
    assert run(RunControl(tmp_path)).steps == 30


def test_ctrl_c_saves_a_checkpoint_at_the_end_of_the_step(tmp_path):
    model = Line()
    original = model.step

    def interrupting(indices, generator, epoch):
        if model.steps == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return original(indices, generator, epoch)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingPausedError, match="interrupted"):
        train(model, interrupting, 40, CONFIG, RunControl(tmp_path), stage="line")
    assert signal.getsignal(signal.SIGINT) is before
    assert model.steps == 11
    assert equal(run(RunControl()), run(RunControl(tmp_path, resume=True)))


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, sys, torch
        torch.set_num_threads({torch.get_num_threads()})
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from pathlib import Path
        from test_training import CONFIG, Line
        from sameguard.training import RunControl, train
        model = Line()
        def step(indices, generator, epoch):
            if model.steps == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            return Line.step(model, indices, generator, epoch)
        train(model, step, 40, CONFIG, RunControl(Path({str(tmp_path)!r}), checkpoint_seconds=0.0), stage="line")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = Line()
    run(RunControl(tmp_path, resume=True), model=resumed)
    assert resumed.steps == 30 - 13
    assert equal(run(RunControl()), resumed)


def test_a_checkpoint_of_other_settings_is_refused_and_names_them(tmp_path):
    run(RunControl(tmp_path))
    with pytest.raises(TrainingError, match=r"must come from the same run, got other settings \(learning_rate: 0.01 then, 0.02 now\)"):
        run(RunControl(tmp_path, resume=True), CONFIG.with_(learning_rate=0.02))


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(RunControl(tmp_path))
    other = nn.Linear(2, 1)
    with pytest.raises(TrainingError, match="must hold this network's weights"):
        train(other, lambda *_: other(torch.ones(1, 2)).sum(), 40, CONFIG, RunControl(tmp_path, resume=True), stage="line")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    run(RunControl(tmp_path))
    path = tmp_path / "line.checkpoint"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(TrainingError, match="must be readable"):
        run(RunControl(tmp_path, resume=True))


def test_a_disk_that_fills_while_saving_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    run(RunControl(tmp_path))
    old = (tmp_path / "line.checkpoint").read_bytes()

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(RunControl(tmp_path))
    assert (tmp_path / "line.checkpoint").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["line.checkpoint"]


def test_a_loss_that_becomes_nan_stops_with_the_remedy():
    model = Line()
    with pytest.raises(TrainingError, match="the loss must stay finite, got nan in epoch 1: lower learning_rate"):
        train(model, lambda *a: model.step(*a) * float("nan"), 40, CONFIG, RunControl(), stage="line")


def test_a_loss_that_grows_stops_with_the_remedy():
    model = Line()
    with pytest.raises(TrainingError, match=r"the loss must fall, got .* lower learning_rate"):
        train(model, lambda i, g, epoch: model.step(i, g, epoch) * 10**epoch, 40, CONFIG, RunControl(), stage="line")


def test_warm_up_rises_to_one_and_the_cosine_falls_to_the_final_fraction():
    config = FitConfig(epochs=10, final_fraction=0.1)
    factors = [schedule_factor(step, 100, 10, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.1 + 0.9 * 0.5, abs=0.01)
    assert all(first >= second for first, second in pairwise(factors[10:]))
    assert factors[-1] == pytest.approx(0.1, abs=0.01)
    linear = [schedule_factor(step, 100, 0, FitConfig(schedule="linear")) for step in (0, 50)]
    assert linear == [1.0, 0.5]


def test_each_epoch_visits_each_row_once_in_another_order():
    seen: list[list[int]] = []
    model = Line()

    def step(indices, generator, epoch):
        seen.append(indices.tolist())
        return model.step(indices, generator, epoch)

    train(model, step, 40, CONFIG.with_(epochs=2), RunControl(), stage="line")
    first, second = ([row for batch in part for row in batch] for part in (seen[:5], seen[5:]))
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second


def test_snapshots_hold_the_weights_after_the_chosen_epochs():
    model = Line()
    report = train(model, model.step, 40, CONFIG.with_(snapshot_epochs=(2, 6)), RunControl(), stage="line")
    assert sorted(report.snapshots) == [2, 6]
    assert all(torch.equal(value, report.snapshots[6][name]) for name, value in weights(model).items())
    assert not torch.equal(report.snapshots[2]["layer.weight"], report.snapshots[6]["layer.weight"])
    assert len(report.epoch_losses) == 6
    assert report.epoch_losses[-1] < report.epoch_losses[0]


def test_training_leaves_the_global_generator_alone_and_the_model_in_eval_mode():
    state = torch.random.get_rng_state()
    assert not run(RunControl()).training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_counts_to_the_end_with_loss_and_time_left():
    events = []
    run(RunControl(progress=events.append))
    assert [event.step for event in events] == list(range(1, 31))
    assert events[-1].steps == 30
    assert events[-1].seconds_left == 0.0
    assert all(event.loss > 0 and event.seconds_left >= 0 for event in events)


def test_auto_precision_is_bf16_only_where_the_processor_multiplies_it(monkeypatch):
    monkeypatch.setattr(precision, "_measured", {})
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    assert precision.resolve_precision("auto") == "fp32"
    assert precision.resolve_precision("bf16") == "bf16"


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch):
    monkeypatch.setattr(precision.shutil, "which", lambda name: None)
    said: list[str] = []
    precision.compile_in_place([Line()], said.append)
    assert said == ["torch.compile needs a C++ compiler and found none: training goes on uncompiled."]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"epochs": 0}, "epochs and batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"warmup_epochs": 7.0}, "warmup_epochs must be in"),
        ({"precision": "fp16"}, "precision must be auto, fp32 or bf16"),
        ({"snapshot_epochs": (7,)}, "snapshot_epochs must be in"),
        ({"device": "tpu"}, "device must be cpu or cuda"),
        ({"optimizer": "lion"}, "optimizer must be adamw or sgd"),
    ],
)
def test_impossible_settings_are_refused_with_the_rule(changes, match):
    with pytest.raises(ConfigurationError, match=match):
        CONFIG.with_(**changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="device cuda needs a CUDA build"):
        CONFIG.with_(device="cuda")


def test_no_rows_are_refused():
    with pytest.raises(ConfigurationError, match="line needs at least 1 training row, got 0"):
        train(Line(), Line().step, 0, CONFIG, RunControl(), stage="line")


def test_a_time_budget_becomes_a_deadline():
    control = RunControl().with_time_budget(100.0)
    assert 99.0 < control.deadline - time.monotonic() <= 100.0
    assert RunControl().with_time_budget(None).deadline is None


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_before_training(seed):
    with pytest.raises(ConfigurationError, match=r"seed must be in \[0, 2\^32\), got"):
        FitConfig(seed=seed)


@pytest.mark.parametrize("device", ["cpu:x", "cpu:", "tpu", "cuda:-1"])
def test_a_device_that_does_not_exist_is_refused(device):
    with pytest.raises(ConfigurationError, match=r"device (must be cpu or cuda|cuda needs)"):
        FitConfig(device=device)
