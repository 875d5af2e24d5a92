"""What a run is asked to do, and which options do not go together."""

from nncift.config.config import (
    BUILT_IN_FEATURES,
    DEFAULT_DIFFICULTY,
    DEFAULT_INFLUENCE,
    DEFAULT_LABELLED_SAMPLES,
    DEFAULT_LABELS,
    EXECUTION,
    Config,
    default_fields,
)

__all__ = [
    "BUILT_IN_FEATURES",
    "DEFAULT_DIFFICULTY",
    "DEFAULT_INFLUENCE",
    "DEFAULT_LABELLED_SAMPLES",
    "DEFAULT_LABELS",
    "EXECUTION",
    "Config",
    "default_fields",
]
