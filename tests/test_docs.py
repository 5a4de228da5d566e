"""Every code block of README and docs runs in a copy of the clone, with a real server.

NOT_RUN names the commands that cannot run, with the reason. They are still checked: bash parses them, and their make
targets, files and flags exist.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
import yaml
from conftest import ROOT, SAMPLES, serving
from environments import python_with
from http_requests import http_address
from PIL import Image
from test_public_clients import go_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import ServiceProcess

NOT_RUN = {
    r"VERSION=\$|curl -L |git clone --branch|cmake |cp -P|cd \.\./|mkdir -p build": "builds sources on the network",
    r"make (?!certificate)": "it serves, builds or measures for minutes; test_make_targets and CI run some",
    r"(\w+=\S+ )+make |(export \w+=\S+; )?docker |export COMPOSE_FILE=": "needs a Docker engine; `make e2e` runs it",
    r"sudo |journalctl ": "needs root and systemd; test_workflows holds the unit to systemd-analyze",
    r"helm ": "needs a cluster; test_helm renders the chart",
    r"mkdir -p tokens && openssl": "writes into the clone; test_credentials makes tokens",
    r"kubectl |kind ": "needs a cluster; test_kubernetes holds the manifests to the schemas",
    r"(python -m service|(\S+/)?digitserve serve)(?! --help)": "serves until it is stopped; tests of a server do",
    r"\.venv-gpu/|((CUDA|WHEELS|PYTHONPATH)=\S+ )+|nvidia-smi|for cores |    |done$": "needs a GPU",
    r"\S*python -m ray_serve|(\S*/)?(ray|serve) |.* --ray-address": "needs Ray; `make test-ray`",
    r"\S*pip install|\S*python -m pip install": "changes the environment that runs the tests",
    r"python -m export (train|evaluate|onnx --weights)": "trains for minutes, and needs MNIST",
    r"python -m export (draw|out-of-distribution)|python scripts/(draw_play|page_numbers)": "writes files for minutes",
    r"python -m bench\.|python bench/balancing|CARGO_": "measures for minutes",
    r"kill -HUP PID": "there is no PID; test_reloader sends it",
    r".* --tls-ca tls/ca.crt": "needs the reader's files; test_credentials has such files",
}
"""Commands by their first words, with the reason why they do not run."""

NOT_RUN_PYTHON = {"samples/README.md": "writes the samples from MNIST, which is only downloaded for training"}

NO_HELP = {"pip", "venv", "grpc_tools.protoc"}
LANGUAGES = {"sh", "python", "yaml", "text"}


class Block(NamedTuple):
    """A fenced block of a document."""

    document: str
    line: int
    language: str
    text: str


def blocks_of(document: Path) -> Iterator[Block]:
    text = document.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(document.relative_to(ROOT).as_posix(), line, found[1], found[2])


DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").glob("*.md"),
    ROOT / "export/weights/README.md",
    SAMPLES / "README.md",
]
BLOCKS = [block for document in sorted(DOCUMENTS) for block in blocks_of(document)]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def of(block: Block) -> str:
    return f"{block.document}:{block.line}"


def commands(block: Block) -> list[str]:
    """Return the lines of a block, with continuation lines joined, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"(^|\s+)#.*", "", line))]


def reason(command: str) -> str | None:
    """Return why the command does not run, or None."""
    return next((why for begins, why in NOT_RUN.items() if re.match(begins, command)), None)


def test_every_block_names_its_language() -> None:
    assert [of(block) for block in BLOCKS if block.language not in LANGUAGES] == []


def test_every_reason_is_still_needed() -> None:
    every = [command for block in SHELL for command in commands(block)]
    assert [begins for begins in NOT_RUN if not any(re.match(begins, command) for command in every)] == []
    assert set(NOT_RUN_PYTHON) <= {block.document for block in BLOCKS if block.language == "python"}


def test_no_example_sends_a_blank_image() -> None:
    """Its answer, 5 at 0.6, would mislead a reader."""
    blank = re.compile(r"zeros\(\(1, 784\)|bytes\(784\)|\[\]byte, 784\)")
    assert [of(block) for block in BLOCKS if blank.search(block.text)] == []


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=of)
def test_yaml_parses(block: Block) -> None:
    assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("block", SHELL, ids=of)
def test_shell_parses_and_names_existing_files(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)  # noqa: S607 (the installed bash)
    for command in commands(block):
        for words in simple_commands(command):
            check_words(words)


def simple_commands(command: str) -> Iterator[list[str]]:
    """Yield the words of each program in a line, without variables set before it."""
    words: list[str] = []
    splitter = shlex.shlex(command, posix=True, punctuation_chars=";|&")
    splitter.whitespace_split = True
    for word in [*splitter, ";"]:
        if set(word) <= set(";|&"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"\w+=", word):
            words.append(word)


def check_words(words: list[str]) -> None:
    """Check that the targets, files and flags of a program exist."""
    if words[0] == "make":
        missing = [word for word in words[1:] if "=" not in word and word not in targets()]
        assert not missing, f"the Makefile has no {missing}"
    for word in words:
        if re.match(r"(samples|scripts|bench|deploy)/", word):
            assert (ROOT / word).exists(), f"{word}: no such file"
    if words[0].endswith("digitserve"):
        check_flags(("-m", "digitserve"), words[1:])
    elif words[0].endswith("python"):
        program = tuple(words[1:3] if words[1] == "-m" else words[1:2])
        check_flags(program, words[len(program) + 1 :])


def check_flags(program: tuple[str, ...], rest: list[str]) -> None:
    flags = [word.split("=")[0] for word in rest if word.startswith("--")]
    if flags and program[-1] not in NO_HELP:
        known = help_of(program, tuple(rest))
        assert [flag for flag in flags if not re.search(rf"{flag}\b", known)] == [], f"{program} has no such flag"


@functools.cache
def targets() -> set[str]:
    return set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@functools.cache
def help_of(program: tuple[str, ...], rest: tuple[str, ...]) -> str:
    """Return the output of `--help`, of the subcommand if there is one."""
    subcommand = rest[:1] if program[-1] in ("digitserve", "export") else ()
    command = [sys.executable, *program, *subcommand, "--help"]
    environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Callable[[str], Path]:
    """A function that creates a folder for a document, with the clone's files and those that a reader has."""

    @functools.cache
    def make(document: str) -> Path:
        folder = tmp_path_factory.mktemp(Path(document).stem)
        for entry in ROOT.iterdir():
            if entry.name not in (".git", ".venv", "model.onnx", "tls", "build"):
                (folder / entry.name).symlink_to(entry)
        (folder / ".venv").symlink_to(sys.prefix)
        shutil.copy(model_path, folder / "model.onnx")
        seven = np.fromfile(SAMPLES / "digits-100-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)[70]
        picture = Image.fromarray(255 - seven).resize((280, 280))
        picture.save(folder / "seven.jpg")
        picture.save(folder / "seven.png")
        write_parquet(folder / "digits.parquet", seven)
        return folder

    return make


def write_parquet(path: Path, image: np.ndarray) -> None:
    import pyarrow as pa  # noqa: PLC0415 (slow to import)
    import pyarrow.parquet as pq  # noqa: PLC0415

    pq.write_table(pa.table({"pixels": [image.tobytes()], "label": [7]}), path)


def run(
    command: list[str | Path], block: Block, folder: Path, service: ServiceProcess, path: Path | None = None
) -> None:
    """Run a block; fail the test with its output if it fails."""
    programs = [str(Path(sys.prefix) / "bin"), *([str(path)] if path else []), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(programs), "DIGITS_ADDRESS": service.address}
    environment["PYTHONWARNINGS"] = "error"
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=550
    )
    assert done.returncode == 0, f"{of(block)}\n{done.stdout}{done.stderr}"


def here(text: str, service: ServiceProcess) -> str:
    """Return the block with the ports of this server."""
    ports = {
        "localhost:50051": service.address,
        "localhost:9464": service.metrics_url.split("/")[2],
        "localhost:8000": http_address(service),
    }
    for port, address in ports.items():
        text = text.replace(port, address)
    return text


DOCUMENTS_WITH = sorted({block.document for block in BLOCKS if block.language in ("sh", "python")})
LONG = {"docs/open-inference-protocol.md"}  # half a minute, for clients in separate environments


@pytest.fixture(scope="module")
def running(model_path: Path) -> Iterator[ServiceProcess]:
    """A server for all documents, with the default transport."""
    with serving(model_path, "--http-port", "0") as service:
        yield service


@pytest.mark.parametrize(
    "document", [pytest.param(page, marks=[pytest.mark.slow] if page in LONG else []) for page in DOCUMENTS_WITH]
)
def test_every_block_runs(
    document: str, running: ServiceProcess, clone: Callable[[str], Path], model_path: Path
) -> None:
    folder, not_here = clone(document), []
    for block in [block for block in BLOCKS if block.document == document]:
        try:
            if block.language == "sh":
                run_shell(block, folder, running)
            elif block.language == "python" and "tls/tls.crt" in block.text:
                tls = ("--tls-cert", folder / "tls/tls.crt", "--tls-key", folder / "tls/tls.key")
                with serving(model_path, "--http-port", "0", *tls) as own:
                    run_python(block, folder, own)
            elif block.language == "python":
                run_python(block, folder, running)
        except pytest.skip.Exception as e:  # the other lines still run
            not_here.append(f"{of(block)}: {e}")
    if not_here:
        pytest.skip("; ".join(not_here))


def run_python(block: Block, folder: Path, service: ServiceProcess) -> None:
    if document_reason := NOT_RUN_PYTHON.get(block.document):
        assert document_reason
        compile(block.text, of(block), "exec")
        return
    python = sys.executable if "tritonclient" not in block.text else python_with("triton", "tritonclient[grpc]==2.73.0")
    run([python, "-c", here(block.text, service)], block, folder, service)


def run_shell(block: Block, folder: Path, service: ServiceProcess) -> None:
    kept = [command for command in commands(block) if reason(command) is None]
    path = None
    if any(command.startswith("grpcurl ") for command in kept):
        path = go_program("github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3").parent
    script = "set -eo pipefail\n" + "\n".join(kept)
    run(["bash", "-c", here(script, service)], block, folder, service, path)
