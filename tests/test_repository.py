"""Rules about the repository itself: sizes, names, clean imports, nothing private."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("videoldm_core", "preprocessing", "flows")
FILES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"}

# What a bare GPU machine has, and so all that the core may import when it is imported.
CORE_IMPORTS = {
    "torch", "diffusers", "einops", "safetensors", "webdataset", "pydantic", "numpy", "PIL",
    "videoldm_core",
}  # fmt: skip
ABSENT_ON_A_BARE_MACHINE = [
    "av", "decord", "open_clip", "deepspeed", "mlflow", "prefect", "boto3", "typer",
    "rich", "jinja2", "torchvision",
]  # fmt: skip

# Where the name on an index is not the name that is imported.
DISTRIBUTIONS = {
    "PIL": "pillow", "yaml": "pyyaml", "decord": "decord2", "open_clip": "open-clip-torch",
    "huggingface_hub": "huggingface-hub", "botocore": "boto3",
}  # fmt: skip
# Needed and never imported here, each for the reason that stands beside it.
NOT_IMPORTED = {
    "torchvision": "open_clip needs the one that fits torch",
    "webdataset": "reads the shards in tests and benchmarks",
    "whenever": "with an older one cron schedules of Prefect get no runs",
}

# Private things, written so that this file does not match itself.
PRIVATE = {
    "a package host": r"(pypi|pythonhosted|npmjs|download\.pytorch)[.](org|com)|index-ur[l]",
    "a machine's path": r"(?<![\w.])/(root|home|Users|work|tmp|opt)/[a-z]\w",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KE[Y]",
    "an access key": r"\b(AKIA[0-9A-Z]{16}|gh[opsu]_\w{30,}|xox[bp]-\w{10,}|hf_[A-Za-z]{30,})\b",
}

IMPORT_EACH_ALONE = """
import contextlib, importlib, json, os, sys
third_party, modules = json.loads(sys.stdin.read())
for statement in third_party:  # loaded before watching starts: what they do is not ours
    with contextlib.suppress(ImportError):
        exec(statement)

FORBIDDEN = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.chdir",
             "os.putenv", "os.system", "subprocess.Popen", "socket.connect", "socket.bind"}

def watch(event, arguments):
    writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in FORBIDDEN or (writes and arguments[0] != os.devnull):
        os.write(2, f"  {event} {arguments}\\n".encode())
        os._exit(1)

for name in modules:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        sys.addaudithook(watch)
        try:
            importlib.import_module(name)
        except BaseException as error:
            os.write(2, f"  {type(error).__name__}: {error}\\n".encode())
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        os.write(2, f"^ importing {name}\\n".encode())
        sys.exit(1)
"""

IMPORT_WITHOUT = """
import importlib, json, sys
absent, modules = json.loads(sys.stdin.read())
sys.modules.update(dict.fromkeys(absent))
for name in modules:
    importlib.import_module(name)
"""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(nodes: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements that run when the module is imported, those in branches included."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
            yield from imports(node.body)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test):
            yield from imports(node.body + node.orelse)


def packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").split(".")[0]}
    return {alias.name.split(".")[0] for alias in node.names}


def run_python(program: str, given: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": "",
        "HOME": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-B", "-c", program],
        input=json.dumps(given),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_files_stay_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in FILES + TESTS}
    assert not {name: count for name, count in lines.items() if count > 300}


def test_file_names_say_what_is_inside() -> None:
    parts = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not {part for part in parts if set(part.split("_")) & FORBIDDEN_NAMES}


def test_every_module_says_what_it_is_for() -> None:
    assert not [name_of(path) for path in FILES if not ast.get_docstring(syntax(path))]


def test_importing_a_module_alone_has_no_side_effects(tmp_path: Path) -> None:
    statements = [node for path in FILES for node in imports(syntax(path).body)]
    foreign = {ast.unparse(node) for node in statements if not packages(node) & set(PACKAGES)}
    given = [sorted(foreign), [module_name(path) for path in FILES]]
    result = run_python(IMPORT_EACH_ALONE, given, tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_core_imports_only_what_a_bare_machine_has() -> None:
    allowed = CORE_IMPORTS | set(sys.stdlib_module_names)
    foreign = {
        f"{name_of(path)}: {ast.unparse(node)}"
        for path in (ROOT / "videoldm_core").rglob("*.py")
        for node in imports(syntax(path).body)
        if packages(node) - allowed
    }
    assert not foreign, "import these inside the function that needs them"


def test_the_core_can_be_imported_on_a_bare_machine(tmp_path: Path) -> None:
    core = [module_name(path) for path in FILES if "videoldm_core" in path.parts]
    result = run_python(IMPORT_WITHOUT, [ABSENT_ON_A_BARE_MACHINE, core], tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


def test_what_is_declared_is_what_is_imported() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!~\[ ]", line, maxsplit=1)[0].replace("_", "-") for line in declared}
    known = set(PACKAGES) | set(sys.stdlib_module_names) | {""}
    statements = [n for path in FILES for n in ast.walk(syntax(path))]
    imported = [packages(n) for n in statements if isinstance(n, ast.Import | ast.ImportFrom)]
    used = {DISTRIBUTIONS.get(name, name) for name in set().union(*imported) - known}
    assert names == used | set(NOT_IMPORTED)
    assert not used & set(NOT_IMPORTED), "these are imported after all"


def test_no_tracked_file_holds_anything_private() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            text = (ROOT / name).read_bytes().decode("utf-8", errors="ignore")
            matches = {what: re.search(pattern, text) for what, pattern in PRIVATE.items()}
            found += [f"{name}: {what} {match[0]!r}" for what, match in matches.items() if match]
    assert not found


def asserting_functions(tree: ast.Module) -> set[str]:
    """Names of the functions in a test file that check something, directly or through another."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    checking = {"raises", "warns", "fail"}
    for _ in functions:
        checking |= {f.name for f in functions if any(is_check(n, checking) for n in ast.walk(f))}
    return checking


def is_check(node: ast.AST, checking: set[str]) -> bool:
    if not isinstance(node, ast.Call):
        return isinstance(node, ast.Assert)
    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
    return called in checking or called.startswith("assert_")


def test_every_test_asserts_something() -> None:
    idle = []
    for path in TESTS:
        tree = syntax(path)
        tests = {getattr(node, "name", "") or "" for node in ast.walk(tree)}
        tests = {name for name in tests if name.startswith("test_")}
        idle += [f"{name_of(path)}::{name}" for name in tests - asserting_functions(tree)]
    assert not idle


def test_no_test_hides_another_of_the_same_name() -> None:
    hidden = []
    for path in TESTS:
        names = [getattr(node, "name", "") for node in syntax(path).body]
        hidden += [f"{name_of(path)}::{name}" for name in names if name and names.count(name) > 1]
    assert not hidden


README = (ROOT / "README.md").read_text()
PATHS = [name_of(path) for package in PACKAGES for path in (ROOT / package).rglob("*")]


def named_in_readme(pattern: str) -> list[str]:
    """What `pattern` finds in the code of the README: between backticks, and in indented lines."""
    code = re.findall(r"`([^`\n]+)`", README) + re.findall(r"^    (.*)$", README, re.MULTILINE)
    return sorted({found for text in code for found in re.findall(pattern, text)})


def places_of(name: str) -> list[str]:
    """Files and folders that `name` may mean: whole paths, or their last parts."""
    return [path for path in PATHS if f"/{path}".endswith("/" + name.rstrip("/"))]


def test_every_path_in_the_readme_exists() -> None:
    files = named_in_readme(r"(?<![\w/])(?:\w+/)*\w+\.py\b")
    folders = named_in_readme(
        rf"(?<![\w/])(?:(?:{'|'.join(PACKAGES)}|objectives)/)(?:\w+/)*(?![\w])"
    )
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(files) > 20
    assert not [name for name in files + folders if not places_of(name)]
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_function_in_the_readme_exists() -> None:
    named = named_in_readme(r"(?:\w+/)*\w+\.py::\w+")
    assert len(named) >= 7
    for place, _, name in (text.partition("::") for text in named):
        (path,) = places_of(place)
        assert name in {getattr(node, "name", "") for node in syntax(ROOT / path).body}, place


def test_every_command_in_the_readme_exists() -> None:
    from flows.cli import app

    commands = {command.callback.__name__ for command in app.registered_commands}
    assert len(commands & set(named_in_readme(r"\bvideoldm ([a-z]+)\b"))) >= 5
    assert set(named_in_readme(r"\bvideoldm ([a-z]+)\b")) <= commands
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(named_in_readme(r"\bmake ([a-z]+)\b")) <= targets
