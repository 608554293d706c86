"""Evaluation: answers to the harness's questions equal those computed by hand; the command reports the scores."""

import functools
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bytelm.data.bytes import read_bytes
from bytelm.data.rows import cut_rows
from bytelm.data.tokenizer import ByteTokenizer, TokenizerFile
from bytelm.data.train_tokenizer import train_tokenizer
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.inference.draw import generate
from bytelm.inference.load import Trained, load
from bytelm.metrics import BitsPerByte
from bytelm.parts.init import Normal
from bytelm.program import main

evaluate = pytest.importorskip("bytelm.inference.evaluate")
HarnessModel = evaluate.HarnessModel

T = 16
CHECKPOINT = "runs/tiny/version_0/checkpoints/best.ckpt"


def gpt(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 256, "max_seq_len": T}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.3), **options}).eval()


def of_bytes(batch_size=16, **options):
    return HarnessModel(Trained(gpt(**options), ByteTokenizer()), batch_size)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A BPE of 270 tokens."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(iter(["to be or not to be, that is the question\n"] * 50), 270, file)
    return TokenizerFile(file)


@pytest.fixture
def of_tokens(tokenizer):
    """A model of these tokens, whose vocabulary is filled up to 288."""
    return HarnessModel(Trained(gpt(vocab_size=288, head_bias=True), tokenizer))


def asked(*args):
    return SimpleNamespace(args=args)


def by_hand(network, row, n):
    """Nats of the last n tokens of a row, each after a pass over those before it, and whether all are the likeliest."""
    nats, greedy = 0.0, True
    for i in range(len(row) - n, len(row)):
        predictions = network(torch.tensor([row[:i]]))[0, -1].double().log_softmax(dim=-1)
        nats += predictions[row[i]].item()
        greedy = greedy and predictions.argmax().item() == row[i]
    return nats, greedy


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_continuation_is_scored_token_by_token_in_any_batch(batch_size):
    model = of_bytes(batch_size)
    pairs = [
        ("", "to be"),
        ("to be", " or not"),
        ("a context that is longer than a row", " is cut"),
        ("exactly a row wi", "th"),
        ("", "as long as a row"),
        ("x", "y"),
        ("n\u00e9", "\u00e0 \U0001f600"),
        ("before it", " a row's length"),
        ("before it", " one row in all"[:-1]),
    ]
    answers = model.loglikelihood([asked(*pair) for pair in pairs])
    for (context, continuation), (nats, greedy) in zip(pairs, answers, strict=True):
        text = [*(context + continuation).encode()]
        expected = by_hand(model.gpt, [0, *text[-T:]], len(continuation.encode()))
        assert nats == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_spaces_at_a_context_s_end_belong_to_the_continuation():
    model = of_bytes()
    moved, given = model.loglikelihood([asked("to be \n", "or"), asked("to be", " \nor")])
    assert moved == pytest.approx(given)
    alone, empty = model.loglikelihood([asked("  ", "or"), asked("", "  or")])
    assert alone == pytest.approx(empty)


def test_a_continuation_longer_than_a_row_is_scored_row_by_row():
    model = of_bytes()
    text = [*b"forty characters, which are 2.5 rows' 16"]
    ((nats, greedy),) = model.loglikelihood([asked("context", bytes(text).decode())])
    rows = [(text[:16], 16), (text[16:32], 16), (text[24:], 8)]
    parts = [by_hand(model.gpt, [0, *row], n) for row, n in rows]
    assert nats == pytest.approx(sum(part for part, _ in parts), abs=1e-4)
    assert not greedy


def test_greedy_is_generation_at_temperature_0():
    model = of_bytes()
    likeliest = [*generate(model.gpt, torch.tensor([0, *b"abc"]), 5, temperature=0)]
    assert all(0 < token < 128 for token in likeliest)  # so that it is text
    text = bytes(likeliest).decode()
    answers = model.loglikelihood([asked("abc", text), asked("abc", text[:-1] + "~"), asked("abc", text[:1])])
    assert [greedy for _, greedy in answers] == [True, False, True]


def test_context_and_continuation_are_encoded_together(of_tokens, tokenizer):
    pairs = [("to b", "e or not"), ("to be", " or"), ("", "to be"), ("to be or not to be, that is the question", "\n")]
    answers = of_tokens.loglikelihood([asked(*pair) for pair in pairs])
    borders = 0
    for (context, continuation), (nats, _) in zip(pairs, answers, strict=True):
        before, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
        borders += whole[: len(before)] != before
        after = whole[len(before) :]
        row = [*(before or [tokenizer.end_of_text]), *after]
        assert nats == pytest.approx(by_hand(of_tokens.gpt, row[-T - 1 :], len(after))[0], abs=1e-4)
    assert borders == 1  # "be" is a token


def test_padding_tokens_have_a_cost_and_are_never_the_likeliest(of_tokens, tokenizer):
    assert tokenizer.vocab_size == 270
    with torch.no_grad():
        of_tokens.gpt.head.bias[280] = 50.0
        of_tokens.gpt.head.bias[tokenizer.encode("?")] = 40.0
    ((nats, greedy),) = of_tokens.loglikelihood([asked("to be", "?")])
    by_all = by_hand(of_tokens.gpt, tokenizer.encode("to be?"), 1)
    assert nats == pytest.approx(by_all[0], abs=1e-4)
    assert nats < -5
    assert (greedy, by_all[1]) == (True, False)


@pytest.mark.parametrize("length", [1, T, 3 * T])
def test_a_text_of_whole_rows_costs_as_much_as_in_validation(length):
    model = of_bytes(batch_size=2)
    text = ("What a piece of work is a man! how noble in reason!" * 2)[:length]
    (nats,) = model.loglikelihood_rolling([asked(text)])
    inputs, targets = cut_rows(read_bytes(text.encode()), torch.arange(0, length, T), min(length, T))
    score = BitsPerByte()
    losses = torch.nn.functional.cross_entropy(model.gpt(inputs).transpose(1, 2), targets, reduction="none")
    score.update(losses, targets)
    assert -nats / math.log(2) / length == pytest.approx(score.compute().item(), abs=1e-5)


def test_every_token_of_a_text_is_predicted_once(of_tokens, tokenizer):
    text = "to be or not to be, that is the question whether"
    tokens = tokenizer.encode(text)
    assert T < len(tokens) < 2 * T
    nothing, nats = of_tokens.loglikelihood_rolling([asked(""), asked(text)])
    first = by_hand(of_tokens.gpt, [tokenizer.end_of_text, *tokens[:T]], T)[0]
    # The last row has all the context that there is room for.
    last = by_hand(of_tokens.gpt, tokens[-T - 1 :], len(tokens) - T)[0]
    assert nats == pytest.approx(first + last, abs=1e-4)
    assert nothing == 0


def test_a_text_continues_with_the_likeliest_tokens():
    model = of_bytes()
    expected = ByteTokenizer().decode(generate(model.gpt, torch.tensor([0, *b"abc"]), 40, 0, n_keep=1))
    options = {"max_gen_toks": 40}, {"max_gen_toks": 40, "until": "", "temperature": 0.0}
    assert model.generate_until([asked("abc", one) for one in options]) == [expected, expected]


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        ("or", "to be "),
        (["not", "or", "absent"], "to be "),
        (["be", "to be"], ""),  # both are there with the same token
        (["absent"], "to be or not"),
    ],
)
def test_generation_ends_at_the_first_stop_string(until, expected, monkeypatch):
    def drawn(*_, ends, **__):
        for token in b"to be or not":
            yield 0, token
            if ends(0, token):
                return

    monkeypatch.setattr(evaluate, "generate_batch", drawn)
    assert of_bytes().generate_until([asked("abc", {"until": until})]) == [expected]


def test_generation_ends_with_the_document(of_tokens, tokenizer):
    with torch.no_grad():
        of_tokens.gpt.head.bias[tokenizer.end_of_text] = 50.0
    passes = []
    of_tokens.gpt.register_forward_hook(lambda *_: passes.append(1))
    assert of_tokens.generate_until([asked("to be", {"until": ["\n"]})]) == [""]
    assert len(passes) == 1


def test_draws_are_those_that_the_task_asks_for():
    model = of_bytes()

    def written(n=1, **options):
        return model.generate_until([asked("abc", {"max_gen_toks": 8, **options})] * n)

    (greedy,) = written()
    assert written(do_sample=False, temperature=1.0) == [greedy]
    assert written(do_sample=True, top_k=1) == [greedy]
    assert written(do_sample=True, top_k=0) == written(do_sample=True)
    assert written(temperature=1.0, top_p=1e-9) == [greedy]
    drawn = written(3, do_sample=True)
    assert len({*drawn, greedy}) == 4  # each repetition is another draw
    assert written(3, do_sample=True) == drawn


def test_a_tokenizer_without_a_token_to_begin_with_is_rejected(tokenizer):
    nameless = SimpleNamespace(end_of_text=None, name="nameless.json")
    with pytest.raises(ConfigError, match=r"data.tokenizer: 'nameless.json' cannot be used; accepted: one with an end"):
        HarnessModel(Trained(gpt(), nameless))


# The command


MULTIPLE_CHOICE = """
output_type: multiple_choice
doc_to_text: '{{question}}'
doc_to_choice: '{{choices}}'
doc_to_target: right
target_delimiter: ''
metric_list: [{metric: acc}]
"""
TEXT = """
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{text}}'
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
"""
GENERATION = """
output_type: generate_until
doc_to_text: '{{prompt}}'
doc_to_target: '{{answer}}'
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
CLOZE = """
output_type: loglikelihood
doc_to_text: '{{prompt}}'
doc_to_target: '{{answer}}'
metric_list: [{metric: perplexity}, {metric: acc}]
"""
GROUP = "group: my_group\ntask: [my_choice]\naggregate_metric_list: [{metric: acc}]\n"


@pytest.fixture
def add_task(folder):
    """Makes a task of tasks/, whose data set is a file here."""
    (folder / "tasks").mkdir()

    def add_task(name, config, documents):
        file = folder / "tasks" / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, documents)))
        source = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
        head = f"task: {name}\ndataset_path: json\ntest_split: test\ndataset_kwargs: {json.dumps(source)}\n"
        file.with_suffix(".yaml").write_text(head + config)

    return add_task


@pytest.fixture
def quick(monkeypatch):
    """Leaves out the slow parts of the harness: its own thousands of tasks, and a description of the machine."""
    manager = functools.partial(evaluate.TaskManager, include_defaults=False)
    monkeypatch.setattr(evaluate, "TaskManager", manager)
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


def on_the_command_line(*options):
    return ["evaluate", "--ckpt_path", CHECKPOINT, "--include_path", "tasks", "--device", "cpu", *options]


def test_a_trained_model_is_scored_on_tasks_of_one_s_own(run, folder, add_task, quick, capsys):
    run("--time_budget.limit", "50 steps")
    trained = load(CHECKPOINT)
    corpus = (folder / "corpus.txt").read_text()
    validated = corpus[int(len(corpus) * 0.9) :][:1024]
    choices = ["to", "be", "the question", "xyzzy"]
    questions = [
        {"question": question, "choices": choices, "right": right}
        for question, right in [("to be or ", 0), ("whether nobler\n", 1), ("that is ", 2), ("", 3)]
    ]
    prompts = ["to be", " is the question and more than there is room for in a row"]
    written = HarnessModel(trained).generate_until([asked(p, {"until": ["\n"], "max_gen_toks": 12}) for p in prompts])
    answers = [written[0], written[1] + "!"]
    add_task("my_choice", MULTIPLE_CHOICE, questions)
    add_task("my_text", TEXT, [{"text": validated[:320]}, {"text": validated[320:]}])
    add_task("my_writing", GENERATION, [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)])
    (folder / "tasks" / "my_group.yaml").write_text(GROUP)
    capsys.readouterr()

    main(on_the_command_line("--tasks", "my_group, my_text,my_wri*", "--output", "scores/my.json"))
    captured = capsys.readouterr()
    assert "using default" not in captured.err
    lines = captured.out.splitlines()
    assert any(line.startswith("|my_text") and "|bits_per_byte" in line for line in lines)
    assert "results: scores/my.json" in lines
    results = json.loads((folder / "scores/my.json").read_text())["results"]

    record = json.loads((folder / "runs/tiny/version_0/record.json").read_text())
    assert results["my_text"]["bits_per_byte,none"] == pytest.approx(record["val_bpb"], abs=1e-4)
    assert f"my_text/bits_per_byte: {results['my_text']['bits_per_byte,none']:.4f}" in lines
    nats = results["my_text"]["bits_per_byte,none"] * math.log(2) * 1024
    words = len(validated[:320].split()) + len(validated[320:].split())
    assert math.log(results["my_text"]["word_perplexity,none"]) == pytest.approx(nats / words, rel=0.01)

    right = 0
    for question in questions:
        space = question["question"][len(question["question"].rstrip()) :]
        start = [0, *question["question"].rstrip().encode()]
        scores = [by_hand(trained.gpt, [*start, *(space + c).encode()], len(space + c))[0] for c in choices]
        right += scores.index(max(scores)) == question["right"]
    assert 0 < right < 4
    assert results["my_choice"]["acc,none"] == right / 4
    assert f"my_choice/acc: {right / 4:.4f}" in lines
    assert f"my_group/acc: {right / 4:.4f}" in lines
    assert "my_writing/exact_match: 0.5000" in lines


def test_a_metric_with_a_bootstrapped_error_is_reported_with_it(trained, folder, add_task, quick, capfd):
    """The harness forks a pool of workers for that."""
    pairs = [("to be or", " not"), ("that is the", " question"), ("to", " be"), ("whether", " nobler")]
    add_task("my_cloze", CLOZE, [{"prompt": prompt, "answer": answer} for prompt, answer in pairs])
    capfd.readouterr()
    main(on_the_command_line("--tasks", "my_cloze", "--output", "scores.json"))
    scores = json.loads(Path("scores.json").read_text())["results"]["my_cloze"]
    nats = [score for score, _ in HarnessModel(load(CHECKPOINT)).loglikelihood([asked(*pair) for pair in pairs])]
    assert scores["perplexity,none"] == pytest.approx(math.exp(-sum(nats) / len(nats)), rel=1e-4)
    assert scores["perplexity_stderr,none"] > 0
    captured = capfd.readouterr()
    assert f"my_cloze/perplexity: {scores['perplexity,none']:.4f}" in captured.out.splitlines()
    assert "Traceback" not in captured.err


def test_the_documented_tasks_for_local_files_score_them(trained, folder, quick, capsys):
    """Perplexity as for WikiText, and the last word as for LAMBADA."""
    page = (Path(__file__).resolve().parents[2] / "docs/guides/trained-models.md").read_text()
    block = page.partition("```\n# tasks/")[2].partition("```")[0]
    (folder / "tasks").mkdir()
    for file in block.split("# tasks/"):
        name, _, content = file.partition("\n")
        (folder / "tasks" / name).write_text(content)
    texts, passages = ["to be or not to be", "that is the question whether"], [("to be or", " not"), ("that", " is")]
    Path("wikitext.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    Path("lambada.jsonl").write_text("\n".join(json.dumps({"text": text, "word": word}) for text, word in passages))
    main(on_the_command_line("--tasks", "my_wikitext,my_lambada", "--output", "scores.json"))
    scores = json.loads(Path("scores.json").read_text())["results"]
    model = HarnessModel(load(CHECKPOINT))
    nats = -sum(model.loglikelihood_rolling([asked(text) for text in texts]))
    words = sum(len(text.split()) for text in texts)
    assert scores["my_wikitext"]["word_perplexity,none"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    answers = model.loglikelihood([asked(*passage) for passage in passages])
    perplexity = math.exp(-sum(score for score, _ in answers) / 2)
    assert scores["my_lambada"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-4)
    assert scores["my_lambada"]["acc,none"] == sum(greedy for _, greedy in answers) / 2


def test_a_limit_is_a_number_or_a_share_of_questions(trained, add_task, quick):
    add_task("my_text", TEXT, [{"text": "to be or not to be"}] * 6)
    model = load(CHECKPOINT)
    counts = [
        evaluate.evaluate(model, "my_text", "tasks", limit=limit)["n-samples"]["my_text"]["effective"]
        for limit in (2, 0.5)
    ]
    assert counts == [2, 3]


@pytest.fixture
def rejected(trained, add_task, capsys):
    """Runs the command on options that must be rejected with an exit status; returns the last line that says why."""
    capsys.readouterr()

    def rejected(*options, status):
        with pytest.raises(SystemExit) as ended:
            main(on_the_command_line(*options))
        assert ended.value.code == status
        captured = capsys.readouterr()
        assert "results:" not in captured.out
        return captured.err.splitlines()[-1]

    return rejected


def test_invalid_evaluations_are_rejected(rejected, add_task, quick):
    add_task("my_text", TEXT, [{"text": "to be"}])
    add_task("my_own", TEXT, [])
    os.unlink("tasks/my_own.jsonl")
    add_task("my_choice", MULTIPLE_CHOICE, [{"question": "to", "choices": ["be", "do"], "right": 0}])
    Path("tasks/my_group.yaml").write_text(GROUP)
    line = rejected("--tasks", "my_choice,my_group", status=2)
    assert line.startswith("bytelm: error: tasks: 'my_choice,my_group' cannot be used; Duplicate task 'my_choice'")
    assert rejected("--tasks", "my_txt", status=2) == (
        "bytelm: error: tasks: 'my_txt' cannot be used; did you mean my_text? accepted: those of `lm-eval ls tasks`, "
        "or of include_path"
    )
    assert rejected("--tasks", ",", status=2).startswith("bytelm: error: tasks: ',' cannot be used; accepted: names")
    line = rejected("--tasks", "my_text", "--include_path", "nowhere", status=2)
    assert line.startswith("bytelm: error: include_path: 'nowhere' cannot be used; accepted: a folder")
    line = rejected("--tasks", "my_text,my_own", status=3)
    assert line.startswith("bytelm: error: tasks: 'my_own' cannot be used; the harness cannot load it: ")
    assert "my_own.jsonl" in line
    line = rejected("--tasks", "my_text", "--limit", "0", status=2)
    assert line.startswith("bytelm: error: limit: ")
    line = rejected("--tasks", "my_text", "--limit", "1.5", status=2)
    assert line == "bytelm: error: limit: 1.5 cannot be used; accepted: a whole number of questions, or a share below 1"
    line = rejected("--tasks", "my_text", "--output", "tasks", status=2)
    assert line == "bytelm: error: output: 'tasks' cannot be used; it is a folder; accepted: a JSON file"
    line = rejected("--tasks", "my_text", "--output", "corpus.txt/my.json", status=5)
    assert line.startswith("bytelm: error: output: 'corpus.txt' cannot be used; it is not a folder; accepted: ")
    line = rejected("--tasks", "my_text", "--ckpt_path", "no.ckpt", status=4)
    assert line.startswith("bytelm: error: ckpt_path: 'no.ckpt' cannot be read")


@pytest.mark.slow
def test_the_harness_s_own_tasks_are_found(rejected):
    """Their data sets cannot be had here."""
    line = rejected("--tasks", "wikitext", status=3)
    assert line.startswith("bytelm: error: tasks: 'wikitext' cannot be used; the harness cannot load it: ")


def test_without_the_harness_the_command_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "bytelm.inference.evaluate")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate"])
    assert ended.value.code == 2
    needs = 'bytelm: error: evaluate needs lm_eval, which is not installed: pip install -e ".[eval]"'
    assert capsys.readouterr().err.splitlines() == [needs]
