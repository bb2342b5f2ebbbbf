import numpy as np
import pytest
import torch

from jepaplan.models.video_preprocessing import (
    Preprocessing,
    read_preprocessing,
    released_preprocessing,
    resize_for,
)
from jepaplan.types import InputError


def triangle_matrix(size, due):
    """Weights of bilinear resizing with antialiasing, one output at a time."""
    scale, weights = size / due, np.zeros((due, size))
    reach = max(scale, 1.0)
    for out in range(due):
        centre = (out + 0.5) * scale
        for place in range(size):
            weights[out, place] = max(0.0, 1.0 - abs((place + 0.5 - centre) / reach))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(50, 90), (61, 40), (20, 30), (36, 36)])
def test_preparation_is_resize_crop_normalise_written_out(height, width):
    """Transformers' own processor needs torchvision; this is what it computes, within one grey level."""
    generator = torch.Generator().manual_seed(height)
    clips = torch.randint(0, 256, (1, 2, 3, height, width), generator=generator).to(torch.uint8)
    preprocessing = released_preprocessing(32)
    assert preprocessing.resize == 36
    short = min(height, width)
    rows, columns = (36 if side == short else int(36 * side / short) for side in (height, width))
    # on whole grey levels, columns first: both passes round
    across = np.round(clips.flatten(0, 1).numpy() @ triangle_matrix(width, columns).T)
    grey = np.round(triangle_matrix(height, rows) @ across)
    top, left = int((rows - 32) / 2), int((columns - 32) / 2)
    grey = grey[:, :, top : top + 32, left : left + 32]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (grey / 255 - mean[:, None, None]) / std[:, None, None]
    difference = np.abs(preprocessing.prepare(clips)[0].numpy() - expected) * std[:, None, None] * 255
    assert difference.max() < 1.01
    assert difference.mean() < 0.1


def test_the_record_beside_the_weights_is_read(tmp_path):
    processor = pytest.importorskip("transformers.models.vjepa2.video_processing_vjepa2")
    processor.VJEPA2VideoProcessor(crop_size=384).save_pretrained(tmp_path)
    assert read_preprocessing(tmp_path, 256) == Preprocessing(resize=438, crop=384)
    assert read_preprocessing(tmp_path / "elsewhere", 256) == Preprocessing(resize=292, crop=256)
    path = tmp_path / "video_preprocessor_config.json"
    path.write_text('{"crop_size": 64, "size": {"shortest_edge": 64}, "image_mean": [0.5, 0.5, 0.5]}')
    assert read_preprocessing(tmp_path, 256).mean == (0.5, 0.5, 0.5)
    path.write_text('{"do_center_crop": false}')
    with pytest.raises(InputError, match="do_center_crop"):
        read_preprocessing(tmp_path, 256)
    path.write_text("not json")
    with pytest.raises(InputError, match="cannot read"):
        read_preprocessing(tmp_path, 256)


def test_impossible_preprocessing_is_refused():
    assert resize_for(256) == 292
    with pytest.raises(InputError, match="write resize=292"):
        Preprocessing(resize=200, crop=256)
    with pytest.raises(InputError, match="std positive"):
        Preprocessing(std=(0.2, 0.0, 0.2))
    with pytest.raises(InputError, match="uint8 RGB"):
        Preprocessing().prepare(torch.zeros(1, 2, 4, 300, 300, dtype=torch.uint8))
