"""What a rank loads, and how often."""

import msgspec
import pytest
import torch

from hw.inputs import samples
from hw.run import workpiece
from hw.run.config import RunConfig
from hw.run.messages import RankJob, RunStep
from hw.run.preparation import Preparation
from hw.run.workpiece import Workpiece
from prism.errors import PlanError
from prism.nn import distribute as distributing
from prism.nn.distribute import distribute
from prism.nn.exchange import InProcessExchange
from prism.plan import LOCAL, ExecutionPlan, Mode

CPU = torch.device("cpu")


def test_the_tokens_of_an_image_are_the_models_own(monkeypatch):
    """No image goes through the preprocessing for a number that the model's specification has."""
    monkeypatch.setattr(samples.ImageReader, "collate", lambda *_: pytest.fail("an image was decoded"))
    assert Workpiece(RunConfig(), CPU, with_inputs=True).tokens == 50


def test_the_tokens_of_a_text_are_those_of_the_first(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("twelve chars\nand a longer line\n")
    config = RunConfig(model="gpt2", weights="random", text=str(text))
    assert Workpiece(config, CPU, with_inputs=True).tokens == 12
    assert Workpiece(config, CPU, with_inputs=False).tokens == 1024


def test_a_plan_that_needs_more_memory_than_a_device_has_is_refused_before_weights_are_loaded(monkeypatch):
    monkeypatch.setattr(workpiece, "load_model", lambda *_: pytest.fail("weights were loaded"))
    job = RankJob(rank=0, world_size=2, leader="", port=0, interface="", timeout_s=1.0, memory=(None, 5e5))
    config = RunConfig(plan=ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2), batch=2)
    with pytest.raises(PlanError, match=r"2 replicas: rank 1 needs [\d.]+ kB .*, the limit is 500 kB"):
        Preparation(job).prepare(RunStep(config=config))
    flag = msgspec.structs.replace(config, memory="600kB")
    with pytest.raises(PlanError, match=r"rank 0 needs [\d.]+ kB .*, the limit is 600 kB"):
        Preparation(job).prepare(RunStep(config=flag))


def test_an_adapter_is_built_once_a_model(monkeypatch):
    piece = Workpiece(RunConfig(), CPU, with_inputs=False)
    monkeypatch.setattr(distributing, "adapter_for", lambda _: pytest.fail("a second adapter"))
    distribute(piece.loaded.model, LOCAL, InProcessExchange.group(1)[0], adapter=piece.adapter)


def test_a_model_is_kept_for_the_next_step_that_wants_the_same(monkeypatch):
    job = RankJob(rank=0, world_size=1, leader="", port=0, interface="", timeout_s=1.0)
    preparation = Preparation(job)
    assert preparation.fingerprint == "" and not preparation.metered and preparation.power() == []
    preparation.prepare(RunStep(config=RunConfig(batch=1)))
    first = preparation.workpiece(RunConfig(batch=8))
    assert preparation.fingerprint == first.fingerprint
    assert preparation.workpiece(RunConfig(seed=1)) is not first
    with pytest.raises(PlanError, match="at most"):
        preparation.prepare(RunStep(config=RunConfig(seed=1, plan=RunConfig().plan.on(64))))
    loads: list[object] = []
    monkeypatch.setattr(workpiece, "load_model", lambda *args: loads.append(args))
    preparation.prepare(RunStep(config=RunConfig(seed=1, batches=3)))
    assert not loads
