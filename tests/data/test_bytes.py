"""The splits of ByteData, the bytes of each of its loaders, and the values that it rejects."""

from types import SimpleNamespace

import pytest
import torch
from reference import REFERENCE, needs_reference

from bytelm.data.bytes import read_bytes
from bytelm.data.corpora import Bytes
from bytelm.data.rows import RowLoader
from bytelm.errors import DataError


@pytest.fixture
def file(tmp_path):
    """Makes a file of n bytes, each different from its neighbours."""

    def make(n: int):
        path = tmp_path / f"{n}.bin"
        path.write_bytes(torch.randint(1, 256, (n,), generator=torch.Generator().manual_seed(n)).byte().numpy().data)
        return path

    return make


def targets(loader) -> torch.Tensor:
    return torch.cat([targets for _, targets in loader])


@pytest.mark.parametrize(("train_fraction", "cut"), [(0.9, 899), (0.5, 499), (0.75, 749), (0.0, 0)])
def test_the_first_share_trains_and_the_rest_validates(train_fraction, cut, file):
    corpus = file(999).read_bytes()
    data = Bytes(str(file(999)), seq_len=10, train_fraction=train_fraction)
    data.setup("validate")
    assert bytes(data.train_split.tolist()) == corpus[:cut]
    assert bytes(data.val_split.tolist()) == corpus[cut:]


@pytest.mark.parametrize(("eval_bytes", "rows"), [(70, 7), (79, 7), (10, 1), (3, 1), (100, 10), (10**9, 10)])
def test_validate_scores_the_first_eval_bytes_and_test_the_whole_split(eval_bytes, rows, file):
    data = Bytes(str(file(1_000)), batch_size=4, seq_len=10, eval_bytes=eval_bytes)
    data.setup("fit")
    split = data.val_split.long().reshape(10, 10)
    assert torch.equal(targets(data.val_dataloader()), split[:rows])
    assert torch.equal(targets(data.test_dataloader()), split)
    assert torch.equal(targets(data.predict_dataloader()), split)


def test_train_batches_come_in_the_order_asked_for(file):
    data = Bytes(str(file(1_000)), batch_size=3, seq_len=10, order="shuffled", seed=7)
    data.setup("fit")
    _, expected = next(iter(RowLoader(data.train_split, 3, 10, "shuffled", seed=7)))
    assert torch.equal(next(iter(data.train_dataloader()))[1], expected)
    data.order = "sequential"
    assert torch.equal(next(iter(data.train_dataloader()))[1].flatten(), data.train_split[:30].long())


def test_each_rank_of_a_trainer_takes_its_own_rows(file):
    data = Bytes(str(file(1_000)), batch_size=2, seq_len=10)
    data.setup("fit")
    trained, validated = [], []
    for rank in range(3):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=3, accumulate_grad_batches=1, overfit_batches=0)
        trained.append(next(iter(data.train_dataloader()))[1])
        validated.append(targets(data.val_dataloader()))
    assert torch.equal(torch.cat(trained).flatten(), data.train_split[:60].long())
    assert torch.equal(torch.cat(validated).flatten(), data.val_split.long())


@pytest.mark.parametrize(
    ("n", "options", "stage", "complaint"),
    [
        (0, {}, "fit", "its train split has 0 bytes"),
        (0, {}, "validate", "its validation split has 0 bytes"),
        (255, {}, "fit", "its train split has 229 bytes"),
        (2_000, {}, "fit", "its validation split has 200 bytes"),
        (2_000, {}, "validate", "its validation split has 200 bytes"),
        (2_000, {"train_fraction": 1.0}, "fit", "its validation split has 0 bytes"),
        (2_000, {"train_fraction": 0.1}, "fit", "its train split has 200 bytes"),
    ],
)
def test_a_split_shorter_than_a_row_is_rejected_with_key_value_and_length(n, options, stage, complaint, file):
    with pytest.raises(DataError, match=rf"^data: '{n}.bin' cannot be used; .* fewer than a row of 256;") as rejection:
        Bytes(str(file(n)), **options).setup(stage)
    assert complaint in str(rejection.value)


def test_a_split_that_is_only_evaluated_needs_no_training_bytes(file):
    data = Bytes(str(file(300)), train_fraction=0.1)
    data.setup("validate")
    assert len(targets(data.val_dataloader())) == 1


def test_the_corpus_is_read_once(file):
    data = Bytes(str(file(1_000)), seq_len=10)
    data.setup("fit")
    corpus = data.corpus
    data.setup("validate")
    assert data.corpus is corpus


def test_no_bytes_are_an_empty_stream():
    assert read_bytes(b"").dtype == torch.uint8
    assert len(read_bytes(b"")) == 0


@needs_reference
def test_validation_takes_the_rows_that_the_challenge_scores(file, monkeypatch):
    monkeypatch.setenv("HARNESS_CORPUS", str(file(1_400_000)))
    monkeypatch.syspath_prepend(str(REFERENCE / "harness"))
    import prepare

    data = Bytes(str(file(1_400_000)), batch_size=24)
    data.setup("validate")
    scored = prepare.make_dataloader(16, prepare.MAX_SEQ_LEN, "val")
    batches = [next(scored) for _ in range(prepare.EVAL_TOKENS // (16 * prepare.MAX_SEQ_LEN))]
    expected_inputs, expected_targets = (torch.cat(rows) for rows in zip(*batches, strict=True))
    inputs, targets = (torch.cat(rows) for rows in zip(*data.val_dataloader(), strict=True))
    assert torch.equal(inputs, expected_inputs)
    assert torch.equal(targets, expected_targets)
