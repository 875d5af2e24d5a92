"""A cache that grows in place against the library's, which copies itself with every token."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicCache

from nncift.models import prefix_cache
from nncift.models.prefix_cache import growing_cache


def states(n: int, length: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 2, length, 4, generator=generator) for _ in range(2)]


def test_a_growing_cache_holds_what_the_library_s_holds():
    ours, theirs, n = growing_cache(), DynamicCache(), 5
    for step, length in enumerate((7, 1, 1, prefix_cache._ROOM, 1, 3, 100, 1)):
        for layer in range(2):
            added = states(n, length, seed=10 * step + layer)
            for one, other in zip(ours.update(*added, layer), theirs.update(*added, layer), strict=True):
                assert torch.equal(one, other)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(3, 0) == theirs.get_mask_sizes(3, 0)
        if step % 3 == 1:
            kept = torch.tensor([0, *range(2, n)])
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
            n -= 1


def test_a_token_is_added_without_a_copy_of_the_others():
    cache = growing_cache()
    cache.update(*states(2, 6, seed=0), 0)
    before = cache.layers[0].keys.data_ptr()
    for step in range(prefix_cache._ROOM):
        keys, _ = cache.update(*states(2, 1, seed=step), 0)
        assert keys.data_ptr() == before
    keys, _ = cache.update(*states(2, 1, seed=0), 0)
    assert keys.data_ptr() != before
