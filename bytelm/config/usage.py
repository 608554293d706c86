"""The short help of fit, validate, test and predict, and what they print without options.

Their options are the keys of a config, several hundred with those of all parts. The short help names the sections and
the option that prints each of them (section_help.py); `--help_all` prints all. This module imports no torch: the help
appears at once.
"""

from collections.abc import Sequence

from bytelm.config import shipped
from bytelm.system.invocation import typed_name

HELP_ALL = "--help_all"

_COMMON = """\
  -c, --config CONFIG    a YAML file, or the name of a shipped config, such as
                         quickstart; several are merged in their order
  --print_config         print the resolved config, and do not run;
                         --print_config=skip_default leaves out the defaults"""
_FIT = f"""\
{_COMMON}
  --experiment NAME      name of the run's folder in runs/
  --ckpt_path PATH       resume: last, a checkpoint, or the folder of a run
  --init_from PATH       initial weights: a checkpoint, or the folder of a run
  --seed_everything N    seed of the run (default: 42)"""
_SCORE = f"""\
  RUN                    folder of a run: its config and its checkpoint
{_COMMON}
  --ckpt_path PATH       best, last, a checkpoint, or the folder of a run"""
_OPTIONS = {"fit": _FIT, "validate": _SCORE, "test": _SCORE, "predict": _SCORE}
_USAGES = {"fit": ["--config CONFIG [--KEY VALUE ...]"]}
_SCORE_USAGES = ["RUN [--KEY VALUE ...]", "--config CONFIG --ckpt_path PATH [...]"]

KEYS = """\
Each key of a config is an option, for example:
  --time_budget.limit 3m                  or 500 steps, 300 Mtok, 2 PFLOP
  --model.gpt.n_layers 6                  a size of the network
  --model.gpt.attention SDPA              a part of it
  --model.gpt.attention.qk_norm RMSNorm   an option of a part
  --model.optimizer.lr 0.01
  --lr_schedule Cosine --lr_schedule.warmup 5%
  --trainer.precision bf16-mixed          an option of Lightning's Trainer"""

SECTIONS = (
    ("the network", "--model.gpt.help"),
    ("a kind of part, its classes", "--model.gpt.attention.help"),
    ("a class, its options", "--model.gpt.attention.help SDPA"),
    ("optimizers", "--model.optimizer.help [CLASS]"),
    ("losses", "--model.loss.help [CLASS]"),
    ("data", "--data.help [CLASS]"),
    ("the budget", "--time_budget.help"),
    ("schedules of the learning rate", "--lr_schedule.help [CLASS]"),
    ("checkpoints", "--checkpoint.help, --last_checkpoint.help"),
    ("divergence, throughput", "--divergence.help, --throughput.help"),
    ("Lightning's Trainer", "--trainer.help"),
    ("loggers", "--trainer.logger.help [CLASS]"),
    ("callbacks", "--trainer.callbacks.help [CLASS]"),
    ("everything", HELP_ALL),
)


def usage(command: str) -> str:
    """Returns the usage of fit, validate, test or predict."""
    usages = _USAGES.get(command, _SCORE_USAGES)
    return "usage: " + "\n       ".join(f"{typed_name()} {command} {each}" for each in usages)


def short_help(command: str, description: str) -> str:
    """Returns the short help of fit, validate, test or predict.

    Args:
        command: Name of the command.
        description: Its line in the list of commands.
    """
    width = max(len(subject) for subject, _ in SECTIONS)
    sections = [f"  {subject:{width}}  {option}" for subject, option in SECTIONS]
    return "\n".join(
        [
            usage(command),
            "",
            description,
            "",
            _OPTIONS[command],
            "",
            KEYS,
            "",
            f"Help of a section: {typed_name()} {command} OPTION",
            *sections,
        ]
    )


def missing_config(command: str) -> str:
    """Returns what `fit` prints if it is given nothing: the shipped configs, by folder.

    Args:
        command: Name of the command: fit, or one that scores a run.
    """
    name = typed_name()
    if command != "fit":
        lines = [
            f"a run is required: {name} {command} runs/my-experiment/version_0,",
            "or --config CONFIG --ckpt_path PATH",
        ]
    else:
        lines = [
            f"a config is required: {name} fit --config quickstart, or your own YAML file",
            "",
            "shipped configs:",
            *_by_folder(shipped.names()),
            "",
            f"`{name} configs [FOLDER]` describes each of them.",
        ]
    lines.append(f"`{name} {command} --help` lists the options.")
    return "\n".join([usage(command), "", *lines])


def _by_folder(names: Sequence[str]) -> list[str]:
    lines = [f"  {name:15}{shipped.summary(name)}" for name in names if "/" not in name]
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name)
    for folder in folders:
        inside = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        few = f"{inside[0]}, {inside[1]}, … ({len(inside)} configs)" if len(inside) > 3 else ", ".join(inside)
        lines.append(f"  {folder + '/':15}{few}")
    return lines
