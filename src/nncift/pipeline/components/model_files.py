"""The models that an influence function runs, and what their files are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nncift.models.locate import model_identity

if TYPE_CHECKING:
    from nncift.influence.base import InfluenceFunction


def models_of(function: InfluenceFunction) -> list[tuple[str, str]]:
    """The models that a function runs, those given by name, and what each is."""
    names: list[tuple[str, str]] = [
        (spec.model, "language model") for spec in function.models if isinstance(spec.model, str)
    ]
    encoder = function.describe().get("encoder")
    return names + ([(encoder, "encoder")] if isinstance(encoder, str) else [])


def identities(function: InfluenceFunction) -> dict[str, str | None]:
    """What the files of the models are that a function runs, by name."""
    return {name: model_identity(name, kind) for name, kind in models_of(function)}
