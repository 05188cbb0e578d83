"""A text as words: lower case, every number the same word."""

import re

NUMBER = "#"
"""What stands for any number; no word is one character."""
# A word is two characters or more, as scikit-learn has it; `h100` is a word, `1,000.5` a number.
_WORD_OR_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?!\w)|(\w\w+)")


def words_of(text: str) -> list[str]:
    """Return the words of a text in order, stop words and all.

    >>> words_of("On 2 H100s: 1,000.5 tokens")
    ['on', '#', 'h100s', '#', 'tokens']
    """
    return [word or NUMBER for word in _WORD_OR_NUMBER.findall(text.lower())]
