"""Text towers from each place they can come from."""

import pytest
import torch
from safetensors.torch import save_file

from videoldm_core.errors import UserError
from videoldm_core.models.text.encoder import TextConfig
from videoldm_core.models.text.source import ModelText, NewText, OpenClipText

CAPTIONS = ["a red car at night", ""]


def test_a_new_tower_depends_on_its_config_alone():
    source = NewText(tower=TextConfig(context_length=8, width=16, heads=2, layers=1))
    assert torch.equal(source.build().encode(CAPTIONS), source.build().encode(CAPTIONS))
    assert source.width == 16


def test_the_tower_of_a_model_gives_its_hidden_states(stable_diffusion, text_tower):
    tower = ModelText(stage="image_model").build(stable_diffusion)
    torch.testing.assert_close(tower.encode(CAPTIONS), text_tower.encode(CAPTIONS))


def test_an_open_clip_tower_comes_from_a_file(tmp_path):
    import open_clip

    model = open_clip.create_model("RN50")  # the smallest with a plain text tower
    path = tmp_path / "clip.safetensors"
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
    tower = OpenClipText(model="RN50", pretrained=str(path), activation="gelu").build()
    weights = tower.transformer.state_dict()
    assert torch.equal(weights["ln_final.weight"], model.ln_final.weight)


def test_a_tag_is_not_fetched_unless_asked():
    with pytest.raises(UserError, match="would be downloaded, which was not asked for"):
        OpenClipText(model="ViT-L-14", pretrained="openai").build()
