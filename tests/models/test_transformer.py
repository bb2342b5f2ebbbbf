import math

import pytest
import torch
from torch import nn

from jepaplan.models.rotary import Rotation, rotation_of_grid
from jepaplan.models.transformer import Block, hidden_width, initialise, run_blocks
from jepaplan.types import InputError

CPU = torch.device("cpu")
GRID = (2, 2, 3)


def block(width=24, heads=2, seed=0):
    torch.manual_seed(seed)
    made = Block(width, heads, 4.0).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def rotation(width=24, heads=2):
    return rotation_of_grid(GRID, width // heads, "interleaved", CPU, torch.float64)


def tokens(batch=2, width=24):
    return torch.randn(batch, 12, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normed(x, norm):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt() * (
        norm.weight
    ) + norm.bias


def test_a_block_is_its_equations_head_by_head():
    part, x = block(), tokens()
    weight, bias = part.attention.query_key_value.weight, part.attention.query_key_value.bias
    query, key, value = (normed(x, part.norm_attention) @ weight.T + bias).chunk(3, dim=-1)
    heads = []
    for head in (slice(0, 12), slice(12, 24)):
        q, k = (rotation()(each[:, :, None, head])[:, :, 0] for each in (query, key))
        scores = q @ k.mT / math.sqrt(12)
        heads.append(torch.softmax(scores, dim=-1) @ value[..., head])
    x = x + torch.cat(heads, dim=-1) @ part.attention.output.weight.T + part.attention.output.bias
    hidden = normed(x, part.norm_mlp) @ part.expand.weight.T + part.expand.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = x + hidden @ part.contract.weight.T + part.contract.bias
    torch.testing.assert_close(part(tokens(), rotation()), expected)


def test_permuted_tokens_with_their_positions_give_permuted_outputs():
    part, order = block(), torch.randperm(12, generator=torch.Generator().manual_seed(3))
    moved = Rotation(rotation().cos[order], rotation().sin[order])
    torch.testing.assert_close(part(tokens()[:, order], moved), part(tokens(), rotation())[:, order])


@pytest.mark.parametrize("batched", [False, True])
def test_what_a_mask_forbids_is_never_seen(batched):
    part, causal = block(), torch.ones(12, 12).tril().bool()
    if batched:
        causal = causal.expand(2, 1, 12, 12)
    changed = tokens().clone()
    changed[:, 7:] *= -1.0
    before, after = part(tokens(), rotation(), causal), part(changed, rotation(), causal)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])
    assert not torch.allclose(part(tokens(), rotation())[:, :7], part(changed, rotation())[:, :7])


def test_checkpointed_blocks_have_the_same_gradients_and_keep_less():
    blocks = nn.ModuleList(block(seed=seed) for seed in range(3))
    gradients, kept = [], []
    for again in (False, True):
        blocks.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, to=sizes: (to.append(x.numel()), x)[1], lambda x: x
        ):
            out = run_blocks(blocks, tokens(), rotation(), checkpoint_activations=again)
        out.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in blocks.parameters()])
        kept.append(sum(sizes))
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)
    assert kept[1] < kept[0] / 5


def test_initial_weights_are_those_of_the_released_code():
    torch.manual_seed(0)
    stack = nn.ModuleList(Block(96, 4, 4.0) for _ in range(8))
    initialise(stack)
    for place, part in enumerate(stack, start=1):
        assert part.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert part.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.05)
        for shrunk in (part.contract.weight, part.attention.output.weight):
            assert shrunk.std().item() == pytest.approx(0.02 / math.sqrt(2 * place), rel=0.05)
        assert not part.expand.bias.any()
        assert (part.norm_mlp.weight == 1).all()


def test_the_giants_perceptron_is_6144_wide():
    assert hidden_width(1408, 48 / 11) == 6144
    with pytest.raises(InputError, match="mlp_ratio=4"):
        hidden_width(24, 0.0)
