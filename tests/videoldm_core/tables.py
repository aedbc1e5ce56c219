"""Stage tables with one row changed."""

from typing import Any

from videoldm_core.cascade.stage import Preset, preset

PRESETS = ("tiny", "driving", "driving_scenarios", "text_to_video")


def changed(name: str, stage: str, **fields: Any) -> Preset:
    """The preset `name` with other fields in the row of `stage`; they are not validated."""
    table = preset(name)
    rows = [s.model_copy(update=fields) if s.name == stage else s for s in table.stages]
    return table.model_copy(update={"stages": tuple(rows)})
