"""Looks at a machine before anything is queued on it: what is there, what is missing."""

import os
import platform
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from flows.config.addresses import check_environment
from flows.config.load import tracking_uri
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from flows.runner.prefect_api import check_server
from flows.runner.proxies import servers_of, settle_proxies
from flows.runner.telemetry import silence_prefect
from flows.runner.terminal import plain
from videoldm_core.errors import UserError
from videoldm_core.system.accelerators import accelerators
from videoldm_core.system.machine import usable_cores

Verdict = Literal["good", "note", "bad"]

PACKAGES = ("torch", "deepspeed", "diffusers", "prefect", "mlflow", "webdataset", "av")
LEAST_MEMORY_GIB = 4
LEAST_DISK_GIB = 2
ANSWER_S = 5
MEMORY_NOTE = (
    "ZeRO-n: weights, gradients, Adam's moments and the average, and what exchanging them "
    "takes; by arithmetic.\nA step: what it takes beside these. Judging: all that is held "
    "when a trained stage is judged and shown, after training has let go of the rest. A process "
    "takes the larger of ZeRO-n with a step, and judging.\nBoth are estimates, counted on shapes "
    "alone: with a CPU's operations, and in bf16 with an accelerator's norms.\nA "
    "process takes more: its libraries (on an accelerator, its context), and memory that is freed "
    "but not returned."
)


class Finding(NamedTuple):
    """One thing that was looked at."""

    verdict: Verdict
    what: str
    found: str


def examine(run: RunConfig) -> list[Finding]:
    """Everything that `run` needs of this machine."""
    checks: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (
        _versions,
        _processors,
        _accelerators,
        _decoding,
        _output,
        _models,
        _servers,
    )
    return [finding for check in checks for finding in check(run)]


def show(findings: list[Finding], console: Console | None = None) -> bool:
    """Prints the findings; False when one of them is bad."""
    console = console or Console(highlight=False, soft_wrap=True)
    colours = {"good": "[green]good[/]", "note": "[yellow]note[/]", "bad": "[bold red]bad [/]"}
    for verdict, what, found in findings:
        console.print(f"{colours[verdict]}  {what:<22}{plain(found)}")
    return all(finding.verdict != "bad" for finding in findings)


def show_memory(run: RunConfig, console: Console | None = None) -> None:
    """Prints the memory that training every stage takes on each of the run's processes.

    Raises:
        UserError: the run's stage table is not valid.
    """
    from videoldm_core.memory.stages import expected_memory
    from videoldm_core.memory.state import ZERO_STAGES

    console = console or Console(highlight=False, soft_wrap=True)
    precision, processes = run.precision, run.processes
    zeros = "".join(f"{f'ZeRO-{zero}':>10}" for zero in ZERO_STAGES)
    console.print(
        f"\nGiB per process expected while training, {processes} process(es), {precision}, "
        f"this run's ZeRO-{run.zero_stage}"
    )
    console.print(f"{'stage':<16}{'frozen':>10}{'trained':>10}{zeros}{'a step':>10}{'judging':>10}")
    for row in expected_memory(table_of(run), processes=processes, precision=precision):
        if row.unknown:
            console.print(f"{row.stage:<16}{plain(row.unknown)}")
            continue
        held = "".join(f"{_gib(row.state[zero]):>10}" for zero in ZERO_STAGES)
        counts = f"{_millions(row.frozen):>10}{_millions(row.trained):>10}"
        console.print(
            f"{row.stage:<16}{counts}{held}{_gib(row.activations):>10}{_gib(row.judging):>10}"
        )
    console.print(MEMORY_NOTE)


def _gib(count: int) -> str:
    return f"{count / 2**30:.3f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _versions(run: RunConfig) -> Iterator[Finding]:
    python = platform.python_version_tuple()
    is_known = python[:2] in (("3", "11"), ("3", "12"))
    yield Finding(
        "good" if is_known else "bad",
        "Python",
        platform.python_version() + ("" if is_known else "; 3.11 or 3.12 is needed"),
    )
    for package in PACKAGES:
        try:
            yield Finding("good", package, version(package))
        except PackageNotFoundError:
            yield Finding("bad", package, "not installed; run: make setup")


def _processors(run: RunConfig) -> Iterator[Finding]:
    cores = usable_cores()
    verdict: Verdict = "good" if cores >= run.processes else "note"
    slow = "" if verdict == "good" else f"; {run.processes} processes will share them"
    yield Finding(verdict, "cores", f"{cores}{slow}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = memory >= LEAST_MEMORY_GIB
    needs = "" if enough else f"; a run needs {LEAST_MEMORY_GIB} GiB"
    yield Finding("good" if enough else "note", "memory", f"{memory:.1f} GiB{needs}")


def _accelerators(run: RunConfig) -> Iterator[Finding]:
    found = accelerators()
    if not found:
        yield Finding("note", "accelerator", "none found; training runs on the CPU")
    for line in found:
        yield Finding("good", "accelerator", line)


def _decoding(run: RunConfig) -> Iterator[Finding]:
    """Child processes start, and the kernel keeps them from the network."""
    from preprocessing.isolation.workers import network_in_reach

    try:
        reason = network_in_reach()
    except UserError as error:
        yield Finding("bad", "decoding", f"no child process can decode: {error}")
        return
    reach = f"that could reach the network ({reason})" if reason else "without network"
    yield Finding("note" if reason else "good", "decoding", f"in child processes {reach}")


def _output(run: RunConfig) -> Iterator[Finding]:
    place = next(folder for folder in (run.out, *run.out.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        yield Finding("bad", "output folder", f"cannot write in {place}: {error.strerror}")
        return
    yield Finding("good", "output folder", str(run.out))
    free = shutil.disk_usage(place).free / 2**30
    enough = free >= LEAST_DISK_GIB
    needs = "" if enough else f"; a run needs about {LEAST_DISK_GIB} GiB"
    yield Finding("good" if enough else "bad", "free disk", f"{free:.1f} GiB{needs}")


def _models(run: RunConfig) -> Iterator[Finding]:
    """The models that the run brings: folders are looked into, others read as it starts."""
    from videoldm_core.objectives.pretrained import Brought, check_folder

    for stage in table_of(run).stages:
        if isinstance(stage.objective, Brought) and stage.objective.source is not None:
            if not Path(stage.objective.source).is_dir():
                found = f"{stage.objective.source} is read when the run starts"
                yield Finding("note", stage.name, found)
                continue
            try:
                check_folder(stage.objective)
            except UserError as error:
                yield Finding("bad", stage.name, str(error))
            else:
                yield Finding("good", stage.name, stage.objective.source)


def _servers(run: RunConfig) -> Iterator[Finding]:
    try:
        settle_proxies(servers_of(run, table_of(run)))
    except UserError as error:
        yield Finding("bad", "servers", str(error))
        return
    try:
        check_environment()
    except UserError as error:
        yield Finding("bad", "addresses", str(error))
        return
    uri = tracking_uri(run)
    if uri.startswith(("http://", "https://")):
        yield _reached(f"{uri.rstrip('/')}/health")
    elif uri.startswith(("sqlite:", "file:", "/", ".")):
        yield Finding("good", "MLflow", f"a file: {uri}")
    else:
        yield Finding("note", "MLflow", f"{uri} is asked when the run starts")
    api = os.environ.get("PREFECT_API_URL")
    if api:
        yield _prefect(api)
    else:
        yield Finding("good", "Prefect", "embedded server, started when something is due")


def _prefect(address: str) -> Finding:
    given = os.environ.get("PREFECT_HOME")
    with tempfile.TemporaryDirectory() as folder:
        silence_prefect(Path(folder))  # as it is imported, Prefect makes the folder of its files
        try:
            check_server(address)
        except UserError as error:
            return Finding("bad", "Prefect", str(error))
        finally:
            if given is None:
                del os.environ["PREFECT_HOME"]
    return Finding("good", "Prefect", f"{address} answers")


def _reached(address: str) -> Finding:
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_S):
            return Finding("good", "MLflow", f"{address} answers")
    except (urllib.error.URLError, OSError, ValueError) as error:
        found = f"{address} does not answer ({getattr(error, 'reason', error)})"
        return Finding("note", "MLflow", f"{found}; metrics wait until it does")
