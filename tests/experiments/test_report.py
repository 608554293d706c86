import json
import re

import pytest
import yaml
from run_folders import config, make_run, write_curve
from torch.utils.tensorboard import SummaryWriter

pytest.importorskip("matplotlib")
pytest.importorskip("markdown")
pytest.importorskip("scipy")

from pathlib import Path

from bytelm.experiments.report import plots
from bytelm.experiments.report.page import report
from bytelm.program import main
from bytelm.runs.ledger import read_runs
from bytelm.runs.score import VAL_BPB, VAL_LOSS

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def study():
    """Four experiments, one with three seeds, one that failed."""
    write_curve(make_run("s/00-base", 3.0, at=1, total_steps=1_500))
    for seed in (42, 1, 2):
        run = make_run(
            f"s/01-wide,seed={seed}", 2.5 + seed / 1000, at=2 + seed % 10, settings=config(seed=seed, d_model=32)
        )
        write_curve(run)
    write_curve(make_run("s/02-slow", 2.7, at=20, settings=config(d_model=32, lr=1e-3)))
    make_run("s/03-bad", status="diverged", at=30, settings=config(lr=9.0), reason="the loss <b>became</b> NaN | stop")


def text(**options):
    report(["runs/s"], **options)
    return Path("runs/s/report/report.md").read_text()


def rows(markdown, head):
    """The rows of the table whose head begins so, as lists of cells."""
    lines = markdown.split(f"| {head}")[1].splitlines()[2:]
    table = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_a_table_has_a_row_for_each_experiment(study):
    base, wide, slow, bad = rows(text(), "Run")
    assert base == ["0", "00-base", "**3.0000**", "1,500", "223K", "", "keep"]
    assert wide[:2] == ["1", "01-wide"]
    assert wide[2] == "**2.5150 ± 0.0234 (3)**"
    assert wide[5:] == ["d_model 16 → 32 (from 0)", "keep"]
    assert slow[5:] == ["lr 0.003 → 0.001 (from 1)", "discard"]
    assert (bad[2], bad[6]) == ("none", "diverged")


def test_the_best_configuration_comes_with_how_it_came_about_and_how_to_repeat_it(study):
    best = text().split("## Best configuration")[1].split("![")[0]
    assert "**01-wide**: val_bpb 2.5150 ± 0.0234 (3)" in best
    assert "16.2 % less than the first, 00-base (3.0000)" in best
    assert "* d_model 16 → 32 (from 00-base)" in best
    assert "d_model 32, n_layers 1, vocab_size 256, position Rotary" in best
    assert "--config runs/s/01-wide,seed=1/version_0/config.yaml" in best


def test_phases_are_tables_of_their_own_and_the_rest_is_not_lost(study):
    page = text(phases={"Width": ["0[01]-*"], "Rate": ["02-*"]})
    assert re.findall("^## (.*)$", page, re.M)[1:4] == ["Width", "Rate", "Others"]
    width, rate, others = (part.split("\n## ")[0] for part in page.split("| Run | Config")[1:4])
    assert "00-base" in width
    assert "01-wide" in width
    assert "02-slow" in rate
    assert "03-bad" in others


def test_figures_from_elsewhere_stand_beside(study):
    page = text(reported={"0[01]-*": {"val_bpb": 3.728, "total_steps": 65}}, reported_by="challenge")
    assert "| Run | Config | val_bpb | challenge | Steps | challenge steps | Params |" in page
    base, _, slow, _ = rows(page, "Run")
    assert base[3:6] == ["3.728", "1,500", "65"]
    assert slow[3:6] == ["", "100", ""]


def test_effects_say_what_shows_and_what_does_not(study):
    effects = {"wide over narrow": ["01-*", "00-*"], "slow over fast": ["02-*", "01-*"], "bad": ["03-*", "00-*"]}
    page = text(effects=effects, reported={"00-*": {"val_bpb": 3.5}, "01-*": {"val_bpb": 3.4}})
    wide, slow, bad = rows(page, "Statement")
    assert wide[3:] == ["+0.4850", "+0.100", "shows"]
    assert slow[3:] == ["-0.1850", "", "the opposite shows"]
    assert bad[5] == "not to be said: a run has no score"


def test_a_small_effect_is_within_noise():
    for seed, (one, other) in enumerate([(2.0, 2.03), (2.1, 2.13), (2.2, 2.23)]):
        make_run(f"s/a,seed={seed}", one, at=seed, settings=config(seed=seed))
        make_run(f"s/b,seed={seed}", other, at=10 + seed, settings=config(seed=seed, d_model=32))
    page = text(effects={"a over b": ["a", "b"]})
    assert rows(page, "Statement")[0][5] == "within noise"
    assert rows(page, "Phase") == [["s", "0.1000", "4"]]
    assert "Not to be told from the best, a: b." in page


def test_what_was_made_from_another_differs_by_more_than_noise_or_does_not(study):
    wide, slow = rows(text().split("## What differs")[1], "Run")
    assert (wide[1], wide[2], wide[4]) == ("01-wide", "00-base", "better")
    assert (slow[1], slow[2], slow[4]) == ("02-slow", "01-wide", "worse")


def test_without_seeds_nothing_is_said_of_noise():
    make_run("s/a", 2.0)
    assert "nothing can be said" in text()


def test_noise_can_be_taken_from_other_runs():
    make_run("s/a", 2.0, at=1)
    make_run("s/b", 2.5, at=2, settings=config(d_model=32))
    for seed in (1, 2, 3):
        make_run(f"other/a,seed={seed}", 2.1 + seed / 100, at=seed, settings=config(seed=seed))
    page = text(spread_of=["runs/other"], phases={"All": ["*"]})
    assert rows(page, "Phase") == [["All", "0.0100", "2"]]
    assert rows(page.split("## What differs")[1], "Run")[0][4] == "worse"
    assert "(3)" not in page


def test_failures_are_listed_with_their_reasons_and_cannot_break_the_page(study):
    page = text()
    assert rows(page, "Config | Status") == [
        ["03-bad", "diverged", "the loss &lt;b&gt;became&lt;/b&gt; NaN \\| stop", "`runs/s/03-bad/version_0`"]
    ]
    assert "<b>became" not in Path("runs/s/report/report.html").read_text()


def test_the_html_page_needs_no_other_file(study):
    page = report(["runs/s"], title="A <title>").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<title>A &lt;title&gt;</title>" in page
    assert page.count("<table>") == len(re.findall(r"^\| -|^\| :?-", Path("runs/s/report/report.md").read_text(), re.M))


def test_the_pictures_beside_the_markdown_are_those_that_it_names(study):
    named = re.findall(r"!\[.*?\]\((.*?)\)", text())
    assert sorted(named) == sorted(path.name for path in Path("runs/s/report").glob("*.svg"))


def test_the_same_runs_give_the_same_report(study):
    files = ("report.md", "report.html", "by_number.svg", "by_parameters.svg", "by_time.svg")
    one, other = (report(["runs/s"], out=out).parent for out in ("one", "other"))
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_experiments_on_other_corpora_or_budgets_are_not_compared():
    make_run("s/a", 2.0, at=1)
    make_run("s/b", 1.0, at=2, settings=config(limit="20s", d_model=32))
    page = text()
    assert page.count("## Best configuration") == 2
    html = Path("runs/s/report/report.html").read_text()
    assert html.count('src="data:image/svg+xml;base64,') == 6
    assert ".svg" not in html
    assert [row[5] for row in (rows(page, "Run")[0], rows(page.split("## Best")[2], "Run")[0])] == ["", ""]
    assert len(list(Path("runs/s/report").glob("*.svg"))) == 6


def test_a_run_that_ended_before_it_left_a_config_is_with_the_others_of_its_name():
    folder = make_run("s/a", status="interrupted", at=0)
    (folder / "config.yaml").unlink()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "corpus": None}))
    make_run("s/a", 2.0, at=1, version=1)
    make_run("s/b", 3.0, at=2, settings=config(d_model=32))
    page = text()
    assert page.count("## Best configuration") == 1
    assert [row[1:3] for row in rows(page, "Run")] == [["a", "**2.0000**"], ["b", "3.0000"]]
    assert "runs | 3 (2 completed, 1 interrupted)" in page


def test_figures_are_those_of_completed_runs():
    write_curve(make_run("s/a", status="interrupted", at=0, total_steps=7))
    make_run("s/a", 2.0, at=1, version=1, total_steps=1_500)
    assert rows(text(), "Run")[0][3] == "1,500"


def test_where_every_run_failed_there_is_a_report_all_the_same():
    make_run("s/a", status="error", at=1, reason="two\nlines <b>of</b> it")
    make_run("other/a,seed=1", 2.0, at=1)
    make_run("other/a,seed=2", 2.1, at=2, settings=config(seed=2))
    page = text(spread_of=["runs/other"])
    assert page.count("No run was completed") == 2
    assert rows(page, "Config | Status")[0][2] == "two lines &lt;b&gt;of&lt;/b&gt; it"


def test_runs_whose_names_begin_with_the_same_number_are_counted():
    for place, lr in enumerate((1e-3, 2e-3, 3e-3)):
        make_run(f"s/24-rope,lr={lr}", 2.0, at=place, settings=config(lr=lr))
    assert [row[0] for row in rows(text(), "Run")] == ["1", "2", "3"]


def test_names_and_phases_are_no_html_and_no_patterns():
    make_run("s/a[1]", 2.0)
    page = text(title="<i>", phases={"<b>": ["a[1]"]}, curves=["a[1]"])
    assert page.startswith("# &lt;i&gt;\n")
    assert "## &lt;b&gt;" in page


def test_what_a_user_calls_others_is_not_lost(study):
    page = text(phases={"Others": ["00-*"]})
    assert [row[1] for row in rows(page, "Run")] == ["00-base", "01-wide", "02-slow", "03-bad"]


def test_curves_are_by_seconds_of_training_and_in_bits():
    write_curve(make_run("s/a"), steps=200, scores=(2.5, 2.0))
    (run,) = read_runs(Path("runs"))
    curves = plots.read_curves(run, VAL_BPB)
    seconds, loss = curves["train/loss"]
    assert seconds[-1] == pytest.approx(180)
    assert loss[-1] == pytest.approx(5.0 / 198**0.2 / 0.6931, rel=1e-3)  # mean of the last five
    assert list(curves["val/bpb"][0]) == pytest.approx([90, 180])
    assert list(curves["val/bpb"][1]) == pytest.approx([2.5, 2.0])


def test_a_loss_of_tokens_that_are_no_bytes_is_not_shown_as_bits_per_byte():
    write_curve(make_run("s/a", settings=config(vocab_size=50_304)))
    (run,) = read_runs(Path("runs"))
    curves = plots.read_curves(run, VAL_BPB)
    assert len(curves["train/loss"][0]) == 0
    assert len(curves["val/bpb"][0]) == 2


def test_the_running_best_falls(study):
    axes = plots.by_number({"all": _experiments()}, VAL_BPB).axes[0]
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(line.get_xdata()) == [0, 1, 2]
    assert list(line.get_ydata()) == pytest.approx([3.0, 2.515, 2.515])


def _experiments():
    from bytelm.experiments.comparison import experiments_of

    return experiments_of(read_runs(Path("runs")))


@pytest.fixture
def by_loss():
    """Three experiments without val_bpb, one with two seeds."""
    shards = config(vocab_size=50_304)
    write_curve(make_run("s/00-base", None, at=1, settings=shards, val_loss=6.0))
    for seed, loss in ((1, 5.0), (2, 5.2)):
        settings = config(seed=seed, vocab_size=50_304, d_model=32)
        make_run(f"s/01-wide,seed={seed}", None, at=1 + seed, settings=settings, val_loss=loss)
    make_run("s/02-bad", status="diverged", at=5, settings=config(vocab_size=50_304, lr=9.0))


def test_runs_without_val_bpb_are_reported_by_val_loss_with_its_unit(by_loss):
    effects = {"wide over narrow": ["01-*", "00-*"]}
    page = text(effects=effects, reported={"0*": {"val_loss": 5.5, "val_bpb": 1.0}}, reported_by="they")
    assert "| Run | Config | val_loss (nats per token) | they | Steps | Params |" in page
    base, wide, bad = rows(page, "Run")
    assert (base[2], base[3], base[-1]) == ("**6.0000**", "5.500", "keep")
    assert (wide[2], wide[-1]) == ("**5.1000 ± 0.1414 (2)**", "keep")
    assert (bad[2], bad[-1]) == ("none", "diverged")
    assert "**01-wide**: val_loss 5.1000 ± 0.1414 (2)" in page
    assert "15.0 % less than the first, 00-base (6.0000)" in page
    assert rows(page, "Statement")[0][3:5] == ["+0.9000", "+0.000"]
    assert "By the seed alone, val_loss varies" in page
    assert "val_bpb" not in page
    assert "Not ranked" not in page


def test_pictures_name_the_score_that_they_show(by_loss):
    phases = {"all": _experiments()}
    label = "val_loss (nats per token, lower is better)"
    assert plots.by_number(phases, VAL_LOSS).axes[0].get_ylabel() == label
    assert plots.by_parameters(phases, VAL_LOSS).axes[0].get_ylabel() == label
    axes = plots.by_time(phases["all"][0].runs, VAL_LOSS).axes[0]
    assert axes.get_ylabel() == "nats per token"
    assert "val_loss" in [entry.get_text() for entry in axes.get_legend().get_texts()]
    label = "val_bpb (bits per byte, lower is better)"
    assert plots.by_number(phases, VAL_BPB).axes[0].get_ylabel() == label


def test_curves_beside_val_loss_are_in_nats_whatever_a_token_is(by_loss):
    folder = Path("runs/s/00-base/version_0")
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("val/loss", 6.0, 200)
    run = next(run for run in read_runs(Path("runs")) if run.folder == folder)
    curves = plots.read_curves(run, VAL_LOSS)
    assert curves["train/loss"][1][-1] == pytest.approx(5.0 / 198**0.2, rel=1e-3)  # mean of the last five
    assert [list(values) for values in curves["val/loss"]] == [pytest.approx([180]), [6.0]]


def test_runs_without_val_bpb_among_others_are_not_ranked_and_the_report_says_so(study):
    make_run("s/04-tokens", None, at=40, settings=config(lr=2e-3), val_loss=1.0)
    page = text()
    assert "\n\nNot ranked: 04-tokens. It is not known how many bytes" in page
    assert "nats per token cannot be compared with bits per byte" in page
    assert [row[2] for row in rows(page, "Run")] == ["**3.0000**", "**2.5150 ± 0.0234 (3)**", "2.7000", "none", "none"]
    assert "**01-wide**: val_bpb 2.5150" in page
    failures = [row[:3] for row in rows(page, "Config | Status")]
    assert ["04-tokens", "completed", "it has val_loss alone: 1.0000"] in failures


def test_a_report_on_runs_with_val_bpb_says_nothing_of_the_other_score(study):
    page = text()
    assert "Not ranked" not in page
    assert "val_loss" not in page


def test_studies_that_are_ranked_by_another_score_are_not_compared():
    make_run("s/a", 2.0, at=1)
    make_run("t/a", None, at=2, settings=config(d_model=32), val_loss=1.0)
    report(["runs/s", "runs/t"])
    page = Path("runs/s/report/report.md").read_text()
    assert page.count("## Best configuration") == 2
    assert "**a**: val_bpb 2.0000" in page
    assert "**a**: val_loss 1.0000" in page
    assert "Not ranked" not in page


def test_noise_in_bits_says_nothing_of_scores_in_nats():
    for seed, (loss, val_bpb) in enumerate(((5.0, 2.0), (5.1, 2.2))):
        make_run(f"s/{seed}-x", None, at=seed, settings=config(d_model=16 + seed), val_loss=loss)
        make_run(f"other/a,seed={seed}", val_bpb, at=seed, settings=config(seed=seed))
    page = text(spread_of=["runs/other"])
    assert "how much the seed alone does is not known here" in page


def refused(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["report", *args])
    (line,) = capsys.readouterr().err.splitlines()
    return ended.value.code, line


def test_what_cannot_be_reported_is_refused_in_one_line(study, capsys):
    status, line = refused(capsys, "runs/none")
    assert status == 5
    assert "runs/none: there is no such folder" in line
    Path("runs/empty").mkdir()
    assert "runs/empty: no runs there that have ended" in refused(capsys, "runs/empty")[1]
    status, line = refused(capsys, "runs/s", "--phases", "{A: [99-*]}")
    assert status == 2
    assert "phases.A: '99-*' cannot be used" in line
    assert "00-base" in line
    assert "effects.x" in refused(capsys, "runs/s", "--effects", "{x: [00-*]}")[1]


def test_the_command_says_where_the_page_is(study, capsys):
    main(["report", "runs/s", "--out", "page"])
    assert capsys.readouterr().out == "report: page/report.html\n"
    assert Path("page/report.md").exists()


def test_the_challenges_report_names_every_config_of_the_challenge():
    page = yaml.safe_load((CONFIGS / "reports/autoresearch.yaml").read_text())
    for path in sorted((CONFIGS / "autoresearch").glob("*.yaml")):
        make_run(f"s/{path.stem}", settings=config(d_model=int(path.stem[:2])), at=int(path.stem[:2]))
    report(["runs/s"], **page)
    written = Path("runs/s/report/report.md").read_text()
    assert "## Others" not in written
    assert all(len(row) == len(rows(written, "Run")[0]) for row in rows(written, "Run"))
    for path in (CONFIGS / "autoresearch").glob("*.yaml"):
        number = path.stem[:2]
        assert f"val_bpb {page['reported'][f'{number}-*']['val_bpb']:.3f}" in " ".join(path.read_text().split())
