"""Several data sets in one training, in shares that the settings give."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, chain, count, islice


@dataclass(frozen=True)
class Mix:
    """The ``sizes`` of data sets whose samples are numbered one set after the other, and each one's ``weights``."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]

    def order(self, seed: int, epoch: int) -> list[int]:
        """The sample numbers of one epoch, as many as there are samples in all sets together.

        Each is of a set that is drawn with a probability in proportion to its weight. A set's samples come in a random
        order, and none again before all of the set have come, in whichever epoch that is.
        """
        before = [sum(counts) for counts in zip(*(_counts(self, seed, e) for e in range(epoch)), strict=True)]
        sets = [self._from(own, seed, came) for own, came in enumerate(before or [0] * len(self.sizes))]
        return [next(sets[own]) for own in self.drawn(seed, epoch)]

    def drawn(self, seed: int, epoch: int) -> list[int]:
        """The set of each sample of an epoch."""
        generator = random.Random(f"sets/{seed}/{epoch}")
        return generator.choices(range(len(self.sizes)), self.weights, k=sum(self.sizes))

    def _from(self, own: int, seed: int, came: int) -> Iterator[int]:
        """The samples of a set without end, after those that ``came`` already."""
        first, size = [0, *accumulate(self.sizes)][own], self.sizes[own]

        def shuffled(time: int) -> list[int]:
            return random.Random(f"set/{seed}/{own}/{time}").sample(range(first, first + size), size)

        return islice(chain.from_iterable(map(shuffled, count(came // size))), came % size, None)


@lru_cache(maxsize=10_000)
def _counts(mix: Mix, seed: int, epoch: int) -> list[int]:
    """How many samples of each set an epoch has."""
    drawn = Counter(mix.drawn(seed, epoch))
    return [drawn[own] for own in range(len(mix.sizes))]
