"""Shell completion: bash completes command lines with the script, without starting the program."""

import subprocess

import pytest

from bytelm import program

pytest.importorskip("shtab")

from bytelm import completion

BASH = """
source script.bash
while IFS= read -r line; do
    COMP_WORDS=($line) COMP_LINE="$line" COMP_POINT=${#line}
    [[ "$line" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _shtab_bytelm 2>/dev/null
    echo "${COMPREPLY[*]}"
done
"""
LINES = {
    "bytelm fi": {"fit"},
    "bytelm fit --conf": {"--config"},
    "bytelm fit --config quick": {"quickstart", "quick.yaml"},
    "bytelm fit --model.gpt.n_l": {"--model.gpt.n_layers"},
    "bytelm fit --model.gpt.attention SD": {"SDPA"},
    "bytelm fit --model.gpt.attention.qk_norm ": {"LayerNorm", "RMSNorm"},
    "bytelm fit --model.gpt.attention.help SD": {"SDPA"},
    "bytelm fit --trainer.max_": {"--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time"},
    "bytelm fit --time_budget.scope ": {"training", "run"},
    "bytelm fit --data.line": {"--data.line_ends"},
    "bytelm fit --help": {"--help", "--help_all"},
    "bytelm validate --ckpt_path b": {"best"},
    "bytelm configs gpt2/1.5": {"gpt2/1.5b"},
    "bytelm completion ": {"bash", "zsh"},
}


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        names = ("fit", "validate", "configs", "completion")
        patch.setattr(completion, "COMMANDS", [command for command in program.COMMANDS if command.name in names])
        return completion.script("bash")


def test_bash_completes_commands_options_classes_values_and_configs(script, tmp_path):
    assert len(script) < 200_000  # a shell reads it in milliseconds
    (tmp_path / "script.bash").write_text(script)
    (tmp_path / "quick.yaml").touch()
    command = ["bash", "--norc", "-c", BASH]
    ended = subprocess.run(command, input="\n".join(LINES) + "\n", cwd=tmp_path, capture_output=True, text=True)
    found = dict(zip(LINES, (set(line.split()) for line in ended.stdout.splitlines()), strict=True))
    assert found == LINES
