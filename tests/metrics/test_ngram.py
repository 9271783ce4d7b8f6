"""N-gram baselines: normalised, positive, and near the entropy of a known source."""

import math

import numpy as np
import pytest

from muomni.metrics.ngram import NGramModel, bits_per_byte, entropy


@pytest.mark.parametrize("order", [1, 2])
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
