import base64
import hashlib
import json
import re
import shlex
import warnings
from html.parser import HTMLParser

import pytest
import yaml
from run_folders import CORPUS, config, make_run, write_curve
from thinned import thinned
from torch.utils.tensorboard import SummaryWriter

pytest.importorskip("matplotlib")
pytest.importorskip("markdown")
pytest.importorskip("scipy")

from pathlib import Path

from bytelm.experiments.comparison import experiments_of
from bytelm.experiments.report import plots
from bytelm.experiments.report.contests import Layout, contests_of, ended_runs
from bytelm.experiments.report.curves import read_curves
from bytelm.experiments.report.page import report
from bytelm.experiments.report.section import Section
from bytelm.experiments.report.text import plain
from bytelm.program import main
from bytelm.runs import validations
from bytelm.runs.ledger import read_runs
from bytelm.runs.score import VAL_BPB, VAL_LOSS

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_study():
    write_curve(make_run("s/00-base", 3.0, at=1, total_steps=1_500))
    for seed in (42, 1, 2):
        run = make_run(
            f"s/01-wide,seed={seed}", 2.5 + seed / 1000, at=2 + seed % 10, settings=config(seed=seed, d_model=32)
        )
        write_curve(run)
    write_curve(make_run("s/02-slow", 2.7, at=20, settings=config(d_model=32, lr=1e-3)))
    make_run("s/03-bad", status="diverged", at=30, settings=config(lr=9.0), reason="the loss <b>became</b> NaN | stop")


@pytest.fixture
def study():
    """Four experiments, one with three seeds, one that failed."""
    make_study()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The folder of a report on these, which is made once."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_study()
        return folder / report(["runs/s"]).parent


@pytest.fixture
def page(reported):
    """The text of this report."""
    return (reported / "report.md").read_text()


def text(**options):
    report(["runs/s"], **options)
    return Path("runs/s/report/report.md").read_text()


def rows(markdown, head):
    """Returns the rows of the table with this head, as lists of cells."""
    lines = markdown.split(f"| {head}")[1].splitlines()[2:]
    table = lines[: lines.index("")] if "" in lines else lines
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def test_a_table_has_a_row_for_each_experiment_the_best_first(page):
    wide, slow, base, bad = rows(page, "Experiment")
    assert wide == ["01-wide", "**2.5150 ± 0.0234 (3)**", "100", "223K", "d_model 16 → 32 (from 00-base)", "keep"]
    assert slow == ["02-slow", "2.7000", "100", "223K", "lr 0.003 → 0.001 (from 01-wide)", "discard"]
    assert base == ["00-base", "3.0000", "1,500", "223K", "", "keep"]
    assert (bad[0], bad[1], bad[-1]) == ("03-bad", "none", "diverged")
    assert "± is the standard deviation over seeds, with the number of runs in parentheses" in page
    assert "| device | cpu |" in page
    assert "keep: it was the best of the contest when it ended; discard: it was not" in page


def test_the_title_names_the_studies_or_the_folder_of_runs_without_one(study):
    assert text().startswith("# Runs of s\n")
    make_run("alone", 2.9, at=40)
    report(["runs"])
    assert Path("runs/report/report.md").read_text().startswith("# Runs in runs\n")
    assert text(title="Mine").startswith("# Mine\n")


def test_pictures_explain_their_marks(reported):
    picture = (reported / "in_order.svg").read_text()
    for name in ("best so far", "not the best so far", "no score"):
        assert f"<!-- {name} -->" in picture
    assert "<!-- scores of several runs, and their mean -->" in (reported / "by_name.svg").read_text()


def test_labels_leave_out_the_parts_that_all_names_have():
    names = ["base,lr=1,d_ff=8,limit=2s", "base,lr=2,d_ff=8,limit=2s"]
    assert list(plots.labels(names).values()) == ["lr=1", "lr=2"]
    assert plots.labels(["base", "base,lr=1"]) == {"base": "base", "base,lr=1": "lr=1"}
    assert plots.labels(names[:1])[names[0]] == names[0]


@pytest.mark.parametrize("sizes", [(1e5, 1e8), (1e5, 1.1e5)])
def test_numbers_of_parameters_are_plain_numbers_on_the_axis(sizes):
    for at, size in enumerate(sizes):
        make_run(f"s/{at}", 3.0 - at, at=at, settings=config(d_model=16 * (at + 1)), num_params_M=size / 1e6)
    report(["runs/s"])
    picture = Path("runs/s/report/by_parameters.svg").read_text()
    assert "mathdefault" not in picture
    assert "<!-- 0.1 -->" in picture


def test_the_best_configuration_comes_with_how_it_came_about_and_how_to_repeat_it(page):
    best = page.split("## Best configuration")[1].split("![")[0]
    assert "**01-wide**: val_bpb 2.5150 ± 0.0234 (3)" in best
    assert "16.2 % less than that of the first, 00-base (3.0000)" in best
    assert "* d_model 16 → 32 (from 00-base)" in best
    assert "d_model 32, n_layers 1, vocab_size 256, position Rotary" in best
    assert "--config runs/s/01-wide,seed=1/version_0/config.yaml" in best


def test_phases_are_tables_of_their_own_and_the_rest_is_not_lost(study):
    page = text(phases={"Width": ["0[01]-*"], "Rate": ["02-*"]})
    assert re.findall("^## (.*)$", page, re.M)[1:4] == ["Width", "Rate", "Others"]
    width, rate, others = (part.split("\n## ")[0] for part in page.split("| Experiment | val_bpb")[1:4])
    assert "00-base" in width
    assert "01-wide" in width
    assert "02-slow" in rate
    assert "03-bad" in others


def test_figures_of_other_sources_are_beside(study):
    page = text(reported={"0[01]-*": {"val_bpb": 3.728, "total_steps": 65}}, reported_by="challenge")
    assert "| Experiment | val_bpb | challenge | Steps | challenge steps | Params |" in page
    _, slow, base, _ = rows(page, "Experiment")
    assert base[2:5] == ["3.728", "1,500", "65"]
    assert slow[2:5] == ["", "100", ""]


def test_effects_state_whether_they_are_significant(study):
    effects = {"wide over narrow": ["01-*", "00-*"], "slow over fast": ["02-*", "01-*"], "bad": ["03-*", "00-*"]}
    page = text(effects=effects, reported={"00-*": {"val_bpb": 3.5}, "01-*": {"val_bpb": 3.4}})
    wide, slow, bad = rows(page, "Statement")
    assert wide[3:] == ["+0.4850", "+0.100", "confirmed"]
    assert slow[3:] == ["-0.1850", "", "the opposite"]
    assert bad[5] == "unknown: a run has no score"


def test_a_small_effect_is_within_noise():
    for seed, (one, other) in enumerate([(2.0, 2.03), (2.1, 2.13), (2.2, 2.23)]):
        make_run(f"s/a,seed={seed}", one, at=seed, settings=config(seed=seed))
        make_run(f"s/b,seed={seed}", other, at=10 + seed, settings=config(seed=seed, d_model=32))
    page = text(effects={"a over b": ["a", "b"]})
    assert rows(page, "Statement")[0][5] == "within noise"
    assert rows(page, "Phase") == [["s", "0.1000", "4"]]
    assert "Statistically indistinguishable from the best, a: b." in page


def test_differences_from_the_parent_run_and_their_noise(page):
    wide, slow = rows(page.split("## What differs")[1], "Experiment")
    assert (wide[0], wide[1], wide[3]) == ("01-wide", "00-base", "better")
    assert (slow[0], slow[1], slow[3]) == ("02-slow", "01-wide", "worse")


def test_without_seeds_nothing_is_said_of_noise():
    make_run("s/a", 2.0)
    make_run("s/b", 2.1, settings=config(d_model=32), world_size=2)
    page = text()
    assert "no difference can be judged" in page
    assert "±" not in page
    assert "| device | cpu, 2 x cpu |" in page


def test_a_best_run_whose_code_is_different_now_says_so():
    make_run("s/a", code={"my_parts.py": "1f"})
    make_run("s/b", 3.0, at=1, code={"my_parts.py": "9a"})
    assert "with its own code (commit 0123456): my_parts.py is different now." in text()


def test_runs_with_the_same_seed_are_named_because_they_say_less_of_noise():
    for at, (name, seed) in enumerate([("a", 1), ("a", 2), ("b", 1), ("b", 1)]):
        make_run(
            f"s/{name},seed={seed}", 2.0 + at / 10, at=at, version=at, settings=config(seed=seed, d_model=ord(name))
        )
    assert "Several runs of b have the same seed." in text()


def test_equal_scores_have_no_range():
    for version in range(3):
        make_run("s/a", 7.76, at=version, version=version)  # their rounded mean is above 7.76
    make_run("s/b", 8.0, at=9, settings=config(d_model=32))
    assert report(["runs"]).exists()


def test_noise_can_be_taken_from_other_runs():
    make_run("s/a", 2.0, at=1)
    make_run("s/b", 2.5, at=2, settings=config(d_model=32))
    for seed in (1, 2, 3):
        make_run(f"other/a,seed={seed}", 2.1 + seed / 100, at=seed, settings=config(seed=seed))
    page = text(spread_of=["runs/other"], phases={"All": ["*"]})
    assert rows(page, "Phase") == [["All", "0.0100", "2"]]
    assert rows(page.split("## What differs")[1], "Experiment")[0][3] == "worse"
    assert "(3)" not in page


def test_failures_are_listed_with_their_reasons_and_cannot_break_the_page(reported, page):
    assert rows(page, "Experiment | Status") == [
        ["03-bad", "diverged", "the loss &lt;b&gt;became&lt;/b&gt; NaN \\| stop", "`runs/s/03-bad/version_0`"]
    ]
    assert "<b>became" not in (reported / "report.html").read_text()


def test_the_html_page_needs_no_other_file(study):
    page = report(["runs/s"], title="A <title>").read_text()
    assert page.count('src="data:image/svg+xml;base64,') == 3  # all of one size: no picture by parameters
    assert not re.search(r'(src|href)="(?!data:|#contest-)', page)
    assert "<title>A &lt;title&gt;</title>" in page
    assert page.count("<table>") == len(re.findall(r"^\| -|^\| :?-", Path("runs/s/report/report.md").read_text(), re.M))


def test_the_page_runs_its_own_script_alone(reported):
    page = (reported / "report.html").read_text()
    (allowed,) = re.findall(r"script-src '(sha256-[^']+)'", page)
    data, script = re.findall(r"<script.*?>(.*?)</script>", page, re.S)
    assert allowed == f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
    assert json.loads(data)["curves"]["score"] == "val_bpb"


def test_the_page_has_the_curves_of_its_pictures_by_time_and_by_tokens():
    name = "</script><b>"
    write_curve(
        make_run(f"s/{name}".replace("/script", "\u2044script"), 2.0, at=1, total_steps=200, tokens_seen=1_000_000)
    )
    wide = make_run("s/b", 2.5, at=2, settings=config(d_model=32), total_steps=200, tokens_seen=2_000_000)
    write_curve(wide, scores=(3.0, 2.5))
    page = report(["runs/s"]).read_text()
    assert re.findall(r'data-chart="(.*?)" data-over="(.*?)"', page) == [("curves", "seconds"), ("curves", "tokens")]
    data = json.loads(re.search(r'id="charts">(.*?)</script>', page, re.S)[1])["curves"]
    first, second = data["runs"]
    assert (first["name"], second["name"]) == (name.replace("/", "\u2044"), "b")
    assert first["color"] != second["color"]
    assert second["scores"] == {"seconds": [90.0, 180.0], "tokens": [1e6, 2e6], "values": [3.0, 2.5]}
    assert len(first["loss"]["values"]) == len(first["loss"]["tokens"]) == 196  # of 200, smoothed over 5


def test_the_pictures_beside_the_markdown_are_those_that_it_names(reported, page):
    named = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert sorted(named) == sorted(path.name for path in reported.glob("*.svg"))


def test_the_same_runs_give_the_same_report(study):
    files = ("report.md", "report.html", "by_name.svg", "in_order.svg", "by_time.svg")
    one, other = (report(["runs/s"], out=out).parent for out in ("one", "other"))
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_experiments_on_other_corpora_or_budgets_are_not_compared():
    for limit, at, best in (("180s", 1, 2.0), ("20s", 3, 1.0)):
        make_run(f"s/base-{limit}", best + 0.5, at=at, settings=config(limit=limit))
        make_run(f"s/wide-{limit}", best, at=at + 1, settings=config(limit=limit, d_model=32), num_params_M=0.5)
    make_run("s/alone", 0.5, at=5, settings=config(limit="5s"))
    page = text()
    assert re.findall("^# (.*)$", page, re.M)[1:] == [
        "Contest 1",
        "Contest 2",
    ]
    assert "**20s, corpus.txt, val_bpb**" in page
    one, two, alone = rows(page, "Contest")
    assert one == ["[1](#contest-1)", "180s", "corpus.txt", "val_bpb", "2", "2", "wide-180s: 2.0000", "d_model 16 → 32"]
    assert two == ["[2](#contest-2)", "20s", "corpus.txt", "val_bpb", "2", "2", "wide-20s: 1.0000", "d_model 16 → 32"]
    assert alone == ["3", "5s", "corpus.txt", "val_bpb", "1", "1", "alone: 0.5000", ""]  # and no section for one point
    assert page.count("## Best configuration") == 2
    assert [row[4] for row in rows(page, "Experiment |")] == ["d_model 16 → 32 (from base-180s)", ""]
    html = Path("runs/s/report/report.html").read_text()
    assert html.count('src="data:image/svg+xml;base64,') == 8
    assert ".svg" not in html
    assert html.count('href="#contest-') == html.count('id="contest-') == 2
    assert len(list(Path("runs/s/report").glob("*.svg"))) == 8


def test_a_report_on_one_experiment_has_no_chapter_of_one_point():
    write_curve(make_run("s/a", 2.0, at=1))
    page = text()
    assert re.findall("^## (.*)$", page, re.M) == ["Best configuration", "s", "Training by the clock"]
    assert page.count("![") == 1


def test_contests_whose_runs_all_failed_are_listed():
    make_run("s/a", 2.0, at=1)
    make_run("s/b", status="error", at=2, settings=config(limit="20s"), corpus={**CORPUS, "sha256": "b"})
    page = text()
    assert [row[6] for row in rows(page, "Contest")] == ["a: 2.0000", "none was completed"]
    assert "# Other runs without a score" in page
    assert [row[:3] for row in rows(page, "Experiment | Status")] == [["b", "error", "it was error"]]


def test_a_run_that_ended_before_it_left_a_config_is_with_the_others_of_its_name():
    folder = make_run("s/a", status="interrupted", at=0)
    (folder / "config.yaml").unlink()
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "corpus": None}))
    make_run("s/a", 2.0, at=1, version=1)
    make_run("s/b", 3.0, at=2, settings=config(d_model=32))
    page = text()
    assert page.count("## Best configuration") == 1
    assert [row[:2] for row in rows(page, "Experiment")] == [["a", "**2.0000**"], ["b", "3.0000"]]
    assert "runs | 3 (2 completed, 1 interrupted)" in page


def test_figures_are_those_of_completed_runs():
    write_curve(make_run("s/a", status="interrupted", at=0, total_steps=7))
    make_run("s/a", 2.0, at=1, version=1, total_steps=1_500)
    assert rows(text(), "Experiment")[0][2] == "1,500"


def test_where_every_run_failed_there_is_a_report_all_the_same():
    make_run("s/a", status="error", at=1, reason="two\nlines <b>of</b> it")
    make_run("other/a,seed=1", 2.0, at=1)
    make_run("other/a,seed=2", 2.1, at=2, settings=config(seed=2))
    page = text(spread_of=["runs/other"])
    assert page.count("No run was completed") == 1
    assert rows(page, "Experiment | Status")[0][2] == "two lines &lt;b&gt;of&lt;/b&gt; it"


def test_runs_whose_names_begin_with_the_same_number_are_counted():
    for place, lr in enumerate((1e-3, 2e-3, 3e-3)):
        make_run(f"s/24-rope,lr={lr}", 2.0, at=place, settings=config(lr=lr))
    assert [experiment.number for experiment in _experiments()] == [1, 2, 3]


# Texts of users

HOSTILE = {
    "a link": "[x](javascript:alert(1))",
    "an image": "![i](http://evil.example/x.png)",
    "a reference": "[x]: http://evil.example",
    "HTML": "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "an entity": "&lt;b&gt; &#60;i&#62;",
    "an address": "<https://evil.example> https://evil.example www.evil.example ftp://evil.example",
    "emphasis": "*a* **b** _c_ __d__ ~~e~~ ***f***",
    "code": "`a` ``b`` ```c```",
    "a table": "a | b \\| c",
    "math": "$x^2$ $$y$$ \\(z\\)",
    "escapes": "\\* \\\\ \\[x\\](y)",
    "a heading": "# h #",
    "a rule": "---",
    "a list": "1. a",
    "another list": "- a",
    "another heading": "===",
    "inside words": "tiny,d_ff=32,n_layers=1 a_b_c -0.5 1.5s",
    "other letters": "größer 日本語 🙂",
}


class Shown(HTMLParser):
    """A browser's view of the page: its text and its tags."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags, self.attributes = "", set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "strong", "code", "img"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td", "script"}


@pytest.mark.parametrize("kind", thinned(HOSTILE, 5))
def test_names_and_reasons_are_shown_as_they_are_and_nothing_else(kind):
    written = HOSTILE[kind]
    name = written.replace("/", "\u2044")
    make_run(f"{name}/{name}", 2.0, at=1)
    make_run(f"{name}/{name}2", 2.5, at=2, settings=config(d_model=32))
    make_run(f"{name}/{name}3", status="error", at=3, reason=written, settings=config(position=name))
    effects = {written: [name.replace("[", "[[]"), name.replace("[", "[[]") + "2"]}
    page = report([f"runs/{name}"], title=written, phases={written: ["*"]}, effects=effects, reported_by=written)
    shown = Shown(page.read_text())
    assert shown.tags <= TAGS
    assert len(re.findall("<script", page.read_text())) == 2
    assert all(key not in ("href", "onerror") for key, _ in shown.attributes)
    assert all(value.startswith("data:image/svg+xml") for key, value in shown.attributes if key == "src")
    line = " ".join(written.split())
    assert shown.text.count(line) >= 4  # title, phase, effect, reason
    assert " ".join(name.split()) in shown.text


@pytest.mark.parametrize("kind", HOSTILE)
def test_in_the_markdown_they_are_text_for_other_renderers_too(kind):
    commonmark = pytest.importorskip("markdown_it")
    renderer = commonmark.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    line = plain(HOSTILE[kind])
    for block in (line, f"* {line}", f"# {line}", f"| a |\n| --- |\n| {line} |"):
        shown = Shown(renderer.render(block))
        assert shown.tags <= {"p", "ul", "li", "h1", "table", "thead", "tbody", "tr", "th", "td"}
        assert " ".join(HOSTILE[kind].split()) in shown.text


@pytest.mark.parametrize(
    "name",
    thinned([r"$\foo{$", "$x^2$", "a$", r"\alpha", "_hidden", "{x}", "%s %d", "日本語", "a" * 200, "\u202ea"], 4),
)
def test_names_in_pictures_are_text(name):
    write_curve(make_run(f"s/{name}", 2.0, at=1))
    write_curve(make_run("s/b", 2.5, at=2, settings=config(d_model=32), num_params_M=0.5, tokens_seen=1))
    write_curve(make_run("s/c", 2.6, at=3, settings=config(d_model=64), num_params_M=0.6, tokens_seen=9))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # not those about files and functions of other tests and libraries
        page = text(phases={name: ["*"], "Others too": ["b"]})
    assert page.count("![") == 5
    label = plots.short(name)
    phases = {name: _experiments()}
    assert label in [entry.get_text() for entry in plots.by_name(phases, VAL_BPB).axes[0].get_yticklabels()]
    axes = plots.by_parameters(phases, VAL_BPB).axes[0]
    assert label in [entry.get_text() for entry in axes.get_legend().get_texts()]
    assert label in [entry.get_text() for entry in axes.texts]
    assert all(not entry.get_parse_math() for entry in axes.texts)


def test_unprintable_characters_are_replaced():
    assert plain("a\x00b\x1b[31m\u202ec\udcf6") == "a\ufffdb\ufffd\\[31m\ufffdc\ufffd"
    make_run("s/a\udcf6", status="error", reason="\x02wzxhzdk:0\x03 \x1b]0;title\x07")
    assert "\x1b" not in text()
    assert "\ufffdwzxhzdk:0\ufffd" in text()


def test_a_path_in_a_command_is_as_a_shell_takes_it():
    make_run("s/a b'c", 2.0)
    (command,) = re.findall("To train it again: `(.*)`", text())
    assert shlex.split(command)[-1] == "runs/s/a b'c/version_0/config.yaml"
    make_run("s/`d`", 1.0)
    assert "\\`d\\`" in text().split("To train it again")[1].splitlines()[0]


def test_a_phase_named_others_is_kept(study):
    page = text(phases={"Others": ["00-*"]})
    assert [row[0] for row in rows(page, "Experiment")] == ["01-wide", "02-slow", "00-base", "03-bad"]


# Curves and pictures


def curves_of(score=VAL_BPB, folder=None):
    runs = read_runs(Path("runs"))
    return read_curves(next(run for run in runs if folder in (None, run.folder)), score)


def test_curves_are_by_seconds_of_training_and_in_bits():
    write_curve(make_run("s/a", total_steps=200, tokens_seen=1e6), steps=200, scores=(2.5, 2.0))
    curves = curves_of()
    assert curves.loss.seconds[-1] == pytest.approx(180)
    assert curves.loss.values[-1] == pytest.approx(5.0 / 198**0.2 / 0.6931, rel=1e-3)  # mean of the last five
    assert list(curves.scores.seconds) == pytest.approx([90, 180])
    assert list(curves.scores.tokens) == pytest.approx([5e5, 1e6])
    assert list(curves.scores.values) == pytest.approx([2.5, 2.0])


def test_the_last_score_is_at_the_time_at_which_training_ended():
    # Progress is logged at some steps only, and the run ended between two of them, before its budget was used up.
    folder = make_run("s/a", 2.0, total_steps=119, training_time_secs=107.0)
    with SummaryWriter(str(folder)) as writer:
        for step in range(10, 119, 10):
            writer.add_scalar("train/loss", 5.0, step)
            writer.add_scalar("time_budget/progress", step / 200, step)
        writer.add_scalar("val/bpb", 2.0, 119)
    curves = curves_of()
    assert (list(curves.scores.seconds), list(curves.scores.values)) == ([107.0], [2.0])
    assert curves.loss.seconds[0] == pytest.approx(9.0)  # a tenth of 90 s, where half of the 180 s was used
    assert curves.loss.seconds[-1] == pytest.approx(99.0)


@pytest.mark.parametrize("limit", ["200 steps", "1 Mtok", ["180s", "200 steps"]], ids=str)
def test_in_a_budget_that_is_none_in_time_the_last_score_is_at_the_time_of_the_record(limit):
    settings = config(limit=limit)
    write_curve(make_run("s/a", 2.0, settings=settings, total_steps=200, training_time_secs=50.0), scores=(2.5, 2.0))
    assert list(curves_of().scores.seconds) == pytest.approx([25.0, 50.0])


def test_a_run_with_another_logger_has_its_score_from_the_record():
    make_run("s/a", 2.0, total_steps=100, training_time_secs=170.0, tokens_seen=1e6)  # and no log of TensorBoard's
    curves = curves_of()
    assert len(curves.loss.values) == 0
    assert [list(part) for part in (curves.scores.seconds, curves.scores.tokens, curves.scores.values)] == [
        [170.0],
        [1e6],
        [2.0],
    ]
    page = text()
    assert "**2.0000**" in page
    assert "by_time.svg" in page


def test_a_damaged_log_costs_the_curve_and_not_the_report(study):
    (events,) = Path("runs/s/00-base/version_0").glob("events*")
    content = events.read_bytes()
    for damaged in (b"", content[:100], b"\xff" * 5000, content[: len(content) // 2] + b"\xff" * 3000):
        events.write_bytes(damaged)
        assert "00-base" in text()
        assert curves_of(folder=events.parent).scores.values[-1] == 3.0


def test_values_that_are_no_numbers_are_left_out_of_curves():
    folder = make_run("s/a", 2.0, total_steps=3)
    with SummaryWriter(str(folder)) as writer:
        for step, loss in enumerate((5.0, float("nan"), float("inf")), start=1):
            writer.add_scalar("train/loss", loss, step)
    assert list(curves_of().loss.values) == pytest.approx([5.0 / 0.6931], rel=1e-3)
    text()


def test_a_loss_of_tokens_that_are_no_bytes_is_not_shown_as_bits_per_byte():
    write_curve(make_run("s/a", settings=config(vocab_size=50_304), total_steps=200))
    curves = curves_of()
    assert len(curves.loss.values) == 0
    assert len(curves.scores.values) == 2


def test_names_are_on_the_axis_the_best_first(study):
    axes = plots.by_name({"all": _experiments()}, VAL_BPB).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["01-wide", "02-slow", "00-base"]
    assert axes.yaxis.get_view_interval()[0] > axes.yaxis.get_view_interval()[1]  # the first is at the top
    points = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in points] == pytest.approx([2.515, 2.7, 3.0])


def test_the_running_best_falls(study):
    axes = plots.in_order({"all": _experiments()}, VAL_BPB).axes[0]
    line = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert list(line.get_xdata()) == [1, 2, 3]
    assert list(line.get_ydata()) == pytest.approx([3.0, 2.515, 2.515])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["00-base", "01-wide", "02-slow", "03-bad"]


def test_all_curves_are_shown_where_there_are_few_and_those_of_the_best_where_there_are_many():
    for place in range(7):
        write_curve(make_run(f"s/{place}-x", 3.0 - place / 10, at=place, settings=config(d_model=16 + place)))
    (experiments,) = contests_of(ended_runs(["runs/s"])).values()
    layout = Layout(None, None, {}, "", {})
    assert len(Section(experiments, layout, VAL_BPB).curves) == 7
    for place in range(7, 12):
        write_curve(make_run(f"s/{place}-x", 4.0, at=place, settings=config(d_model=16 + place)))
    (experiments,) = contests_of(ended_runs(["runs/s"])).values()
    shown = Section(experiments, layout, VAL_BPB).curves
    assert [one.run.experiment for one in shown] == ["0-x", "6-x"]


def test_runs_that_saw_unequal_numbers_of_tokens_are_shown_by_tokens_too():
    write_curve(make_run("s/a", 2.0, at=1, total_steps=200, tokens_seen=1_000_000))
    write_curve(make_run("s/b", 2.5, at=2, settings=config(d_model=32), tokens_seen=1_010_000))
    assert "by_tokens.svg" not in text()
    write_curve(make_run("s/c", 2.6, at=3, settings=config(d_model=64), tokens_seen=2_000_000))
    assert "![Loss against tokens seen](by_tokens.svg)" in text()


def _experiments():
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
    assert "| Experiment | val_loss (nats per token) | they | Steps | Params |" in page
    wide, base, bad = rows(page, "Experiment")
    assert (base[1], base[2], base[-1]) == ("6.0000", "5.500", "keep")
    assert (wide[1], wide[-1]) == ("**5.1000 ± 0.1414 (2)**", "keep")
    assert (bad[1], bad[-1]) == ("none", "diverged")
    assert "**01-wide**: val_loss 5.1000 ± 0.1414 (2)" in page
    assert "15.0 % less than that of the first, 00-base (6.0000)" in page
    assert rows(page, "Statement")[0][3:5] == ["+0.9000", "+0.000"]
    assert "By the seed alone, val_loss varies" in page
    assert "val_bpb" not in page
    assert "Not ranked" not in page


def test_pictures_name_the_score_that_they_show(by_loss):
    phases = {"all": _experiments()}
    label = "val_loss (nats per token, lower is better)"
    assert plots.in_order(phases, VAL_LOSS).axes[0].get_ylabel() == label
    assert plots.by_name(phases, VAL_LOSS).axes[0].get_xlabel() == label
    assert plots.by_parameters(phases, VAL_LOSS).axes[0].get_ylabel() == label
    curves = [read_curves(run, VAL_LOSS) for run in phases["all"][0].runs]
    axes = plots.training(curves, VAL_LOSS, "seconds").axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training time (s)", "nats per token")
    assert plots.training(curves, VAL_LOSS, "tokens").axes[0].get_xlabel() == "tokens seen (millions)"
    assert "val_loss" in [entry.get_text() for entry in axes.get_legend().get_texts()]
    label = "val_bpb (bits per byte, lower is better)"
    assert plots.in_order(phases, VAL_BPB).axes[0].get_ylabel() == label


def test_curves_beside_val_loss_are_in_nats_whatever_a_token_is(by_loss):
    folder = Path("runs/s/00-base/version_0")
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("val/loss", 6.0, 200)
    curves = curves_of(VAL_LOSS, folder)
    assert curves.loss.values[-1] == pytest.approx(5.0 / 198**0.2, rel=1e-3)  # mean of the last five
    assert (list(curves.scores.seconds), list(curves.scores.values)) == ([180.0], [6.0])


def test_runs_without_val_bpb_among_others_are_not_ranked_and_the_report_says_so(study):
    make_run("s/04-tokens", None, at=40, settings=config(lr=2e-3), val_loss=1.0)
    page = text()
    assert "\n\nNot ranked: 04-tokens. The number of bytes that their tokens stand for is not known" in page
    assert "nats per token cannot be compared with bits per byte" in page
    scores = [row[1] for row in rows(page, "Experiment")]
    assert scores == ["**2.5150 ± 0.0234 (3)**", "2.7000", "3.0000", "none", "none"]
    assert "**01-wide**: val_bpb 2.5150" in page
    failures = [row[:3] for row in rows(page, "Experiment | Status")]
    assert ["04-tokens", "completed", "it has a val_loss only: 1.0000"] in failures


def test_a_report_on_runs_with_val_bpb_says_nothing_of_the_other_score(page):
    assert "Not ranked" not in page
    assert "val_loss" not in page


def test_studies_that_are_ranked_by_another_score_are_not_compared():
    for study, at, scores in (("s", 1, {}), ("t", 3, {"val_bpb": None, "val_loss": 1.0})):
        make_run(f"{study}/a", **{"val_bpb": 2.0, **scores}, at=at)
        make_run(f"{study}/b", status="error", at=at + 1, settings=config(d_model=32))
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
    assert "the effect of the seed alone is not known here" in page


def rejected(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        main(["report", *args])
    (line,) = capsys.readouterr().err.splitlines()
    return ended.value.code, line


def test_invalid_reports_are_rejected_in_one_line(study, capsys):
    status, line = rejected(capsys, "runs/none")
    assert status == 5
    assert "runs/none: no such folder" in line
    Path("runs/empty").mkdir()
    assert "runs/empty: no runs there that have ended" in rejected(capsys, "runs/empty")[1]
    status, line = rejected(capsys, "runs/s", "--phases", "{A: [99-*]}")
    assert status == 2
    assert "phases.A: '99-*' cannot be used" in line
    assert "00-base" in line
    assert "effects.x" in rejected(capsys, "runs/s", "--effects", "{x: [00-*]}")[1]


WITHOUT_EFFECT = (
    (
        ["--reported", "{00-*: {val_bbp: 3.0}}"],
        "reported.00-*: 'val_bbp' cannot be used; accepted: val_bpb, total_",
    ),
    (["--reported", "{00-*: {val_loss: 3.0}}"], "reported.00-*: {'val_loss': 3.0} cannot be used; accepted: val_"),
    (["--reported_by", "Paper"], "reported_by: 'Paper' cannot be used; accepted with --reported"),
    (["--curves", "00-base"], "curves: '00-base' is not accepted; accepted: a list, null; for example [14-*, 15-*]"),
    (["--config", "options.yaml"], "titel: unknown key; did you mean title? accepted: config, print_config, out, "),
    (["--runs", "runs/s"], "runs: it is given without its name; accepted: report runs/s"),
)


def test_options_without_effect_are_rejected(study, capsys):
    Path("options.yaml").write_text("titel: x\n")
    for options, said in WITHOUT_EFFECT:
        status, line = rejected(capsys, *([] if "--runs" in options else ["runs/s"]), *options)
        assert status == 2
        assert line.startswith(f"bytelm: error: {said}")


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
    assert all(len(row) == len(rows(written, "Experiment")[0]) for row in rows(written, "Experiment"))
    for path in (CONFIGS / "autoresearch").glob("*.yaml"):
        number = path.stem[:2]
        assert f"val_bpb {page['reported'][f'{number}-*']['val_bpb']:.3f}" in " ".join(path.read_text().split())


def test_scores_are_at_the_times_that_the_run_has_written_whatever_its_logger(here):
    folder = make_run("s/00-base", 2.0, total_steps=100, tokens_seen=1000)
    for steps, seconds, value in ((20, 30.0, 3.0), (50, 81.5, float("nan")), (100, 179.0, 2.0)):
        validations.append(folder, validations.Validation(seconds / 180, steps, steps * 10, seconds, value, None))
    (run,) = read_runs(Path("runs"))
    scores = read_curves(run, VAL_BPB).scores
    assert (list(scores.seconds), list(scores.tokens)) == ([30.0, 179.0], [200.0, 1000.0])
    assert list(scores.values) == [3.0, 2.0]
