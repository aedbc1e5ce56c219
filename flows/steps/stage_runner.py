"""One stage of the cascade, from its parents' weights to a registered version.

Starts the training command; trains nothing.

The handoff: a stage inherits the parts its parents published, and is told their digests.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.run import RunConfig
from flows.launch import Cancelled, Command, Launcher, StageCrashed
from flows.launch.supervisor import End
from flows.registry.versions import Pin, StageModel, find_version, model_name, register_stage
from flows.steps.graph import Attempt, Ledger, Made
from flows.tracking.experiment import has_run
from flows.tracking.tracked_runs import Status
from flows.tracking.tracker import Tracker
from videoldm_core.errors import UserError
from videoldm_core.system.files import PRIVATE, disk_error, make_folder, write_text_atomically
from videoldm_core.system.git import git_commit

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset, Stage
    from videoldm_core.evaluation.comparison import WorthRow
    from videoldm_core.jobs.job import Job
    from videoldm_core.jobs.published import PublishedStage


@dataclass(frozen=True, kw_only=True)
class Foreman:
    """Trains the stages of one run."""

    run: RunConfig
    table: "Preset"
    launcher: Launcher
    tracker: Tracker

    def train(self, stage: "Stage", attempt: Attempt) -> Made:
        """Trains one stage, from where an interrupted training stopped, and registers it."""
        from videoldm_core.jobs.published import read_published

        folder = self.run.stage_folder(stage.name)
        job = self.job(stage)
        _write_job(folder, job, goes_on=attempt.goes_on)
        command = Command(
            module="videoldm_core.train",
            argument=folder / "job.json",
            processes=self.run.processes,
            log=folder / "log.txt",
            journal=folder / "journal.jsonl",
        )
        self._tell_start(stage, job)
        with _telling_the_end(self.tracker, stage.name):
            self.launcher.launch(command, on_line=attempt.on_line, cancelled=attempt.cancelled)
            published = read_published(folder)
            if published is None:
                raise StageCrashed(command, End(0, 0), "it published no stage.json")
        self._tell_worth(stage.name, published)
        self.register(stage.name)
        weights = tuple(folder / path for path in own_files(folder, published))
        seconds = published.process_seconds
        return Made(output=folder / "stage.json", files=weights, process_seconds=seconds)

    def evaluate(self, stage: str, attempt: Attempt) -> list[dict[str, Any]]:
        """Measures a published stage once more; the rows go to its MLflow run too.

        As it was trained, on what lies in the run's folder now, which may have been moved since.
        """
        from videoldm_core.evaluation.comparison import WorthRow
        from videoldm_core.jobs.job import load_job

        folder = self.run.stage_folder(stage)
        trained = load_job(folder / "job.json").stage
        job = self.job(self.table.stage(stage)).model_copy(update={"stage": trained})
        argument = folder / "evaluate.job.json"
        write_text_atomically(argument, job.model_dump_json(indent=2) + "\n", mode=PRIVATE)
        command = Command(
            module="videoldm_core.evaluate",
            argument=argument,
            processes=0,
            log=folder / "evaluate.log",
            journal=folder / "evaluate.journal.jsonl",
        )
        self.launcher.launch(command, on_line=attempt.on_line, cancelled=attempt.cancelled)
        rows = json.loads((folder / "worth.json").read_text())
        if self.tracker.knows(stage):
            for row in rows:
                self.tracker.add(stage, metrics=worth_metrics(WorthRow.model_validate(row)))
        return rows

    def job(self, stage: "Stage") -> "Job":
        """What the training command of a stage is told.

        Raises:
            UserError: a parent is not trained, or its data is not encoded.
        """
        from flows.config.pretrained import local_stage
        from videoldm_core.jobs.job import Job
        from videoldm_core.jobs.published import part_paths, published_digest
        from videoldm_core.models.text.source import pixel_tower

        tower = self.run.out / "text_tower"
        parts: dict[str, Path] = {}
        parents: dict[str, str] = {}
        for parent in stage.starts_from:
            folder = self.run.stage_folder(parent)
            parts |= part_paths(folder)
            parents[parent] = published_digest(folder)
        return Job(
            stage=local_stage(stage),
            video=self.table.video,
            parts=parts,
            parents=parents,
            latents=self._store("latents") if stage.reads == "latents" else None,
            pixels=self._store("pixels") if stage.reads == "pixels" else None,
            text_tower=pixel_tower(tower) if stage.upscales else tower,
            out=self.run.stage_folder(stage.name),
            seed=self.run.seed,
            precision=self.run.precision,
            zero_stage=self.run.zero_stage,
            checkpoint_every=self.run.checkpoint_every,
            evaluate_every=self.run.evaluate_every,
        )

    def register(self, stage: str) -> Pin:
        """The stage as a pinned version; version None when the tracking server does not answer."""
        from videoldm_core.jobs.published import published_digest, read_published

        folder = self.run.stage_folder(stage)
        published = read_published(folder)
        assert published is not None, f"{stage} is registered before it is published"
        digest, name = published_digest(folder), model_name(self.run.name, stage)
        self.tracker.deliver()
        version = None
        with self.tracker.client_or_none() as client:
            run_id = self.tracker.run_id(stage)
            if client is not None and run_id is not None and has_run(client, run_id, stage):
                model = StageModel(
                    stage=stage,
                    folder=folder,
                    files=(Path("stage.json"), *own_files(folder, published)),
                    digest=digest,
                    run_id=run_id,
                    tags=self._model_tags(client, published),
                )
                version = register_stage(client, self.run.name, model)
        if version is not None:
            self.tracker.add(
                stage, tags={"model_version": f"{name}/{version}", "stage_digest": digest}
            )
        return Pin(model=name, version=version, digest=digest, folder=folder)

    def _store(self, kind: str) -> Path:
        receipt = Ledger(self.run.out).receipt(kind)
        if receipt is None:
            raise UserError(
                f"There are no {kind} in {str(self.run.out)!r}; "
                "make them with: videoldm encode RUNFILE."
            )
        return (self.run.out / receipt.output).parent

    def _tell_start(self, stage: "Stage", job: "Job") -> None:
        settings = {"seed": job.seed, "precision": job.precision, "zero_stage": job.zero_stage}
        params = {
            **flat(stage.model_dump(mode="json")),
            **settings,
            "processes": self.run.processes,
        }
        tags = {
            "paper": stage.paper,
            "fingerprint": job.fingerprint(),
            "git_commit": git_commit(),
            **{f"parent.{name}": digest for name, digest in job.parents.items()},
        }
        self.tracker.begin(stage.name, params=params, tags=tags, journal=job.out / "journal.jsonl")

    def _tell_worth(self, stage: str, published: "PublishedStage") -> None:
        metrics = {"process_hours": published.process_seconds / 3600}
        for row in published.worth:
            metrics |= worth_metrics(row)
        tags = {"worth": "passed" if is_worthy(published) else "failed", **_data_tags(published)}
        self.tracker.add(
            stage,
            metrics=metrics,
            tags=tags,
            artifacts=(self.run.stage_folder(stage) / "stage.json",),
        )

    def _model_tags(self, client: Any, published: "PublishedStage") -> dict[str, str]:
        """The lineage of a registered version; a parent that is not registered is left out."""
        tags = {
            "fingerprint": published.fingerprint,
            "git_commit": published.commit,
            "worth": "passed" if is_worthy(published) else "failed",
            **_data_tags(published),
        }
        for parent, digest in published.parents.items():
            name = model_name(self.run.name, parent)
            version = find_version(client, name, digest)
            if version is not None:
                tags[f"parent.{parent}"] = f"{name}/{version}"
        return tags


def is_worthy(published: "PublishedStage") -> bool:
    """Whether the stage beats everything it must beat."""
    return bool(published.worth) and all(row.passed for row in published.worth)


def worth_metrics(row: "WorthRow") -> dict[str, float]:
    """A row of the worth table as metrics."""
    metrics = {f"worth/{row.metric}": row.value[0], f"worth/{row.metric}/passed": float(row.passed)}
    for name, mean, _, _ in row.baselines:
        metrics[f"worth/{row.metric}/{name}"] = mean
    return metrics


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as dotted names and texts."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            texts |= flat(value, f"{prefix}{name}.")
        else:
            texts[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return texts


def _data_tags(published: "PublishedStage") -> dict[str, str]:
    return {f"data.{kind}": str(identity) for kind, identity in published.data.items() if identity}


def own_files(folder: Path, published: "PublishedStage") -> list[Path]:
    """Files of the parts that the stage itself made, relative to its folder."""
    own = [Path(part.path) for part in published.parts.values() if not part.path.startswith("..")]
    files = {path for part in own for path in (folder / part).rglob("*") if path.is_file()}
    return sorted(path.relative_to(folder) for path in files)


def _write_job(folder: Path, job: "Job", *, goes_on: bool) -> None:
    """Leaves what the same job began or finished; removes what another one did.

    A stage may be whole and due all the same: registering it failed, or was interrupted. Training
    it says so at once, and does nothing.
    """
    try:
        if not goes_on and folder.exists():
            shutil.rmtree(folder)
        make_folder(folder)
        if not _is_whole(folder):
            (folder / "stage.json").unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    text = job.model_dump_json(indent=2) + "\n"
    write_text_atomically(folder / "job.json", text, mode=PRIVATE)


def _is_whole(folder: Path) -> bool:
    from videoldm_core.jobs.published import part_paths

    try:
        return bool(part_paths(folder, verify=True))
    except UserError:  # it is not published, or its weights are not those it tells of
        return False


@contextlib.contextmanager
def _telling_the_end(tracker: Tracker, stage: str) -> Iterator[None]:
    """Ends a stage's MLflow run as the block ends: finished, killed or failed."""
    try:
        yield
    except BaseException as error:
        tracker.end(stage, _status(error))
        raise
    tracker.end(stage, "FINISHED")


def _status(error: BaseException) -> Status:
    return "KILLED" if isinstance(error, Cancelled | KeyboardInterrupt) else "FAILED"
