"""The data set of MLPerf's Mixtral benchmark: how long prompts and answers are."""

import numpy as np
from numpy.typing import NDArray

MIXTRAL_PROMPTS = {"GSM8K": 650, "OpenOrca": 300, "MBXP": 190}
"""Mean prompts of the data sets of which MLPerf's Mixtral benchmark has 5,000 samples each.

None is published: they are reckoned [tokens]. GSM8K's have worked examples before the question, the
same for all: 662 tokens with one question (github.com/mlcommons/inference, Apache-2.0,
language/mixtral-8x7b/standalone_infer/hf_eval_all.py), and questions are a tenth of that.
OpenOrca's are as in the Llama 2 benchmark, and MBXP's a signature with three examples in a comment,
some 600 characters."""

MIXTRAL_PROMPT = sum(MIXTRAL_PROMPTS.values()) / len(MIXTRAL_PROMPTS)
"""Their mean [tokens]."""

MIXTRAL_MEAN = 145.9
"""Mean answer of MLPerf v4.1's Mixtral runs: their tokens/s over their samples/s [tokens]."""

MIXTRAL_ANSWERS = ((0.5, 113), (0.9, 282), (0.95, 364), (0.97, 428), (0.99, 593), (1.0, 1024))
"""Percentiles of the answers of MLPerf v4.1's Mixtral runs, from their logs [tokens]."""

SHORTEST_ANSWER = 27.0
"""The lower end with which those percentiles, interpolated in the logarithm, have that mean."""


def mixtral_prompts(samples: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the prompts of samples by their numbers, the data sets in turns, (N,) [tokens].

    >>> mixtral_prompts(np.array([0, 1, 2, 3])).tolist()
    [650.0, 300.0, 190.0, 650.0]
    """
    each = np.array(list(MIXTRAL_PROMPTS.values()), dtype=float)
    found: NDArray[np.float64] = each[samples % len(each)]
    return found


def mixtral_answers(levels: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return answers at quantile levels, (N,) [tokens].

    >>> mixtral_answers(np.array([0.5, 0.99, 1.0])).tolist()
    [113, 593, 1024]
    """
    known, tokens = zip((0.0, SHORTEST_ANSWER), *MIXTRAL_ANSWERS, strict=True)
    found: NDArray[np.float64] = np.exp(np.interp(levels, known, np.log(tokens)))
    return np.rint(found).astype(np.int64)
