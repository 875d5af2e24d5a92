"""Vectors in a run folder: what is written in blocks is read as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from nncift.errors import RunError
from nncift.run.storage.vectors import VectorFolder, read_vectors, write_vectors


@pytest.mark.parametrize("sparse", [False, True])
def test_blocks_are_read_as_a_whole(tmp_path: Path, sparse):
    folder, rng = VectorFolder(tmp_path), np.random.default_rng(0)
    values = (rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.5)).astype(np.float32)
    blocks = [values[:3], values[3:4], values[4:]]
    assert not folder.is_finished("pool")
    write_vectors(folder, "pool", 7, map(csr_array, blocks) if sparse else blocks)
    assert folder.is_finished("pool")
    found = read_vectors(folder, "pool")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray() if sparse else found, values)
    assert isinstance(found, csr_array) if sparse else isinstance(found, np.memmap)
    path = folder.sparse("pool") if sparse else folder.array("pool")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RunError, match="damaged"):
        read_vectors(folder, "pool")
