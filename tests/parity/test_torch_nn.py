"""`interop.from_torch` and the functions agree with the modules of torch.nn, forward and grad."""

import copy
import warnings
from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tinyfn
from tinyfn import interop, masks, tree

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}

layers = st.fixed_dictionaries(
    {
        "nhead": st.sampled_from([1, 2, 4]),
        "dim_feedforward": st.integers(1, 6),
        "activation": st.sampled_from(["relu", "gelu", torch.tanh]),
        "norm_first": st.booleans(),
        "bias": st.booleans(),
        "layer_norm_eps": st.sampled_from([1e-5, 1e-2]),
        "dtype": st.sampled_from(list(TOLERANCES)),
    }
)
sizes = st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))


def moved(module, seed):
    """The module in evaluation, no weight at a special value."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data += 0.3 * noise.to(p.dtype)
    return module.eval()


def sequences(size, dtype, *, features=4):
    batch, src_seq, tgt_seq, seed = size
    generator = torch.Generator().manual_seed(seed + 1)
    shapes = (batch, src_seq, features), (batch, tgt_seq, features)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def agree(f, params, module, *inputs):
    """Outputs, and gradients by every input and, since params are copies, by every weight."""
    tolerance = TOLERANCES[inputs[0].dtype]
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    inputs = [x.requires_grad_() for x in inputs]
    leaves = [leaf.requires_grad_() for leaf in tree.leaves(params)]
    weights = list(module.parameters())
    expected, actual = module(*inputs), f(*inputs)
    close(actual, expected)
    theirs = torch.autograd.grad(expected.sin().sum(), [*inputs, *weights])
    ours = torch.autograd.grad(actual.sin().sum(), [*inputs, *leaves])
    for a, b in zip(ours[: len(inputs)], theirs[: len(inputs)], strict=True):
        close(a, b, rtol=10 * tolerance, atol=10 * tolerance)
    of_weights = copy.deepcopy(module)  # holds gradients, to be converted as weights are
    for weight, grad in zip(of_weights.parameters(), theirs[len(inputs) :], strict=True):
        weight.data = grad
    converted = tree.leaves(interop.from_torch(of_weights)[0])
    for a, b in zip(ours[len(inputs) :], converted, strict=True):
        close(a, b, rtol=100 * tolerance, atol=100 * tolerance)


@given(layers, sizes)
def test_encoder_layer(options, size):
    module = moved(nn.TransformerEncoderLayer(4, **options, batch_first=True), size[-1])
    params, keywords = interop.from_torch(module)
    x, _ = sequences(size, options["dtype"])
    agree(lambda x: tinyfn.encoder_layer(params, x, **keywords), params, module, x)


@given(layers, sizes)
def test_decoder_layer(options, size):
    module = moved(nn.TransformerDecoderLayer(4, **options, batch_first=True), size[-1])
    params, keywords = interop.from_torch(module)
    memory, x = sequences(size, options["dtype"])
    f = lambda x, memory: tinyfn.decoder_layer(params, x, memory, **keywords)  # noqa: E731 (short)
    agree(f, params, module, x, memory)


@given(layers, sizes, st.integers(1, 2), st.booleans())
def test_stacks(options, size, num_layers, final):
    layer = nn.TransformerEncoderLayer(4, **options, batch_first=True)
    norm = nn.LayerNorm(4, eps=options["layer_norm_eps"], dtype=options["dtype"]) if final else None
    stack = nn.TransformerEncoder(layer, num_layers, norm, enable_nested_tensor=False)
    params, keywords = interop.from_torch(moved(stack, size[-1]))
    x, _ = sequences(size, options["dtype"])
    agree(lambda x: tinyfn.encoder(params, x, **keywords), params, stack, x)


@given(layers, sizes)
def test_transformer_with_masks(options, size):
    options = {**options, "num_encoder_layers": 1, "num_decoder_layers": 1}
    with warnings.catch_warnings():  # torch says of some options that nested tensors are not used
        warnings.filterwarnings("ignore", "enable_nested_tensor is True", UserWarning)
        module = nn.Transformer(4, **options, batch_first=True)
    module = moved(module, size[-1])
    params, keywords = interop.from_torch(module)
    src, tgt = sequences(size, options["dtype"])
    agree(lambda s, t: tinyfn.transformer(params, s, t, **keywords), params, module, src, tgt)
    lengths = torch.randint(1, src.shape[1] + 1, (len(src),))
    hidden = torch.arange(src.shape[1]) >= lengths[:, None]
    causal = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1], dtype=tgt.dtype)
    theirs = module(
        src,
        tgt,
        tgt_mask=causal,
        src_key_padding_mask=torch.zeros_like(hidden, dtype=src.dtype).masked_fill(
            hidden, -torch.inf
        ),
        memory_key_padding_mask=torch.zeros_like(hidden, dtype=src.dtype).masked_fill(
            hidden, -torch.inf
        ),
    )
    real = masks.padding(lengths)
    keywords["tgt_mask"] = masks.causal()
    ours = tinyfn.transformer(params, src, tgt, src_mask=real, memory_mask=real, **keywords)
    tolerance = TOLERANCES[src.dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@given(
    st.sampled_from([1, 2]),
    st.booleans(),
    st.tuples(st.sampled_from([None, 3]), st.sampled_from([None, 5])),
    sizes,
)
def test_multihead_attention(num_heads, bias, widths, size):
    kdim, vdim = widths
    module = nn.MultiheadAttention(
        4, num_heads, bias=bias, kdim=kdim, vdim=vdim, batch_first=True, dtype=torch.float64
    )
    moved(module, size[-1])
    params, keywords = interop.from_torch(module)
    q = sequences(size, torch.float64)[0]
    k = sequences(size, torch.float64, features=kdim or 4)[1]
    v = sequences(size, torch.float64, features=vdim or 4)[1].flip(-1)
    expected, weights = module(q, k, v, average_attn_weights=False)
    torch.testing.assert_close(tinyfn.attention(params, q, k, v, **keywords), expected)
    torch.testing.assert_close(tinyfn.attention_weights(params, q, k), weights)


def test_a_torch_mask_is_the_inverse():
    module = moved(nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64), 0)
    params, keywords = interop.from_torch(module)
    x, _ = sequences((1, 3, 3, 0), torch.float64)
    hidden = torch.tensor([[False, True, True], [False, False, True], [True, False, False]])
    expected, _ = module(x, x, x, attn_mask=hidden)
    torch.testing.assert_close(tinyfn.attention(params, x, x, x, ~hidden, **keywords), expected)
