"""The shipped configs are found by name in any folder, and `bytelm configs` lists them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from bytelm.config import base, shipped
from bytelm.config.text import BadText
from bytelm.program import main


def test_configs_lists_each_shipped_config_with_its_comment(capsys, monkeypatch):
    main(["configs"])
    whole = capsys.readouterr().out.splitlines()
    assert not any("…" in line for line in whole)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert all(long.startswith(short.removesuffix("…")) for long, short in zip(whole, lines, strict=True))
    assert [line.split()[0] for line in lines] == shipped.names()
    assert lines[0].startswith("quickstart ")
    assert "A first run that needs no download" in lines[0]
    for line in lines:
        assert len(line) <= 80
        assert len(line.split()) > 2, line
    main(["configs", "gpt2/"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["gpt2/1.5b", "gpt2/124m", "gpt2/345m"]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "gpt2/1.5b"])
def test_names_of_shipped_configs(name):
    assert shipped.find(name).is_file()


@pytest.mark.parametrize("name", ["", "nothing", "../configs/quickstart", "/quickstart", "{a: 1}", "model: {}", "gpt2"])
def test_other_names(name):
    assert shipped.find(name) is None


def test_a_shipped_config_is_used_in_any_folder_and_the_users_file_comes_first(folder, capsys):
    def printed(*options):
        with pytest.raises(SystemExit) as ended:
            main(["fit", *options, "--print_config"])
        assert ended.value.code in (0, None)
        return yaml.safe_load(capsys.readouterr().out)

    assert printed("--config", "quickstart")["model"]["gpt"]["init_args"]["d_model"] == 128
    Path("configs").mkdir()
    Path("configs/quickstart.yaml").write_text((folder / "tiny.yaml").read_text())
    assert printed("--config", "configs/quickstart.yaml")["model"]["gpt"]["init_args"]["d_model"] == 16


def test_a_base_may_be_a_shipped_config_and_a_file_beside_the_config_comes_first(folder):
    for name in ("quickstart", "configs/quickstart.yaml"):
        assert base.paths_of(name, folder) == [str(shipped.FOLDER / "quickstart.yaml")]
    Path("quickstart").write_text("{}")
    assert base.paths_of("quickstart", folder) == [str(folder / "quickstart")]
    with pytest.raises(
        BadText, match=r"there is no file .*/cosine' and no shipped config.*did you mean schedules/cosine?"
    ):
        base.paths_of("cosine", folder)


def test_other_commands_take_shipped_configs(folder, monkeypatch):
    runner = pytest.importorskip("bytelm.experiments.runner")
    compare = pytest.importorskip("bytelm.experiments.compare")
    cosine = str(shipped.FOLDER / "schedules" / "cosine.yaml")
    assert compare._contestant("schedules/cosine", None).name == "cosine"
    plans = []
    monkeypatch.setattr(runner, "Study", lambda name, plan, *rest: plans.append((name, plan)))
    monkeypatch.setattr(runner, "Runner", lambda *rest: SimpleNamespace(run=lambda: 0))
    with pytest.raises(SystemExit):
        runner.main(["schedules/cosine", "tiny.yaml"])
    assert [task.config for task in plans[0][1].grid()] == [cosine, "tiny.yaml"]
    Path("quickstart").touch()
    assert shipped.resolved("quickstart") == "quickstart"


def test_a_beginning_of_no_name_is_rejected(capsys):
    with pytest.raises(SystemExit):
        main(["configs", "gpt2", "gtp2"])
    captured = capsys.readouterr()
    assert captured.err.startswith("bytelm: error: names: 'gtp2' cannot be used; did you mean gpt2? accepted: the")
    assert captured.out == ""


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "a", "--ckpt_path", "last"],
        ["export", "runs/tiny/version_0", "out", "--format", "huggingface"],
        ["evaluate", "--tasks", "none", "--ckpt_path", "best"],
    ],
    ids=lambda command: command[0],
)
def test_commands_about_checkpoints_take_shipped_configs(trained, command, capsys):
    if command[0] == "evaluate":
        pytest.importorskip("lm_eval")
    for config, message in (
        ("quickstart", "is of another model; model.gpt.d_ff: 32 in the checkpoint, 512 now"),
        ("quickstrat", "config: 'quickstrat' cannot be used; there is no such file and no shipped config of this name"),
    ):
        with pytest.raises(SystemExit):
            main([*command, "--config", config])
        assert message in capsys.readouterr().err


def test_a_shipped_config_names_its_run(run):
    cli = run(*("--config", "tiny.yaml", "--time_budget.limit", "1 steps"), config="schedules/cosine")
    assert cli.experiment == "cosine+tiny"
