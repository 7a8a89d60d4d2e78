"""Several data sets in one training, in shares that the settings give."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Mix:
    """The ``sizes`` of data sets whose samples are numbered one set after the other, and each one's ``weights``."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def order(self, generator: random.Random) -> list[int]:
        """The sample numbers of one epoch, as many as there are samples in all sets together.

        Each is of a set that is drawn with a probability in proportion to its weight. A set's samples come in a random
        order, and none again before all of the set have come.
        """
        firsts = [0, *accumulate(self.sizes)]
        endless = [self._shuffled(first, size, generator) for first, size in zip(firsts, self.sizes, strict=False)]
        drawn = generator.choices(range(len(self.sizes)), self.weights, k=sum(self.sizes))
        return [next(endless[own]) for own in drawn]

    @staticmethod
    def _shuffled(first: int, size: int, generator: random.Random) -> Iterator[int]:
        numbers = list(range(first, first + size))
        while True:
            generator.shuffle(numbers)
            yield from numbers
