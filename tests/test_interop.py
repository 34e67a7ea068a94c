import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import tinyfn
from tinyfn import interop, random, tree


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


class Halved(nn.TransformerEncoderLayer):
    def forward(self, *args, **options):
        return super().forward(*args, **options) / 2


def replaced(module, name, part):
    module.add_module(name, part)
    return module


def with_another_weight():
    module = layer()
    module.linear1.register_parameter("scale", nn.Parameter(torch.ones(())))
    return module


def stack(*layers, norm=None):
    module = nn.TransformerEncoder(layers[0], 1, norm, enable_nested_tensor=False)
    module.layers = nn.ModuleList(layers)
    return module


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (nn.Linear(2, 2), TypeError, "be one of nn.MultiheadAttention, .*got Linear"),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ValueError, "have add_bias_kv=False"),
        (nn.MultiheadAttention(4, 2, add_zero_attn=True), ValueError, "have add_zero_attn=False"),
        (
            replaced(layer(), "norm1", nn.RMSNorm(4)),
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
        (replaced(layer(), "linear1", nn.Bilinear(4, 4, 3)), ValueError, "have in its linear maps"),
        (replaced(layer(), "self_attn", Doubled(4, 2)), ValueError, "have in its attention the"),
        (stack(layer(), Halved(4, 2, 3)), ValueError, "have in its layers the forward of nn.Tr"),
        (with_another_weight(), ValueError, "have no weight without a place, got 'linear1.scale'"),
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


FEATURES, HEADS, HIDDEN = 4, 2, 3
OF_LAYERS = [
    {},
    {"dropout": 0.3},
    {"activation": "gelu"},
    {"activation": torch.tanh},
    {"activation": nn.GELU("tanh")},
    {"layer_norm_eps": 1e-2},
    {"norm_first": True},
    {"bias": False},
    {"dtype": torch.float64},
    {"batch_first": False},
]
OF_ATTENTION = [
    {},
    {"dropout": 0.3},
    {"bias": False},
    {"kdim": 3},
    {"vdim": 5},
    {"kdim": 3, "vdim": 4, "bias": False},
    {"dtype": torch.float64},
    {"batch_first": False},
]


def encoder_stack(options, *, num_layers=2, final=True):
    layer = nn.TransformerEncoderLayer(FEATURES, HEADS, HIDDEN, **options)
    named = {"layer_norm_eps": "eps", "bias": "bias", "dtype": "dtype"}
    norm = {named[name]: option for name, option in options.items() if name in named}
    norm = nn.LayerNorm(FEATURES, **norm) if final else None
    return nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)


def whole(options):
    with warnings.catch_warnings():  # torch says of some options that nested tensors are not used
        warnings.filterwarnings("ignore", "enable_nested_tensor is True", UserWarning)
        return nn.Transformer(FEATURES, HEADS, 1, 2, HIDDEN, **options)


# torch's clones of a decoder layer forget an activation that is a module: none for the whole.
MODULES = {
    "attention": (partial(nn.MultiheadAttention, FEATURES, HEADS), OF_ATTENTION),
    "encoder_layer": (partial(nn.TransformerEncoderLayer, FEATURES, HEADS, HIDDEN), OF_LAYERS),
    "decoder_layer": (partial(nn.TransformerDecoderLayer, FEATURES, HEADS, HIDDEN), OF_LAYERS),
    "encoder": (encoder_stack, OF_LAYERS),
    "bare_encoder": (partial(encoder_stack, num_layers=1, final=False), OF_LAYERS),
    "transformer": (whole, [o for o in OF_LAYERS if not isinstance(o.get("activation"), nn.GELU)]),
}


def inputs_of(module, options):
    made = {"generator": torch.Generator().manual_seed(0), "dtype": options.get("dtype")}
    features = [FEATURES] * 2
    if isinstance(module, nn.MultiheadAttention):
        features = [FEATURES, options.get("kdim", FEATURES), options.get("vdim", FEATURES)]
    elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
        features = [FEATURES]
    return [torch.randn(3, 3, width, **made) for width in features]


@pytest.mark.parametrize("kind", MODULES)
def test_to_torch_of_from_torch_is_the_module_bit_for_bit(kind):
    make, every = MODULES[kind]
    for options in every:
        options = {"batch_first": True, **options}
        by_position = kind in ("encoder", "bare_encoder", "transformer")
        module = make(options) if by_position else make(**options)
        for weight in module.parameters():
            weight.data.normal_()
        params, keywords = interop.from_torch(module)
        again = interop.to_torch(params, batch_first=options["batch_first"], **keywords)
        assert type(again) is type(module)
        assert again.training
        assert list(again.state_dict()) == list(module.state_dict())
        for name, weight in module.named_parameters():
            assert torch.equal(again.get_parameter(name), weight)
            assert again.get_parameter(name).dtype == weight.dtype
            assert again.get_parameter(name).requires_grad
        assert repr(again) == repr(module)
        xs = inputs_of(module, options)
        torch.testing.assert_close(again.eval()(*xs), module.eval()(*xs), rtol=0, atol=0)


@pytest.mark.usefixtures("unchecked")
def test_the_order_of_axes_is_said_and_never_guessed():
    params, keywords = interop.from_torch(nn.TransformerEncoderLayer(4, 2, 3))
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'batch_first'"):
        interop.to_torch(params, **keywords)


def test_to_torch_of_stacks_of_ones_own():
    """Layers of other widths, no final norm, and two that agree in the model's width only."""
    wide = nn.TransformerEncoderLayer(4, 4, 5, batch_first=True)
    narrow = nn.TransformerDecoderLayer(4, 1, 2, batch_first=True)
    encoder = stack(wide, layer(), norm=nn.LayerNorm(4, bias=False))
    decoder = nn.TransformerDecoder(narrow, 1)
    options = {"custom_encoder": encoder, "custom_decoder": decoder, "batch_first": True}
    module = nn.Transformer(4, 2, **options).eval()
    params, keywords = interop.from_torch(module)
    again: Any = interop.to_torch(params, batch_first=True, **keywords).eval()
    assert again.decoder.norm is None
    x = torch.randn(1, 3, 4)
    assert torch.equal(again(x, x), module(x, x))
    assert again.encoder.num_layers == 2


def test_nested_tensors_are_asked_for():
    params, keywords = interop.from_torch(stack(layer()))
    assert not interop.to_torch(params, batch_first=True, **keywords).use_nested_tensor
    nested = {"batch_first": True, "enable_nested_tensor": True}
    again = interop.to_torch(params, **nested, **keywords).eval()
    assert again.use_nested_tensor
    padded = torch.tensor([[False, True]])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        assert not again(torch.ones(1, 2, 4), src_key_padding_mask=padded)[0, 1].any()


def test_to_torch_makes_copies_and_draws_nothing():
    params, keywords = interop.from_torch(layer())
    before, copies = torch.random.get_rng_state(), tree.map(torch.clone, params)
    module = interop.to_torch(params, batch_first=True, **keywords)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(1)
    tree.map(lambda leaf, copy: torch.testing.assert_close(leaf, copy), params, copies)


def test_params_made_here_become_a_module_that_agrees():
    options = {"dtype": torch.float64, "final_norm": True}
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 2, **options)
    del params["linear"]
    call = {"position": None, "norm_first": True, "activation": torch.tanh}
    module = interop.to_torch(params, batch_first=True, **call).eval()
    x = random.normal(random.key(1), (2, 3, 4), dtype=torch.float64)
    ours = tinyfn.transformer(params, x, x, None, None, **call)
    torch.testing.assert_close(module(x, x), ours, rtol=1e-12, atol=1e-12)


def changed(init, *path, to=None, **options):
    params = init(random.key(0), 4, 2, **options)
    *parents, last = path
    node = params
    for name in parents:
        node = node[name]
    if to is None:
        del node[last]
    else:
        node[last] = to
    return params


encoder_params = partial(changed, partial(tinyfn.init_encoder, dim_feedforward=3, num_layers=2))
layer_params = partial(changed, partial(tinyfn.init_encoder_layer, dim_feedforward=3))
decoder_params = partial(changed, partial(tinyfn.init_decoder_layer, dim_feedforward=3))
attention_params = partial(changed, tinyfn.init_attention)
ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (encoder_params("embedding", to={"weight": ONE}), "no weight without a place in nn.Transf"),
        (encoder_params("embedding", to={"weight": ONE}), ".*got 'embedding.weight'"),
        (
            encoder_params("layers", 1, "self_attention", "k_proj", "bias"),
            "have a weight for every place in nn.TransformerEncoder, "
            "got none for 'layers.1.self_attention.k_proj.bias'",
        ),
        (encoder_params("layers", 1, "feed_forward_norm"), ".*'layers.1.feed_forward_norm.weight'"),
        (encoder_params("layers", 1, "self_attention"), "have 'layers.1.self_attention', got none"),
        (encoder_params("layers", to=[], final_norm=True), "have a layer in 'layers', got none"),
        (
            layer_params("feed_forward", "down_proj", "bias", to=torch.ones(3)),
            r"have 'feed_forward.down_proj.bias' of shape \(4,\), got shape \(3,\)",
        ),
        (layer_params("feed_forward", "gate_proj", to={"weight": ONE}), ".*gate_proj.weight'"),
        (
            attention_params("q_proj", "bias", to=torch.ones(2, 2), num_kv_heads=1),
            r"have 'k_proj.weight' of shape \(2, 2, 4\), got shape \(1, 2, 4\)",
        ),
        (
            decoder_params("cross_attention", "q_proj", "bias", to=torch.ones(2, 2), head_dim=3),
            "have self_attention.head_dim = features / heads = 4 / 2, got 3",
        ),
        ({"linear": {"weight": ONE}}, "have 'encoder', got none"),
    ],
)
def test_a_weight_or_a_place_that_is_left_over_is_named(params, message):
    with pytest.raises(ValueError, match=f"^interop.to_torch: params must .*{message}"):
        interop.to_torch(params, batch_first=True, position=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": tinyfn.rms_norm}, "norm must be layer_norm, or a partial of it with eps, got rm"),
        ({"attend": tinyfn.explicit_attention}, "attend must be dot_product_attention, got expl"),
        ({"feed_forward": tinyfn.gated_feed_forward}, "feed_forward must be feed_forward, got gat"),
        ({"remat": True}, "remat must be False, got True"),
        ({"tgt_mask": tinyfn.masks.causal()}, "tgt_mask must be None, got .*when you call it"),
        ({"position": tinyfn.positions.add_learned}, "position must be None, got add_learned"),
        ({"eps": 1e-3}, "eps must be an option of a torch.nn module, got 0.001"),
    ],
)
def test_an_option_that_torch_has_not_is_refused(options, message):
    params, keywords = interop.from_torch(whole({}))
    with pytest.raises(ValueError, match=f"^interop.to_torch: {message}"):
        interop.to_torch(params, batch_first=True, **{**keywords, **options})


def test_a_default_that_torch_has_not_is_refused():
    params, _ = interop.from_torch(whole({}))
    with pytest.raises(ValueError, match="position must be None, got the function's own default"):
        interop.to_torch(params, batch_first=True)


def test_stacks_in_each_others_place_are_refused():
    params, keywords = interop.from_torch(whole({}))
    swapped = {"encoder": params["decoder"], "decoder": params["encoder"]}
    with pytest.raises(ValueError, match="have an encoder without cross-attention, got Transf"):
        interop.to_torch(swapped, batch_first=True, **keywords)


@pytest.mark.usefixtures("unchecked")
def test_weights_of_two_kinds_are_refused():
    params, _ = interop.from_torch(nn.MultiheadAttention(4, 2))
    params["q_proj"]["weight"] = params["q_proj"]["weight"].double()
    for wrong in (params, {}, None):
        with pytest.raises(TypeError, match="params must hold weights of one dtype on one device"):
            interop.to_torch(wrong, batch_first=True)
