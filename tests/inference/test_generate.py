"""Generation: draws, the cache, streamed text, and the command."""

import functools
import io
import itertools
import re
import sys
from pathlib import Path

import pytest
import torch

from bytelm.data.tokenizer import ByteTokenizer, Tokenizer
from bytelm.errors import ConfigError
from bytelm.gpt import GPT
from bytelm.inference.draw import batches, draw, generate, generate_batch
from bytelm.inference.generate import start_of, write
from bytelm.inference.load import Trained
from bytelm.parts.embedding import HashedNGrams
from bytelm.parts.init import Normal
from bytelm.parts.memory import NGramMemory
from bytelm.parts.position import ALiBi, Learned, Rotary
from bytelm.program import main

CHECKPOINT = "runs/tiny/version_0/checkpoints/last.ckpt"


def tiny(**options):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 256, "max_seq_len": 16}
    return GPT(**{**sizes, "init": functools.partial(Normal, std=0.2), **options}).eval()


def after(*tokens):
    return torch.tensor(tokens)


def random():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "options",
    [
        {"position": Rotary},
        {"position": Learned},
        {"position": ALiBi},
        {"embedding": functools.partial(HashedNGrams, buckets=100)},
        {"memory": functools.partial(NGramMemory, orders=[1, 2], words=[1], cache=[1])},
    ],
)
@pytest.mark.parametrize("n_keep", [0, 1])
def test_the_text_is_the_same_with_and_without_the_cache_beyond_max_seq_len(options, n_keep):
    gpt = tiny(**options)
    cached, plain = (
        [*generate(gpt, after(0, 3, 7), 40, seed=1, cached=cached, n_keep=n_keep)] for cached in (True, False)
    )
    assert cached == plain
    assert len(cached) == 40
    assert len(set(cached)) > 15


def together(gpt, sequences, seeds, *options, **more):
    texts = [[] for _ in sequences]
    for i, token in generate_batch(gpt, sequences, seeds, *options, **more):
        texts[i].append(token)
    return texts


@pytest.mark.parametrize(
    "options",
    [{}, {"position": ALiBi}, {"memory": functools.partial(NGramMemory, orders=[1, 2], words=[1], cache=[1])}],
)
@pytest.mark.parametrize("cached", [True, False])
def test_several_sequences_continue_as_each_does_alone(options, cached):
    # In float64, where the order of sums does not change a draw. One prompt exceeds max_seq_len.
    gpt = tiny(**options).double()
    sequences = [after(0, 3, 7), torch.arange(40), after(0), torch.arange(12)]
    batch = together(gpt, sequences, [5, 6, 7, 8], 25, cached=cached, n_keep=1)
    alone = [
        [*generate(gpt, sequence, 25, seed=seed, n_keep=1)]
        for sequence, seed in zip(sequences, (5, 6, 7, 8), strict=True)
    ]
    assert batch == alone


def test_ended_sequences_leave_the_batch():
    gpt, rows = tiny(), []
    gpt.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    ends = {0: 2, 1: 3, 2: 9, 3: 9}  # tokens of each text
    drawn = [0] * 4

    def is_last(i, token):
        drawn[i] += 1
        return drawn[i] == ends[i]

    together(gpt, [after(1, 2)] * 4, [0, 1, 2, 3], 50, ends=is_last)
    assert drawn == [2, 3, 9, 9]
    assert rows == [4, 4, 4, *[2] * 6]


def test_a_stop_token_ends_one_text_of_several():
    gpt = tiny()
    stop = [*generate(gpt, after(0), 12, seed=0)][11]
    alone = [[*generate(gpt, after(0), 30, seed=seed, stop=stop)] for seed in (0, 1)]
    assert together(gpt, [after(0)] * 2, [0, 1], 30, stop=stop) == alone
    assert len(alone[0]) < 12


def test_batches_have_sequences_of_similar_length():
    assert [*batches([5, 1, 9, 2, 1], 2)] == [[1, 4], [3, 0], [2]]
    assert [*batches([], 2)] == []


def test_each_token_is_computed_once_with_the_cache():
    gpt, computed = tiny(), []
    gpt.blocks[0].register_forward_hook(lambda module, inputs, output: computed.append(output.shape[1]))
    [*generate(gpt, after(1, 2, 3), 20, seed=0)]
    # 13 more fill the row of 16; then its last half continues as a new row.
    assert computed == [3, *[1] * 13, 8, *[1] * 5]
    computed.clear()
    [*generate(gpt, after(1, 2, 3), 5, seed=0, cached=False)]
    assert computed == [3, 4, 5, 6, 7]


@pytest.mark.parametrize(("n_keep", "kept"), [(0, []), (1, [90]), (3, [90, 91, 92])])
def test_a_full_row_continues_with_its_last_half_and_its_first_tokens(n_keep, kept):
    gpt, seen = tiny(), []
    gpt.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].tolist()))
    prompt = [90, 91, 92, *range(13)]
    (first, _) = generate(gpt, after(*prompt), 2, seed=0, n_keep=n_keep)
    assert seen[0] == prompt
    assert seen[1] == kept + [*prompt, first][-(8 - n_keep) :]


def test_prompts_longer_than_a_row_are_cut_from_the_left():
    gpt, seen = tiny(), []
    gpt.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0].tolist()))
    next(generate(gpt, torch.arange(40), 1, n_keep=1))
    assert seen == [[0, *range(33, 40)]]


@pytest.mark.parametrize("max_seq_len", [1, 2, 3])
def test_the_shortest_rows_suffice(max_seq_len):
    gpt = tiny(max_seq_len=max_seq_len)
    for n_keep, cached in itertools.product((0, 1, 2), (True, False)):
        assert len([*generate(gpt, after(0, 1), 5, cached=cached, n_keep=n_keep)]) == 5


def test_greedy_takes_the_most_probable_token_each_time():
    gpt, tokens = tiny(), [0, 5]
    for _ in range(10):
        tokens.append(gpt(torch.tensor([tokens]))[0, -1].argmax().item())
    assert [*generate(gpt, after(0, 5), 10, temperature=0)] == tokens[2:]
    assert [*generate(gpt, after(0, 5), 10, top_k=1, seed=3)] == tokens[2:]
    assert [*generate(gpt, after(0, 5), 10, top_p=0.0, seed=3)] == tokens[2:]
    assert [*generate(gpt, after(0, 5), 10, temperature=1e-4, seed=3)] == tokens[2:]


def test_a_seed_gives_the_same_text_and_another_one_another():
    gpt = tiny()
    texts = [[*generate(gpt, after(0), 30, seed=seed)] for seed in (1, 1, 2, None, None)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) == 4


def test_drawing_leaves_other_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    [*generate(tiny_once(), after(0), 5, seed=1)]
    assert torch.equal(torch.rand(1), expected)


@functools.cache
def tiny_once():
    state = torch.get_rng_state()
    gpt = tiny()
    torch.set_rng_state(state)
    return gpt


PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


@pytest.mark.parametrize(
    ("top_k", "top_p", "drawn"),
    [
        (None, None, {0, 1, 2, 3}),
        (1, None, {1}),
        (3, None, {0, 1, 3}),
        (99, None, {0, 1, 2, 3}),
        (None, 0.0, {1}),
        (None, 0.49, {1}),
        (None, 0.51, {1, 3}),
        (None, 0.79, {1, 3}),
        (None, 0.81, {0, 1, 3}),
        (None, 1.0, {0, 1, 2, 3}),
        (2, 0.6, {1}),  # of the two most probable, the first has 0.625
        (2, 0.63, {1, 3}),
    ],
)
def test_top_k_and_top_p_leave_the_most_probable(top_k, top_p, drawn):
    generator = random()
    assert {draw(PROBABILITIES.log(), 1.0, top_k, top_p, generator) for _ in range(300)} == drawn


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature):
    generator, n = random(), 4000
    counts = torch.zeros(4)
    for _ in range(n):
        counts[draw(PROBABILITIES.log() + 3.0, temperature, None, None, generator)] += 1
    expected = PROBABILITIES ** (1 / temperature)
    torch.testing.assert_close(counts / n, expected / expected.sum(), rtol=0, atol=0.03)


def test_padding_of_the_vocabulary_is_never_drawn():
    gpt = tiny(head_bias=True, tie_embeddings=False)
    with torch.no_grad():
        gpt.head.bias[100:] += 20.0
    assert min(generate(gpt, after(0), 30, seed=0)) >= 100
    assert max(generate(gpt, after(0), 30, seed=0, vocab_size=100)) < 100


def test_the_text_ends_where_stop_is_drawn():
    gpt = tiny()
    tokens = [*generate(gpt, after(0), 30, seed=0)]
    stop = tokens[12]
    assert [*generate(gpt, after(0), 30, seed=0, stop=stop)] == tokens[: tokens.index(stop)]


def test_the_longest_text_is_that_of_max_new_tokens():
    assert [len([*generate(tiny(), after(0), n)]) for n in (0, 1, 7)] == [0, 1, 7]


class Pieces(Tokenizer):
    """Two bytes a token, some of which end within a character."""

    def __init__(self, text, end_of_text=None):
        data = text.encode()
        super().__init__("pieces", [data[i : i + 2] for i in range(0, len(data), 2)], end_of_text)

    def encode(self, text):
        return [self.bytes_of.index(text.encode()[i : i + 2]) for i in range(0, len(text.encode()), 2)]

    def to_json(self):
        raise NotImplementedError


@pytest.fixture
def text_of(monkeypatch):
    """Writes the text of given tokens, as if a network had drawn them."""

    def arriving(tokens, tokenizer):
        drawn = ((0, token) for token in tokens)
        monkeypatch.setattr("bytelm.inference.generate.generate_batch", lambda *given, **options: drawn)
        pieces = write(Trained(None, tokenizer))
        assert next(pieces) == ""  # the prompt
        return pieces

    return arriving


@pytest.mark.parametrize("text", ["plain", "é€😀 naïve", "日本語", ""])
def test_characters_arrive_whole(text_of, text):
    for tokenizer, tokens in (
        (ByteTokenizer(), list(text.encode())),
        (Pieces(text, end_of_text=0), range(-(-len(text.encode()) // 2))),
    ):
        arrived = [*text_of(iter(tokens), tokenizer)]
        assert "".join(arrived) == text
        assert "" not in arrived
    assert [*text_of(iter("a€b".encode()), ByteTokenizer())] == ["a", "€", "b"]


def test_text_arrives_as_soon_as_it_is_drawn(text_of):
    taken = []
    arriving = text_of((taken.append(token) or token for token in b"abc"), ByteTokenizer())
    assert (next(arriving), taken) == ("a", [97])
    assert (next(arriving), taken) == ("b", [97, 98])


def test_invalid_characters_are_replaced(text_of):
    assert [*text_of(iter([65, 0xFF, 66, 0xE2, 0x82]), ByteTokenizer())] == ["A", "\ufffd", "B", "\ufffd"]


def test_texts_begin_as_those_of_training_did():
    assert start_of(ByteTokenizer(), "é") == [0, 0xC3, 0xA9]
    assert start_of(ByteTokenizer(), "") == [0]
    assert start_of(Pieces("abcd", end_of_text=1), "ab") == [0]
    assert start_of(Pieces("abcd", end_of_text=1), "") == [1]
    with pytest.raises(ConfigError, match=r"prompt: '' .*pieces"):
        start_of(Pieces("abcd"), "")


# The command


KEPT: list[bytes] = []


@pytest.fixture
def checkpoint(run, capsys):
    """The checkpoint of a run on bytes, in the test's own folder; it is trained once."""
    if not KEPT:
        run("--time_budget.limit", "30 steps")
        KEPT.append(Path(CHECKPOINT).read_bytes())
    Path(CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    Path(CHECKPOINT).write_bytes(KEPT[0])
    capsys.readouterr()


@pytest.fixture
def written(checkpoint, capsys):
    """Runs the command with options; returns its output."""

    def written(*options):
        main(["generate", "--ckpt_path", CHECKPOINT, "--device", "cpu", *options])
        captured = capsys.readouterr()
        assert all(line.startswith("bytelm: note: ") for line in captured.err.splitlines())
        written.notes = captured.err
        return captured.out

    return written


def test_a_trained_network_resumes_from_a_prompt(written, monkeypatch):
    text = written("--prompt", "to be", "--max_new_tokens", "50")
    assert text.startswith("to be")
    assert len(text) > 40
    # Seconds of training have taught it which bytes there are.
    assert sum(character in "abehilnoqrstuw \n" for character in text) > 0.9 * len(text)
    assert written("--prompt", "to be", "--max_new_tokens", "50", "--no_cache") == text
    assert written("--prompt", "to be", "--max_new_tokens", "50", "--config", "tiny.yaml") == text
    assert written("--prompt", "to be", "--max_new_tokens", "50", "--seed", "7") != text
    monkeypatch.setattr(sys, "stdin", io.StringIO("to be"))
    assert written("--prompt", "-", "--max_new_tokens", "50") == text


def test_several_samples_have_seeds_that_follow_each_other(written):
    samples = written("--num_samples", "2", "--seed", "3", "--max_new_tokens", "20").removesuffix("\n")
    each = [written("--seed", seed, "--max_new_tokens", "20").removesuffix("\n") for seed in ("3", "4")]
    assert samples == "\n---\n".join(each)
    assert each[0] != each[1]


def test_each_prompt_has_its_samples(written):
    short = ("--max_new_tokens", "10", "--num_samples", "2")
    texts = written("--prompt", "to be", "--prompt", "or", *short, "--batch_size", "3")
    each = [written("--prompt", prompt, *short).removesuffix("\n") for prompt in ("to be", "or")]
    assert texts.removesuffix("\n") == "\n---\n".join(each)


def test_options_reach_the_draws(written):
    short = ("--max_new_tokens", "20")
    greedy = [written("--temperature", "0", "--seed", seed, *short) for seed in ("1", "2")]
    assert greedy[0] == greedy[1] == written("--top_k", "1", *short) == written("--top_p", "0", *short)
    free = ("--top_p", "null", "--top_k", "null", "--temperature", "3", "--seed", "null", *short)
    assert written(*free) != written(*free)


def test_prompts_are_always_text(written):
    for prompt in ("123", "null", "{a: 1}", "[1, 2]", "a: b", "é€😀", "two\nlines"):
        assert written("--prompt", prompt, "--max_new_tokens", "1").startswith(prompt)


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--temperature", "-1"], 2, "temperature: -1 is not accepted; accepted: a number from 0"),
        (["--top_k", "0"], 2, "top_k: 0"),
        (["--top_p", "1.5"], 2, "top_p: 1.5"),
        (["--max_new_tokens", "many"], 2, "max_new_tokens: "),
        (["--seed", f"{2**70}"], 2, f"seed: {2**70} cannot be used; accepted: a whole number from 0 to {2**64 - 1}"),
        (["--device", "toaster"], 2, "device: 'toaster'"),
        (["--device", "meta"], 2, "device: 'meta' cannot be used; it holds no values"),
        (["--prompt", "\udcff"], 2, "prompt: .*UTF-8"),
        (["--nonsense", "1"], 2, "nonsense"),
        (["--ckpt_path", "missing.ckpt"], 4, "ckpt_path: 'missing.ckpt'"),
        (["--config", "missing.yaml"], 2, r"config: .*missing\.yaml"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(checkpoint, capsys, options, status, reason):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--ckpt_path", CHECKPOINT, *options])
    assert ended.value.code == status
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("bytelm: error: ")
    assert captured.out == ""
    assert re.search(reason, line), line


@pytest.mark.parametrize(("batch_size", "sizes"), [("20", [20]), ("8", [8, 8, 4])])
def test_a_forward_pass_has_as_many_texts_as_are_asked_for(written, monkeypatch, batch_size, sizes):
    seen = []

    def noted(gpt, sequences, *given, **options):
        seen.append(len(sequences))
        return generate_batch(gpt, sequences, *given, **options)

    monkeypatch.setattr("bytelm.inference.generate.generate_batch", noted)
    written("--num_samples", "20", "--max_new_tokens", "1", "--batch_size", batch_size)
    assert seen == sizes


def test_options_of_draws_without_effect_are_noted(written):
    short = ("--temperature", "0", "--max_new_tokens", "1")
    written("--top_k", "3", "--top_p", "null", "--seed", "1", *short)
    assert re.findall(r"note: (\w+) has no effect with temperature 0", written.notes) == ["top_k", "top_p", "seed"]
    written("--num_samples", "2", *short)
    assert "note: num_samples 2: the samples of a prompt are equal with temperature 0" in written.notes
    written("--max_new_tokens", "1", "--top_k", "3", "--num_samples", "2")
    assert written.notes == ""


def test_a_part_without_a_cache_is_noted(run, capsys):
    Path("my_mean.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Mean(nn.Module):\n"
        "    def __init__(self, d_model, n_heads):\n        super().__init__()\n\n"
        "    def forward(self, x):\n        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]\n"
    )
    run("--model.gpt.attention", "my_mean.Mean")
    Path("mean.yaml").write_text("model: {gpt: {attention: my_mean.Mean}}")
    options = ["--ckpt_path", CHECKPOINT, "--config", "tiny.yaml", "--config", "mean.yaml", "--max_new_tokens", "40"]
    capsys.readouterr()
    main(["generate", *options])
    noted = capsys.readouterr()
    main(["generate", *options, "--no_cache"])
    assert noted.err.startswith("bytelm: note: ")
    assert capsys.readouterr() == (noted.out, "")


def test_bpe_texts_end_with_the_end_of_their_document(monkeypatch, capsys):
    # A network that says token 2, the end of text, after everything.
    gpt = tiny(vocab_size=8, head_bias=True)
    with torch.no_grad():
        gpt.head.bias[2] = 100.0
        gpt.head.bias[5] = 200.0  # padding of the vocabulary
    tokenizer = Pieces("abcdefgh", end_of_text=2)
    monkeypatch.setattr("bytelm.inference.load.find_checkpoint", lambda path, experiment: path)
    monkeypatch.setattr("bytelm.inference.load.load", lambda *given: Trained(gpt, tokenizer))
    main(["generate", "--ckpt_path", "any.ckpt", "--prompt", "ab", "--max_new_tokens", "9"])
    assert capsys.readouterr().out == "ab\n"
