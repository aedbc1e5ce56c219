"""The graph of a run: which steps there are and what each needs, derived from the stage table.

No stage is known here by name: a stage needs what it starts from and the store it reads.
"""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.load import tracking_uri
from flows.config.pretrained import brought_model, content_of, files_of, lora_files
from flows.config.run import RunConfig, SampleConfig
from flows.steps import final as results
from flows.steps.data import launch_step, launch_text
from flows.steps.graph import Step
from flows.steps.stage_runner import Foreman
from preprocessing.sources.listing import FoundFile, list_folder
from preprocessing.video.plausible import RULES

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset, Stage


def cascade_steps(foreman: Foreman) -> list[Step]:
    """Every step of the run, in the order of the story."""
    run, table = foreman.run, foreman.table
    stages = [stage_step(foreman, stage) for stage in table.stages]
    names = tuple(step.name for step in stages)
    ending = results.Ending(foreman)
    sampling = Step(
        name="sample",
        title="sample a video",
        needs=("text", *names),
        settings={**sample_settings(run.sample), "roles": table.roles.model_dump()},
        make=ending.sample,
        uses_accelerator=True,
    )
    # MLflow's versions of files on this machine say where those are, and do not follow a folder.
    places = {"place": str(run.out)} if (run.tracking_uri or "").startswith("sqlite:") else {}
    release = Step(
        name="release",
        title="register the release",
        needs=("text", *names),
        settings={
            "name": run.name,
            "uri": tracking_uri(run),
            **places,
            "request": results.defaults_of(run, table).model_dump(mode="json"),
        },
        make=ending.release,
    )
    before = [*data_steps(foreman), *stages, release, sampling]
    report = Step(
        name="report",
        title="write the report",
        needs=tuple(step.name for step in before),
        settings={"price": run.price_per_process_hour},
        make=partial(ending.report, steps=before),
    )
    return [*before, report]


def stage_step(foreman: Foreman, stage: "Stage") -> Step:
    """Training one row of the table."""
    from videoldm_core.objectives.pretrained import Brought

    row = stage.identity()
    if isinstance(stage.objective, Brought):
        row["objective"] = content_of(stage.objective)
    settings = {
        "stage": row,
        "video": foreman.table.video.model_dump(mode="json"),
        "seed": foreman.run.seed,
        "precision": foreman.run.precision,
    }
    return Step(
        name=stage.name,
        title=f"{'train' if stage.steps else 'read'} {stage.name}",
        needs=(stage.reads, *stage.starts_from),
        settings=settings,
        make=lambda attempt: foreman.train(stage, attempt),
        uses_accelerator=True,
    )


def data_steps(foreman: Foreman) -> list[Step]:
    """From videos to the stores that stages read."""
    run, table = foreman.run, foreman.table
    video = table.video.model_dump(mode="json")
    filming = [] if run.videos else [("videos", "film the driving world", (), _world(run, video))]
    rows: list[tuple[str, str, tuple[str, ...], dict[str, Any]]] = [
        *filming,
        (
            "admission",
            "admit the videos",
            tuple(name for name, *_ in filming),
            admission_settings(run, table),
        ),
        ("text", "build the text tower", (), text_settings(table)),
        ("pixels", "write pixel shards", ("admission", "text"), {"video": video}),
        (
            "latents",
            "encode latent shards",
            ("admission", "text", encoder_stage(table)),
            {"video": video},
        ),
    ]
    where = {"run": run, "launcher": foreman.launcher}
    makes = {name: partial(launch_step, name, **where) for name, *_ in rows}
    makes["text"] = partial(launch_text, **where)
    return [
        Step(
            name=name,
            title=title,
            needs=needs,
            settings=settings,
            make=makes[name],
            uses_accelerator=name == "latents",  # the others compute on the CPU
        )
        for name, title, needs, settings in rows
    ]


def admission_settings(run: RunConfig, table: "Preset") -> dict[str, Any]:
    """What decides which videos are used and what stages see of them."""
    settings = {
        "video": table.video.model_dump(mode="json"),
        "stages": {stage.name: [stage.frames, *stage.strides] for stage in table.stages},
        "folder": inventory(run.videos),
    }
    # Only where there are words: a preset without any goes on with what it admitted before.
    if table.labels or table.box_classes:
        settings["vocabulary"] = table.vocabulary.model_dump(mode="json")
    if boxed := boxed_stages(table):
        settings["boxed"] = boxed
    # The filmed world is what it should be; a folder admitted under other rules is due again.
    if run.videos:
        settings |= {"rates": "mean", "rules": RULES, "decode_cpu_hours": run.decode_cpu_hours}
    return settings


def boxed_stages(table: "Preset") -> list[str]:
    """The stages that see frames with boxes and no other."""
    from videoldm_core.cascade.checks.handoffs import told_vocabulary

    return [row.name for row in table.stages if row.sees_boxes_only(told_vocabulary(row, table))]


def encoder_stage(table: "Preset") -> str:
    """The stage whose autoencoder makes the latents: trained from nothing, or brought."""
    makers = [row.name for row in table.stages if _makes_autoencoder(row)]
    assert len(makers) == 1, f"the preset {table.name} has {makers} as first autoencoder"
    return makers[0]


def _makes_autoencoder(row: "Stage") -> bool:
    from videoldm_core.objectives.pretrained import Brought

    if isinstance(row.objective, Brought):
        return row.objective.model == "image"
    return "vae" in row.trains and not row.starts_from


def text_settings(table: "Preset") -> dict[str, Any]:
    """What decides the text towers: their configurations, or the files of the models' own."""
    from videoldm_core.models.text.source import ModelText

    settings = {}
    for name, text in (("of_latents", table.text), ("of_pixels", table.pixel_text)):
        if text is None:
            continue
        settings[name] = text.model_dump(mode="json")
        if isinstance(text, ModelText):
            settings[name]["model"] = content_of(brought_model(table.stage(text.stage)))
    return settings


def sample_settings(sample: SampleConfig) -> dict[str, Any]:
    """What is asked of the sampled video; of files that it is made from, not where they are."""
    brought = {
        "first_frame": sample.first_frame and files_of(sample.first_frame),
        "backbone": sample.backbone and files_of(sample.backbone),
        "loras": [lora_files(path) for path in sample.loras],
    }
    return sample.model_dump(mode="json") | brought


def inventory(folder: Path | None) -> list[list[Any]]:
    """Name, size and time of every file of the user's, so that new videos make admission due.

    Of a file that cannot be read it is why instead: let be read, it makes admission due, too.

    Raises:
        UserError: the folder itself cannot be read.
    """
    if folder is None:
        return []
    return [_state(file) for file in list_folder(folder).files]


def _state(file: FoundFile) -> list[Any]:
    if file.refusal:
        return [file.name, *file.refusal]
    state = [file.name, file.size, file.changed_ns]
    return state if os.access(file.path, os.R_OK) else [*state, "unreadable"]


def _world(run: RunConfig, video: dict[str, Any]) -> dict[str, Any]:
    return {"world": run.world.model_dump(mode="json"), "video": video, "seed": run.seed}
