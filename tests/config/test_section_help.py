"""The help of commands that train or score: in sections, with texts that describe bytelm."""

import re
import shlex
from contextlib import redirect_stdout
from io import StringIO

import pytest

from bytelm.cli import is_unlisted
from bytelm.config import usage
from bytelm.config.keys import classes
from bytelm.config.lightning_help import CKPT_PATH, REJECTED, TEXTS
from bytelm.config.section_help import print_requested
from bytelm.errors import UsageError
from bytelm.gpt import GPT
from bytelm.parts.contract import known_parts
from bytelm.program import main

OPTIONS = [
    option.strip().replace("[CLASS]", "")
    for _, options in usage.SECTIONS
    for option in options.split(",")
    if option.strip() != usage.HELP_ALL
]


@pytest.fixture
def shown(parser, capsys):
    """Returns the help that an option prints."""

    def shown(option):
        with pytest.raises(SystemExit) as ended:
            print_requested(parser, shlex.split(option), classes(), (GPT, *known_parts()), is_unlisted)
        assert not ended.value.code
        return capsys.readouterr().out

    return shown


@pytest.fixture(scope="module")
def whole():
    """Returns the texts of all options of `fit`, by option: what `--help_all` prints."""
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit):
        main(["fit", usage.HELP_ALL])
    text = printed.getvalue()
    options = re.split(r"^  (?:-c CONFIG, )?--([\w.]+)", text[text.index("\noptions:") :], flags=re.MULTILINE)[1:]
    return {key: " ".join(about.split()) for key, about in zip(options[::2], options[1::2], strict=True)}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_section_that_the_short_help_names_is_printed(shown, option):
    key = re.match(r"--([\w.]+)\.help", option)[1]
    assert f"{key} accepts:" in (said := shown(option)) or re.search(rf"^  --{key}\.\w+", said, re.MULTILINE)


def test_a_kind_of_part_lists_its_classes_and_a_class_its_options_with_whole_keys(shown):
    lines = shown("--model.gpt.attention.help").splitlines()
    assert lines[0] == "model.gpt.attention accepts:"
    (default,) = [line for line in lines if "(default)" in line]
    assert default.split()[0] == "SDPA"
    assert max(map(len, lines[:-1])) <= 80
    assert "  --model.gpt.attention.qk_norm " in shown("--model.gpt.attention.help SDPA")
    assert "  --model.gpt.attention.qk_norm.eps " in shown("--model.gpt.attention.qk_norm.help RMSNorm")
    assert "  --data.url " in shown("--data.help=Shakespeare")


def test_a_class_without_options_is_described(shown):
    said = shown("--model.gpt.position.help ALiBi")
    assert "subtracts a slope" in said
    assert said.endswith("\nIt has no options.\n")
    assert "It has no options" not in shown("--model.gpt.position.help Rotary")


def test_the_help_of_an_unknown_key_is_an_unknown_key(parser):
    option = ["--optimizer.help", "Muon"]
    print_requested(parser, option, classes(), (GPT, *known_parts()), is_unlisted)  # leaves it to the parser
    with pytest.raises(UsageError, match=r"optimizer: unknown key; did you mean model\.optimizer\?"):
        parser.parse_args(option)


def test_of_two_classes_with_a_name_bytelms_is_listed(shown):
    (line,) = [line for line in shown("--model.optimizer.help").splitlines() if line.startswith("  Muon ")]
    assert "orthogonalised" in line


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.gpt.attention.help SPDA", "'SPDA' is none of its classes; did you mean SDPA? accepted: "),
        ("--model.gpt.attention.help my_parts.Mine", "'my_parts.Mine' is none of its classes; "),
        ("--data.help Shakspeare", "data.help: 'Shakspeare' is none of its classes; did you mean Shakespeare? "),
        ("--model.gpt.n_layers.help", "model.gpt.n_layers takes no class; accepted: --model.gpt.help"),
        ("--experiment.help", "experiment takes no class; accepted: --help_all"),
    ],
)
def test_a_wrong_class_is_rejected_with_those_that_are_accepted(parser, option, said):
    with pytest.raises(UsageError) as error:
        print_requested(parser, shlex.split(option), classes(), (GPT, *known_parts()), is_unlisted)
    assert said in str(error.value)


def test_no_text_names_another_default_than_the_options_own(whole):
    assert len(whole) > 80
    named = {"None": "null", "'": "", '"': ""}
    for key, about in whole.items():
        for text in re.findall(r"[Dd]efault: ``([^`]+)``", about):
            for given, meant in named.items():
                text = text.replace(given, meant)
            assert re.search(rf"default: {re.escape(text)}[,)]", about, re.IGNORECASE), f"{key}: {about}"


def test_the_texts_that_replace_lightnings_are_shown(whole):
    for key in [*TEXTS, "ckpt_path"]:
        if key not in ("verbose", "return_predictions"):  # options of other commands
            text = " ".join((TEXTS | {"ckpt_path": CKPT_PATH["fit"]})[key].split())
            assert text in whole[key], key
    rejected = [key for key, text in TEXTS.items() if text.startswith(REJECTED)]
    assert "trainer.max_epochs" in rejected
