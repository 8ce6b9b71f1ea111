"""Many phrases sought in a text at once: Aho and Corasick's automaton over bytes (CACM 18(6), 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Phrases:
    """`moves` int16 [states, 256] from state 0; `ends` uint8 [states]: which of the lists (1, 2 ...) ends there, or 0.

    Where phrases of several lists end at once, the last list counts.
    """

    def __init__(self, *lists: Sequence[str]) -> None:
        moves: list[dict[int, int]] = [{}]
        ends = [0]
        for number, phrases in enumerate(lists, start=1):
            for phrase in phrases:
                state = 0
                for byte in phrase.encode():
                    if byte not in moves[state]:
                        moves[state][byte] = len(moves)
                        moves.append({})
                        ends.append(0)
                    state = moves[state][byte]
                ends[state] = number
        self.moves: NDArray[Any] = np.zeros((len(moves), 256), np.int16)
        fallback = [0] * len(moves)
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            if state:
                self.moves[state] = self.moves[fallback[state]]
                ends[state] = ends[state] or ends[fallback[state]]
            for byte, following in moves[state].items():
                fallback[following] = int(self.moves[state, byte])
                self.moves[state, byte] = following
                waiting.append(following)
        self.ends: NDArray[Any] = np.array(ends, np.uint8)
