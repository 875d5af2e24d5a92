"""Names that stand for objects."""

from __future__ import annotations

import pytest

from nncift.errors import ConfigError
from nncift.run.options.registry import resolve


def test_registry_finds_names_paths_and_the_closest():
    built_in = {"ordered": "collections:OrderedDict", "counter": "collections:Counter"}
    assert resolve("counter", built_in, "nncift.influence").__name__ == "Counter"
    assert resolve("fractions:Fraction", built_in, "nncift.influence").__name__ == "Fraction"
    with pytest.raises(ConfigError, match=r"did you mean 'counter'\? Known: counter, ordered"):
        resolve("conter", built_in, "nncift.influence")
    with pytest.raises(ConfigError, match="cannot import"):
        resolve("no_such_module:Thing", built_in, "nncift.influence")
