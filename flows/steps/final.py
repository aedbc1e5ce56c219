"""The end of a run: the release that pins every stage, the sampled video, and the report."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.load import sampling_of
from flows.config.request_limits import limits_of
from flows.config.run import RunConfig
from flows.launch import Command
from flows.registry.versions import Defaults, PinnedRelease, files_of, register_release
from flows.report.summary import beaten_texts, measured, worth_rows
from flows.steps.graph import Attempt, Made, Step, in_order
from flows.steps.stage_runner import Foreman
from flows.tracking.experiment import has_run
from flows.tracking.tracker import CASCADE
from videoldm_core.records import parse_record
from videoldm_core.system.files import PRIVATE, sha256_of_folder, write_text_atomically

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset


class Ending:
    """What is made from all trained stages of one run."""

    def __init__(self, foreman: Foreman) -> None:
        self.foreman = foreman
        self.run = foreman.run
        self.tracker = foreman.tracker

    def release(self, attempt: Attempt) -> Made:
        """Pins one version of every stage; what the server does not take is left for later."""
        pins = {row.name: self.foreman.register(row.name) for row in self.foreman.table.stages}
        defaults, text_tower = defaults_of(self.run, self.foreman.table), self._text_tower
        release = PinnedRelease(
            name=self.run.name,
            stages=pins,
            request=defaults.digest(),
            text_tower=sha256_of_folder(text_tower),
        )
        kept: list[Path] = []
        if all(pin.version is not None for pin in pins.values()):
            release, kept = self._registered(release, defaults)
        path = self.run.out / "release.json"
        write_text_atomically(path, release.model_dump_json(indent=2) + "\n")
        self.tracker.add(CASCADE, artifacts=(path,))
        problem = self.tracker.problem or "the tracking server did not answer"
        is_registered = release.version is not None
        return Made(
            output=path,
            files=tuple(file for file in kept if file.is_relative_to(self.run.out)),
            incomplete="" if is_registered else f"not registered: {problem}",
        )

    def sample(self, attempt: Attempt) -> Made:
        """Samples a video with the whole cascade."""
        made = self.sample_to(self.run.out / "video.mp4", attempt)
        self.tracker.add(CASCADE, artifacts=(made.output, *made.files))
        return made

    def sample_to(self, video: Path, attempt: Attempt) -> Made:
        """Samples a video into `video`, with an animated preview beside it.

        Several futures become video-1.mp4, video-2.mp4 and so on.

        Raises:
            UserError: see `videoldm_core.generate`.
        """
        from videoldm_core.sampling.request import Request

        stages = {row.name: self.run.stage_folder(row.name) for row in self.foreman.table.stages}
        values = self.run.sample.model_dump(exclude={"sampling"}) | {
            "stages": stages,
            "roles": self.foreman.table.roles,
            "precision": self.run.precision,
            "text_tower": self._text_tower,
            "out": video,
            "sampling": sampling_of(self.run),
        }
        request = parse_record(Request, values, where="sample")
        folder = self.run.out / "steps"
        path = folder / "sample.request.json"
        write_text_atomically(path, request.model_dump_json(indent=2) + "\n", mode=PRIVATE)
        command = Command(
            module="videoldm_core.generate",
            argument=path,
            processes=0,
            log=folder / "sample.log",
            journal=video.with_suffix(".journal.jsonl"),
        )
        command.journal.unlink(missing_ok=True)
        self.foreman.launcher.launch(command, on_line=attempt.on_line, cancelled=attempt.cancelled)
        first, *others = request.videos
        previews = [path.with_suffix(".gif") for path in request.videos]
        return Made(output=first, files=(*others, *(path for path in previews if path.exists())))

    def report(self, attempt: Attempt, *, steps: list[Step]) -> Made:
        """Writes the report about `steps`, and keeps it with the cascade's run in MLflow."""
        from flows.report.page import write_report

        path = write_report(self.run, self.foreman.table, in_order(steps))
        self.tracker.add(CASCADE, artifacts=(path,))
        _show_worth_in_prefect(worth_rows(self.run, self.foreman.table))
        return Made(output=path)

    @property
    def _text_tower(self) -> Path:
        return self.run.out / "text_tower"

    def _registered(
        self, release: PinnedRelease, defaults: Defaults
    ) -> tuple[PinnedRelease, list[Path]]:
        """The release with its version, if the server takes it, and the files it is loaded from."""
        registered, kept = release, []
        with self.tracker.client_or_none() as client:
            run_id = self.tracker.run_id(CASCADE)
            if client is not None and run_id is not None and has_run(client, run_id, CASCADE):
                registered = register_release(
                    client,
                    release,
                    run_id=run_id,
                    defaults=defaults,
                    text_tower=self._text_tower,
                )
                kept = files_of(client, registered)
        return registered, kept


def defaults_of(run: RunConfig, table: "Preset") -> Defaults:
    """How the run's release samples by itself.

    What belongs to one video is not in it: prompt and boxes; nor are files of this machine: a first
    frame, a fine-tune of the image model.
    """
    sample = run.sample
    return Defaults(
        roles=table.roles.model_dump(),
        key_frames=sample.key_frames,
        passes=sample.passes,
        size=sample.size,
        labels=sample.labels,
        seed=sample.seed,
        precision=run.precision,
        sampling=sampling_of(run).model_dump(mode="json"),
        limits=limits_of(run, table),
    )


def _show_worth_in_prefect(rows: list[dict[str, Any]]) -> None:
    """The worth table as an artifact of the task run; nothing outside one."""
    from prefect.artifacts import create_table_artifact
    from prefect.context import TaskRunContext

    if rows and TaskRunContext.get() is not None:
        table = [
            {
                "stage": row["stage"],
                "metric": row["metric"],
                "value": measured(*row["value"]),
                "against": ", ".join(beaten_texts(row)),
                "worth": "passed" if row["passed"] else "failed",
            }
            for row in rows
        ]
        create_table_artifact(table, key="worth", description="Does every stage prove its worth?")
