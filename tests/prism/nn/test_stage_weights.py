"""A stage loads its own weights alone, bit by bit those of the whole model, and says whose they are."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file
from support import cases
from support.cases import Case

from prism.errors import InputError, UnsupportedModelError
from prism.nn.distribute import distribute
from prism.nn.exchange import run_in_process
from prism.nn.families import adapter_for
from prism.nn.weights.checkpoint import Checkpoint
from prism.nn.weights.share import load_share
from prism.nn.zoo import fingerprint, load_model
from prism.plan import ExecutionPlan, Mode

CPU = torch.device("cpu")
TWO = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)
TEXTS = ["bert", "bert_classifier", "bert_lm", "gpt2", "gpt2_lm", "llama_lm"]


def saved(family, folder):
    model = cases.build(family)
    model.save_pretrained(folder)
    return str(folder)


def alone(model) -> set[str]:
    return {name for name, value in model.named_parameters() if value.device.type != "meta"}


@torch.no_grad()
@pytest.mark.parametrize("family", TEXTS)
def test_two_ranks_with_their_shares_give_the_whole_models_output(tmp_path, family):
    folder = saved(family, tmp_path / "model")
    whole = load_model(folder)
    call = cases.inputs(Case(family=family, plan=TWO, batch=3, padding="right"))
    parts = [load_share(folder, None, 0, CPU, TWO, rank) for rank in range(2)]

    def body(exchange):
        wrapped = distribute(parts[exchange.rank].loaded.model, TWO, exchange)
        return wrapped(**call) if exchange.rank == 0 else wrapped.follow()

    ours = cases.main_tensor(run_in_process(2, body)[0])
    theirs = cases.main_tensor(whole.model(**call))
    case = Case(family=family, plan=TWO, batch=3, padding="right")
    torch.testing.assert_close(cases.real_rows(case, ours), cases.real_rows(case, theirs))
    assert {part.fingerprint for part in parts} == {fingerprint(whole.model)}
    first, second = (alone(part.loaded.model) for part in parts)
    assert first and second and not first & second  # what is tied is held twice, under the second's name there
    named = {name for name, _ in whole.model.named_parameters(remove_duplicate=False)}
    assert named - first - second <= {
        "lm_head.weight",
        "cls.predictions.decoder.weight",
        "cls.predictions.decoder.bias",
    }


@torch.no_grad()
@pytest.mark.parametrize("family", [*cases.HEADS, *(name for name in cases.VITS if name != "vit_post")])
def test_shares_of_every_head_give_the_bits_of_stages_that_hold_the_whole_model(tmp_path, family):
    whole, plan = cases.build(family), ExecutionPlan(mode=Mode.LOCAL, devices=3, stages=3, boundaries=(0, 2))
    if family in cases.VITS:
        save_timm(whole, "vit_base_patch16_224", tmp_path, {**cases.VIT, **cases.VITS[family]})
    else:
        whole.save_pretrained(tmp_path)
    call = cases.inputs(Case(family=family, plan=plan, batch=2))
    parts = [load_share(str(tmp_path), None, 0, CPU, plan, rank) for rank in range(3)]

    def output(models):
        def body(exchange):
            wrapped = distribute(models[exchange.rank], plan, exchange)
            return wrapped(**call) if exchange.rank == 0 else wrapped.follow()

        return cases.main_tensor(run_in_process(3, body)[0])

    assert torch.equal(output([part.loaded.model for part in parts]), output([whole] * 3))
    assert {part.fingerprint for part in parts} == {fingerprint(whole)}


def test_a_share_keeps_the_names_of_the_classes(tmp_path):
    model = cases.build("bert_classifier")
    model.config.id2label = {0: "bad", 1: "good"}
    model.save_pretrained(tmp_path)
    assert load_share(str(tmp_path), None, 0, CPU, TWO, 0).loaded.labels == ("bad", "good")


def save_timm(model, architecture, folder, args):
    """Save as timm does. args: of its constructor."""
    save_file(model.state_dict(), folder / "model.safetensors")
    model_args = {name: value for name, value in args.items() if name != "num_classes"}
    config = {"architecture": architecture, "num_classes": args["num_classes"], "model_args": model_args}
    (folder / "config.json").write_text(json.dumps(config))


def test_the_bundled_model_and_random_weights():
    for weights in (None, "random"):
        whole = load_model("fashion-vit", weights, seed=3)
        parts = [load_share("fashion-vit", weights, 3, CPU, TWO, rank) for rank in range(2)]
        assert {part.fingerprint for part in parts} == {fingerprint(whole.model)}
        values = dict(whole.model.named_parameters())
        held = [name for part in parts for name in alone(part.loaded.model)]
        assert sorted(held) == sorted(values)
        for part in parts:
            for name, value in part.loaded.model.named_parameters():
                assert value.device.type == "meta" or torch.equal(value, values[name]), name


def test_shards_and_half_precision_on_disk(tmp_path):
    whole = cases.build("gpt2_lm")
    whole.half().save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    part = load_share(str(tmp_path), None, 0, CPU, TWO, 1)
    assert part.fingerprint == fingerprint(load_model(str(tmp_path)).model)
    assert all(value.dtype == torch.float32 for value in part.loaded.model.parameters())


def test_a_parameter_of_nobody_is_refused():
    model = cases.build("vit")
    model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match=r"parameter extra\.weight"):
        [adapter_for(model).owner(name) for name, _ in model.named_parameters()]


def test_files_that_do_not_fit_are_named(tmp_path):
    bad = tmp_path / "cut.safetensors"
    bad.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        Checkpoint([bad])
    other = tmp_path / "other.safetensors"
    save_file({**load_model("fashion-vit").model.state_dict(), "cls_token": torch.zeros(1, 1, 3)}, other)
    with pytest.raises(InputError, match="cls_token is"):
        load_share("fashion-vit", str(other), 0, CPU, TWO, 0)


def entry(**fields):
    """A file of one tensor, with some of its header's fields replaced."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is no safetensors file"),
        (b"\xff" * 8, "is no safetensors file"),
        (b"\x02\0\0\0\0\0\0\0[]", "is no safetensors file"),
        (entry(shape="2"), "is no safetensors file"),
        (entry(shape=[3]), r"a of shape \[3\] has 8 bytes"),
        (entry(dtype="F4"), "a is of type F4; save"),
        (entry()[:-3], "ends within a"),
    ],
)
def test_damaged_files_are_named(tmp_path, raw, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    for read in (lambda file: file.read("a"), lambda file: list(file.pieces("a", torch.float32))):
        with pytest.raises(InputError, match=rf"model\.safetensors: {said}"):
            read(Checkpoint([path]))


def test_a_damaged_index_is_named(tmp_path):
    cases.build("gpt2_lm").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": [')
    with pytest.raises(InputError, match=r"index\.json: can't be read"):
        load_share(str(tmp_path), None, 0, CPU, TWO, 0)


PEAK = """
import sys, torch
from pathlib import Path
from prism.nn.weights.share import load_share
from prism.nn.zoo import load_model
from prism.plan import ExecutionPlan, Mode
import accelerate, timm
def kib(name):
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if name in line)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kib("VmRSS")
plan = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)
folder, which = sys.argv[1:]
kept = load_model(folder) if which == "whole" else load_share(folder, None, 0, torch.device("cpu"), plan, 1)
print(kib("VmHWM") - before)
"""


@pytest.mark.cold
@pytest.mark.slow
def test_the_peak_is_the_shares(tmp_path):
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    model = model.to_empty(device="cpu")
    save_timm(model, "vit_base_patch16_224", tmp_path, {"num_classes": 1000})

    def peak(which):
        command = [sys.executable, "-c", PEAK, str(tmp_path), which]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    size = sum(value.numel() * 4 for value in model.parameters()) // 1024
    assert peak("whole") > 0.9 * size
    assert peak("stage") < 0.62 * size  # its blocks are half of the model
