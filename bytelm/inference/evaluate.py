"""`python -m bytelm evaluate`: scores a checkpoint on tasks of EleutherAI's lm-evaluation-harness.

The harness defines the tasks: data, prompts and correct answers. It requests three things of a model: the likelihood of
a continuation, the likelihood of a whole text, and a generated continuation. The likelihoods are computed over windows:
rows of up to max_seq_len tokens of which the last few are scored, each given the tokens before it.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import torch
from datasets.exceptions import DatasetsError
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, make_table
from tqdm import tqdm

from bytelm.config.command import CommandParser
from bytelm.config.suggestions import hint
from bytelm.config.values import NonNegativeInt, PositiveFloat, PositiveInt
from bytelm.data.tokenizer import ByteTokenizer
from bytelm.errors import ConfigError, DataError, as_storage_error, reason
from bytelm.inference.draw import batches, generate_batch
from bytelm.inference.generate import start_of
from bytelm.inference.load import Trained, add_arguments, load_given
from bytelm.inference.score import Window, costs, first_token, longest_first, predict, windows_of
from bytelm.runs.choice import with_run
from bytelm.system.files import check_folder, write_text


class HarnessModel(LM):
    """The harness's interface to a trained model.

    Text begins as in training (`start_of`, bytelm/inference/generate.py). Rows of bytes begin with a marker, also rows
    within a text; bits_per_byte is therefore counted over rows, like val/bpb. An empty context of other tokens is an
    end-of-text token.

    Args:
        trained: The model.
        batch_size: Number of windows in a forward pass.

    Raises:
        ConfigError: Its tokenizer has no end-of-text token.
    """

    def __init__(self, trained: Trained, batch_size: int = 16) -> None:
        super().__init__()
        self.gpt = trained.gpt
        self.tokenizer = trained.tokenizer
        self.batch_size = batch_size
        self.is_bytes = isinstance(self.tokenizer, ByteTokenizer)
        self.start = first_token(self.tokenizer)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation in nats, and whether all of its tokens are the most probable ones."""
        return self._score([self._continuation(*request.args) for request in requests], "loglikelihood")

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood of each text in nats; every token is predicted once, from the tokens before it in a window."""
        texts = [self._windows(self.start, self.tokenizer.encode(*request.args)) for request in requests]
        return [nats for nats, _ in self._score(texts, "loglikelihood_rolling")]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The generated text after each context, up to the first of the request's stop strings."""
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}  # numbers of the requests that differ only in their contexts
        for number, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(number)
        with tqdm(total=len(requests), desc="generate_until", unit="text") as bar:
            for numbers in alike.values():
                contexts = [start_of(self.tokenizer, requests[number].args[0]) for number in numbers]
                options = requests[numbers[0]].args[1]
                for batch in batches([len(context) for context in contexts], self.batch_size):
                    together = [numbers[i] for i in batch]
                    for number, text in zip(
                        together, self._write([contexts[i] for i in batch], together, options), strict=True
                    ):
                        texts[number] = text
                    bar.update(len(batch))
        return texts

    def _continuation(self, context: str, continuation: str) -> list[Window]:
        # Spaces belong to the word after them, as in the vocabulary of BPE. Context and continuation are encoded
        # together, because a token can span their border. The harness does the same with its own models.
        stripped = context.rstrip()
        before = start_of(self.tokenizer, stripped)
        after = self.tokenizer.encode(context + continuation)[len(self.tokenizer.encode(stripped)) :]
        if 0 < len(after) <= self.gpt.max_seq_len:
            return [([*before, *after[:-1]][-self.gpt.max_seq_len :], after)]
        return self._windows(before[-1], after)

    def _windows(self, before: int, tokens: list[int]) -> list[Window]:
        return windows_of(tokens, before, self.gpt.max_seq_len)

    def _score(self, texts: Sequence[Sequence[Window]], title: str) -> list[tuple[float, bool]]:
        """Sum of each text's windows, and whether all of their tokens are the most probable ones."""
        windows = [window for text in texts for window in text]
        scores = [(0.0, True)] * len(windows)
        with tqdm(total=len(windows), desc=title, unit="row") as bar:
            for batch in longest_first(windows, self.batch_size):
                for i, score in zip(batch, self._score_batch([windows[i] for i in batch]), strict=True):
                    scores[i] = score
                bar.update(len(batch))
        parts = iter(scores)
        totals = []
        for text in texts:
            own = [next(parts) for _ in text]
            totals.append((math.fsum(score for score, _ in own), all(greedy for _, greedy in own)))
        return totals

    def _score_batch(self, windows: Sequence[Window]) -> list[tuple[float, bool]]:
        scores = []
        predictions = predict(self.gpt, self.tokenizer, windows)
        for (_, targets), logits in zip(windows, predictions, strict=True):
            # The most probable token is that of `generate`, without the padding.
            likeliest = logits[:, : self.tokenizer.vocab_size].argmax(dim=-1)
            scores.append((-math.fsum(costs(logits, targets).tolist()), likeliest.tolist() == targets))
        return scores

    def _write(self, contexts: list[list[int]], seeds: list[int], options: dict[str, Any]) -> list[str]:
        """The texts after several contexts."""
        how = normalize_gen_kwargs(options)
        stops = [stop for stop in how["until"] if stop]
        tokens: list[list[int]] = [[] for _ in contexts]

        def end_of(text: str) -> int | None:
            return min((text.index(stop) for stop in stops if stop in text), default=None)

        drawn = generate_batch(
            self.gpt,
            [torch.tensor(context) for context in contexts],
            seeds,
            how["max_gen_toks"],
            temperature=how.get("temperature", 1.0) if how["do_sample"] else 0.0,
            top_k=how.get("top_k") or None,  # 0 means all, as in Hugging Face
            top_p=how.get("top_p"),
            vocab_size=self.tokenizer.vocab_size,
            stop=None if self.is_bytes else self.start,
            n_keep=int(self.is_bytes),
            ends=lambda i, token: end_of(self.tokenizer.decode(tokens[i])) is not None,
        )
        for i, token in drawn:
            tokens[i].append(token)
        texts = [self.tokenizer.decode(of_text) for of_text in tokens]
        return [text[: end_of(text)] for text in texts]


def load_tasks(names: str, manager: TaskManager) -> list[Task | Group]:
    """Loads tasks with their data.

    Args:
        names: Names of tasks, groups and tags, or patterns (`mmlu_*`), separated by commas.
        manager: The index of tasks.

    Raises:
        ConfigError: A task does not exist, or is named twice, for example by its name and by its group.
        DataError: A task, or its data set, cannot be loaded.
    """
    found: list[Task | Group] = []
    for given in filter(None, map(str.strip, names.split(","))):
        matching = manager.match_tasks([given])
        if not matching:
            accepted = "accepted: those of `lm-eval ls tasks`, or of include_path"
            raise ConfigError("tasks", given, hint(given, manager.all_tasks) + accepted)
        for name in matching:
            try:
                loaded = manager.load(name)
            except (DatasetsError, ImportError, LookupError, OSError, ValueError) as error:
                raise DataError("tasks", name, f"the harness cannot load it: {reason(error)}") from error
            found += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    if not found:
        raise ConfigError("tasks", names, "accepted: names separated by commas, such as wikitext,lambada_openai")
    try:
        manager.load(found)
    except ValueError as error:
        raise ConfigError("tasks", names, str(error)) from error
    return found


def evaluate(
    trained: Trained,
    tasks: str,
    include_path: str | None = None,
    num_fewshot: NonNegativeInt | None = None,
    limit: PositiveInt | PositiveFloat | None = None,
    batch_size: PositiveInt = 16,
) -> dict[str, Any]:
    """Evaluates a model on tasks.

    Args:
        trained: The model.
        tasks: Names of the harness's tasks, groups and tags, or patterns, separated by commas:
            `wikitext,lambada_openai`.
        include_path: Folder with YAML files of tasks of your own.
        num_fewshot: Number of examples with answers before each question. Default: the task's number.
        limit: Maximum number of questions of each task or, below 1, their share; for a first test.
        batch_size: Number of rows of up to max_seq_len tokens in a forward pass.

    Returns:
        The harness's results.

    Raises:
        ConfigError: A task or the folder does not exist, or the limit is no number of questions.
        DataError: A task, or its data set, cannot be loaded.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError("include_path", include_path, "accepted: a folder with YAML files of tasks")
    if isinstance(limit, float) and limit >= 1:  # the harness would round it down
        raise ConfigError("limit", limit, "accepted: a whole number of questions, or a share below 1")
    manager = TaskManager(include_path=include_path)
    results: dict[str, Any] = lm_eval.simple_evaluate(
        HarnessModel(trained, batch_size),
        tasks=load_tasks(tasks, manager),
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        log_samples=False,
    )
    return results


def show(results: Mapping[str, Any]) -> None:
    """Prints the harness's table, and each score as `task/metric: value`."""
    for column in ("results", "groups"):
        if results.get(column):
            print(make_table(results, column))
    for task, scores in results["results"].items():
        for key, value in scores.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                name = metric if filtered == "none" else key
                print(f"{task}/{name}: {f'{value:.4f}' if isinstance(value, float) else value}")


def save(results: Mapping[str, Any], path: str) -> None:
    """Writes the harness's results as JSON.

    Raises:
        StorageError: They cannot be written.
    """
    with as_storage_error(f"{path}: the results could not be written"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), json.dumps(results, indent=2, default=handle_non_serializable))


def _quieten_harness() -> None:
    # It logs a line for each metric with the harness's default settings, which nearly all tasks use.
    logger = logging.getLogger("lm_eval.api.task")
    logger.addFilter(lambda record: "using default" not in record.getMessage())


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: Arguments after `python -m bytelm evaluate`.
    """
    args = with_run(["evaluate", *args])[1:]
    parser = CommandParser(
        "evaluate", description="Scores a checkpoint on tasks of EleutherAI's lm-evaluation-harness."
    )
    add_arguments(parser)
    parser.add_function_arguments(evaluate, skip={"trained"})
    parser.add_argument("--output", type=str | None, help="A JSON file for the harness's results.")
    given = vars(parser.parse_args(args))
    output = given.pop("output")
    if output is not None:  # before the work, which can take hours
        if Path(output).is_dir():
            raise ConfigError("output", output, "it is a folder; accepted: a JSON file")
        check_folder("output", Path(output).parent)
    _quieten_harness()
    trained = load_given(given)
    results = evaluate(trained, **given)
    show(results)
    if output is not None:
        save(results, output)
        print(f"results: {output}")
