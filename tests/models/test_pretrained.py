"""Weights come from random transformers models and from files written here: nothing is fetched.

With JEPAPLAN_VJEPA2 set to a folder of released weights, the parity test takes those as well.
"""

import builtins
import json
import os
import pickle

import pytest
import torch
from torch import nn

from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.models.pretrained import download, load_folder, load_meta
from jepaplan.models.released_names import (
    encoder_from_meta,
    encoder_to_meta,
    from_transformers,
    predictor_from_meta,
    predictor_to_meta,
    to_transformers,
)
from jepaplan.models.rotary import rotation_of_grid
from jepaplan.models.video_vit import VideoTransformer, VideoTransformerConfig
from jepaplan.types import InputError

GRID = (2, 4, 4)
SHAPE = VideoTransformerConfig(
    frames=4, image=32, patch=8, tubelet=2, width=48, depth=2, heads=2, rope_layout="tiled"
)
PREDICTOR_SHAPE = MaskedPredictorConfig(width=24, depth=2, heads=2, mask_tokens=3, rope_layout="tiled")
RECORD = {
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "tubelet_size": 2,
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pred_hidden_size": 24,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 2,
    "pred_num_mask_tokens": 3,
}


def scrambled(module, seed=0):
    """Weights large enough that every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(1 + noise if "norm" in name and "weight" in name else noise)
    return module.eval()


@pytest.fixture(scope="module")
def theirs():
    """A small `VJEPA2Model` with random weights."""
    transformers = pytest.importorskip("transformers")
    return scrambled(transformers.VJEPA2Model(transformers.VJEPA2Config(**RECORD)))


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return tmp_path


def ours():
    return scrambled(VideoTransformer(SHAPE)), scrambled(MaskedPredictor(48, PREDICTOR_SHAPE), 1)


def save_meta(path, content):
    torch.save(content, path)
    return path


def meta_content(encoder, predictor):
    return {
        "encoder": encoder_to_meta(encoder.state_dict()),
        "target_encoder": encoder_to_meta(encoder.state_dict()),
        "predictor": predictor_to_meta(predictor.state_dict()),
        "epoch": 3,
        "lr": 1e-4,
    }


def problem(tokens=32, context=20, targets=9, batch=2):
    generator = torch.Generator().manual_seed(4)
    ids = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(batch)])
    return ids[:, :context], ids[:, context : context + targets]


def gathered(latents, ids):
    return latents.gather(1, ids[..., None].expand(-1, -1, latents.shape[-1]))


@torch.no_grad()
def assert_parity(found, model, clips, ids, grid):
    """Encoder and predictor outputs within 1e-5 in float32; transformers always asks with mask token 1."""
    context, targets = ids
    expected = model(clips, context_mask=[context], target_mask=[targets])
    latents = found.encode(clips)
    torch.testing.assert_close(latents, expected.last_hidden_state, rtol=0, atol=1e-5)
    predicted = found.predictor(gathered(latents, context), context, targets, grid, 1)
    assert expected.predictor_output.last_hidden_state.std() > 0.01
    torch.testing.assert_close(predicted, expected.predictor_output.last_hidden_state, rtol=0, atol=1e-5)


def test_a_folder_of_transformers_gives_the_same_latents_and_predictions(theirs, folder):
    clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = load_folder(folder)
    assert_parity(found, theirs, clips, problem(), GRID)
    assert found.encoder.config.rope_layout == found.predictor.config.rope_layout == "tiled"
    with torch.no_grad():  # the test would notice the other layout
        straight = VideoTransformer(VideoTransformerConfig(**{**vars(SHAPE), "rope_layout": "interleaved"}))
        straight.load_state_dict(found.encoder.state_dict())
        assert (straight(clips) - found.encode(clips)).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.skipif("JEPAPLAN_VJEPA2" not in os.environ, reason="set JEPAPLAN_VJEPA2 to a folder of weights")
def test_released_weights_give_the_same_latents_and_predictions():
    transformers = pytest.importorskip("transformers")
    path = os.environ["JEPAPLAN_VJEPA2"]
    found = load_folder(path)
    model = transformers.VJEPA2Model.from_pretrained(path, dtype=torch.float32).eval()
    pixels = torch.randint(0, 256, (1, 4, 3, 300, 400), generator=torch.Generator().manual_seed(2))
    clips = found.preprocessing.prepare(pixels.to(torch.uint8))
    grid = found.encoder.grid(clips)
    ids = problem(tokens=grid[0] * grid[1] * grid[2], context=100, targets=50, batch=1)
    assert_parity(found, model, clips, ids, grid)


def test_a_model_of_ours_read_by_transformers_gives_the_same_latents(theirs):
    encoder, predictor = ours()
    clips = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    transformers = pytest.importorskip("transformers")
    model = transformers.VJEPA2Model(transformers.VJEPA2Config(**RECORD)).eval()
    model.load_state_dict(to_transformers(encoder.state_dict(), predictor.state_dict()))
    with torch.no_grad():
        expected = model(clips, skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encoder(clips), expected, rtol=0, atol=1e-5)


def test_tiled_rotations_are_transformers_to_the_bit():
    rope = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2").rotate_queries_or_keys
    channels = torch.randn(1, 32, 2, 64, generator=torch.Generator().manual_seed(0))
    ids, by_head = torch.arange(32), channels.transpose(1, 2)
    parts = [rope(by_head[..., :20], ids // 16), rope(by_head[..., 20:40], ids % 16 // 4)]
    parts += [rope(by_head[..., 40:60], ids % 4), by_head[..., 60:]]
    rotation = rotation_of_grid(GRID, 64, "tiled", torch.device("cpu"), torch.float32)
    assert torch.equal(rotation(channels), torch.cat(parts, dim=-1).transpose(1, 2))


def test_names_survive_a_round_trip_in_both_dialects():
    encoder, predictor = ours()
    there = from_transformers(to_transformers(encoder.state_dict(), predictor.state_dict()))
    meta = (
        encoder_from_meta(encoder_to_meta(encoder.state_dict())),
        predictor_from_meta(predictor_to_meta(predictor.state_dict())),
    )
    for back in (there, meta):
        for found, module in zip(back, (encoder, predictor), strict=True):
            assert found.keys() == module.state_dict().keys()
            assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


def test_a_model_split_over_files_is_the_same_model(theirs, folder, tmp_path):
    split = tmp_path / "split"
    theirs.save_pretrained(split, max_shard_size="100KB")
    assert (split / "model.safetensors.index.json").is_file()
    whole, parts = load_folder(folder), load_folder(split)
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(tensor, parts.encoder.state_dict()[name])
    assert len(whole.sha256) == len(parts.sha256) == 64
    assert whole.sha256 != parts.sha256


def test_a_classifier_is_left_out_and_named(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**RECORD))
    model.save_pretrained(tmp_path)
    found = load_folder(tmp_path)
    assert "classifier.weight" in found.left_out
    assert all(name.startswith(("pooler.", "classifier.")) for name in found.left_out)


def test_metas_files_are_read_with_their_wrappers(tmp_path):
    encoder, predictor = ours()
    content = meta_content(encoder, predictor)
    content["encoder"] = encoder_to_meta(scrambled(VideoTransformer(SHAPE), 7).state_dict())
    content["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 32, 48)
    path = save_meta(tmp_path / "small.pt", content)
    assert "module.backbone.blocks.1.attn.qkv.weight" in content["target_encoder"]
    found = load_meta(path, image=32, frames=4, heads=(2, 2))
    assert found.encoder.config == SHAPE
    assert found.predictor.config == PREDICTOR_SHAPE
    assert found.left_out == ("module.backbone.pos_embed",)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], tensor)
    for name, tensor in predictor.state_dict().items():
        assert torch.equal(found.predictor.state_dict()[name], tensor)
    learned = load_meta(path, image=32, heads=(2, 2), encoder_key="encoder")
    assert not torch.equal(learned.encoder.norm.weight, encoder.norm.weight)
    path.write_bytes(b"gone")  # what was loaded does not look into the file again
    assert torch.equal(found.encoder.norm.weight, encoder.norm.weight)


def test_loaded_weights_can_learn(folder):
    found = load_folder(folder)
    found.encode(torch.randn(1, 4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in found.encoder.parameters())


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_by_name_and_never_runs(tmp_path, zipped):
    path, target = tmp_path / "bad.pt", tmp_path / "it-ran"
    content = {"target_encoder": Malicious(target)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"wants to run (posix|nt)\.system"):
        load_meta(path, image=32)
    assert not target.exists()
    path.write_bytes(pickle.dumps(content, protocol=2))  # not even a torch file
    with pytest.raises(InputError, match="refused"):
        load_meta(path, image=32)
    assert not target.exists()


def test_a_report_says_what_is_missing_and_what_is_left_over(tmp_path):
    encoder, predictor = ours()
    content = meta_content(encoder, predictor)
    weights = content["target_encoder"]
    del weights["module.backbone.blocks.1.norm2.bias"]
    weights["module.backbone.blocks.1.adapter.weight"] = torch.zeros(3)
    weights["module.backbone.norm.weight"] = torch.zeros(40)
    path = save_meta(tmp_path / "strange.pt", content)
    with pytest.raises(InputError) as refused:
        load_meta(path, image=32, heads=(2, 2))
    report = str(refused.value)
    assert "missing in the file, 1: blocks.1.norm_mlp.bias" in report
    assert "left over in the file, 1: blocks.1.adapter.weight" in report
    assert "norm.weight (file (40,), model (48,))" in report


def test_a_folder_that_does_not_fit_its_record_is_refused(folder):
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"missing in the file, 12: blocks\.2\."):
        load_folder(folder)
    (folder / "config.json").write_text(json.dumps({**card, "hidden_act": "relu"}))
    with pytest.raises(InputError, match="hidden_act"):
        load_folder(folder)
    (folder / "config.json").write_text(json.dumps({**card, "crop_size": "large"}))
    with pytest.raises(InputError, match="crop_size: 'large'; expected one whole number"):
        load_folder(folder)
    (folder / "config.json").write_text(json.dumps({**card, "patch_size": [8, 8]}))
    assert load_folder(folder).encoder.config.patch == 8
    (folder / "config.json").write_text(json.dumps({**card, "model_type": "vivit"}))
    with pytest.raises(InputError, match="'vivit'; expected model_type 'vjepa2'"):
        load_folder(folder)


def test_files_that_are_not_there_or_broken_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"load_folder\(download\('facebook/vjepa2-vitl-fpc64-256'\)\)"):
        load_folder("facebook/vjepa2-vitl-fpc64-256")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(InputError, match="Fetch the file again"):
        load_folder(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="may run code"):
        load_folder(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(InputError, match=r"'\.\./elsewhere\.safetensors', which is no file"):
        load_folder(folder)
    with pytest.raises(InputError, match="Expected a torch file"):
        load_meta(tmp_path / "nothing.pt", image=256)
    encoder, _ = ours()
    path = save_meta(tmp_path / "one.pt", {"encoder": encoder_to_meta(encoder.state_dict())})
    with pytest.raises(InputError, match="encoder_key='encoder'"):
        load_meta(path, image=32)
    with pytest.raises(InputError, match="heads="):
        load_meta(path, image=32, encoder_key="encoder")
    with pytest.raises(InputError, match="something else than tensors"):
        load_meta(save_meta(tmp_path / "two.pt", {"target_encoder": {"epoch": 3}}), image=32)
    assert load_meta(path, image=32, encoder_key="encoder", heads=(2, 2)).predictor is None


def test_download_names_the_extra_it_needs(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name == "huggingface_hub":
            raise ImportError("not here")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"jepaplan\[hf\]"):
        download("facebook/vjepa2-vitl-fpc64-256")


def test_clips_of_another_size_are_refused_with_what_to_write(folder):
    found = load_folder(folder)
    with pytest.raises(InputError, match=r"trained on 32 x 32\. Write `encoder\(preprocessing\.prepare"):
        found.encode(torch.zeros(1, 4, 3, 40, 40))
    prepared = found.preprocessing.prepare(torch.zeros(1, 4, 3, 50, 70, dtype=torch.uint8))
    assert found.encode(prepared).shape == (1, 32, 48)
    with pytest.raises(InputError, match="divisible by 2"):
        found.encode(prepared[:, :3])


def test_encoders_of_both_kinds_share_no_memory_with_the_file(folder):
    before = load_folder(folder).encoder.state_dict()
    with torch.no_grad():
        for parameter in load_folder(folder).encoder.parameters():
            nn.init.zeros_(parameter)
    again = load_folder(str(folder)).encoder.state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)
