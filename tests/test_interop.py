import pytest
import torch
from torch import nn

from tinyfn import interop, tree


class Doubled(nn.MultiheadAttention):
    def forward(self, *args, **options):
        out, weights = super().forward(*args, **options)
        return 2 * out, weights


def test_params_are_copies():
    module = nn.TransformerEncoderLayer(4, 2, 3, batch_first=True)
    params, _ = interop.from_torch(module)
    before = [leaf.clone() for leaf in tree.leaves(params)]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    for old, new in zip(before, tree.leaves(params), strict=True):
        assert torch.equal(old, new)
        assert not new.requires_grad


def test_every_weight_finds_a_place():
    for module in (
        nn.Transformer(4, 2, 1, 2, 3, batch_first=True),
        nn.MultiheadAttention(4, 2, kdim=3),
        nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 3), 2, nn.LayerNorm(4)),
    ):
        params, _ = interop.from_torch(module)
        assert tree.size(params) == sum(p.numel() for p in module.parameters())


def layer(**options):
    return nn.TransformerEncoderLayer(4, 2, 3, batch_first=True, **options)


def stack(*layers, norm=None):
    module = nn.TransformerEncoder(layers[0], 1, norm, enable_nested_tensor=False)
    module.layers = nn.ModuleList(layers)
    return module


def with_rms_norm():
    module = layer()
    module.add_module("norm1", nn.RMSNorm(4))
    return module


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (nn.Linear(2, 2), TypeError, "be one of nn.MultiheadAttention, .*got Linear"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ValueError, "have add_bias_kv=False"),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), ValueError, "have add_zero_attn=False"),
        (
            with_rms_norm(),
            ValueError,
            "have norms that are nn.LayerNorm with a weight, got RMSNorm",
        ),
        (stack(layer(), layer(layer_norm_eps=0.1)), ValueError, "have one eps, got"),
        (stack(layer(), norm=nn.LayerNorm(4, eps=0.1)), ValueError, "have one eps, got"),
        (stack(layer(), layer(dropout=0.3)), ValueError, "have one dropout_p, got"),
        (stack(layer(), layer(norm_first=True)), ValueError, "have one norm_first, got"),
        (stack(layer(), layer(activation="gelu")), ValueError, "have one activation, got"),
        (layer(activation=nn.PReLU()), ValueError, "have an activation without parameters, got PR"),
        (Doubled(4, 2), ValueError, "have the forward of nn.MultiheadAttention, got Doubled"),
        (stack(layer(), nn.Linear(4, 4)), ValueError, "have layers that are nn.TransformerEncoder"),
        (
            nn.Transformer(4, 2, 1, 1, 3, batch_first=True, custom_encoder=nn.Identity()),
            ValueError,
            "have an encoder that is nn.TransformerEncoder, got Identity",
        ),
    ],
)
def test_what_is_not_reproduced_is_refused(module, kind, message):
    with pytest.raises(kind, match=f"^interop.from_torch: module must {message}"):
        interop.from_torch(module)
