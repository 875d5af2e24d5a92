"""Influence functions that tests send to other processes, which import them from here."""

from __future__ import annotations

from nncift.influence.delift import Delift
from nncift.influence.gradient_sketch import GradientSketch
from worker_jobs import die_if_asked


class DeadlySketch(GradientSketch):
    """The gradient sketch, in workers that die when they are asked to."""

    def _vectors(self, examples, sketch):
        die_if_asked()
        return super()._vectors(examples, sketch)


class DeadlyDelift(Delift):
    """DELIFT, in workers that die when they are asked to, at the second block that one computes."""

    blocks = 0

    def __call__(self, pool_rows, target_rows):
        self.blocks += 1
        if self.blocks > 1:
            die_if_asked()
        return super().__call__(pool_rows, target_rows)
