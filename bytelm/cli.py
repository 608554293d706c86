"""The command line: LightningCLI with bytelm's defaults.

    python -m bytelm {fit,validate,test,predict} --config FILE [--config FILE …] [--key value …]

Additions to LightningCLI: `time_budget`, `lr_schedule`, `schedules`, `checkpoint`, `last_checkpoint`, `divergence`,
`throughput` and `samples` as top-level keys, durations with units, a run folder `runs/<experiment>/version_N`,
`--ckpt_path last`, the run record, and messages about a config that name the key, its value and the accepted values.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import bytelm.data.corpora
import bytelm.data.packed
import bytelm.data.shards  # noqa: F401 (these three make the short names of all data known)
from bytelm import run_trainer
from bytelm.callbacks import (
    BestCheckpoint,
    Divergence,
    LastCheckpoint,
    PredictionWriter,
    RunRecord,
    Samples,
    Schedules,
    Throughput,
    TimeBudget,
    Validations,
)
from bytelm.callbacks.run_config import RunConfig
from bytelm.config import keys
from bytelm.config.checks import check_experiment, check_values
from bytelm.config.keys import METHOD_DEFAULTS, METHOD_KEYS
from bytelm.config.lightning_help import CKPT_PATH, TEXTS
from bytelm.config.messages import clarify, note
from bytelm.config.own_code import own_code
from bytelm.config.packages import missing_package
from bytelm.config.parser import ConfigFileParser
from bytelm.config.section_help import print_requested
from bytelm.config.unserialized import dumped, written_out
from bytelm.config.unused import of_other_commands, of_training, without_effect
from bytelm.data.base import TokenData
from bytelm.errors import ConfigError, UsageError, run_error
from bytelm.gpt import GPT
from bytelm.language_model import LanguageModel
from bytelm.lightning_output import quieten
from bytelm.parts.contract import known_parts
from bytelm.run_callbacks import ADDED_CALLBACKS, added_callbacks, as_list, monitored, shown_by_lightning
from bytelm.run_checkpoint import check_checkpoint
from bytelm.runs import logger
from bytelm.runs.checkpoints import Contents, read
from bytelm.runs.choice import (
    NAMES,
    SCORING,
    checkpoint_to_score,
    find_checkpoint,
    run_of_config,
    run_to_continue,
    with_run,
)
from bytelm.runs.folder import RunFolder, checkpoint_of, name_in_runs, number_of, run_of, runs_root
from bytelm.runs.logger import TensorBoardLogger
from bytelm.runs.record import InitFrom
from bytelm.runs.score import VAL_BPB, score_for
from bytelm.schedules import DEFAULT_SCHEDULE, Schedule, merged
from bytelm.system.invocation import typed_name
from bytelm.system.process import is_rank_zero
from bytelm.trainer_options.checks import (
    check_callbacks,
    check_monitors,
    check_new_run,
    constructor_error,
    why_not_accepted,
    with_full_key,
)
from bytelm.trainer_options.epochs import check_epochs, check_limit, check_needs, check_share, validation_times
from bytelm.trainer_options.plugins import check_plugins

# A value without a type is kept unchanged, even if it looks like a class and its options.
set_parsing_settings(instantiate_subclass_spec_in_any=False)


DESCRIPTION = "Trains language models under a wall-clock budget, and scores them."
KEYS = keys.classes()
OTHER_OPTIONS = ("config", "print_config", "help", *METHOD_KEYS)
# Callbacks that a run has once and that have a key; not `checkpoint`, as a run may have others beside it.
CALLBACK_KEYS = {key: cls for key, cls in KEYS.items() if issubclass(cls, Callback) and key != "checkpoint"}
CHECKPOINT_DEFAULTS = {
    "checkpoint.filename": "best",
    "checkpoint.monitor": VAL_BPB.tag,
    "checkpoint.save_last": False,  # LastCheckpoint does this
    "checkpoint.enable_version_counter": False,
}


def is_unlisted(cls: type) -> bool:
    """Returns whether messages and help do not suggest a class for the trainer."""
    return issubclass(cls, (*CALLBACK_KEYS.values(), *ADDED_CALLBACKS)) or why_not_accepted(cls) is not None


class Parser(ConfigFileParser, LightningArgumentParser):
    """A parser whose errors are a message, without the hundred lines of usage before it."""

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Adds the arguments of Trainer.fit, validate, …; here, because their defaults can be set only afterwards."""
        added = super().add_method_arguments(*args, **kwargs)
        self.set_defaults({key: value for key, value in METHOD_DEFAULTS.items() if key in added})
        texts = TEXTS | {"ckpt_path": CKPT_PATH[args[1]]}
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        line = clarify(message, KEYS, (GPT, *known_parts()), OTHER_OPTIONS, is_unlisted, self.written)
        raise UsageError(line + self.where()) from ex


# The parsers of this process, with the names of their methods' arguments and the keys of their callbacks.
_parsers: dict[tuple[Any, ...], tuple[LightningArgumentParser, list[str], tuple[str, ...]]] = {}


class BytelmCLI(LightningCLI):
    """LightningCLI with a time budget, a schedule and a run record."""

    continued: Path | None = None  # the folder of the run that is resumed
    folder: RunFolder | None = None  # folder of all files that `fit` writes
    _options: frozenset[str] = frozenset()  # keys that the command line gives as options

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._given = kwargs["args"][0] if kwargs["args"] else None
        super().__init__(*args, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the command line; for `validate RUN`, replaces RUN by its options."""
        # Not if a config sets it: in a run's config, it names the origin of the run.
        options = [option.partition("=")[0] for option in args]
        self._options = frozenset(each.lstrip("-").removesuffix("+") for each in options if each.startswith("--"))
        if "--init_from" in options and self._given in SCORING:
            raise UsageError(f"init_from: it is an option of fit; accepted by {self._given}: --ckpt_path")
        if self._given in self.subcommands():
            # The parser of all commands would parse the command's options in the same way, and then validate all
            # values again, which takes a third of the time.
            command, *rest = with_run(args)
            command_parser: Any = self._subcommand_parsers[command]
            del command_parser.parent_parser  # it parses alone, and --print_config is its own
            print_requested(command_parser, rest, KEYS, (GPT, *known_parts()), is_unlisted)
            config = command_parser.parse_args(rest)
            for option in command_parser.replaced(rest):
                note(f"--{option} has no effect: a --config after it sets this key; options go after --config")
            self.config = Namespace({"subcommand": command, command: config})
        else:
            self.config = parser.parse_args(with_run(args))

    def _parse_ckpt_path(self) -> None:
        """Does nothing: LightningCLI would replace the config's model by the checkpoint's, without a message."""

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Returns the parser of a subcommand.

        A subcommand that is not used gets a parser without arguments: they take long to add. A process that trains
        several times uses one parser for all of them.
        """
        if self._given in self.subcommands() and subcommand != self._given:
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        of = (type(self), klass, subcommand, self.model_class, self.datamodule_class, self.seed_everything_default)
        if of not in _parsers:
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            _parsers[of] = parser, self._subcommand_method_arguments[subcommand], tuple(parser.callback_keys)
        parser, self._subcommand_method_arguments[subcommand], callback_keys = _parsers[of]
        parser.callback_keys = [*callback_keys]  # a run without checkpoints removes some
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--experiment", type=str | None, help="Name of the run's folder in runs/; default: the configs' names."
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            help="Source of the initial weights of `fit`: a checkpoint, the folder of a run, nanoGPT's ckpt.pt, or a "
            "folder of Hugging Face's; all else is that of a new run. A run that is resumed (--ckpt_path) has weights.",
        )
        parser.add_lightning_class_args(TimeBudget, "time_budget")
        parser.add_subclass_arguments(Schedule, "lr_schedule", fail_untyped=False, required=False)
        help = "Schedules of other values, by target, such as `momentum.hidden`."
        parser.add_argument("--schedules", type=dict[str, Schedule], default={}, help=help)
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(Divergence, "divergence")
        parser.add_lightning_class_args(Throughput, "throughput")
        parser.add_lightning_class_args(Samples, "samples")
        parser.set_defaults({"lr_schedule": {"class_path": DEFAULT_SCHEDULE}, **CHECKPOINT_DEFAULTS})

    def _plain(self) -> dict[str, Any]:
        # The values were validated during parsing; repeating that would take longer than everything else.
        options: dict[str, Any] = {"skip_unset": False, "skip_validation": True, "format": "json"}
        plain = written_out(json.loads(dumped(lambda: self.parser.dump(self.config, **options))))
        return plain.get(self.subcommand, plain)

    def _set_seed(self) -> None:
        self.plain_config = self._plain()
        check_values(self.plain_config)  # first, because the seed is used next
        super()._set_seed()
        self.plain_config["seed_everything"] = self._get(self.config, "seed_everything")  # `true` is now a number

    def before_instantiate_classes(self) -> None:
        parser: Any = self._parser(self.subcommand)
        varied = {*self._options, *parser.differences}
        self.save_config_kwargs = {"plain": self.plain_config, "varied": varied}
        self.experiment = self.plain_config["experiment"] = self._experiment()
        data = self.plain_config["data"]
        data_class: Any = locate(data["class_path"])
        data["init_args"] |= data_class.resolved(data["init_args"])
        self._note_options_without_effect(data_class)
        self._find_checkpoint()

    def _note_options_without_effect(self, data_class: Any) -> None:
        given = self._get(self.config, "ckpt_path")
        if self.subcommand == "fit":
            for each in without_effect(self.plain_config, {**run_trainer.DEFAULTS, **CHECKPOINT_DEFAULTS}):
                note(each)
        elif self.subcommand in SCORING and (unused := of_training(self._options, data_class)):
            note(f"{', '.join(unused)}: no effect in {self.subcommand}, which does not train")
        if unused := of_other_commands(self._options, str(self.subcommand)):
            note(f"{', '.join(unused)}: no effect in {self.subcommand}")
        names_nothing = given not in NAMES and not self.plain_config["trainer"]["logger"]  # loggers have its name
        if self.subcommand in SCORING and "experiment" in self._options and names_nothing:
            note(f"experiment: no effect in {self.subcommand} with ckpt_path {given}, but with last or best")
        if given is None and self.subcommand in SCORING:
            note("the network is untrained: its weights are those of the seed; --ckpt_path names a trained one")

    def _find_checkpoint(self) -> None:
        """Replaces `ckpt_path`, if it is a folder, `last` or `best`, by the path of the checkpoint."""
        given = self._get(self.config, "ckpt_path")
        if given is not None and self.subcommand == "fit" and (quick := self.plain_config["trainer"]["fast_dev_run"]):
            raise ConfigError("trainer.fast_dev_run", quick, "it cannot resume a run; accepted: without --ckpt_path")
        if given is not None and Path(given).is_dir():
            order = ("last", "best") if self.subcommand == "fit" else NAMES
            self.config[self.subcommand].ckpt_path = str(find_checkpoint(given, order=order))
        if given not in NAMES:
            return
        own, experiment = self._own_run(), self._runs_root() / self.experiment
        if given == "last" and self.subcommand == "fit":
            # The first time there is nothing to resume: a queue's script can use the same command every time.
            self.continued = run_to_continue(experiment, own, self.plain_config)
            last = checkpoint_of(self.continued, "last") if self.continued is not None else None
            self.config[self.subcommand].ckpt_path = str(last) if last is not None and last.is_file() else None
        else:
            self.config[self.subcommand].ckpt_path = str(checkpoint_to_score(experiment, own, given))

    def instantiate_classes(self) -> None:
        check_plugins(self.plain_config["trainer"])
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ValueError) as error:
            if (cause := run_error(error)) is not None:
                if isinstance(cause, ConfigError):
                    raise with_full_key(cause, self.plain_config, KEYS) from error
                raise
            rejected = missing_package(error, self.plain_config) if isinstance(error, ValueError) else None
            if (rejected := rejected or constructor_error(error, self.plain_config, KEYS)) is not None:
                raise rejected from error
            raise

    def after_instantiate_classes(self) -> None:
        self._check()
        checkpoint = self._get(self.config_init, "checkpoint")
        if checkpoint.monitor == CHECKPOINT_DEFAULTS["checkpoint.monitor"]:
            score = score_for(self.datamodule.counts_bytes)
            checkpoint.monitor = self.plain_config["checkpoint"]["monitor"] = score.tag
        if self.subcommand == "fit":
            if type(self.model) is LanguageModel:
                check_monitors(self.trainer.callbacks, monitored(self.datamodule))  # type: ignore[attr-defined]
            record = RunRecord.of(self.trainer)
            record.code = own_code(self.plain_config)
            record.init_from = self._init_from()
        # A checkpoint needs these to rebuild the model: plain values, which load without unpickling code.
        instantiator = "lightning.pytorch.cli.instantiate_module"
        self.model.save_hyperparameters({**self.plain_config["model"], "_instantiator": instantiator}, logger=False)

    def _init_from(self) -> InitFrom | None:
        """Sets the weights to those of `--init_from`; returns their origin, None without the option."""
        given, path = self._get(self.config, "init_from"), self._get(self.config, "ckpt_path")
        if given and path:
            note(f"init_from is ignored: the run resumes from {path}")
        if not given or path:
            return None
        from bytelm.inference.init_from import init_from  # few runs need its imports

        return init_from(self.model, given, self.plain_config)

    def _check(self) -> None:
        """Rejects a run that cannot work before it has a folder."""
        self.model.check(self.datamodule, self.trainer)
        trains = self.subcommand in (None, "fit")
        run_trainer.check_made(self.trainer, self._get(self.config_init, "trainer"), trains)
        TimeBudget.of(self.trainer).check(self.trainer)
        schedules = Schedules.of(self.trainer) if trains else None
        if schedules is not None:
            for each in self.model.without_effect("model.optimizer"):
                note(each)
            schedules.check(self.model, self.datamodule, self.model.configure_optimizers())
        if is_rank_zero():  # others might search while this one downloads
            self.datamodule.prepare_data()
            self.datamodule.setup(self.subcommand or "fit")
            self.datamodule.trainer = self.trainer  # its ranks share the batches of an epoch
            if self.subcommand in SCORING:
                check_share(self.trainer, self.datamodule, self.subcommand)
            if schedules is not None:
                schedules.check_sizes(self.datamodule)
                check_epochs(self.trainer, self.datamodule)
                check_needs(self.trainer, self.plain_config)
            if path := self._get(self.config, "ckpt_path"):
                trained = (self.trainer, self.model, self.datamodule)
                check_checkpoint(path, *trained, self.plain_config, resumes=self.subcommand == "fit")
            elif self.subcommand == "fit":
                check_new_run(self.trainer.callbacks)  # type: ignore[attr-defined]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        run_trainer.check_given(settings, trains=self.subcommand in (None, "fit"))
        if self.subcommand in SCORING:
            check_limit(settings, self.subcommand)
        logs = settings.get("logger") not in (False, [])
        check_callbacks(as_list(settings.get("callbacks")), CALLBACK_KEYS, ADDED_CALLBACKS, logs)
        if settings.get("logger") is None and self.subcommand not in ("fit", None):
            kwargs["logger"] = False  # scores are printed, and predictions written to a file
        elif settings.get("logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger()
        if settings.get("enable_checkpointing") is False:
            for key in ("checkpoint", "last_checkpoint"):
                self._parser(self.subcommand).callback_keys.remove(key)
        kwargs |= run_trainer.changed_options(settings)
        times, validations = validation_times(settings, self.plain_config["time_budget"]["scope"])
        kwargs |= {**times, **shown_by_lightning(settings)}
        self.folder = self._run_folder(settings)
        self.trainer_defaults = {**self.trainer_defaults, "callbacks": self._callbacks(settings, validations)}
        with run_trainer.errors_of_options(self.plain_config["trainer"]):
            trainer = super().instantiate_trainer(**kwargs)
        run_trainer.complete(trainer, as_list(settings.get("plugins")))
        logger.prepare(trainer, self._log_folder(), self._purge_step())
        return trainer

    def _callbacks(self, settings: Namespace, validations: Validations | None) -> list[Callback]:
        """Returns the callbacks that every run has, in addition to those with a key."""
        schedules = merged(self._get(self.config_init, "lr_schedule"), self._get(self.config_init, "schedules") or {})
        callbacks = added_callbacks(settings.as_dict(), schedules, self.folder, validations, self.plain_config)
        if self.subcommand == "predict":
            callbacks.append(PredictionWriter())
        return callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        with run_trainer.running(self.trainer, self.folder, self.plain_config, KEYS):
            super()._run_subcommand(subcommand)

    def _run_folder(self, settings: Namespace) -> RunFolder | None:
        """Returns the folder of a training run; scoring, prediction and `fast_dev_run` create none."""
        if self.subcommand not in ("fit", None) or settings.get("fast_dev_run"):
            return None
        if self.continued is not None:
            return RunFolder(self.continued.parent, number_of(self.continued), name=self.experiment)
        return RunFolder(self._runs_root() / self.experiment, name=self.experiment)

    def _log_folder(self) -> RunFolder | None:
        """Returns the folder for loggers without a `save_dir`; in scoring, `validate` or `test` in the run's folder."""
        path = self._get(self.config, "ckpt_path")
        if self.folder is None and path and (run := run_of(Path(path))) is not None:
            return RunFolder.inside(run, str(self.subcommand), name=self.experiment)
        return self.folder

    def _purge_step(self) -> int | None:
        if self.continued is None:
            return None
        path = self._get(self.config, "ckpt_path")
        return Contents(read(path), path).steps - 1 if path else 0

    def _runs_root(self) -> Path:
        return runs_root(self.plain_config["trainer"]["default_root_dir"])

    def _own_run(self) -> Path | None:
        """Returns the run whose own config.yaml was given, unless `experiment` names another."""
        run = run_of_config(self._get(self.config, "config") or [])
        return run if run is not None and name_in_runs(run.parent) == self.experiment else None

    def _experiment(self) -> str:
        configs = self._get(self.config, "config") or []
        if name := self._get(self.config, "experiment"):
            return name
        if (run := run_of_config(configs)) is not None:  # a version that did not save the name
            return name_in_runs(run.parent)
        name = "+".join(Path(str(config)).stem for config in configs if config) or "default"
        check_experiment(name)
        return name


def main(args: list[str]) -> None:
    """Runs one of the commands fit, validate, test and predict.

    Args:
        args: The arguments after `python -m bytelm`: the command and its options.
    """
    build(args)


def build(args: Sequence[str], run: bool = True) -> BytelmCLI:
    """Makes the objects of a config, as `model`, `datamodule` and `trainer` of the result.

    Args:
        args: Arguments; with a subcommand if it is run, without one otherwise: `["--config", "my.yaml"]`.
        run: Whether to run the subcommand.
    """
    quieten()
    return BytelmCLI(
        LanguageModel,
        TokenData,
        subclass_mode_data=True,
        trainer_defaults=run_trainer.DEFAULTS,
        save_config_callback=RunConfig,
        seed_everything_default=42,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,  # it would store class instances; see after_instantiate_classes
        parser_class=Parser,
        parser_kwargs={"prog": typed_name(), "description": DESCRIPTION},
        args=[*args],
        run=run,
    )
