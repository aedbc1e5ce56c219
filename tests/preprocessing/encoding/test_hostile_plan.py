"""A plan that lies in a bucket, where others write, names no video outside the user's folder."""

import json

import pytest

from preprocessing.admission.clips import Clip
from preprocessing.encoding.shard import PLAN_NAME, plan_units
from videoldm_core.data.storage import LocalStorage
from videoldm_core.errors import ShardError

CLIP = Clip(
    key="0" * 16,
    source="a folder/a.mp4",
    source_digest="d",
    start_s=0.0,
    fps=8,
    frames=8,
    caption="",
    split="train",
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", "../secret.mp4"),
        ("source", "/secret/a.mp4"),
        ("source", "a/../../secret.mp4"),
        ("source", "a.mp4\0.txt"),
        ("fps", 0),
        ("fps", "Infinity"),
        ("frames", 10**12),
        ("key", "../../x"),
    ],
)
def test_a_clip_of_a_plan_lies_below_the_folder_of_videos(tmp_path, field, value):
    storage = LocalStorage(tmp_path)
    plan_units([CLIP], storage, clips_per_shard=1)
    plan = json.loads((tmp_path / PLAN_NAME).read_text())
    plan["units"][0]["clips"][0][field] = value
    (tmp_path / PLAN_NAME).write_text(json.dumps(plan))
    with pytest.raises(ShardError, match=rf"units\.0\.clips\.0\.{field} = "):
        plan_units([CLIP], storage, clips_per_shard=1)


def test_a_shard_of_a_plan_is_a_name_of_the_store(tmp_path):
    storage = LocalStorage(tmp_path)
    plan_units([CLIP], storage, clips_per_shard=1)
    text = (tmp_path / PLAN_NAME).read_text()
    (tmp_path / PLAN_NAME).write_text(text.replace("shard-000000", "../../shard-000000"))
    with pytest.raises(ShardError, match=r"units\.0\.shard = "):
        plan_units([CLIP], storage, clips_per_shard=1)


def test_an_honest_plan_is_read_again(tmp_path):
    storage = LocalStorage(tmp_path)
    first = plan_units([CLIP], storage, clips_per_shard=1)
    assert plan_units([CLIP], storage, clips_per_shard=1) == first
