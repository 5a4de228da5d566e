"""Every command line: one style of help, its version, its output files and folders, and closed streams."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SAMPLES, serving

from bench import server, servers
from digitserve import programs
from digitserve.programs import PROGRAMS
from ray_serve.config import ClusterSettings
from service import __version__
from service.config import PREFIX, Settings
from service.environment import FOREIGN_VARIABLES, unknown_variables

if TYPE_CHECKING:
    from conftest import ServiceProcess

IMAGES = SAMPLES / "digits-100-images-idx3-ubyte"
MODULES = ("service", "ray_serve", "digitserve", "export", "playground", "bench")
COMMANDS = (
    *((program,) for program in MODULES),
    *(("digitserve", name) for name in ("predict", "demo", "health", "score")),
    *(
        ("export", name)
        for name in (
            "onnx",
            "data",
            "train",
            "evaluate",
            "draw",
            "ablate",
            "mistakes",
            "out-of-distribution",
            "synthetic",
        )
    ),
)
WITHIN = 120  # seconds, for a busy machine


def run(*arguments: str | bytes | Path, env: dict[str, str] | None = None, **how: Any) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DIGITS_", "PLAY_"))}
    environment = {**environment, "COLUMNS": "80", **(env or {})}
    command = [sys.executable, "-m", *arguments]
    how = {"cwd": ROOT, "capture_output": True, **how}
    return subprocess.run(command, env=environment, check=False, timeout=WITHIN, **how)


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $PYTHON is the interpreter."""
    environment = {**os.environ, "COLUMNS": "80", "PYTHON": sys.executable, **env}
    command = ["/bin/bash", "-o", "pipefail", "-c", line]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=WITHIN
    )


def unboxed(said: str) -> str:
    """Return the text of typer's box, in one line."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", said).split())


NARROW = (("service",), ("ray_serve",), ("digitserve", "predict"), ("export", "train"))


@pytest.mark.parametrize(
    ("command", "width"), [*((command, 80) for command in COMMANDS), *((command, 40) for command in NARROW)]
)
def test_every_help_has_the_same_panels_and_fits_the_terminal(command: tuple[str, ...], width: int) -> None:
    done = run(*command, "--help", env={"COLUMNS": str(width)}, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= width
    assert width < 80 or "…" not in done.stdout, "text is truncated"
    usage, *panels = re.split(r"^╭─ ", done.stdout, flags=re.MULTILINE)
    assert usage.lstrip().startswith(f"Usage: python -m {command[0]}")
    titles = [panel.split(" ─")[0] for panel in panels]
    assert "Options" in titles
    assert len(titles) == len(set(titles))
    assert "--help" in panels[titles.index("Options")]


def test_help_shows_default_and_variable_of_every_option_of_the_server() -> None:
    said = unboxed(run("service", "--help", env={"COLUMNS": "200"}, text=True).stdout)
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in said
        assert f"[env var: DIGITS_{name.upper()}]" in said
        if field.default not in (None, "") and not isinstance(field.default, bool):
            assert f"[env var: DIGITS_{name.upper()}] [default: {field.default}]" in said


@pytest.mark.parametrize("kind", [Settings, ClusterSettings])
def test_every_heading_of_the_help_begins_with_an_option(kind: type[Settings]) -> None:
    first = list(kind.headings.values())
    assert first[0] == next(iter(kind.model_fields)), "no option is above the first heading"
    assert first == [name for name in kind.model_fields if name in first], "in their order"


def test_help_of_the_server_imports_neither_typer_nor_rich() -> None:
    look = "import sys, service.config; print([m for m in ('typer', 'rich', 'grpc', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_is_ascii_on_an_ascii_terminal() -> None:
    done = run("service", "--help", env={"PYTHONIOENCODING": "ascii"}, text=True)
    assert done.returncode == 0
    assert "+- Model --" in done.stdout


@pytest.mark.parametrize("command", [*((program,) for program in MODULES), ("digitserve", "score")], ids=" ".join)
def test_every_command_prints_its_version(command: tuple[str, ...]) -> None:
    done = run(*command, "--version", text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"digitserve {__version__}\n", "")


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        (["digitserve", "predict", "a.png"], "digitserve_client", "client"),
        (["digitserve", "predict", "a.png"], "PIL", "client"),
        (["digitserve", "health"], "digitserve_client", "client"),
        (["digitserve", "demo"], "digitserve_client", "client"),
        (["digitserve", "score", "a.idx", "--output", "out"], "pyarrow", "score"),
        (["digitserve", "ray"], "ray", "ray"),
        (["playground"], "uvicorn", "play"),
        (["playground"], "PIL", "play"),
        (["export", "train"], "jax", "train"),
    ],
)
def test_a_command_names_the_extra_that_is_missing(command: list[str], missing: str, extra: str) -> None:
    """As after `pip install digitserve`, which installs the needs of exporting and serving."""
    program, *arguments = command
    code = f"""
import importlib.util, runpy, sys
sys.argv[1:] = {arguments!r}
sys.modules[{missing!r}] = None
present = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == {missing!r} else present(name, *package)
runpy.run_module({program!r}, run_name="__main__", alter_sys=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN
    )
    assert f"{missing}: not installed; expected the extra {extra}: pip install 'digitserve[{extra}]'" in done.stderr
    assert done.stdout == ""
    assert done.returncode > 0
    assert "Traceback" not in done.stderr


def test_help_needs_neither_the_client_nor_any_extra() -> None:
    code = """
import sys
sys.modules |= dict.fromkeys(("digitserve_client", "grpc", "numpy", "onnxruntime", "PIL", "pyarrow"))
sys.argv = ["digitserve", "--help"]
from digitserve.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    for name in ("serve", "export", "predict", "health", "demo", "score", "play", "ray", "bench"):
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE)


INSTALLED = Path(sys.executable).with_name("digitserve")


@pytest.mark.parametrize(("name", "module"), [(name, one.module) for name, one in PROGRAMS.items()])
def test_a_program_of_digitserve_is_python_m_its_module(name: str, module: str) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run([INSTALLED, name, "--help"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.replace(f"digitserve {name}", f"python -m {module}", 1).split() == (
        run(module, "--help", text=True).stdout.split()
    )


def test_python_m_client_is_the_same_program_in_a_clone() -> None:
    for command in ("predict", "demo", "health", "score"):
        by_client, by_name = (run(program, command, "--help", text=True).stdout for program in ("client", "digitserve"))
        assert by_client.replace("python -m client", "python -m digitserve").split() == by_name.split()


def test_bench_outside_a_clone_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr("digitserve.programs.CLONE", tmp_path)
    assert programs.run("bench", []) == 1
    assert capsys.readouterr().err.startswith("bench: is not installed; expected a clone of the project")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("--ver", {"--version"}),
        ("pre", {"predict"}),
        ("predict --explain-", {"--explain-png"}),
        ("serve --por", {"--port"}),
        ("ray --min-", {"--min-replicas"}),
        ("export onn", {"onnx"}),
        ("export onnx --act", {"--activation"}),
        ("play --po", {"--port"}),
    ],
)
def test_the_installed_command_completes_itself_and_its_programs(line: str, completed: set[str]) -> None:
    words = {"COMP_WORDS": f"digitserve {line}", "COMP_CWORD": str(len(line.split()))}
    environment = {**os.environ, **words, "_DIGITSERVE_COMPLETE": "complete_bash"}
    done = subprocess.run([INSTALLED], env=environment, capture_output=True, text=True, check=False, timeout=WITHIN)
    assert set(done.stdout.split()) == completed, done.stderr


# Mistyped commands, and a part of the message; each is wrong usage, status 2.
MISTAKES: list[tuple[tuple[str, ...], str]] = [
    *(((program, "--nonsense"), "--nonsense") for program in MODULES),
    (("service", "--port"), "--port: expected one argument"),
    (("service", "--prot", "1"), "did you mean --port?"),
    (("service", "--log-level", "loud"), "--log-level"),
    (("ray_serve", "--port", "x"), "--port (or DIGITS_PORT) is 'x'"),
    (("ray_serve", "--model", ""), "--model (or DIGITS_MODEL) is empty"),
    (("digitserve", "nonsense"), "No such command 'nonsense'"),
    (("export", "nonsens"), "No such command 'nonsens'"),
    (("digitserve", "predict", str(IMAGES), "--limit"), "--limit"),
    (("digitserve", "predict", str(IMAGES), "--limit", "many"), "'--limit': Input should be a valid integer"),
    (("digitserve", "health", "--tls-ca", "docs"), "tls_ca docs: cannot be read: Is a directory"),
    (("digitserve", "health", "--tls-ca", "EMPTY"), "not certificates in PEM"),
    (("digitserve", "health", "--tls-ca", "GARBAGE"), "not certificates in PEM"),
    (("digitserve", "health", "--token-file", "EMPTY"), "holds no token"),
    (("digitserve", "health", "--token-file", "GARBAGE"), "holds no token"),
    (("digitserve", "score", "EMPTY", "--output", "out", "--engine", "fast"), "'fast' is not one of"),
    (("export", "onnx", "--activation", "gelu"), "'gelu' is not one of"),
    (("export", "onnx", "--weights", "docs"), "is a directory"),
    (("export", "onnx", "--weights", "no-such-file"), "does not exist"),
    (("playground", "--port", "70000"), "Input should be less than or equal to 65535"),
    (("bench", "--names", "grpcio,tritn"), "no server named 'tritn'; expected some of noop: a server of grpcio"),
    (("bench", "--only", "unknown row"), "no row's name contains 'unknown row'; expected a part of one of"),
]


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES, ids=[" ".join(row[0]) for row in MISTAKES])
def test_wrong_usage_is_a_message_and_status_two(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "EMPTY").touch()
    (tmp_path / "GARBAGE").write_bytes(bytes(range(256)))
    done = run(*(str(tmp_path / one) if one.isupper() else one for one in arguments), text=True)
    assert done.returncode == 2, done.stderr
    assert sentence in unboxed(done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


FILES: list[tuple[str, ...]] = [
    ("digitserve", "predict", str(IMAGES), "--explain-png"),
    ("export", "onnx", "--out"),
    ("export", "train", "--out"),
    ("export", "train", "--record"),
    ("export", "evaluate", "--json"),
    ("export", "evaluate", "--png"),
    ("export", "draw", "--out"),
    ("export", "ablate", "--png"),
    ("export", "mistakes", "--png"),
    ("export", "out-of-distribution", "--png"),
    ("export", "synthetic", "--out"),
]
FOLDERS: list[tuple[str, ...]] = [
    ("digitserve", "predict", str(IMAGES), "--save-png"),
    ("digitserve", "score", str(IMAGES), "--output"),
    ("export", "data", "--folder"),
    ("bench", "--out"),
    ("bench.providers", "--out"),
]


@pytest.mark.slow
@pytest.mark.parametrize("command", FILES, ids=" ".join)
def test_a_file_to_write_needs_a_folder_that_exists(tmp_path: Path, command: tuple[str, ...]) -> None:
    missing = run(*command, tmp_path / "none" / "file", text=True)
    assert missing.returncode == 2
    said = unboxed(missing.stderr).replace(" ", "")
    expected = f"Invalid value for '{command[-1]}': folder {tmp_path / 'none'} does not exist; expected a file"
    assert expected.replace(" ", "") in said
    assert not (tmp_path / "none").exists()

    folder = run(*command, tmp_path, text=True)
    assert folder.returncode == 2
    assert "is a folder; expected a file" in unboxed(folder.stderr)


@pytest.mark.parametrize("command", FOLDERS, ids=" ".join)
def test_a_folder_to_write_into_is_no_file(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        done = run(*command, path, text=True)
        assert done.returncode == 2
        assert "is a file; expected a folder" in unboxed(done.stderr)


def test_the_two_tables_hold_every_option_that_names_something_to_write() -> None:
    sources = [
        path
        for name in ("bench", "digitserve", "export", "playground", "digitserve/score")
        for path in (ROOT / name).glob("*.py")
    ]
    found = [match for path in sources for match in re.findall(r"output_(file|folder)\(", path.read_text())]
    shared = 1  # --png of ablate, mistakes and out-of-distribution is one option
    assert (found.count("file") + 3 - shared, found.count("folder")) == (len(FILES), len(FOLDERS))
    writing = r"typer\.Option\([^)]*\b(write|draw|put|folder for)\b"
    assert not [path.name for path in sources if re.search(writing, path.read_text())]


def test_bench_accepts_each_server_by_its_line_and_by_its_name_in_the_tables() -> None:
    assert list(server.ABOUT) == list(servers.SERVERS)
    said = unboxed(run("bench", "--help", text=True).stdout)
    assert all(f"{name}: " in said for name in servers.SERVERS)
    done = run("bench", "--names", "digitserve grpcio,no-op tuned", "--only", "no such row", text=True)
    assert "no server named" not in done.stderr
    assert "no row's name contains" in done.stderr


def test_every_variable_that_the_tree_names_is_known_to_the_server() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
    found = set()
    for name in listed:
        if (
            not name.startswith(("tests/", "service/pb/", "client/digitserve_client/pb/", "docs/images/"))
            and (ROOT / name).is_file()
        ):
            found |= set(re.findall(rb"\bDIGITS_[A-Z][A-Z0-9_]*[A-Z0-9]\b", (ROOT / name).read_bytes()))
    assert {"DIGITS_ADDRESS", "DIGITS_TLS_CA", "DIGITS_TOKEN_FILE"} <= {name.decode() for name in found}
    of_cluster = {PREFIX + name.upper() for name in ClusterSettings.model_fields}
    assert unknown_variables({name.decode(): "" for name in found} | dict.fromkeys(of_cluster, "")) == {}
    assert not FOREIGN_VARIABLES & {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DIGITS_PROT", "DIGITS_PORT"),
        ("DIGITS_TOKENFILE", "DIGITS_TOKENS_FILE"),
        ("DIGITS_MAX_BATCH", "DIGITS_MAX_BATCH_SIZE"),
        ("DIGITS_ADDR", ""),
        ("DIGITS_WEIGHTS", ""),
        ("DIGITS_", ""),
    ],
)
def test_a_name_is_only_suggested_if_it_is_similar(name: str, meant: str) -> None:
    assert unknown_variables({name: "1"}) == {name: meant}


def test_the_server_does_not_warn_of_variables_of_the_client(model_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIGITS_ADDRESS", "localhost:50051")
        patch.setenv("DIGITS_NONSENSE", "1")
        with serving(model_path) as service:
            told = [line for line in service.lines if line["event"] == "unknown variable"]
    assert [(line["variable"], "similar" in line) for line in told] == [("DIGITS_NONSENSE", False)]


@pytest.mark.parametrize("content", ["idx", "gzip", "png"])
def test_predict_reads_standard_input(server: ServiceProcess, content: str) -> None:
    how = {"idx": "cat", "gzip": "gzip -c", "png": '"$PYTHON" -c "$PICTURE"'}[content]
    picture = (
        "import sys; from PIL import Image; from digitserve_client.image import prepare_open;"
        "pixels = prepare_open(sys.stdin.buffer).pixels[0].tobytes();"
        "Image.frombytes('L', (28, 28), pixels).save(sys.stdout.buffer, 'PNG')"
    )
    predict = '"$PYTHON" -m digitserve predict - --json --limit 1'
    done = shell(f"{how} < {IMAGES} | {predict}", DIGITS_ADDRESS=server.address, PICTURE=picture)
    assert done.returncode == 0, done.stderr
    [answer] = json.loads(done.stdout)
    assert (answer["file"], answer["digit"]) == ("-", 0)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("< /dev/null", "is empty"),
        ("<&-", "is closed; expected a picture or an IDX file"),
        ("< README.md", "is no picture (PNG, JPEG, GIF, BMP, WEBP, TIFF, PPM) and no IDX file of images"),
    ],
)
def test_standard_input_that_is_not_a_picture_is_an_error(server: ServiceProcess, source: str, reason: str) -> None:
    done = shell(f'"$PYTHON" -m digitserve predict - --json {source}', DIGITS_ADDRESS=server.address)
    assert (done.returncode, done.stderr) == (1, f"standard input: {reason}\n")
    assert json.loads(done.stdout) == [{"file": "-", "error": reason}]


@pytest.mark.slow
def test_json_is_complete_if_the_server_stops_midway(model_path: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "later"
    os.mkfifo(fifo)
    with serving(model_path) as service:
        arguments = ["predict", IMAGES, fifo, IMAGES, "--json", "--limit", "1", "--timeout", "2"]
        command = [sys.executable, "-m", "digitserve", *arguments, "--address", service.address]
        with subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True) as process:
            with fifo.open("wb") as writing:  # blocks until the reader opens it: then the first file has been answered
                service.stop()
                writing.write(IMAGES.read_bytes())
            told, said = process.communicate(timeout=WITHIN)
    assert process.returncode == 3, said
    first, second, third = json.loads(told)
    assert first["digit"] == 0
    assert second["file"] == str(fifo)
    assert second["error"] == said.strip()
    assert third == {"file": str(IMAGES), "error": "not sent: the call for an earlier file failed"}


def test_json_is_a_document_if_no_server_answers() -> None:
    done = run("digitserve", "predict", IMAGES, "--json", "--address", "127.0.0.1:1", "--timeout", "1", text=True)
    assert done.returncode == 3
    assert [sorted(one) for one in json.loads(done.stdout)] == [["error", "file"]]


STRANGE = ["[red]x.idx", "a[b] 12.5 :smile:.idx", "[bold]1.idx", "umlaut ü 3.idx"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_is_shown_as_it_is(server: ServiceProcess, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(IMAGES.read_bytes())
    env = {"DIGITS_ADDRESS": server.address, "FORCE_COLOR": "1"}
    done = run(
        "digitserve", "predict", name, "--limit", "1", cwd=tmp_path, env={**env, "PYTHONPATH": str(ROOT)}, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{name}, image 0" in done.stdout
    assert f"99 more images in {name}; --limit 100 reads them all" in done.stdout


def test_the_folder_of_a_score_is_shown_as_it_is(model_path: Path, tmp_path: Path) -> None:
    output = tmp_path / "[bold]out 12"
    done = run("digitserve", "score", IMAGES, "--output", output, "--model", model_path, "--workers", "1", text=True)
    assert done.returncode == 0, done.stderr
    assert f"100 images scored into {output}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "LANG": "C"}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_a_name_that_is_no_utf8_is_no_traceback(
    server: ServiceProcess, tmp_path: Path, environment: dict[str, str]
) -> None:
    good, bad = (os.fsencode(tmp_path) + name for name in (b"/\xff.idx", b"/\xfdno"))
    Path(os.fsdecode(good)).write_bytes(IMAGES.read_bytes())
    env = {**environment, "DIGITS_ADDRESS": server.address}
    shown = run("digitserve", "predict", good, bad, "--limit", "1", env=env)
    assert shown.returncode == 1, shown.stderr
    assert b"Traceback" not in shown.stderr
    told = json.loads(run("digitserve", "predict", good, bad, "--limit", "1", "--json", env=env).stdout)
    assert [os.fsencode(one["file"]) for one in told] == [good, bad]
    model = os.fsencode(tmp_path) + b"/\xff.onnx"
    assert run("export", "onnx", "--out", model, env=env).returncode == 0
    output = os.fsencode(tmp_path) + b"/\xffout"
    table = pa.table({"pixels": pa.array([IMAGES.read_bytes()[16:800]])})
    with pa.OSFile(os.fsencode(tmp_path) + b"/\xff.parquet", "wb") as file:
        pq.write_table(table, file)
    for source in (good, good.removesuffix(b"idx") + b"parquet"):
        scored = run("digitserve", "score", source, "--output", output, "--model", model, "--overwrite", env=env)
        assert scored.returncode == 0, scored.stderr
    for command in (("service", "--model", bad), ("digitserve", "predict", bad), ("export", "evaluate", bad)):
        refused = run(*command, env=env)
        assert refused.returncode == 1, refused.stderr
        assert b"Traceback" not in refused.stderr


PRINTING = [
    ("service", "--help"),
    ("digitserve", "predict", str(IMAGES)),
    ("digitserve", "predict", str(IMAGES), "--json"),
    ("digitserve", "health"),
    ("export", "onnx", "--out", "OUT"),
    ("playground", "--help"),
]


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_output_that_cannot_be_written_is_no_traceback(
    server: ServiceProcess, tmp_path: Path, command: tuple[str, ...]
) -> None:
    words = " ".join(str(tmp_path / "model.onnx") if word == "OUT" else word for word in command)
    line = f'"$PYTHON" -m {words}'
    ours = {"DIGITS_ADDRESS": server.address}

    full = shell(f"{line} > /dev/full", **ours)
    assert (full.returncode, full.stderr) == (1, "standard output: cannot be written: No space left on device\n")

    reader_gone = shell(f'{{ {line}; echo "status $?" >&2; }} | true', **ours)
    assert reader_gone.stderr in ("status 0\n", "status 1\n"), "which depends on the faster process"

    for closed in (">&- 2>&-", "<&- >&-"):
        done = shell(f"{line} {closed}", **ours)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr


def test_a_message_for_a_closed_standard_error_is_not_in_the_output(server: ServiceProcess) -> None:
    done = shell(f'"$PYTHON" -m digitserve predict no-such-file {IMAGES} --json 2>&-', DIGITS_ADDRESS=server.address)
    assert done.returncode == 1
    assert "error" in json.loads(done.stdout)[0]
