"""An influence function that tests send to other processes, which import it from here."""

from __future__ import annotations

from nncift.influence.gradient_sketch import GradientSketch
from worker_jobs import die_if_asked


class DeadlySketch(GradientSketch):
    """The gradient sketch, in workers that die when they are asked to."""

    def _vectors(self, examples, sketch):
        die_if_asked()
        return super()._vectors(examples, sketch)
