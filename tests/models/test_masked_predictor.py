from dataclasses import replace

import pytest
import torch
from torch import nn

from jepaplan.models.masked_predictor import MaskedPredictor, MaskedPredictorConfig
from jepaplan.types import InputError

GRID = (2, 4, 4)
CONFIG = MaskedPredictorConfig(width=24, depth=2, heads=2, mask_tokens=3)


def predictor(config=CONFIG):
    torch.manual_seed(0)
    made = MaskedPredictor(48, config)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def problem(context=10, targets=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(32, generator=generator) for _ in range(2)])
    latents = torch.randn(2, context, 48, generator=generator)
    return latents, ids[:, :context], ids[:, context : context + targets]


@torch.no_grad()
def test_the_order_of_context_does_not_matter_and_that_of_targets_is_kept():
    model, (context, seen, asked) = predictor(), problem()
    order, other = torch.randperm(10), torch.randperm(7)
    expected = model(context, seen, asked, GRID)
    moved = model(context[:, order], seen[:, order], asked[:, other], GRID)
    torch.testing.assert_close(moved, expected[:, other], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_in_the_order_of_their_ids_give_what_the_released_code_gives():
    """Sort context and mask tokens together, run the blocks, undo it: the released code, written out."""
    model, (context, seen, asked) = predictor(), problem()
    ids = torch.cat([seen, asked], dim=1)
    order = ids.argsort(dim=1)
    tokens = torch.cat([model.embedding(context), model.mask_tokens[2].expand(2, 7, -1)], dim=1)
    tokens = tokens.gather(1, order[..., None].expand(-1, -1, 24))
    from jepaplan.models.rotary import rotation_of_ids

    rotation = rotation_of_ids(ids.gather(1, order), GRID, 12, "interleaved", torch.float32)
    for block in model.blocks:
        tokens = block(tokens, rotation)
    back = order.argsort(dim=1)[..., None].expand(-1, -1, 24)
    expected = model.readout(model.norm(tokens).gather(1, back))[:, 10:]
    torch.testing.assert_close(model(context, seen, asked, GRID, 2), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_each_target_stands_for_its_own_place():
    model, (context, seen, _) = predictor(), problem()
    asked = torch.tensor([[5, 6], [5, 6]])
    found = model(context, seen, asked, GRID)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)


@torch.no_grad()
def test_targets_beyond_the_clip_are_later_times():
    """Everything one tubelet later is the same question: rotary positions know differences only."""
    model, (context, seen, _) = predictor(), problem()
    asked = torch.tensor([[32, 47, 50], [33, 40, 63]])
    later = model(context, seen + 16, asked + 16, GRID)
    torch.testing.assert_close(later, model(context, seen, asked, GRID), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(context, seen, asked + 16, GRID), later, atol=1e-3)


@torch.no_grad()
def test_mask_tokens_are_chosen_by_index():
    model, given = predictor(), problem()
    found = [model(*given, GRID, index) for index in range(3)]
    assert not torch.allclose(found[0], found[1])
    model.mask_tokens[1].copy_(model.mask_tokens[0])
    assert torch.equal(model(*given, GRID, 1), found[0])
    assert torch.equal(model(*given, GRID, 2), found[2])


@torch.no_grad()
def test_everywhere_is_targets_and_context():
    model, (context, seen, asked) = predictor(), problem()
    targets, others = model.predict_everywhere(context, seen, asked, GRID, 1)
    torch.testing.assert_close(targets, model(context, seen, asked, GRID, 1), rtol=1e-4, atol=1e-5)
    # ask for a context token's place once more: the reading at the context token itself is another one
    assert others.shape == (2, 10, 48)
    assert not torch.allclose(others[:, :7], targets)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for again in (False, True):
        model = predictor(replace(CONFIG, checkpoint_activations=again))
        model(*problem(), GRID).square().mean().backward()
        gradients.append({name: each.grad for name, each in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    used = gradients[0]["mask_tokens"]
    assert used[0].abs().sum() > 0
    assert not used[1:].any()


def test_mask_tokens_start_at_zero():
    assert not MaskedPredictor(48, CONFIG).mask_tokens.any()


def test_wrong_inputs_are_refused():
    model, (context, seen, asked) = predictor(), problem()
    with pytest.raises(InputError, match="write 0 to 2"):
        model(context, seen, asked, GRID, 3)
    with pytest.raises(InputError, match="encoder_width=48"):
        model(context[..., :40], seen, asked, GRID)
    with pytest.raises(InputError, match="mask_tokens >= 1"):
        MaskedPredictorConfig(mask_tokens=0)
    with pytest.raises(InputError, match="even width"):
        MaskedPredictorConfig(width=32, heads=8)
