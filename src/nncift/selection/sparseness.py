"""What a choice from a sparse matrix may have lost."""

from __future__ import annotations

from dataclasses import dataclass

from nncift.run.folder.records import percent

ENOUGH = 0.01
"""The share by which a value may be understated: beyond it, more helpers of each target are found."""


@dataclass(frozen=True)
class Sparseness:
    """Of a choice from each target's strongest helpers.

    Attributes:
        helpers: of each target that were kept, at most.
        understated: the value of the choice is larger by no more than this share of the whole, 0 to 1, since targets
            without a kept helper in the subset count as not covered.
        confidence: probability that this holds, as the certificate does; 1 where all pairs were computed.
    """

    helpers: int
    understated: float
    confidence: float = 1.0

    def __str__(self) -> str:
        sure = "" if self.confidence == 1 else f", with probability {percent(self.confidence)}"
        return (
            f"the {self.helpers:,} strongest helpers of each target were compared, instead of all pairs; the value"
            f" is at most {percent(self.understated)} too low for that{sure}"
        )
