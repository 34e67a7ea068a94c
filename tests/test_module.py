import copy
import inspect
import io
import pickle

import pytest
import torch
from torch.nn import functional as F

import tinyfn
from tinyfn import TinyTransformer, masks, tree

SIZES = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_features": 4,
    "num_heads": 2,
    "dim_feedforward": 3,
}


def small(seed=0, **options):
    torch.manual_seed(seed)
    return TinyTransformer(**SIZES | options)


def inputs(lead=(2,), src_seq=3, tgt_seq=2):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(*lead, n, 4, generator=generator) for n in (src_seq, tgt_seq)]


def test_the_seeds_snippet():
    t = TinyTransformer(
        num_encoder_layers=3,
        num_decoder_layers=3,
        num_features=512,
        num_heads=2,
        dim_feedforward=1024,
        dropout=0.1,
        device="cpu",
    )
    x, y = torch.rand(1, 22, 512), torch.rand(1, 22, 512)
    copies = x.clone(), y.clone()
    out = t(x, y)
    assert out.shape == (1, 22, 512)
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 22))
    assert torch.equal(x, copies[0])
    assert torch.equal(y, copies[1])
    assert t(x[:, :7], y).shape == (1, 22, 512)
    assert t(x, y[:, :5]).shape == (1, 5, 512)


def test_defaults_are_the_papers():
    parameters = inspect.signature(TinyTransformer).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert defaults == {
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
        "num_features": 512,
        "num_heads": 8,
        "dim_feedforward": 2048,
        "dropout": 0.1,
        "activation": torch.relu,
        "device": None,
    }


def test_it_is_the_function_of_its_params():
    t = small().eval()
    src, tgt = inputs()
    expected = tinyfn.transformer(t.params, src, tgt)
    torch.testing.assert_close(t.logits(src, tgt), expected)
    torch.testing.assert_close(t(src, tgt), expected.softmax(-1))


def test_params_are_the_modules_parameters():
    t = small()
    flat = tree.flatten(t.params)
    named = dict(t.named_parameters())
    assert flat.keys() == named.keys()
    assert all(flat[name] is named[name] for name in named)
    tinyfn.transformer(t.params, *inputs()).sin().sum().backward()
    assert all(p.grad is not None for p in t.parameters())


def test_functions_of_params_take_every_transform():
    t = small()
    src, tgt = inputs()

    def loss(params, src, tgt):
        return tinyfn.transformer(params, src, tgt).sin().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(t.params, src, tgt)
    t.zero_grad()
    loss(t.params, src, tgt).backward()
    torch.testing.assert_close(
        each["linear"]["weight"].sum(0), dict(t.named_parameters())["linear.weight"].grad
    )


def test_functional_call_replaces_params():
    t = small().eval()
    src, tgt = inputs()
    doubled = {name: 2 * p.detach() for name, p in t.named_parameters()}
    out = torch.func.functional_call(t, doubled, (src, tgt))
    expected = tinyfn.transformer(tree.unflatten(doubled), src, tgt).softmax(-1)
    torch.testing.assert_close(out, expected)


def test_masks_can_be_passed():
    t = small().eval()
    src, tgt = inputs()
    real = masks.padding([3, 1])
    out = t(src, tgt, src_mask=real, memory_mask=real)
    torch.testing.assert_close(out[1:], t(src[1:, :1], tgt[1:]))
    assert not torch.allclose(t(src, tgt, tgt_mask=None), t(src, tgt))


def test_dropout_follows_train_and_eval_and_the_global_generator():
    t = small(dropout=0.5)
    src, tgt = inputs()
    torch.manual_seed(3)
    first, second = t(src, tgt), t(src, tgt)
    torch.manual_seed(3)
    assert torch.equal(t(src, tgt), first)
    assert not torch.equal(first, second)
    t.eval()
    before = torch.get_rng_state()
    assert torch.equal(t(src, tgt), t(src, tgt))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(small(dropout=0.0)(src, tgt), small(dropout=0.0).eval()(src, tgt))


def test_initial_weights_follow_the_global_generator():
    one, same, other = small(0), small(0), small(1)
    assert torch.equal(one.state_dict()["linear.weight"], same.state_dict()["linear.weight"])
    assert not torch.equal(one.state_dict()["linear.weight"], other.state_dict()["linear.weight"])


def test_an_optimiser_trains_it():
    t = small(dropout=0.0, dim_feedforward=16)
    src, tgt = inputs()
    goal = torch.tensor([[0, 1], [2, 3]])
    optimizer = torch.optim.Adam(t.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(t.logits(src, tgt).flatten(0, 1), goal.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_copies_pickles_and_state_dicts_are_the_same_model():
    t = small().eval()
    src, tgt = inputs()
    saved = io.BytesIO()
    torch.save(t.state_dict(), saved)
    saved.seek(0)
    loaded = small(seed=5).eval()
    loaded.load_state_dict(torch.load(saved))
    for other in (copy.deepcopy(t), pickle.loads(pickle.dumps(t)), loaded):
        assert torch.equal(other(src, tgt), t(src, tgt))
        assert all(a is not b for a, b in zip(other.parameters(), t.parameters(), strict=True))


def test_it_moves_and_casts():
    t = small().eval()
    src, tgt = inputs()
    expected = t(src, tgt)
    out = t.to(torch.float64)(src.double(), tgt.double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), expected)
    assert {p.device.type for p in t.to("meta").parameters()} == {"meta"}


COMPILED = """
import torch
from tinyfn import TinyTransformer

torch.manual_seed(0)
t = TinyTransformer(1, 1, 8, 2, 16).eval()
x, y = torch.randn(2, 3, 8), torch.randn(2, 2, 8)
compiled = torch.compile(t, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(compiled(x, y), t(x, y))
print("the same")
"""


def test_it_compiles_whole(fresh_python):
    assert fresh_python("-c", COMPILED) == "the same\n"


def test_tokens_and_other_parts():
    t = small(
        src_vocab_size=7,
        tgt_vocab_size=5,
        tie_embeddings=True,
        norm_first=True,
        norm=tinyfn.rms_norm,
        init_norm=tinyfn.init_rms_norm,
        activation=F.silu,
        attend=tinyfn.positions.rotary(tinyfn.dot_product_attention),
        position=None,
    ).eval()
    assert "final_norm" in t.params["encoder"]
    out = t(torch.tensor([[1, 2, 3]]), torch.tensor([[4, 0]]))
    assert out.shape == (1, 2, 5)
    torch.testing.assert_close(out.sum(-1), torch.ones(1, 2))


def test_a_gate_is_trained():
    gated = {
        "feed_forward": tinyfn.gated_feed_forward,
        "init_feed_forward": tinyfn.init_gated_feed_forward,
    }
    t = small(**gated)
    t.logits(*inputs()).square().sum().backward()
    grads = [p.grad for name, p in t.named_parameters() if "gate_proj.weight" in name]
    assert len(grads) == sum(SIZES[f"num_{stack}_layers"] for stack in ("encoder", "decoder"))
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads)
    del gated["feed_forward"]
    with pytest.raises(ValueError, match=r"^feed_forward: params must have no gate, got 'gate_"):
        small(**gated).logits(*inputs())


def test_it_is_made_where_torch_is_told_to():
    with torch.device("meta"):
        assert {p.device.type for p in small().parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": torch.nn.PReLU()}, "TinyTransformer: activation must hold no parameters"),
        ({"dropout": 1.0}, r"TinyTransformer: dropout must be in \[0, 1\), got 1.0"),
        ({"num_heads": 3}, "init_attention: num_heads must divide num_features=4, got 3"),
        ({"num_encoder_layers": -1}, "init_encoder: num_layers must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TinyTransformer(**SIZES | options)
