"""N-gram baselines: normalised, positive, equal to the definition, and near the entropy of a known source."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from muomni.metrics.ngram import NGramModel, bits_per_byte, entropy


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_in_every_context(order: int) -> None:
    generator = np.random.default_rng(0)
    documents = [generator.zipf(1.6, 60).clip(max=19) for _ in range(20)]
    model = NGramModel(documents, order=order, vocab_size=25)
    for context in range(25):
        following = [model.probabilities([context, token])[1] for token in range(25)]
        assert min(following) > 0
        assert sum(following) == pytest.approx(1.0)
    first = sum(model.probabilities([token])[0] for token in range(25))
    assert first == pytest.approx(1.0)
    for seen in (documents[0][:6].tolist(), [24, *documents[3][5:9].tolist()]):
        following = [model.probabilities([*seen, token])[-1] for token in range(25)]
        assert min(following) > 0
        assert sum(following) == pytest.approx(1.0)


def by_definition(
    documents: list[list[int]], order: int, size: int
) -> Callable[[tuple[int, ...], int], float]:
    """Interpolated Kneser-Ney with all discounts 0.75, from dictionaries: p(token | context)."""
    grams = Counter(
        tuple(padded[end - order : end])
        for document in documents
        for padded in [[-1] * (order - 1) + document]
        for end in range(order, len(padded) + 1)
    )
    levels = [grams]
    while len(levels[0]) and len(next(iter(levels[0]))) > 1:
        below: Counter[tuple[int, ...]] = Counter()
        for gram, n in levels[0].items():
            # Behind how many different symbols; but what begins a document keeps its count.
            below[gram[1:]] += n if gram[1] == -1 else 1
        levels.insert(0, below)

    def p(context: tuple[int, ...], token: int) -> float:
        level = levels[len(context)]
        own = {g[-1]: n for g, n in level.items() if g[:-1] == context}
        lower = p(context[1:], token) if context else 1 / size
        if not own:
            return lower
        total = sum(own.values())
        return max(own.get(token, 0) - 0.75, 0) / total + 0.75 * len(own) / total * lower

    return p


def test_trigram_equals_the_definition() -> None:
    # No n-gram of any order comes exactly three times, so that every discount is the fixed one.
    documents = [[0, 1, 2, 0, 1], [0, 1, 3], [2, 0, 1, 2]]
    model, p = NGramModel(documents, order=3, vocab_size=6), by_definition(documents, 3, 6)
    for held in ([0, 1, 2], [3, 3, 0, 1, 3], [5, 2, 0]):
        padded = [-1, -1, *held]
        expected = [p((padded[i], padded[i + 1]), token) for i, token in enumerate(held)]
        assert model.probabilities(held) == pytest.approx(expected)


def test_bigram_of_one_document_by_hand() -> None:
    # "a b a": each of the pairs start-a, a-b and b-a once; a is behind two symbols, b behind one.
    model = NGramModel([[0, 1, 0]], order=2, vocab_size=4)
    unigram_b = 0.25 / 3 + 1.5 / 3 / 4
    assert model.probabilities([0, 1])[1] == pytest.approx(0.25 + 0.75 * unigram_b)


def test_bigram_finds_a_markov_source_and_unigram_its_entropy() -> None:
    generator = np.random.default_rng(1)
    matrix = generator.dirichlet(np.full(8, 0.3), size=8)
    chain = [0]
    for _ in range(20_000):
        chain.append(int(generator.choice(8, p=matrix[chain[-1]])))
    train, test = chain[:15_000], chain[15_000:]
    counts = np.bincount(train, minlength=8) / len(train)
    conditional = sum(counts[i] * entropy(np.round(matrix[i] * 1e9)) for i in range(8))
    assert NGramModel([train], order=2, vocab_size=8).nll(test) / len(test) == pytest.approx(
        conditional, abs=0.03
    )
    assert NGramModel([train], order=1, vocab_size=8).nll(test) / len(test) == pytest.approx(
        entropy(counts), abs=0.03
    )


def test_uniform_bytes_cost_eight_bits() -> None:
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected ids in \[0, 4\)"):
        NGramModel([[1, 4]], order=2, vocab_size=4)
