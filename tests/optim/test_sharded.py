"""Optimizers on weights that are sharded over two ranks (FSDP2)."""

import multiprocessing

import sharded_ranks


def test_sharded_weights_are_trained_and_resumed_as_whole_ones_are_to_the_bit(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=sharded_ranks.run, args=(rank, tmp_path / "meeting")) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
