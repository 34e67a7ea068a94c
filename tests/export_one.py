"""Export what is named on the command line, and run it at sizes that it was not exported at.

python export_one.py program|onnx NAME...

A process of its own, since a failed trace can spoil its process, and since shapes are not checked
at run time here, as they are not for users.
"""

import sys
import tempfile
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import tinyfn
from tinyfn import masks, positions, random, tree

SIZES = [(2, 5, 7), (1, 1, 1), (3, 1, 4), (1, 130, 140), (0, 3, 3)]
D = Dim.DYNAMIC
KEY = random.key(0)
LLAMA = {
    "norm": tinyfn.rms_norm,
    "norm_first": True,
    "activation": F.silu,
    "feed_forward": tinyfn.gated_feed_forward,
    "attend": positions.rotary(tinyfn.dot_product_attention),
}


class Case(NamedTuple):
    """A function of params and inputs, inputs for sizes, and which of their axes are dynamic."""

    f: Any
    params: Any
    inputs: Any
    dynamic: Any


class Call(nn.Module):
    """What torch.export takes: a module around a function, its params an input like any other."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, params, *inputs):
        return self.f(params, *inputs)


def features(batch, seq, _):
    return (torch.sin(torch.arange(batch * seq * 8.0)).reshape(batch, seq, 8),)


def with_lengths(batch, seq, _):
    return (*features(batch, seq, _), torch.arange(batch) % (seq + 1))


def with_ids(batch, seq, _):
    return (*features(batch, seq, _), torch.arange(seq).expand(batch, seq) // 3)


def with_key(batch, seq, _):
    return (*features(batch, seq, _), KEY)


def tokens(batch, src, tgt):
    ids = torch.arange(batch * (src + tgt)).reshape(batch, src + tgt) * 7 % 11
    return ids[:, :src], ids[:, src:], torch.arange(batch) % (src + 1)


def padded(params, src, tgt, lengths):
    mask = masks.padding(lengths)
    return tinyfn.transformer(params, src, tgt, mask, masks.causal(), mask)


def encoder_case(f, inputs=features, dynamic=(D,), **made):
    params = tinyfn.init_encoder(KEY, 8, 2, 16, 1, **made)
    axes = {"D": {0: D}, "ids": {0: D, 1: D}, "key": None}
    return Case(f, params, inputs, ({0: D, 1: D}, *(axes[name] for name in dynamic[1:])))


def cases():
    encoder, attention = tinyfn.encoder, tinyfn.dot_product_attention
    either = masks.causal(1) & masks.window(3, 2) | ~masks.prefix(2)
    vocab = {"src_vocab_size": 11, "tgt_vocab_size": 11}
    learned = partial(positions.init_learned, max_len=150, num_features=8)
    llama = tinyfn.init_language_model(
        KEY,
        *(8, 4, 16, 1, 11),
        num_kv_heads=2,
        init_norm=tinyfn.init_rms_norm,
        init_feed_forward=tinyfn.init_gated_feed_forward,
    )
    module = tinyfn.TinyTransformer(1, 1, 8, 2, 16, dtype=torch.float64).eval()
    return {
        "transformer": Case(
            padded,
            tinyfn.init_transformer(KEY, 8, 2, 16, 1, 1, **vocab),
            tokens,
            ({0: D, 1: D}, {0: D, 1: D}, {0: D}),
        ),
        "module": Case(
            lambda params, src, tgt: torch.func.functional_call(module, params, (src, tgt)),
            dict(module.named_parameters()),
            lambda b, s, t: (*features(b, s, t), *features(b, t, s)),
            ({0: D, 1: D}, {0: D, 1: D}),
        ),
        "llama": Case(
            partial(tinyfn.language_model, position=None, **LLAMA),
            llama,
            lambda *sizes: tokens(*sizes)[:1],
            ({0: D, 1: D},),
        ),
        "rules": encoder_case(lambda p, x: encoder(p, x, either)),
        "padding": encoder_case(
            lambda p, x, n: encoder(p, x, masks.causal() & masks.padding(n)),
            with_lengths,
            ("", "D"),
        ),
        "segments": encoder_case(
            lambda p, x, ids: encoder(p, x, masks.segments(ids)), with_ids, ("", "ids")
        ),
        "alibi": encoder_case(partial(encoder, attend=positions.alibi(attention))),
        "learned": encoder_case(
            partial(encoder, position=positions.add_learned), init_position=learned
        ),
        "dropout": encoder_case(
            lambda p, x, key: encoder(p, x, None, key, dropout_p=0.5), with_key, ("", "key")
        ),
        "remat": encoder_case(partial(encoder, remat=True)),
        "fused": encoder_case(
            lambda p, x: encoder(p, x, masks.causal(), attend=tinyfn.fused_attention)
        ),
    }


def double(x):
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def program(case: Case) -> Any:
    """What torch.export makes of a case, at the first of the sizes."""
    params = tree.map(double, case.params)
    inputs = tuple(map(double, case.inputs(*SIZES[0])))
    shapes = (tree.map(lambda _: None, params), case.dynamic)
    exported = torch.export.export(Call(case.f), (params, *inputs), dynamic_shapes=shapes)
    for sizes in SIZES:
        given = tuple(map(double, case.inputs(*sizes)))
        leaves = [leaf.detach().requires_grad_() for leaf in tree.leaves(params)]
        of = iter(leaves)
        fresh = tree.map(lambda _, of=of: next(of), params)
        ran, plain = exported.module()(fresh, *given), case.f(fresh, *given)
        torch.testing.assert_close(ran, plain, rtol=1e-10, atol=1e-12)
        direction = torch.cos(torch.arange(plain.numel())).reshape(plain.shape)
        of_ran, of_plain = (
            torch.autograd.grad(y, leaves, direction, allow_unused=True, materialize_grads=True)
            for y in (ran, plain)
        )
        torch.testing.assert_close(of_ran, of_plain, rtol=1e-9, atol=1e-11)
    return exported


def onnx(case: Case) -> None:
    """What onnxruntime computes of a case, in the float32 that it is for."""
    import onnxruntime

    params = tree.cast(tree.map(Tensor.detach, case.params), torch.float32)
    first = case.inputs(*SIZES[0])
    f = Call(lambda _, *inputs: case.f(params, *inputs)).eval()
    made = torch.onnx.export(
        f, ({}, *first), dynamic_shapes=({}, case.dynamic), dynamo=True, verbose=False
    )
    assert made is not None
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        made.save(file.name)
        session = onnxruntime.InferenceSession(file.name, providers=["CPUExecutionProvider"])
    for sizes in SIZES:
        given = case.inputs(*sizes)
        names = [place.name for place in session.get_inputs()]
        (ran,) = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        torch.testing.assert_close(torch.from_numpy(ran), case.f(params, *given), rtol=0, atol=1e-5)


def main() -> None:
    """Print a line for each case: its name, once it was right at every size."""
    torch.set_num_threads(1)
    how, *names = sys.argv[1:]
    known = cases()
    for name in names or known:
        {"program": program, "onnx": onnx}[how](known[name])
        print(name, "right", flush=True)


if __name__ == "__main__":
    main()
