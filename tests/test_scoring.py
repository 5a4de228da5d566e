"""python -m digitserve score: every form of input, unreadable input, and killed runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import ANSWERS_WITHIN, ROOT, SAMPLES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from digitserve.commands import app
from export import checkpoint, mnist

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

IMAGES = SAMPLES / "digits-100-images-idx3-ubyte"


def score(source: Path, output: Path, model: Path, *options: str | int, workers: int = 1) -> Result:
    arguments = ["score", source, "--output", output, "--model", model, "--workers", workers, *options]
    return CliRunner().invoke(app, list(map(str, arguments)))


def table(output: Path) -> pa.Table:
    return ds.dataset(output).to_table()


def errors(output: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / "_errors.jsonl").read_text().splitlines()]


def content(output: Path) -> dict[str, bytes]:
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def write_parquet(path: Path, pixels: pa.Array, **columns: pa.Array) -> Path:
    pq.write_table(pa.table({**columns, "pixels": pixels}), path, row_group_size=40)
    return path


def test_the_samples_are_scored_as_the_reference_does(tmp_path: Path, model_path: Path, digits: np.ndarray) -> None:
    result = score(IMAGES, tmp_path / "out", model_path, "--shard-rows", 30)
    assert result.exit_code == 0, result.stderr
    assert "100 images scored" in result.stderr
    found = table(tmp_path / "out")
    expected = checkpoint.load(checkpoint.committed("sigmoid")).network.forward(digits)
    assert found.column_names == ["id", "digit", "activations", "model_version"]
    assert found["id"].to_pylist() == [f"{IMAGES.name}#{row}" for row in range(100)]
    assert found["digit"].to_pylist() == expected.digit.tolist()
    activations = np.array(found["activations"].to_pylist(), np.float32)
    np.testing.assert_allclose(activations, expected.activations, rtol=0, atol=1e-5)
    assert set(found["model_version"].to_pylist()) == {"1"}
    assert errors(tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("_errors.jsonl", "_manifest.json"),
        *(f"part-00000{i}.parquet" for i in range(4)),
    ]


def png(digit: np.ndarray) -> bytes:
    written = io.BytesIO()
    Image.fromarray(digit.reshape(28, 28)).save(written, format="PNG")
    return written.getvalue()


COLUMNS: dict[str, Callable[[np.ndarray], pa.Array]] = {
    "binary": lambda x: pa.array([row.tobytes() for row in x], pa.binary()),
    "large_binary": lambda x: pa.array([row.tobytes() for row in x], pa.large_binary()),
    "fixed_size_binary": lambda x: pa.array([row.tobytes() for row in x], pa.binary(784)),
    "list of uint8": lambda x: pa.array(list(x), pa.list_(pa.uint8())),
    "large_list of int32": lambda x: pa.array(list(x), pa.large_list(pa.int32())),
    "fixed_size_list of uint8": lambda x: pa.FixedSizeListArray.from_arrays(x.ravel(), 784),
    "fixed_size_list of int64": lambda x: pa.FixedSizeListArray.from_arrays(x.ravel().astype(np.int64), 784),
    "list of float32": lambda x: pa.array(list((x / 255).astype(np.float32)), pa.list_(pa.float32())),
    "list of float64": lambda x: pa.array(list(x / 255), pa.list_(pa.float64())),
    "binary of pictures": lambda x: pa.array([png(row) for row in x], pa.binary()),
    "struct of pictures": lambda x: pa.array([{"bytes": png(row), "path": None} for row in x]),
    "binary of pixels and pictures": lambda x: pa.array([png(r) if i % 3 else r.tobytes() for i, r in enumerate(x)]),
}


@pytest.mark.parametrize("form", COLUMNS)
def test_each_form_of_a_column_holds_the_same_digits(
    tmp_path: Path, model_path: Path, digits: np.ndarray, form: str
) -> None:
    score(IMAGES, tmp_path / "idx", model_path)
    write_parquet(tmp_path / "digits.parquet", COLUMNS[form](digits))
    result = score(tmp_path / "digits.parquet", tmp_path / "out", model_path, "--shard-rows", 50)
    assert result.exit_code == 0, result.output
    assert table(tmp_path / "out")["activations"].equals(table(tmp_path / "idx")["activations"])
    assert len(list((tmp_path / "out").glob("part-*"))) == 3, "row groups of 40, 40 and 20"


def test_files_of_every_kind_in_one_folder(tmp_path: Path, model_path: Path, digits: np.ndarray) -> None:
    folder = tmp_path / "in"
    (folder / "pictures").mkdir(parents=True)
    (folder / "a.idx").write_bytes(IMAGES.read_bytes())
    (folder / "b.idx.gz").write_bytes(gzip.compress(IMAGES.read_bytes()))
    write_parquet(folder / "c.parquet", COLUMNS["binary"](digits))
    for row, digit in enumerate(digits[:12]):
        (folder / "pictures" / f"{row:02d}.png").write_bytes(png(digit))
    (folder / "_SUCCESS").write_text("")
    (folder / ".DS_Store").write_text("x")
    result = score(folder, tmp_path / "out", model_path)
    assert result.exit_code == 0, result.output
    found = table(tmp_path / "out")
    once = table(tmp_path / "out").slice(0, 100)["digit"].to_pylist()
    assert found["digit"].to_pylist() == [*once, *once, *once, *once[:12]]
    assert found["id"].to_pylist()[99:101] == ["a.idx#99", "b.idx.gz#0"]
    assert found["id"].to_pylist()[-1] == "pictures/11.png"


def test_ids_are_those_of_the_named_column(tmp_path: Path, model_path: Path, digits: np.ndarray) -> None:
    ids = pa.array([None if i == 3 else 1000 + i for i in range(100)], pa.int64())
    write_parquet(tmp_path / "x.parquet", COLUMNS["binary"](digits), key=ids)
    assert score(tmp_path / "x.parquet", tmp_path / "out", model_path, "--id-column", "key").exit_code == 0
    assert table(tmp_path / "out")["id"].to_pylist()[2:5] == ["1002", "x.parquet#3", "1004"]


BAD_ROWS: list[tuple[str, pa.Array, list[str]]] = [
    (
        "binary",
        pa.array([bytes(784), None, bytes(783), b"", bytes(784)]),
        ["is null", "holds 783 bytes; expected 784, or a picture, and as one it is no picture", "holds 0 bytes"],
    ),
    (
        "integers",
        pa.array([[0] * 784, None, [0] * 783, [256] + [0] * 783, [0] * 783 + [-1], [0] * 784], pa.list_(pa.int16())),
        ["is null", "has 783 values; expected 784", "has the value 256 at 0; expected 0 to 255", "value -1 at 783"],
    ),
    (
        "floats",
        pa.array([[0.0] * 784, [float("nan")] * 784, [1.5] * 784, [None] * 784, [1.0] * 784], pa.list_(pa.float32())),
        ["has the value nan at 0; expected 0 to 1", "has the value 1.5 at 0", "has null at 0"],
    ),
]


@pytest.mark.parametrize(("column", "reasons"), [row[1:] for row in BAD_ROWS], ids=[row[0] for row in BAD_ROWS])
def test_an_unreadable_row_is_reported_and_the_others_are_scored(
    tmp_path: Path, model_path: Path, column: pa.Array, reasons: list[str]
) -> None:
    write_parquet(tmp_path / "x.parquet", column)
    result = score(tmp_path / "x.parquet", tmp_path / "out", model_path)
    assert result.exit_code == 1
    assert f"{len(reasons)} unreadable rows" in result.stderr
    last = len(column) - 1
    assert table(tmp_path / "out")["id"].to_pylist() == ["x.parquet#0", f"x.parquet#{last}"]
    found = errors(tmp_path / "out")
    assert [row["id"] for row in found] == [f"x.parquet#{row}" for row in range(1, last)]
    for row, reason in zip(found, reasons, strict=True):
        assert reason in row["reason"]


def test_an_unreadable_input_is_reported_row_by_row(tmp_path: Path, model_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", pa.array([b"0123456789"] * 3, pa.binary(10)))
    assert score(tmp_path / "x.parquet", tmp_path / "out", model_path).exit_code == 1
    assert len(table(tmp_path / "out")) == 0
    assert [row["id"] for row in errors(tmp_path / "out")] == [f"x.parquet#{row}" for row in range(3)]


def test_a_picture_that_cannot_be_read_is_reported(tmp_path: Path, model_path: Path, digits: np.ndarray) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(digits[0]))
    (folder / "cut.png").write_bytes(png(digits[0])[:60])
    (folder / "notes.txt").write_text("these are digits")
    (folder / "cut.gz").write_bytes(gzip.compress(b"x" * 100)[:20])
    assert score(folder, tmp_path / "out", model_path).exit_code == 1
    assert table(tmp_path / "out")["id"].to_pylist() == ["good.png"]
    assert [(row["id"], row["reason"].split(" (")[0]) for row in errors(tmp_path / "out")] == [
        ("cut.gz", "is a damaged gzip file"),
        ("cut.png", "is a damaged picture"),
        ("notes.txt", "is no picture"),
    ]


def idx(images: int, side: int = 28, missing: int = 0) -> bytes:
    return b"\x00\x00\x08\x03" + np.array([images, side, side], ">u4").tobytes() + bytes(images * side**2 - missing)


def parquet(**columns: pa.Array) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.table(columns), written)
    return written.getvalue()


REFUSED = [
    ("no-such-file", None, (), "no-such-file: there is no such file or folder"),
    ("x.idx", idx(3, missing=1), (), "x.idx: is an IDX file with 2,351 bytes of images; its header promises 3 images"),
    ("x.idx", idx(3)[:9], (), "x.idx: is an IDX file cut short in its header"),
    ("x.idx", idx(3, side=32), (), "x.idx: is an IDX file of 32x32 images; expected 28x28"),
    ("x.gz", gzip.compress(idx(300), mtime=0)[:-9], (), "x.gz: is a damaged gzip file, or cut short: "),
    (
        "x.gz",
        gzip.compress(idx(3, missing=1), mtime=0),
        (),
        "x.gz: is an IDX file with 2,351 bytes of images; its header",
    ),
    ("x.txt", b"hello", (), "expected a Parquet file, an IDX file of images or a picture"),
    ("x.png", b"", (), "x.png: is empty; expected a Parquet file, an IDX file of images or a picture"),
    ("x.parquet", b"PAR1 and then nothing", (), "x.parquet: is a damaged Parquet file: "),
    ("x.parquet", parquet(image=pa.array([b""])), (), "x.parquet: has no column 'pixels'; it has image: name one with"),
    (
        "x.parquet",
        parquet(pixels=pa.array([b""])),
        ("--id-column", "key"),
        "x.parquet: has no column 'key'; it has pixels: name one with --id-column",
    ),
    ("x.parquet", parquet(pixels=pa.array([], pa.binary())), (), "x.parquet: holds no image"),
    ("x.idx", idx(0), (), "x.idx: holds no image"),
    ("x.parquet", parquet(pixels=pa.array(["a"])), (), "x.parquet: column 'pixels' is string; expected binary of 784"),
    ("x.idx", idx(1), ("--model", "no.onnx"), "no.onnx: no such file: write it with `python -m export onnx`"),
    ("x.idx", idx(1), ("--output", "docs"), "docs: holds files that are of no run of this command"),
    ("x.idx", idx(1), ("--output", "docs", "--overwrite"), "docs: holds files that are of no run of this command"),
    ("x.idx", idx(1), ("--output", "/proc/nowhere"), "/proc/nowhere: cannot be written"),
]


@pytest.mark.parametrize(
    ("name", "written", "options", "sentence"), REFUSED, ids=[f"{row[0]} {row[3][-40:]}" for row in REFUSED]
)
def test_each_error_has_its_message(
    tmp_path: Path, model_path: Path, name: str, written: bytes | None, options: tuple[str, ...], sentence: str
) -> None:
    if written is not None:
        (tmp_path / name).write_bytes(written)
    result = score(tmp_path / name, tmp_path / "out", model_path, *options)
    assert result.exit_code == 5, result.output
    assert sentence in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_ends_during_the_run_is_a_one_line_error(
    tmp_path: Path, model_path: Path, digits: np.ndarray, workers: int
) -> None:
    path = write_parquet(tmp_path / "x.parquet", COLUMNS["binary"](digits))
    good = path.read_bytes()
    middle = len(good) // 3
    path.write_bytes(good[:middle] + bytes(2000) + good[middle + 2000 :])
    result = score(path, tmp_path / "out", model_path, "--shard-rows", 40, workers=workers)
    assert result.exit_code == 5
    assert f"{path}: cannot be read on: " in result.stderr
    assert "Traceback" not in result.output


def test_a_column_may_have_a_dot_in_its_name(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet(**{"a.b": pa.array([bytes(784)])}))
    assert score(tmp_path / "x.parquet", tmp_path / "out", model_path, "--column", "a.b").exit_code == 0


def test_a_missing_package_is_named(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("digitserve.score.engines.has_ray", lambda: False)
    refused = score(IMAGES, tmp_path / "out", model_path, "--engine", "ray")
    assert (refused.exit_code, "pip install 'digitserve[ray]'" in refused.stderr) == (5, True)
    monkeypatch.setattr("digitserve.score.command.find_spec", lambda _: None)
    refused = score(IMAGES, tmp_path / "out", model_path)
    assert (refused.exit_code, "pip install 'digitserve[score]'" in refused.stderr) == (5, True)


def test_an_empty_folder_is_an_error(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = score(tmp_path / "in", tmp_path / "out", model_path)
    assert (result.exit_code, result.stderr.strip()) == (
        5,
        f"{tmp_path / 'in'}: holds no file; expected Parquet, IDX or picture files",
    )


def test_a_run_that_is_complete_is_left_as_it_is(tmp_path: Path, model_path: Path) -> None:
    score(IMAGES, tmp_path / "out", model_path)
    before = content(tmp_path / "out")
    again = score(IMAGES, tmp_path / "out", model_path)
    assert again.exit_code == 0
    assert "complete since an earlier run; --overwrite repeats it" in again.stderr
    assert content(tmp_path / "out") == before


def test_the_folder_of_another_run_is_rejected_without_overwrite(
    tmp_path: Path, model_path: Path, make_model: Callable[..., Path]
) -> None:
    score(IMAGES, tmp_path / "out", model_path)
    before = content(tmp_path / "out")
    other = make_model(version="2")
    refused = score(IMAGES, tmp_path / "out", other)
    assert refused.exit_code == 5
    assert "holds another run: its model has version '1', this one's '2'" in refused.stderr
    options = score(IMAGES, tmp_path / "out", model_path, "--shard-rows", 7)
    assert "holds another run: its shard_rows is 262144, this one's 7" in options.stderr
    assert content(tmp_path / "out") == before
    assert score(IMAGES, tmp_path / "out", other, "--overwrite").exit_code == 0
    assert set(table(tmp_path / "out")["model_version"].to_pylist()) == {"2"}


def test_an_input_that_changed_since_is_another_run(tmp_path: Path, model_path: Path) -> None:
    (tmp_path / "x.idx").write_bytes(idx(3))
    score(tmp_path / "x.idx", tmp_path / "out", model_path)
    (tmp_path / "x.idx").write_bytes(idx(4))
    refused = score(tmp_path / "x.idx", tmp_path / "out", model_path)
    assert "holds another run: its input has fingerprint" in refused.stderr


def test_a_damaged_manifest_is_reported(tmp_path: Path, model_path: Path) -> None:
    score(IMAGES, tmp_path / "out", model_path)
    (tmp_path / "out" / "_manifest.json").write_text("{")
    assert "_manifest.json: is damaged" in score(IMAGES, tmp_path / "out", model_path).stderr


rows = st.one_of(
    st.just(bytes(784)), st.binary(min_size=784, max_size=784), st.sampled_from([None, b"", bytes(783), b"\x89PNG"])
)


@given(
    pixels=st.lists(rows, min_size=1, max_size=120),
    group=st.integers(1, 50),
    shard_rows=st.integers(1, 60),
)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_of_workers_gives_the_same_bytes_and_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    model_path: Path,
    pixels: list[bytes | None],
    group: int,
    shard_rows: int,
) -> None:
    folder = tmp_path_factory.mktemp("score")
    source = folder / "x.parquet"
    pq.write_table(pa.table({"pixels": pa.array(pixels, pa.binary())}), source, row_group_size=group)
    for workers in (1, 2, 4):
        score(source, folder / str(workers), model_path, "--shard-rows", shard_rows, workers=workers)
    assert content(folder / "1") == content(folder / "2") == content(folder / "4")
    scored = table(folder / "1")["id"].to_pylist()
    told = [row["id"] for row in errors(folder / "1")]
    assert sorted([*scored, *told]) == sorted(f"x.parquet#{row}" for row in range(len(pixels)))
    assert scored == [f"x.parquet#{row}" for row, one in enumerate(pixels) if one is not None and len(one) == 784]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of pictures and images that takes seconds, so that a kill interrupts work."""
    folder = tmp_path_factory.mktemp("many")
    digits = mnist.read_idx(IMAGES)
    mnist.write_idx(np.tile(digits, (2000, 1, 1)), folder / "digits.idx")
    pictures = [png(digit) if i % 50 else b"broken" for i, digit in enumerate(np.tile(digits, (30, 1, 1)))]
    pq.write_table(pa.table({"pixels": pictures}), folder / "pictures.parquet", row_group_size=250)
    return folder


def killed_after(parts: int, command: list[str], output: Path) -> None:
    """Start the command and kill -9 it when that many parts are written; its workers must end too."""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + ANSWERS_WITHIN
        while len(list(output.glob("part-*"))) < parts:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
        process.wait()
        while members(process.pid):
            assert time.monotonic() < deadline, "a worker outlived the killed run"
            time.sleep(0.05)


def members(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):  # noqa: PTH208 (only the names)
        try:
            if os.getsid(pid) == session:
                found.append(pid)
        except ProcessLookupError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_resumed_after_kills_gives_the_bytes_of_an_uninterrupted_run(
    tmp_path: Path, model_path: Path, many: Path, workers: int
) -> None:
    options: list[Any] = ["--shard-rows", 2000]
    assert score(many, tmp_path / "whole", model_path, *options, workers=2).exit_code == 1
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "digitserve", "score", many, "--output", output, "--model", model_path]
    command += [*options, "--workers", workers]
    killed_after(5, list(map(str, command)), output)
    done = len(list(output.glob("part-*")))
    killed_after(done + 30, list(map(str, command)), output)
    done = len(list(output.glob("part-*")))
    result = score(many, output, model_path, *options, workers=workers)
    assert f"resuming: {done} of 102 files are done" in result.stderr
    assert result.exit_code == 1, "one picture of 50 is broken"
    assert content(output) == content(tmp_path / "whole")
    assert len(errors(output)) == 60
    assert len(table(output)) == 200_000 + 3000 - 60


@pytest.mark.slow
def test_ctrl_c_prints_one_line_and_keeps_finished_parts(tmp_path: Path, model_path: Path, many: Path) -> None:
    output = tmp_path / "out"
    said = interrupted(many, output, model_path, lambda _: len(list(output.glob("part-*"))) >= 5)
    assert "Traceback" not in said
    assert 5 <= len(list(output.glob("part-*"))) < 102


@pytest.mark.slow
@pytest.mark.parametrize("begun", [2, 3], ids=["the first worker begins", "the second worker begins"])
def test_ctrl_c_during_the_start_of_workers_prints_one_line_too(
    tmp_path: Path, model_path: Path, many: Path, begun: int
) -> None:
    """The signal reaches every process of a terminal, also pool processes during their imports."""
    said = interrupted(many, tmp_path / "out", model_path, lambda pid: len(children(pid)) >= begun)
    assert "Traceback" not in said


def interrupted(source: Path, output: Path, model: Path, when: Callable[[int], bool]) -> str:
    """Run with 2 workers, send Ctrl-C to all processes once `when` is true, and return standard error."""
    command = [sys.executable, "-m", "digitserve", "score", source, "--output", output, "--model", model]
    command += ["--workers", 2, "--shard-rows", 2000]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while not when(run.pid):
            assert run.poll() is None
            time.sleep(0.002)
        os.killpg(run.pid, signal.SIGINT)
        assert run.stderr is not None
        said = run.stderr.read()
    assert run.returncode == 130, said
    assert f"stopped; the same command resumes it from {output}" in said
    return said


def children(pid: int) -> list[str]:
    return [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_is_rejected(tmp_path: Path, model_path: Path, many: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "digitserve", "score", many, "--output", output, "--model", model_path]
    command += ["--workers", 1, "--shard-rows", 2000]
    with subprocess.Popen(list(map(str, command)), cwd=ROOT, stderr=subprocess.DEVNULL) as first:
        while not list(output.glob("part-*")):
            assert first.poll() is None
            time.sleep(0.005)
        first.send_signal(signal.SIGSTOP)
        try:
            second = score(many, output, model_path, "--shard-rows", 2000)
        finally:
            first.send_signal(signal.SIGCONT)
        assert f"{output}: another run is writing into it" in second.stderr
    assert first.returncode == 1
    assert len(table(output)) == 200_000 + 3000 - 60


def test_help_is_quick_and_describes_the_output() -> None:
    shown = CliRunner().invoke(app, ["score", "--help"], env={"COLUMNS": "200"}).output
    for text in ("id, digit, activations, model version", "_errors.jsonl", "--overwrite", "kill -9", "Exit status"):
        assert text in shown
    quick = subprocess.run(
        [
            sys.executable,
            "-c",
            "import digitserve.commands, sys; print(sys.modules.keys() & {'pyarrow', 'onnxruntime', 'ray'} or [])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert quick.stdout.strip() == "[]"
