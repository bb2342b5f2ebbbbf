import contextlib
import errno
import json
import os
import resource

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from jepaplan.training.checkpoint import atomic_write, load_weights, read_weights, save_weights
from jepaplan.types import InputError

CARD = {"recipe": "two rooms", "sha256": "0" * 64, "note": 'a "quoted" π'}


def small_model(width=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(path, small_model().state_dict(), CARD)
    return path


def test_tensors_and_card_come_back_to_the_bit(saved):
    model, other = small_model(), small_model()
    nn.init.zeros_(other[0].weight)
    weights = load_weights(saved, other)
    assert weights.card == CARD
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@given(
    values=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_any_dtype_survives(tmp_path, values, dtype):
    tensor = torch.tensor(values, dtype=torch.float32).nan_to_num(posinf=0, neginf=0).clamp(-9, 9).to(dtype)
    save_weights(tmp_path / "x.safetensors", {"x": tensor, "scalar": torch.ones((), dtype=dtype)}, {})
    back = read_weights(tmp_path / "x.safetensors").tensors
    assert back["x"].dtype == dtype
    assert torch.equal(back["x"], tensor)
    assert back["scalar"].shape == ()


def test_tied_parameters_are_written_under_both_names(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    save_weights(tmp_path / "tied.safetensors", model.state_dict(), {})
    load_weights(tmp_path / "tied.safetensors", model)


def test_any_safetensors_reader_opens_the_file(saved):
    with safetensors.safe_open(saved, framework="pt") as file:
        assert json.loads(file.metadata()["card"]) == CARD
        assert torch.equal(file.get_tensor("0.weight"), small_model()[0].weight)


def test_every_flipped_byte_and_every_truncation_is_refused_by_name(saved):
    """All of them, not a sample: the file is small enough."""
    content = saved.read_bytes()
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    damaged = saved.with_name("damaged.safetensors")
    flips = (content[:i] + bytes([content[i] ^ (1 << i % 8)]) + content[i + 1 :] for i in range(len(content)))
    cuts = (content[:length] for length in range(0, len(content), 7))
    for wrong in [*flips, *cuts, content + b"\0", content[:-1]]:
        damaged.write_bytes(wrong)
        with pytest.raises(InputError, match=r"damaged\.safetensors is refused"):
            load_weights(damaged, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        read_weights(tmp_path / "absent.safetensors")


def test_another_architecture_is_refused_with_the_first_differences(saved):
    model = small_model(width=4)
    before = model[0].weight.clone()
    with pytest.raises(InputError, match=r"0\.weight: the file has \[3, 2\], the model \[4, 2\]") as refusal:
        load_weights(saved, model)
    assert "config.json" in str(refusal.value)
    assert "and 2 more" in str(refusal.value)
    assert torch.equal(model[0].weight, before)


def test_missing_and_unknown_names_are_refused_unless_not_strict(saved):
    shapes = {name: tuple(tensor.shape) for name, tensor in small_model().state_dict().items()}
    del shapes["2.bias"]
    shapes["extra"] = (7,)
    with pytest.raises(InputError, match=r"extra \[7\]: missing in the file") as refusal:
        load_weights(saved, shapes)
    assert "2.bias [1]: unknown to the model" in str(refusal.value)
    load_weights(saved, shapes, strict=False)
    with pytest.raises(InputError, match=r"0\.bias"):
        load_weights(saved, {"0.bias": (99,)}, strict=False)


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_left_names_the_path_and_keeps_what_was_there(saved):
    large = {"x": torch.zeros(100_000)}
    with (
        files_of_at_most(50_000),
        pytest.raises(InputError, match=r"could not write .*weights\.safetensors"),
    ):
        save_weights(saved, large, {})
    load_weights(saved, small_model())
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_disk_that_fails_to_flush_keeps_what_was_there(saved, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        save_weights(saved, {"x": torch.zeros(1)}, {})
    monkeypatch.undo()
    load_weights(saved, small_model())
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_write_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    atomic_write(path, b"one")
    atomic_write(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]
