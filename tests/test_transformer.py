from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reference
import tinyfn
from tinyfn import masks, positions, random, testing, tree

F64 = torch.float64


def x_of(*shape, seed=0):
    return random.normal(random.key(seed), shape, dtype=F64)


def close(actual, expected):
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@given(
    st.data(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.booleans()
)
def test_transformer_agrees_with_the_reference(data, src_seq, tgt_seq, layers, final, norm_first):
    sizes = (4, 2, 3, layers, 2 - layers)
    params = data.draw(testing.params(tinyfn.init_transformer, *sizes, final_norm=final))
    src, tgt = x_of(src_seq, 4, seed=1), x_of(tgt_seq, 4, seed=2)
    expected = reference.transformer(
        *map(reference.plain, (params, src, tgt)), norm_first=norm_first
    )
    close(tinyfn.transformer(params, src, tgt, norm_first=norm_first), expected)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_tokens_in_logits_out(tie, share):
    options = {"tie_embeddings": tie, "share_embeddings": share, "dtype": F64}
    params = tinyfn.init_transformer(
        random.key(0), 4, 2, 3, 1, 1, src_vocab_size=7, tgt_vocab_size=7, **options
    )
    assert ("linear" in params, "embedding" in params) == (not tie, share)
    src, tgt = torch.tensor([1, 6, 0]), torch.tensor([2, 5])
    logits = tinyfn.transformer(params, src, tgt)
    assert logits.shape == (2, 7)
    close(logits, reference.transformer(reference.plain(params), src.tolist(), tgt.tolist()))
    gradient = torch.func.grad(lambda p: tinyfn.transformer(p, src, tgt).sin().sum())(params)
    assert all(
        (leaf != 0).any()
        for name, leaf in tree.flatten(gradient).items()
        if "k_proj.bias" not in name
    )


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("joined", ["add", "concatenate"])
@pytest.mark.parametrize("table", ["sinusoidal", "learned"])
def test_positions_are_added_or_concatenated_in_every_stack(stack, joined, table):
    position = getattr(positions, f"{joined}_{table}")
    width, options = 4, {}
    if joined == "concatenate":
        width = 3
        if table == "sinusoidal":
            position = partial(position, num_features=1)
    if table == "learned":
        features = 4 if joined == "add" else 1
        make = partial(positions.init_learned, max_len=5, num_features=features)
        options["init_position"] = make
    init = getattr(tinyfn, f"init_{stack}")
    params = init(random.key(0), 4, 2, 3, 1, dtype=F64, **options)
    x = x_of(3, width)
    f = getattr(tinyfn, stack)
    out = f(params, x, position=position)
    entered = position(params.get("position", {}), x)
    assert out.shape == (3, 4)
    torch.testing.assert_close(out, f(params, entered))
    assert not torch.allclose(out[0], f(params, position(params.get("position", {}), x.flip(0)))[2])


def test_the_architectures_positions_are_the_default_and_none_leaves_them_out():
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1, dtype=F64)
    src, tgt = x_of(3, 4), x_of(2, 4, seed=1)
    explicit = tinyfn.transformer(
        params,
        positions.add_sinusoidal({}, src),
        positions.add_sinusoidal({}, tgt),
        position=None,
    )
    torch.testing.assert_close(tinyfn.transformer(params, src, tgt), explicit)
    testing.check_permutation_invariant(
        lambda src: tinyfn.transformer(params, src, tgt, position=None), src
    )


def test_the_target_is_causal_and_the_source_is_not():
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 2, dtype=F64)
    src, tgt = x_of(3, 4), x_of(4, 4, seed=1)
    testing.check_causal(lambda tgt: tinyfn.transformer(params, src, tgt), tgt)
    with pytest.raises(AssertionError, match="check_causal"):
        testing.check_causal(lambda src: tinyfn.transformer(params, src, src, None, None), tgt)


def test_a_padded_source_gives_what_the_short_one_gives():
    params = tinyfn.init_transformer(
        random.key(0), 4, 2, 3, 2, 2, src_vocab_size=7, tgt_vocab_size=5, dtype=F64
    )
    tgt = torch.tensor([[1, 2], [3, 4]])
    real = masks.padding([2, 4])
    src = torch.tensor([[5, 6, 0, 0], [1, 2, 3, 4]])
    batch = tinyfn.transformer(params, src, tgt, real, memory_mask=real)
    alone = tinyfn.transformer(params, src[0, :2], tgt[0])
    torch.testing.assert_close(batch[0], alone)
    mapped = torch.vmap(
        lambda src, tgt, real: tinyfn.transformer(params, src, tgt, real, memory_mask=real)
    )(src, tgt, real)
    torch.testing.assert_close(mapped, batch)


def test_padding_cannot_matter_to_the_rows_that_stay():
    params = tinyfn.init_encoder(random.key(0), 4, 2, 3, 2, dtype=F64)
    hidden = torch.tensor([False, False, True, True])
    testing.check_masked_values_cannot_matter(
        lambda x: tinyfn.encoder(params, x, masks.padding(2))[:2],
        x_of(4, 4),
        hidden,
        gradients=False,
    )


def test_weights_of_every_layer_are_those_it_looked_with():
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 2, 2, dtype=F64)
    src, tgt = x_of(3, 4), x_of(2, 4, seed=1)
    seen = tinyfn.transformer_attention_weights(params, src, tgt)
    assert len(seen["encoder"]) == len(seen["decoder"]) == 2
    entered = positions.add_sinusoidal({}, src)
    first = params["encoder"]["layers"][0]
    expected = tinyfn.attention_weights(first["self_attention"], entered, entered)
    torch.testing.assert_close(seen["encoder"][0], expected)
    second = tinyfn.encoder_layer(first, entered)
    other = params["encoder"]["layers"][1]["self_attention"]
    torch.testing.assert_close(seen["encoder"][1], tinyfn.attention_weights(other, second, second))
    for layer in seen["decoder"]:
        assert layer["self_attention"].shape == (2, 2, 2)
        assert layer["cross_attention"].shape == (2, 2, 3)
        assert (layer["self_attention"][:, 0, 1] == 0).all()
        torch.testing.assert_close(layer["cross_attention"].sum(-1), torch.ones(2, 2, dtype=F64))
    alone = tinyfn.decoder_attention_weights(params["decoder"], tgt)
    assert [set(layer) for layer in alone] == [{"self_attention"}] * 2


def test_weights_with_an_attend_that_has_params():
    params = tinyfn.init_encoder(random.key(0), 4, 2, 3, 1, dtype=F64)
    own = tinyfn.init_additive(random.key(1), 2, 3, dtype=F64)
    params["layers"][0]["self_attention"]["attend"] = own
    x = x_of(3, 4)
    seen = tinyfn.encoder_attention_weights(params, x, attend=tinyfn.additive_attention)
    layer = params["layers"][0]["self_attention"]
    torch.testing.assert_close(
        seen[0], tinyfn.attention_weights(layer, x, x, attend=tinyfn.additive_attention)
    )


def not_at_once(key, sizes):
    """As if there were no drawing at once."""


@pytest.mark.parametrize("position", [None, positions.add_sinusoidal])
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_a_stack_that_draws_at_once_drops_what_its_layers_would(stack, position, monkeypatch):
    params = getattr(tinyfn, f"init_{stack}")(random.key(0), 6, 2, 5, num_layers=3, dtype=F64)
    x = random.normal(random.key(1), (2, 3, 6), dtype=F64)
    tensors = (x,) if stack == "encoder" else (x, x[:, :2])
    key, options = random.key(2), {"position": position, "dropout_p": 0.3}
    f, asked, bits_of_split = getattr(tinyfn, stack), [], random.bits_of_split

    def noted(key, sizes):
        asked.append(bits_of_split(key, sizes))
        return asked[-1]

    monkeypatch.setattr(random, "bits_of_split", noted)
    at_once = f(params, *tensors, key=key, **options)
    assert len(asked) == 1
    assert asked[0] is not None
    again = f(params, *tensors, key=key, remat=True, **options)
    assert len(asked) == 4
    assert torch.equal(at_once, again)
    monkeypatch.setattr(random, "bits_of_split", not_at_once)
    assert torch.equal(at_once, f(params, *tensors, key=key, **options))
    position_key, *keys = random.split(key, 4)
    y = x if position is None else tinyfn.dropout(position({}, x), position_key, dropout_p=0.3)
    layer = getattr(tinyfn, f"{stack}_layer")
    for layer_params, layer_key in zip(params["layers"], keys, strict=True):
        y = layer(layer_params, y, *tensors[1:], key=layer_key, dropout_p=0.3)
    assert torch.equal(at_once, y)


def test_dropout_of_the_whole_is_a_function_of_the_key():
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1, dtype=F64)
    src, tgt = x_of(3, 4), x_of(2, 4, seed=1)

    def dropped(key):
        return tinyfn.transformer(params, src, tgt, key=key, dropout_p=0.3)

    keys = random.split(random.key(1), 4)
    mapped = torch.vmap(dropped)(keys)
    for row, key in zip(mapped, keys, strict=True):
        torch.testing.assert_close(row, dropped(key))
    assert len({float(row.sum()) for row in mapped}) == 4
    assert torch.equal(dropped(None), tinyfn.transformer(params, src, tgt))


def test_an_ensemble_of_split_keys_is_a_loop():
    make = partial(
        tinyfn.init_encoder, num_features=4, num_heads=2, dim_feedforward=3, num_layers=1, dtype=F64
    )
    keys, x = random.split(random.key(0), 3), x_of(3, 4)
    ensemble = torch.vmap(make)(keys)
    outputs = torch.vmap(tinyfn.encoder, in_dims=(0, None))(ensemble, x)
    for output, key in zip(outputs, keys, strict=True):
        torch.testing.assert_close(output, tinyfn.encoder(make(key), x))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params": {}}, "transformer: params must have 'encoder'"),
        ({"src": torch.tensor([1, 2])}, "encoder: params must have 'embedding'"),
        ({"tgt": torch.tensor([1, 2])}, "decoder: params must have 'embedding'"),
        ({"src": torch.zeros(3, 5)}, "attention: q must have shape"),
        ({"tgt": torch.zeros(2, 3, 4)}, "attention: k must have shape"),
        ({"memory_mask": torch.ones(3, 2).bool()}, "attention: mask must broadcast"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {
        "params": tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1),
        "src": torch.zeros(3, 4),
        "tgt": torch.zeros(2, 4),
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        tinyfn.transformer(**arguments | change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tie_embeddings": True}, "tie_embeddings must have a target embedding"),
        (
            {"tie_embeddings": True, "tgt_vocab_size": 5, "out_features": 6},
            "tie_embeddings must have an output matrix",
        ),
        (
            {"share_embeddings": True, "src_vocab_size": 5, "tgt_vocab_size": 6},
            "share_embeddings must have src_vocab_size equal to tgt_vocab_size, got 5 and 6",
        ),
        ({"share_embeddings": True}, "share_embeddings must have src_vocab_size equal"),
    ],
)
def test_embeddings_that_cannot_be_tied_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^init_transformer: {message}"):
        tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1, **options)


@pytest.mark.parametrize("size", ["src_vocab_size", "embedding_features", "out_features"])
def test_a_size_of_zero_is_refused(size):
    sizes = {"src_vocab_size": 3, "tgt_vocab_size": 3, size: 0}
    with pytest.raises(ValueError, match=r"must be at least 1, got 0"):
        tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1, **sizes)


def test_what_is_no_tensor_or_no_transformer_is_refused(unchecked):
    params = tinyfn.init_transformer(random.key(0), 4, 2, 3, 1, 1)
    x = torch.zeros(2, 4)
    with pytest.raises(TypeError, match=r"^encoder: x must be a tensor of features or of token"):
        tinyfn.transformer(params, [1, 2], x)
    with pytest.raises(ValueError, match=r"^transformer_attention_weights: params must have 'enc"):
        tinyfn.transformer_attention_weights({}, x, x)


def test_a_negative_number_of_layers_is_refused():
    with pytest.raises(ValueError, match=r"^init_encoder: num_layers must be at least 0, got -1"):
        tinyfn.init_encoder(random.key(0), 4, 2, 3, -1)
    assert tinyfn.init_encoder(random.key(0), 4, 2, 3, 0)["layers"] == []


def test_an_attend_may_lengthen_the_keys_of_a_stack():
    def with_a_sink(q, k, v, mask=None, key=None, bias=None, *, dropout_p=0.0):
        k, v = (torch.cat([x, torch.zeros_like(x[..., :1, :])], -2) for x in (k, v))
        return tinyfn.dot_product_attention(q, k, v, mask, key, bias, dropout_p=dropout_p)

    params = tinyfn.init_encoder(random.key(0), 4, 2, 6, num_layers=1)
    x = torch.ones(1, 4)
    actual = tinyfn.encoder(params, x, masks.padding(1), attend=with_a_sink)
    expected = tinyfn.encoder_layer(params["layers"][0], x, masks.padding(1), attend=with_a_sink)
    assert actual.equal(expected)
    assert not actual.allclose(tinyfn.encoder(params, x, attend=with_a_sink))


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_memory_is_named():
    params = tinyfn.init_decoder(random.key(0), 4, 2, 6, num_layers=1)
    with pytest.raises(TypeError, match="attention: k must be a floating tensor, got list"):
        tinyfn.decoder(params, torch.ones(2, 4), [1, 2], masks.causal(), masks.full())
