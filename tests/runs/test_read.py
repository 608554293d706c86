"""Damaged files in runs/: each is named in one line, its run is left out, and every command continues with the rest."""

import json
import os
import shutil
from datetime import date
from pathlib import Path

import pytest
import yaml
from disks import small_disk
from run_folders import config, make_run
from thinned import thinned

from bytelm.errors import StorageError
from bytelm.program import main
from bytelm.runs import record
from bytelm.runs.read import find_runs, read_config, read_run

RUNS = Path("runs")
BAD = Path("runs/s/bad/version_0")
IS_FOLDER, IS_NOWHERE, IS_FORBIDDEN = "Is a directory", "No such file or directory", "Permission denied"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def runs():
    """Two good runs, and one that a test damages."""
    make_run("s/good", 2.0, at=1)
    make_run("s/fine", 2.5, at=2, settings=config(d_model=32))
    make_run("s/bad", 1.5, at=3, settings=config(d_model=64))


def left_out(reason, file):
    """The line of a command about the damaged file."""
    kind = "cannot be read" if reason in (IS_FOLDER, IS_NOWHERE, IS_FORBIDDEN) else "is damaged"
    return f"bytelm: note: {file} {kind}: {reason}; this run is left out"


def check(command, capsys, file, reason):
    """Runs a command; it names the file in one line and lists the other runs."""
    line = left_out(reason, file)
    if command == "ledger":
        main(["ledger"])
        captured = capsys.readouterr()
        assert captured.err.splitlines() == [line]
        assert captured.out.splitlines()[0] == "runs: 2 (2 completed)"
        assert "s/bad" not in Path("runs/ledger.csv").read_text()
        return
    pytest.importorskip("matplotlib")
    pytest.importorskip("markdown")
    main(["report"])
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [line]
    page = Path("runs/report/report.md").read_text()
    assert "good" in page
    assert "bad" not in page


CONTENTS = {
    "empty": (b"", "Expecting value: line 1 column 1 (char 0)", "it is not a mapping of keys and values"),
    "zeros": (b"\0" * 200, "Expecting value: line 1 column 1 (char 0)", None),
    "no UTF-8": (b"a: \xff\xfe\n", *["'utf-8' codec can't decode byte 0xff in position 3: invalid start byte"] * 2),
    "a list": (b"[]", "it is not an object with keys", "it is not a mapping of keys and values"),
    "null": (b"null", "it is not an object with keys", "it is not a mapping of keys and values"),
    "deep": (b"[" * 100_000, None, "line 1: exceeded maximum nesting depth"),
    "less deep": (b"- " * 500, None, "more than 100 levels of nesting"),
    "an alias": (b"a: &a {b: 1}\nc: *a\n", None, "line 2: an alias"),
    "unfinished": (b'{"a": [1,\n2', "Expecting ',' delimiter: line 2 column 2 (char 11)", None),
    "unfinished YAML": (b"a: [1,\n2", None, "line 3: did not find expected ',' or ']'"),
    "a bad value": (b"a: !!timestamp b\n", None, None),
    "a bad key": (b"3: 4\n", None, "3 is a key"),
}


def for_both(cases):
    """Cases for the command `ledger`, and for `report`, which takes ten times as long: of these, some."""
    cases = list(cases)
    return [
        *(("ledger", case) for case in cases),
        *thinned((("report", case) for case in cases), 3, several=True),
    ]


@pytest.mark.parametrize(("command", "kind"), for_both(CONTENTS))
def test_a_damaged_file_is_named_and_the_others_are_read(runs, capsys, command, kind):
    content, of_record, of_config = CONTENTS[kind]
    for file, reason in ((BAD / "record.json", of_record), (BAD / "config.yaml", of_config)):
        if reason is not None:
            before = file.read_bytes()
            file.write_bytes(content)
            check(command, capsys, file, reason)
            file.write_bytes(before)


@pytest.mark.parametrize("kind", CONTENTS)
def test_only_damaged_files_are_raised(runs, kind):
    for file, read in (
        (BAD / "record.json", lambda file: record.read(file.parent)),
        (BAD / "config.yaml", read_config),
    ):
        file.write_bytes(CONTENTS[kind][0])
        with pytest.raises(StorageError, match=f"^{file} is damaged: "):
            read(file)


@pytest.mark.parametrize("name", ["record.json", "config.yaml"])
def test_paths_that_are_no_file_are_named(runs, capsys, name):
    file = BAD / name
    file.unlink()
    file.mkdir()
    check("ledger", capsys, file, IS_FOLDER)
    file.rmdir()
    file.symlink_to("nowhere")
    check("ledger", capsys, file, IS_NOWHERE)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"status": None}, "it has no status"),
        ({"status": ["completed"]}, "it has no status"),
        ({"val_bpb": "2.0"}, "val_bpb: "),
        ({"val_bpb": [2.0]}, "val_bpb: "),
        ({"val_bpb": True}, "val_bpb: "),
        ({"val_bpb": 10**400}, "val_bpb: "),
        ({"val_loss": {}}, "val_loss: "),
        ({"total_time_secs": "long"}, "total_time_secs: "),
        ({"wall_time_secs": []}, "wall_time_secs: "),
        ({"total_steps": "many"}, "total_steps: "),
        ({"num_params_M": "1M"}, "num_params_M: "),
        ({"seed": {}}, "seed: "),
        ({"ended_at": 3}, "ended_at: "),
        ({"started_at": 3}, "started_at: "),
        ({"reason": [1]}, "reason: "),
        ({"device": []}, "device: "),
        ({"corpus": "corpus.txt"}, "corpus: "),
        ({"corpus": {"sha256": []}}, "corpus: "),
        ({"git": 3}, "git: "),
        ({"git": {"commit": 3}}, "git: "),
        ({"versions": "0.1"}, "versions: "),
        ({"versions": {"torch": 2}}, "versions: "),
    ],
    ids=str,
)
def test_a_record_with_values_of_another_kind_is_named(runs, capsys, values, reason):
    file = BAD / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    main(["ledger"])
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith(f"bytelm: note: {file} is damaged: {reason}")
    assert captured.out.startswith("runs: 2 (2 completed)")


OTHER_RECORDS = [
    {"versions": {}},
    {"versions": {"bytelm": "0.1"}},
    {"versions": None},
    {"git": {"dirty": True}},
    {"git": {"commit": "0123456789"}},
    {"corpus": {}},
    {"device": None, "world_size": None},
    {"seed": None, "total_steps": None, "num_params_M": None, "tokens_per_sec": None, "total_time_secs": None},
    {"val_bpb": float("nan")},
    {"val_bpb": float("inf")},
    {"total_steps": 10**18},
    {"of_a_later_version": {"a": [1]}},
    {"status": "of_a_later_version"},
]


def change_record(folder, values):
    file = folder / "record.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize("values", OTHER_RECORDS, ids=str)
def test_a_record_that_lacks_values_or_has_more_is_read(runs, capsys, values):
    change_record(BAD, values)
    main(["ledger"])
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("runs: 3 (")


def test_records_that_lack_values_or_have_more_are_reported(runs, capsys):
    pytest.importorskip("matplotlib")
    for number, values in enumerate(OTHER_RECORDS):
        make_run(f"s/other-{number}", 1.5, at=3 + number, settings=config(d_model=64 + number))
        change_record(RUNS / f"s/other-{number}/version_0", values)
    main(["report"])
    assert capsys.readouterr().err == ""
    page = Path("runs/report/report.md").read_text()
    assert all(f"other-{number}" in page for number in range(len(OTHER_RECORDS)))


DURATION = "is not a duration; accepted: a time"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"time_budget": "180s"}, "time_budget is not a mapping"),
        ({"time_budget": {"limit": "3 stops"}}, f"'3 stops' {DURATION}"),
        ({"time_budget": {"limit": 3}}, f"3 {DURATION}"),
        ({"time_budget": {"limit": [{}]}}, f"{{}} {DURATION}"),
        ({"time_budget": {"limit": "[Duration('180s'), Duration('5 steps')]"}}, "is not a duration"),
        ({"time_budget": {"limit": date(2020, 1, 1)}}, f"datetime.date(2020, 1, 1) {DURATION}"),
        ({"model": "x"}, "model is not a mapping"),
        ({"data": [1]}, "data is not a mapping"),
        ({"model": {"gpt": {"class_path": 3}}}, "model.gpt.class_path is not a text"),
        ({"model": {"gpt": {"class_path": "a.b", "init_args": [1]}}}, "model.gpt.init_args is not a mapping"),
        ({"trainer": {"callbacks": [{"class_path": None}]}}, "trainer.callbacks.class_path is not a text"),
        ({"model": {3: 4}}, "3 is a key"),
    ],
    ids=str,
)
def test_a_config_with_values_of_another_kind_is_named(runs, values, reason):
    file = BAD / "config.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))
    lines = []
    assert [run.experiment for run in find_runs(RUNS, lines.append)] == ["good", "fine"]
    (line,) = lines
    assert line.startswith(f"{file} is damaged: ")
    assert reason in line


def test_a_run_that_is_damaged_has_no_part_in_what_is_the_best(runs):
    (BAD / "record.json").write_text("{")
    lines = []
    good, fine = find_runs(RUNS, lines.append)
    assert (good.score, fine.score) == (2.0, 2.5)
    assert len(lines) == 1


def test_a_folder_of_predictions_is_no_run():
    folder = make_run("s/predicted", status=None, settings={**config(), "return_predictions": None})
    (folder / "predictions.pt").touch()
    assert read_run(folder) is None
    assert find_runs(RUNS) == []
    make_run("s/trained", status=None)
    assert [run.experiment for run in find_runs(RUNS)] == ["trained"]


def test_a_run_whose_file_vanished_is_still_read(runs):
    (BAD / "dangling").symlink_to("nowhere")
    (BAD / "record.json").unlink()
    run = next(run for run in find_runs(RUNS) if run.experiment == "bad")
    assert (run.status, run.record["reason"]) == ("interrupted", "it left no record")


def test_a_name_that_is_no_utf_8_comes_through(runs, capsys):
    make_run("s/gr\udcf6sser", 2.25, at=4)
    main(["ledger"])
    assert capsys.readouterr().out.startswith("runs: 4 ")
    assert b"s/gr\xf6sser" in Path("runs/ledger.csv").read_bytes()


def test_runs_on_a_read_only_disk_are_read_and_the_ledger_says_why_it_is_not_written(runs, capsys):
    shutil.move("runs", "original")
    with small_disk("runs") as disk:
        shutil.copytree("original", "runs", dirs_exist_ok=True)
        (BAD / ".lock").touch()
        disk.read_only()
        assert len(find_runs(RUNS)) == 3
        with pytest.raises(SystemExit) as ended:
            main(["ledger"])
        assert ended.value.code == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert line == "bytelm: error: runs/ledger.csv: it cannot be written (Read-only file system)"


def test_a_full_disk_leaves_the_ledger_as_it_was(runs, capsys):
    shutil.move("runs", "original")
    with small_disk("runs") as disk:
        shutil.copytree("original", "runs", dirs_exist_ok=True)
        main(["ledger"])
        before = Path("runs/ledger.csv").read_bytes()
        make_run("s/more", 1.0, at=9)
        disk.fill()
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["ledger"])
        assert ended.value.code == 5
        assert "No space left on device" in capsys.readouterr().err
        assert Path("runs/ledger.csv").read_bytes() == before
        disk.empty()
        main(["ledger"])
        assert b"s/more" in Path("runs/ledger.csv").read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(runs, capsys):
    file = BAD / "record.json"
    file.chmod(0)
    check("ledger", capsys, file, IS_FORBIDDEN)
