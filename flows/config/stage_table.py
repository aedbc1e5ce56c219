"""The stage table of one run: the preset's rows with the run's changes, checked as a whole."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.hub import HUB, hub_model
from flows.config.paths import user_path
from videoldm_core.errors import UserError
from videoldm_core.records import parse_record

if TYPE_CHECKING:
    from flows.config.run import RunConfig
    from videoldm_core.cascade.stage import Preset
    from videoldm_core.models.text.source import AnyText


def table_of(run: "RunConfig") -> "Preset":
    """The preset's stage table with the run's changes in it.

    Raises:
        UserError: unknown preset, stage or field, with the nearest known one; a handoff between
            stages, or sizes, that do not fit.
    """
    from videoldm_core.cascade.checks.handoffs import check_handoffs
    from videoldm_core.cascade.checks.rows import check_rows
    from videoldm_core.cascade.checks.sizes import check_shares, check_sizes
    from videoldm_core.cascade.stage import Stage, VideoFormat, preset

    table = _without(preset(run.preset), run.without)
    changed = {}
    sources = _brought_sources(run, table)
    for name in [*run.stages, *(n for n in sources if n not in run.stages)]:
        row = merged(table.stage(name).model_dump(), run.stages.get(name, {}))
        row = merged(row, sources.get(name, {}))
        changed[name] = parse_record(Stage, row, where=f"stages.{name}")
    rows = tuple(changed.get(row.name, row) for row in table.stages)
    format_values = merged(table.video.model_dump(), run.video)
    video = parse_record(VideoFormat, format_values, where="video")
    texts = {"text": _text_of(run, table), "pixel_text": _pixel_text_of(run, table)}
    changed_table = table.model_copy(update={"stages": rows, "video": video} | texts)
    check_rows(changed_table)
    check_handoffs(changed_table)
    check_sizes(changed_table)
    check_shares(changed_table, run.processes)
    return changed_table


def merged(row: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """`row` with `fields` replaced, one level of records at a time."""
    both = dict(row)
    for name, value in fields.items():
        inner = both.get(name)
        both[name] = (
            merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return both


def _without(table: "Preset", names: tuple[str, ...]) -> "Preset":
    """The table without some rows; a role that one of them plays is left out too."""
    from videoldm_core.cascade.stage import Preset

    left_out = {table.stage(name).name for name in names}
    roles = table.roles.model_dump()
    of_left_out = getattr(table.pixel_text, "stage", None) in left_out
    values = table.model_dump() | {
        "pixel_text": None if of_left_out else table.pixel_text,
        "stages": [row for row in table.stages if row.name not in left_out],
        "roles": {role: name for role, name in roles.items() if name not in left_out},
    }
    return parse_record(Preset, values, where="the preset without " + ", ".join(names))


def _brought_sources(run: "RunConfig", table: "Preset") -> dict[str, dict[str, Any]]:
    """What `pretrained` changes in the rows it names."""
    from videoldm_core.objectives.pretrained import Brought

    changes = {}
    for name, source in run.pretrained.items():
        if not isinstance(table.stage(name).objective, Brought):
            brought = [row.name for row in table.stages if isinstance(row.objective, Brought)]
            raise UserError(
                f"pretrained.{name} = {source!r}: the preset {table.name!r} trains {name!r}, "
                f"it is brought {' and '.join(brought) or 'no model'}."
            )
        if source.startswith(HUB):
            hub_model(source, what=f"pretrained.{name}")
        else:
            try:
                path = Path(user_path(source)).absolute()
                is_there = path.exists()
            except (ValueError, OSError):  # no path can be called so
                path, is_there = Path(source), False
            if not is_there:
                raise UserError(
                    f"pretrained.{name} = {source!r} does not exist; give a diffusers folder, a "
                    f"single file, or {HUB}OWNER/NAME@REVISION to fetch it."
                )
            source = str(path)
        changes[name] = {"objective": {"source": source}}
    return changes


def _pixel_text_of(run: "RunConfig", table: "Preset") -> "AnyText | None":
    """The preset's text of pixel shards, or the one that the run gives in its place."""
    from videoldm_core.cascade.stage import Preset

    if not run.pixel_text:
        return table.pixel_text
    values = table.model_dump() | {"pixel_text": run.pixel_text}
    return parse_record(Preset, values, where="the run file").pixel_text


def _text_of(run: "RunConfig", table: "Preset") -> "AnyText":
    """The preset's text with the run's changes; another kind of text replaces it whole."""
    from videoldm_core.cascade.stage import Preset

    own, changes = table.text.model_dump(), run.text
    if changes.get("kind", own["kind"]) == own["kind"]:
        changes = merged(own, changes)
    return parse_record(Preset, table.model_dump() | {"text": changes}, where="the run file").text
