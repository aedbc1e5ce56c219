"""LoRAs are as strong as peft makes them, and as diffusers does, whatever patterns they name."""

import json
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import nn

from tests.videoldm_core.single_files import unet_like
from videoldm_core.errors import UserError
from videoldm_core.models.pretrained import lora_scale
from videoldm_core.models.pretrained.lora import add_lora
from videoldm_core.models.pretrained.lora_scale import scales_of

# One of PATTERNS fits no layer, on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match")
TARGETS = ["attn1.to_q", "attn2.to_k", "attn2.to_v", "conv1", "proj_in"]
# Several fit one layer, one holds another's letters, dots stand for any letter.
PATTERNS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": 3,
    r"attn[12]\.to_(q|k)": 5,
    "attn2.to_v": 9,
    "^mid_block.*conv1": 6,
    "to_k": 7,
    r".*\.(to_q|proj_in)": 2,
    "o_v": 100,
}
NAMES = ("down", "mid_block", "attn1", "attn2", "to_q", "to_k", "to_out", "0", "1", "a+b", "x[0]")


def random_pattern(generator: random.Random, names: list[str]) -> str:
    parts = generator.choice(names).split(".")
    parts = parts[generator.randrange(len(parts)) :]
    rules = (r"\d+", ".*", "(to_q|to_k)", "[a-z_0-9]+", "attn.", "(?:a|b|down)?", r"\.", "x[0]")
    for _ in range(generator.randrange(3)):
        parts[generator.randrange(len(parts))] = generator.choice(rules)
    start = generator.choice(("", "", "", "^", ".*"))
    return start + generator.choice((".", r"\.")).join(parts)


def random_settings(generator: random.Random) -> tuple[dict[str, Any], list[str]]:
    names = sorted(
        {
            ".".join(generator.choices(NAMES, k=generator.randint(1, 5)))
            for _ in range(generator.randint(5, 40))
        }
    )
    patterns = [random_pattern(generator, names) for _ in range(generator.randint(0, 12))]
    ranks = [random_pattern(generator, names) for _ in range(generator.randint(0, 6))]
    settings = {
        "lora_alpha": generator.randint(1, 64),
        "r": generator.randint(1, 8),
        "use_rslora": generator.random() < 0.3,
        "alpha_pattern": {pattern: generator.uniform(0.5, 64) for pattern in patterns},
        "rank_pattern": {pattern: generator.randint(1, 8) for pattern in ranks},
    }
    return settings, names


@pytest.mark.parametrize("seed", range(25))
def test_the_scale_of_every_layer_is_that_of_pefts_rule(seed):
    settings, names = random_settings(random.Random(seed))
    alphas, patterns = settings["alpha_pattern"], settings["rank_pattern"]
    ranks, expected = {}, {}
    for name in names:
        ranks[name] = patterns.get(get_pattern_key(patterns, name), settings["r"])
        alpha = alphas.get(get_pattern_key(alphas, name), settings["lora_alpha"])
        expected[name] = alpha / (ranks[name] ** 0.5 if settings["use_rslora"] else ranks[name])
    assert scales_of(settings, ranks, "x") == pytest.approx(expected)


def test_the_scales_are_those_of_layers_that_peft_makes():
    model = nn.ModuleDict(
        {
            name: nn.ModuleDict({last: nn.Linear(4, 4) for last in ("to_q", "to_k", "not_to_q")})
            for name in ("attn1", "attn10", "cross_attn1")
        }
    )
    settings = {
        "r": 2,
        "lora_alpha": 8,
        "alpha_pattern": {r"attn\d\.to_q": 3, "to_q": 5, "^attn1.*": 7},
        "rank_pattern": {"attn10.to_k": 4, r"(attn1|attn10)\.to_k": 3},
    }
    peft.inject_adapter_in_model(
        peft.LoraConfig(target_modules=["to_q", "to_k", "not_to_q"], **settings), model
    )
    layers = {n: m for n, m in model.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
    assert len(layers) == 9
    ranks = {name: layer.r["default"] for name, layer in layers.items()}
    assert scales_of(settings, ranks, "x") == pytest.approx(
        {name: layer.scaling["default"] for name, layer in layers.items()}
    )


def config(**changes: Any) -> peft.LoraConfig:
    ranks = {r"attn1\.to_(q|v)": 3, "conv1": 4, "to_v": 5}
    settings = {"r": 2, "lora_alpha": 8, "alpha_pattern": PATTERNS, "rank_pattern": ranks}
    return peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False, **settings | changes)


def assert_merged_equally(unet: UNet2DConditionModel, path: Path) -> None:
    """What we add to the untouched weights is what `unet` has merged into it."""
    weights = {name: tensor.clone() for name, tensor in unet_like("sd1").state_dict().items()}
    untouched = {name: tensor.clone() for name, tensor in weights.items()}
    changed = add_lora(weights, path, part="unet")
    expected = unet.state_dict()
    assert expected.keys() == weights.keys()
    moved = [name for name in weights if not torch.equal(expected[name], untouched[name])]
    assert len(moved) == changed > 20
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_a_file_that_peft_saved_is_added_as_peft_merges_it(tmp_path, changes):
    torch.manual_seed(0)
    model = peft.get_peft_model(unet_like("sd1"), config(**changes))
    model.save_pretrained(tmp_path)
    # Loaded again: peft sorts the patterns as it saves them, which decides what the first is.
    loaded = peft.PeftModel.from_pretrained(unet_like("sd1"), tmp_path)
    assert_merged_equally(loaded.merge_and_unload(), tmp_path / "adapter_model.safetensors")


def test_a_file_that_diffusers_saved_is_added_as_diffusers_merges_it(tmp_path):
    torch.manual_seed(0)
    unet = unet_like("sd1")
    unet.add_adapter(config(), adapter_name="style")
    unet.save_lora_adapter(tmp_path, adapter_name="style")
    name = "pytorch_lora_weights.safetensors"
    loaded = unet_like("sd1")
    loaded.load_lora_adapter(tmp_path, weight_name=name, prefix=None, local_files_only=True)
    loaded.fuse_lora()
    loaded.unload_lora()
    assert_merged_equally(loaded, tmp_path / name)


@pytest.mark.parametrize("adapter", ["default", "my-style_2"])
def test_matrices_under_the_name_of_their_adapter_are_the_same(tmp_path, adapter):
    """A state dict of the model in memory names the adapter in every key."""
    torch.manual_seed(0)
    model = peft.get_peft_model(unet_like("sd1"), config(), adapter_name=adapter)
    model.peft_config[adapter].save_pretrained(tmp_path)
    in_memory = {name: t for name, t in model.state_dict().items() if ".lora_" in name}
    assert all(f".{adapter}.weight" in name for name in in_memory)
    save_file(in_memory, tmp_path / "lora.safetensors")
    model.save_pretrained(tmp_path / "saved")
    saved = tmp_path / "saved" / ("" if adapter == "default" else adapter)
    loaded = peft.PeftModel.from_pretrained(unet_like("sd1"), saved)
    assert_merged_equally(loaded.merge_and_unload(), tmp_path / "lora.safetensors")


def test_a_file_of_two_adapters_is_refused_by_their_names(tmp_path):
    model = peft.get_peft_model(unet_like("sd1"), config(), adapter_name="night")
    model.add_adapter("rain", config())
    save_file(
        {name: t for name, t in model.state_dict().items() if ".lora_" in name},
        tmp_path / "lora.safetensors",
    )
    with pytest.raises(UserError, match="holds the LoRAs 'night' and 'rain'; save one of them"):
        add_lora(dict(unet_like("sd1").state_dict()), tmp_path / "lora.safetensors", part="unet")


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_4", "olora", "loftq"])
def test_matrices_that_belong_to_weights_changed_before_training_are_refused(tmp_path, begun):
    torch.manual_seed(0)
    peft.get_peft_model(unet_like("sd1"), config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": begun}))
    with pytest.raises(UserError, match=f"its init_lora_weights is '{begun}', so that"):
        add_lora(
            dict(unet_like("sd1").state_dict()),
            tmp_path / "adapter_model.safetensors",
            part="unet",
        )


def test_a_rank_that_the_matrices_do_not_have_is_refused_as_by_peft(tmp_path):
    torch.manual_seed(0)
    peft.get_peft_model(unet_like("sd1"), config()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank_pattern": {"conv1": 3}}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(unet_like("sd1"), tmp_path)
    with pytest.raises(UserError, match=r"have rank \d, but its settings say \d; get the file"):
        add_lora(
            dict(unet_like("sd1").state_dict()),
            tmp_path / "adapter_model.safetensors",
            part="unet",
        )


LAYERS = {"down_blocks.0." + "a" * 40: 2, "mid_block.conv": 2}


@pytest.mark.parametrize(
    "pattern",
    [r"([a-z0-9_.]+)+!", "(a|a)*b", "(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)!", "(a?){40}!"],
)
def test_a_pattern_that_never_ends_is_given_up_and_named(pattern, monkeypatch):
    monkeypatch.setattr(lora_scale, "PATTERN_SECONDS", 1)
    settings = {"alpha_pattern": {"conv": 1, pattern: 2, "to_q": 3}, "lora_alpha": 1}
    with pytest.raises(UserError) as refused:
        scales_of(settings, LAYERS, "'x.safetensors'")
    assert f"its alpha_pattern has {pattern!r}, a regular expression that" in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_pattern": {"to_(q": 1}}, r"alpha_pattern has 'to_\(q', which is no regular expr"),
        ({"alpha_pattern": {"to_q": "8"}}, "its alpha_pattern is '8', expected a number"),
        ({"alpha_pattern": {"to_q": float("nan")}}, "its alpha_pattern is nan, expected a number"),
        ({"rank_pattern": ["to_q"]}, r"its rank_pattern is \['to_q'\], expected an object"),
        ({"alpha_pattern": {"a" * 1001: 1}}, "pattern of 1001 characters, 'aaa.*expected at most"),
        (
            {"alpha_pattern": {str(i): 1 for i in range(10_001)}},
            "has 10001 patterns, expected at most 10000",
        ),
        ({"lora_alpha": True}, "its lora_alpha is True, expected a number"),
    ],
)
def test_settings_that_say_no_scale_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        scales_of(settings, LAYERS, "'x.safetensors'")


def test_thousands_of_names_as_patterns_are_matched():
    names = [f"up_blocks.{i}.resnets.{j}.conv1" for i in range(40) for j in range(40)]
    alphas = {name: float(number) for number, name in enumerate(names)}
    found = scales_of({"alpha_pattern": alphas}, dict.fromkeys(names, 2), "x")
    dots = {name: get_pattern_key([name], name) for name in names}
    assert found == {name: alphas[dots[name]] / 2 for name in names}
