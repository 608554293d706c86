"""Classes of words, found by the words beside them, as contexts of counts.

Most pairs of words in a text occur once. A class stands for all words that occur beside the same words ("my", "thy",
"his"), so contexts of classes are seen far more often than those of the words themselves (Brown et al. 1992,
"Class-based n-gram models of natural language"). The classes come from the neighbours' frequencies: their square roots,
projected on the principal components (Lebret and Collobert 2014, arXiv:1312.5542), in clusters by k-means. A rare word
has the class that most words with the same last three letters have.
"""

import numpy as np
import torch
from torch import Tensor

MOST_KEYS = 1 << 14  # words and endings with a class
N_CLASSES = 255  # and one for all that is unknown, 0
_WORDS, _NEIGHBOURS, _COMPONENTS, _ITERATIONS = 10_000, 600, 48, 12
_LEAST_COUNT = 3
LAST = 3  # letters of an ending


def word_classes(words: Tensor, endings: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the classes of a text's words.

    Args:
        words: Hash of each word, in the order of the text, int64, (n,).
        endings: Hash of each word's last letters, int64, (n,).

    Returns:
        Hashes of words and endings, ascending, int64, filled up with the largest number to (MOST_KEYS,), and their
        classes, from 1, uint8, (MOST_KEYS,).
    """
    keys = torch.full((MOST_KEYS,), torch.iinfo(torch.int64).max)
    classes = torch.zeros(MOST_KEYS, dtype=torch.uint8)
    different, first, word, count = np.unique(words.numpy(), return_index=True, return_inverse=True, return_counts=True)
    by_count = np.argsort(-count, kind="stable")
    n = min(_WORDS, int((count >= _LEAST_COUNT).sum()))
    if n < 2:
        return keys, classes
    rank = np.empty_like(by_count)
    rank[by_count] = np.arange(len(by_count))
    by_count = by_count[:n]
    found = _clusters(_vectors(rank[word], n), torch.from_numpy(np.sqrt(count[by_count], dtype=np.float32)))

    ending, own = np.unique(endings.numpy()[first[by_count]], return_inverse=True)
    votes = np.zeros((len(ending), N_CLASSES), np.float32)
    np.add.at(votes, (own, found.numpy()), np.minimum(count[by_count], 20))
    some = np.argsort(-votes.sum(1), kind="stable")[: MOST_KEYS - n]
    hashes = np.concatenate([different[by_count], ending[some]])
    order = np.argsort(hashes)
    keys[: len(order)] = torch.from_numpy(hashes[order])
    classes[: len(order)] = torch.from_numpy(1 + np.concatenate([found.numpy(), votes[some].argmax(1)])[order])
    return keys, classes


def class_of(keys: Tensor, classes: Tensor, hashes: Tensor) -> Tensor:
    """Class of each word or ending, int64; 0 if it is unknown."""
    place = torch.searchsorted(keys, hashes.contiguous()).clamp(max=len(keys) - 1)
    return torch.where(keys[place] == hashes, classes[place].long(), 0)


def _vectors(rank: np.ndarray, n: int) -> Tensor:
    """A vector for each of the n most frequent words, of the words before and after it; `rank` is that of each word."""
    n_neighbours = min(_NEIGHBOURS, n)
    sides = []
    for word, neighbour in ((rank[1:], rank[:-1]), (rank[:-1], rank[1:])):
        both = (word < n) & (neighbour < n_neighbours)
        pair = word[both] * n_neighbours + neighbour[both]
        counts = torch.bincount(torch.from_numpy(pair), minlength=n * n_neighbours).view(n, n_neighbours).float()
        sides.append((counts / counts.sum(1, keepdim=True).clamp(min=1)).sqrt_())
    shares = torch.cat(sides, dim=1)
    components = torch.linalg.eigh(shares.T @ shares).eigenvectors[:, -_COMPONENTS:]  # the largest come last
    return shares @ components


def _clusters(vectors: Tensor, weight: Tensor) -> Tensor:
    """Number of each vector's cluster, int64; the first vectors are the first centres."""
    centres = vectors[:N_CLASSES].clone()
    for _ in range(_ITERATIONS):
        nearest = (centres.square().sum(1) - 2 * vectors @ centres.T).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors * weight[:, None])
        weights = torch.zeros(len(centres)).index_add_(0, nearest, weight)[:, None]
        centres = torch.where(weights > 0, sums / weights.clamp(min=1e-9), centres)
    return nearest
