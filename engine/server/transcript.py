"""One answer as text, and where it ends."""

from dataclasses import dataclass

from engine.server.tokens import Tokeniser

STOP, LENGTH = "stop", "length"
"""Why an answer ended, in OpenAI's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What ends an answer: its length, a token, or a text.

    `eos` ends it silently, `tokens` and `texts` were asked for by the client. `shown` keeps the
    token or text that ended it in the answer's text.
    """

    max_tokens: int
    eos: frozenset[int] = frozenset()
    tokens: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    shown: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """What one token adds to an answer; `finish` says why it is the last, `reason` by what."""

    text: str
    finish: str | None = None
    reason: int | str | None = None


class Transcript:
    """Follows an answer token by token.

    Text that may be the beginning of a stop text is held back until that is decided:

    >>> from engine.server.tokens import ByteTokeniser
    >>> transcript = Transcript(ByteTokeniser(256), Ending(max_tokens=9, texts=("END",)))
    >>> [transcript.add(byte).text for byte in b"aE-EN"]
    ['a', '', 'E-', '', '']
    >>> transcript.add(ord("D"))
    Written(text='', finish='stop', reason='END')
    """

    def __init__(self, tokeniser: Tokeniser, ending: Ending) -> None:
        self._spelling = tokeniser.spelling()
        self._ending = ending
        self._left = ending.max_tokens
        self._held = ""

    def add(self, token: int) -> Written:
        """Take in a token, return what it adds."""
        ending = self._ending
        self._left -= 1
        if token in ending.eos or token in ending.tokens:
            return self._stopped_by(token)
        self._held += self._spelling.add(token)
        if not self._left:
            self._held += self._spelling.end()
        stop = self._first_stop()
        if stop:
            return self._cut(stop)
        if not self._left:
            return Written(self._release(0), LENGTH)
        return Written(self._release(self._undecided()))

    def _stopped_by(self, token: int) -> Written:
        if self._ending.shown:
            self._held += self._spelling.add(token)
        self._held += self._spelling.end()
        asked = token in self._ending.tokens
        return Written(self._release(0), STOP, token if asked else None)

    def _first_stop(self) -> str | None:
        """Return the stop text that occurs first in what is held."""
        found = [text for text in self._ending.texts if text in self._held]
        return min(found, key=self._held.index, default=None)

    def _cut(self, stop: str) -> Written:
        end = self._held.index(stop) + (len(stop) if self._ending.shown else 0)
        return Written(self._held[:end], STOP, stop)

    def _undecided(self) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        longest = max((len(text) for text in self._ending.texts), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-size:]) for text in self._ending.texts):
                return size
        return 0

    def _release(self, kept: int) -> str:
        cut = len(self._held) - kept
        text, self._held = self._held[:cut], self._held[cut:]
        return text
