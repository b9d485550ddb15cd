"""A pickle of arrays is read without running what it names."""

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from outgrow.models.weight_file import read_file, read_weights


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_come_back_as_tensors(protocol, tmp_path):
    weights = OrderedDict(
        a=np.arange(6, dtype=np.float32).reshape(2, 3),
        b=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        c=np.arange(3, dtype=">f4"),
        d=np.array(2.5, np.float32),
    )
    content = {"model": weights, "__author__": "somebody", "best": np.float64(0.5), "epoch": 3}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found, _ = read_weights(path)
    assert set(found) == set(weights)
    for key, value in weights.items():
        assert torch.equal(
            found[key], torch.from_numpy(np.array(value.astype(value.dtype.newbyteorder("="))))
        )
    assert read_file(path).found["best"] == 0.5


@pytest.mark.parametrize(
    "content, named",
    [
        ({"model": {"a": Harm()}}, "mkdir"),
        ({"model": {"a": np.array([Harm()], dtype=object)}}, "array of 'O8'"),
        ({"model": {"a": np.zeros(2, dtype=[("x", "f4")])}}, "array of 'V4'"),
        ({"model": {"a": range(3)}}, "builtins.range"),
    ],
    ids=["a call", "objects", "records", "another class"],
)
def test_what_could_run_code_is_refused(content, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"needs a file with only tensors, got .*model_final\.pkl.*{named}"):
        read_weights(path)
    assert not (tmp_path / "harm").exists()


def test_damage_is_refused(tmp_path):
    whole = pickle.dumps({"model": {"a": np.ones((4, 5), np.float32)}})
    path = tmp_path / "model_final.pkl"
    draw = np.random.default_rng(0)
    refused = []
    for _ in range(200):
        data = bytearray(whole)
        data[int(draw.integers(2, len(data)))] = int(draw.integers(256))
        path.write_bytes(data[: int(draw.integers(20, len(data) + 1))])
        try:
            found, _ = read_weights(path)
        except ValueError as error:
            refused.append(str(error))
        else:
            assert all(isinstance(value, torch.Tensor) for value in found.values())
    assert len(refused) > 100
    assert all(str(path) in text for text in refused)
