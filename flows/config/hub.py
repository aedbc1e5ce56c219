"""Models of the Hugging Face hub: named in a run, pinned to a commit, fetched once.

A run keeps the commit that it first took (hub.json in its folder): every stage of it, today and in
a month, starts from the same weights. That its branch has moved meanwhile is said.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from videoldm_core.errors import UserError, reason_of
from videoldm_core.records import Record, load_record
from videoldm_core.system.files import write_text_atomically

if TYPE_CHECKING:
    from flows.config.run import RunConfig

FILE = "hub.json"
HUB = "hub:"  # before the name of a model that may be fetched
ANSWER_S = 20.0
COMMIT = re.compile("[0-9a-f]{40}")
_SOURCE = re.compile(r"hub:(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
# What is read of a diffusers folder beside weights; other files of it stay on the hub.
SETTINGS = (
    *(f"{part}/config.json" for part in ("unet", "vae", "text_encoder")),
    *(f"{part}/scheduler_config.json" for part in ("scheduler", "low_res_scheduler")),
    *(f"tokenizer/{name}.json" for name in ("special_tokens_map", "tokenizer_config")),
)


class HubModel(NamedTuple):
    """A model of the hub."""

    name: str  # OWNER/NAME
    revision: str | None = None  # a commit, a branch or a tag; None: the branch that is shown

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")


class Pins(Record):
    """The commits that a run takes its models from."""

    commits: dict[str, str] = {}  # by source, as the run names it


def hub_model(source: str, *, what: str) -> HubModel:
    """Reads `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`.

    Args:
        what: the key that holds it, for the message.

    Raises:
        UserError: it is something else; never repeats it.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise UserError(
            f"{what} begins with {HUB!r} and is not hub:OWNER/NAME or hub:OWNER/NAME@REVISION (it "
            "is not repeated here, as it may hold a secret); a token for the hub belongs in "
            "HF_TOKEN."
        )
    return HubModel(found[1], found[2])


def pinned(run: "RunConfig") -> tuple["RunConfig", list[str]]:
    """The run with a commit for every model of the hub, and what the user should know about that.

    Raises:
        UserError: a commit is not known yet, and the hub does not answer or has no such model.
    """
    path = run.out / FILE
    known = load_record(Pins, path, what="file of pinned models") if path.exists() else Pins()
    commits, remarks, pins = dict(known.commits), [], {}
    for stage, source in _sources(run).items():
        model = hub_model(source, what=f"pretrained.{stage}")
        now = _commit_of(model, known.commits.get(source))
        kept = commits.setdefault(source, now)
        pins[stage] = f"{HUB}{model.name}@{kept}"
        if now != kept:
            remarks.append(
                f"{source} is at commit {now} now; this run keeps {kept}, which it began with. "
                f"Delete {str(path)!r} to take what is there now: what came from it is made again."
            )
    if commits != known.commits:
        write_text_atomically(path, Pins(commits=commits).model_dump_json(indent=2) + "\n")
    return run.model_copy(update={"pretrained": {**run.pretrained, **pins}}), remarks


def fetch(model: HubModel) -> Path:
    """The folder of a model of the hub, fetched once and kept in the hub's own cache.

    Raises:
        UserError: the hub does not answer, has no such model, or none that can be read.
    """
    import huggingface_hub as hub

    # The client raises its transport's own errors too, which change with its version.
    try:
        info = hub.model_info(model.name, revision=model.revision, timeout=ANSWER_S)
    except Exception as error:
        return _kept(model, error)
    wanted = wanted_files({file.rfilename for file in info.siblings or ()}, model.name)
    try:
        return Path(hub.snapshot_download(model.name, revision=info.sha, allow_patterns=wanted))
    except Exception as error:
        raise _unfetched(model, error) from None


def wanted_files(files: Collection[str], name: str) -> list[str]:
    """What of a repository's files is read: of weights the best copy, exact and unpickled first.

    Raises:
        UserError: there is no diffusers folder, or one without weights that can be read.
    """
    from videoldm_core.models.pretrained.folders import DIFFUSERS, TRANSFORMERS, weight_file

    wanted = [file for file in SETTINGS if file in files]
    for part, stems in (("unet", DIFFUSERS), ("vae", DIFFUSERS), ("text_encoder", TRANSFORMERS)):
        own = {f.removeprefix(f"{part}/") for f in files if f.startswith(f"{part}/")}
        chosen = weight_file(own, stems)
        if chosen is not None:
            wanted += [f"{part}/{file}" for file in _with_pieces(chosen, own)]
        elif part != "text_encoder":  # an image model alone can be read too
            raise UserError(
                f"{name!r} of the hub has no weights of the {part} that can be read (it has "
                f"{', '.join(sorted(own)) or f'no {part}/'}); expected {part}/{stems[0]}"
                ".safetensors or .bin: name a diffusers folder, or give the path of a single file."
            )
    return wanted


def _sources(run: "RunConfig") -> dict[str, str]:
    """The models of the hub by stage; `pretrained` wins over a row's own field, as in the table."""
    rows = {stage: row.get("objective") for stage, row in run.stages.items()}
    fields = {stage: row.get("source") for stage, row in rows.items() if isinstance(row, dict)}
    named = {**fields, **run.pretrained}
    return {stage: source for stage, source in named.items() if str(source).startswith(HUB)}


def _commit_of(model: HubModel, known: str | None) -> str:
    """The commit that a model's revision is at now; where nobody answers, the one it was at."""
    import huggingface_hub as hub

    if model.revision and COMMIT.fullmatch(model.revision):
        return model.revision
    try:
        info = hub.model_info(model.name, revision=model.revision, timeout=ANSWER_S)
    except Exception as error:
        return known or _kept(model, error).name  # the hub's cache has a folder per commit
    return info.sha or ""


def _with_pieces(chosen: str, files: Collection[str]) -> list[str]:
    """A file of weights, or an index with the files that it lists."""
    if not chosen.endswith(".json"):
        return [chosen]
    stem, _, rest = chosen.partition(".")
    suffix = ".bin" if rest.startswith("bin") else ".safetensors"
    half = r"\.fp16" if ".fp16" in chosen else ""
    piece = re.compile(rf"{stem}({half}-\d+-of-\d+|-\d+-of-\d+{half}){re.escape(suffix)}")
    return [chosen, *sorted(file for file in files if piece.fullmatch(file))]


def _kept(model: HubModel, error: Exception) -> Path:
    """The folder as it was fetched before, where the hub does not answer now."""
    import huggingface_hub as hub

    try:
        found = hub.snapshot_download(model.name, revision=model.revision, local_files_only=True)
    except (OSError, ValueError):
        raise _unfetched(model, error) from None
    return Path(found)


def _unfetched(model: HubModel, error: Exception) -> UserError:
    return UserError(
        f"Cannot fetch {str(model)!r} from the hub ({reason_of(error)}); check the name, or give "
        "the path of a folder or file."
    )
