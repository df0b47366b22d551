"""Which clips make the batch of each optimizer step: a pure function of (seed, step) and of nothing that ran before.

Only the number of samples of a whole step counts, so the sequence is the same on any number of ranks, and every rank
sees the same bucket in a step. ``item`` is a clip's number in the data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

from core import draws
from core.data.buckets import Bucket
from core.errors import UserError

_MOST_EMPTY_EPOCHS = 1000


@dataclass(frozen=True)
class EpochPlan:
    """One epoch: the bucket of each step, each bucket's clips in order, and its batches' places in the epoch."""

    buckets: np.ndarray
    """int64 ``[steps]``"""
    batches: list[np.ndarray]
    """Per step: int64 clip numbers."""
    members: np.ndarray
    """int64 ``[clips]``: the bucket of each clip in this epoch, -1 for none."""
    repeated: int
    """Samples that fill the last batch of a bucket with clips it has shown already."""


class ContinuousPlan:
    """One size: epochs follow each other without a gap, a batch may hold the end of one and the start of the next."""

    def __init__(self, clips: int, samples: int, *, seed: int, shuffle: bool = True):
        self._clips, self._samples, self._seed, self._shuffle = clips, samples, seed, shuffle
        self._order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """Clip numbers int64 ``[clips]`` in the order of ``epoch``: a permutation drawn from (seed, epoch)."""
        if not self._shuffle:
            return np.arange(self._clips)
        kept = self._order  # read once: a thread that reads ahead may be in another epoch
        if kept is None or kept[0] != epoch:
            kept = self._order = (epoch, draws.generator(self._seed, "order", epoch).permutation(self._clips))
        return kept[1]

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """(bucket 0, clip numbers int64 ``[samples]``) of ``step``."""
        places = range(step * self._samples, (step + 1) * self._samples)
        return 0, np.array([self.order(place // self._clips)[place % self._clips] for place in places], np.int64)

    def epoch_steps(self) -> float:
        """Steps that show every clip once; a fraction if a batch holds two epochs."""
        return self._clips / self._samples


class BucketPlan:
    """Whole batches of one bucket each, shuffled over the epoch.

    ``choices``: for each clip the buckets it fits, the first one first. A clip stays in a bucket with its keep
    probability, drawn from (seed, epoch, item), else it goes to the next of its choices, else it is out for the epoch.
    ``samples``: samples of a whole step for each bucket. The last batch of a bucket is filled with clips that the
    bucket has shown in this epoch, so with every keep probability 1 each clip is seen at least once an epoch.
    """

    def __init__(
        self,
        choices: Sequence[Sequence[int]],
        buckets: Sequence[Bucket],
        samples: Sequence[int],
        *,
        seed: int,
        shuffle: bool = True,
    ):
        assert len(buckets) == len(samples)
        self._samples, self._seed, self._shuffle = tuple(samples), seed, shuffle
        self._keep = np.array([bucket.keep_probability for bucket in buckets])
        most = max((len(row) for row in choices), default=1)
        self._choices = np.full((len(choices), most), -1, np.int64)
        for item, row in enumerate(choices):
            self._choices[item, : len(row)] = row
        self._first = self._length(0)
        self._ends: list[int] = []
        self._lock = Lock()
        self._epoch: tuple[int, EpochPlan] | None = None

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """(bucket, clip numbers int64 ``[samples of that bucket]``) of ``step``."""
        epoch, place = self.locate(step)
        plan = self.epoch(epoch)
        return int(plan.buckets[place]), plan.batches[place]

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step inside it); only the lengths of the epochs before are computed."""
        if (self._keep == 1).all():
            return divmod(step, self._first)
        with self._lock:  # a thread that reads ahead asks too
            self._extend(step)
        epoch = int(np.searchsorted(self._ends, step, side="right"))
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def _extend(self, step: int) -> None:
        """Makes ``self._ends``, the steps up to the end of each epoch, reach beyond ``step``."""
        while not self._ends or self._ends[-1] <= step:
            self._ends.append((self._ends[-1] if self._ends else 0) + self._length(len(self._ends)))
            if len(self._ends) >= _MOST_EMPTY_EPOCHS and self._ends[-1] == self._ends[-_MOST_EMPTY_EPOCHS]:
                raise UserError(
                    f"keep_probability {self._keep.tolist()}: {_MOST_EMPTY_EPOCHS} epochs in a row had no clip left; "
                    "raise it"
                )

    def members(self, epoch: int) -> np.ndarray:
        """int64 ``[clips]``: each clip's bucket in ``epoch``, -1 if it is left out."""
        rng = draws.generator(self._seed, "keep", epoch)
        members = np.full(len(self._choices), -1, np.int64)
        # One draw for each clip and bucket of the run, whatever the clip fits: a clip's draws are its own.
        luck = rng.random((len(self._choices), len(self._keep)))
        for column in self._choices.T:
            kept = (members < 0) & (column >= 0)
            rows = np.flatnonzero(kept)
            rows = rows[luck[rows, column[rows]] < self._keep[column[rows]]]
            members[rows] = column[rows]
        return members

    def epoch(self, epoch: int) -> EpochPlan:
        """The whole plan of ``epoch``."""
        kept = self._epoch
        if kept is None or kept[0] != epoch:
            kept = self._epoch = (epoch, self._plan(epoch))
        return kept[1]

    def epoch_steps(self) -> int:
        """Steps of the first epoch; with keep probabilities below 1 later ones differ."""
        return self._first

    def _length(self, epoch: int) -> int:
        members = self.members(epoch)
        return sum(-(-int((members == b).sum()) // size) for b, size in enumerate(self._samples))

    def _plan(self, epoch: int) -> EpochPlan:
        members = self.members(epoch)
        of, batches, repeated = [], [], 0
        for bucket, size in enumerate(self._samples):
            items = np.flatnonzero(members == bucket)
            if self._shuffle:
                items = draws.generator(self._seed, "bucket order", epoch, bucket).permutation(items)
            missing = -len(items) % size if len(items) else 0
            filled = np.resize(items, len(items) + missing)  # repeats from the start, more than once if it must
            batches += list(filled.reshape(-1, size)) if len(filled) else []
            of += [bucket] * (len(filled) // size)
            repeated += missing
        places = np.arange(len(batches))
        if self._shuffle:
            places = draws.generator(self._seed, "batch order", epoch).permutation(len(batches))
        ordered = [batches[place] for place in places]
        return EpochPlan(np.array(of, np.int64)[places], ordered, members, repeated)


def rank_samples(rank: int, *, batch_size: int, accumulation: int, ranks: int) -> list[list[int]]:
    """Sample numbers of ``rank`` for each micro-batch of a step: micro-batch m of all ranks is a run of numbers."""
    starts = [(part * ranks + rank) * batch_size for part in range(accumulation)]
    return [list(range(start, start + batch_size)) for start in starts]
