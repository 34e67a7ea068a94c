"""What several processes compute beside what one does, for test_sharding.py to judge.

    torchrun --nproc-per-node 2 tests/sharded.py [PLAN ...]

Process 0 prints, for each plan and case, the largest difference from one process, or the error.
"""

import json
import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tinyfn import (
    TinyTransformer,
    dot_product_attention,
    encoder_layer,
    init_encoder_layer,
    init_transformer,
    masks,
    positions,
    random,
    rms_norm,
    sharding,
    transformer,
    transforms,
    tree,
)
from tinyfn.pronunciation import parallel


def layer(params, x, lengths, key=None, **options):
    return encoder_layer(params, x, masks.padding(lengths), key, dropout_p=0.3, **options)


def weighted(f, params, inputs, *rest, **options):
    *inputs, weight = inputs
    return (f(params, *inputs, *rest, **options) * weight).sum()


def squares(gradients):
    return sum((leaf * leaf).sum() for leaf in tree.leaves(gradients))


def forward(f, params, inputs, key):
    return f(params, *inputs[:-1])


def dropout(f, params, inputs, key):
    return f(params, *inputs[:-1], key)


def grad(f, params, inputs, key):
    return torch.func.grad(partial(weighted, f))(params, inputs, key)


def value_and_grad(f, params, inputs, key):
    return transforms.value_and_grad(partial(weighted, f))(params, inputs, key)


def backward(f, params, inputs, key):
    leaves = tree.map(lambda leaf: leaf.detach().requires_grad_(), params)
    return list(torch.autograd.grad(weighted(f, leaves, inputs, key), tree.leaves(leaves)))


def grad_of_grad(f, params, inputs, key):
    return torch.func.grad(lambda p: squares(torch.func.grad(partial(weighted, f))(p, inputs)))(
        params
    )


def hessian_vector(f, params, inputs, key):
    return torch.func.vjp(torch.func.grad(lambda p: weighted(f, p, inputs)), params)[1](params)[0]


def vmap_of_grad(f, params, inputs, key):
    return torch.vmap(torch.func.grad(partial(weighted, f)), (None, 0))(params, inputs)


def grad_of_remat(f, params, inputs, key):
    return torch.func.grad(partial(weighted, transforms.remat(f)))(params, inputs, key)


def pre_norm(f, params, inputs, key):
    return grad(partial(f, norm=rms_norm, norm_first=True), params, inputs, key)


def rotary(f, params, inputs, key):
    return grad(partial(f, attend=positions.rotary(dot_product_attention)), params, inputs, key)


def alibi(f, params, inputs, key):
    return grad(partial(f, attend=positions.alibi(dot_product_attention)), params, inputs, key)


def steps(f, params, inputs, key, optimizer=torch.optim.SGD, **options):
    leaves = tree.map(lambda leaf: leaf.detach().clone().requires_grad_(), params)
    optimizer = optimizer(tree.leaves(leaves), lr=0.1, **options)
    for step in range(3):
        now = tree.map(lambda leaf: leaf.detach(), leaves)
        draw = random.fold_in(key, step)
        gradients = torch.func.grad(partial(weighted, f))(now, inputs, draw)
        for leaf, gradient in zip(
            tree.leaves(leaves), tree.leaves(sharding.align(gradients, leaves)), strict=True
        ):
            leaf.grad = gradient
        optimizer.step()
    return tree.map(lambda leaf: leaf.detach(), leaves)


CASES = {
    "forward": forward,
    "dropout": dropout,
    "grad": grad,
    "value_and_grad": value_and_grad,
    "backward": backward,
    "grad_of_grad": grad_of_grad,
    "hessian_vector": hessian_vector,
    "vmap_of_grad": vmap_of_grad,
    "grad_of_remat": grad_of_remat,
    "pre_norm": pre_norm,
    "rotary": rotary,
    "alibi": alibi,
    "sgd_steps": partial(steps, momentum=0.9),
    "adam_steps": partial(steps, optimizer=torch.optim.AdamW, eps=1e-3),
}
PARTS = ("pre_norm", "rotary", "alibi")
PLAIN = [case for case in CASES if case not in PARTS]
FEWER = ("forward", "grad", "grad_of_grad", "vmap_of_grad", "grad_of_remat", "sgd_steps")
MORE = ("full_tensor", "data_full", "data_sequence", "sequence_tensor")
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
PLANS = {
    2: {
        **{plan: [*PLAIN] for plan in ("data", "full", "sequence")},
        "tensor": [*PLAIN, *PARTS],
    },
    4: {
        **{plan: [*FEWER] for plan in ("data", "full", "tensor", "sequence")},
        # For meshes of two axes torch looks for its plans for long.
        "data_tensor": [*FEWER] if THOROUGH else ["grad"],
        **({plan: [*FEWER] for plan in MORE} if THOROUGH else {}),
    },
}
"""For a number of processes, the plans and their cases with an encoder layer."""


def transform(params, src, tgt, lengths, key=None):
    seen = masks.padding(lengths)
    return transformer(params, src, tgt, seen, masks.causal(), seen, key, dropout_p=0.3)


def subjects():
    """Name, function, params, inputs whose last is the weight of the sum."""
    x, weight = (random.normal(random.key(seed), (4, 4, 8)) for seed in (1, 2))
    lengths = torch.tensor([4, 2, 3, 4])
    params = init_encoder_layer(random.key(0), 8, 4, 16)
    yield "encoder_layer", layer, params, [x, lengths, weight]
    sizes = {"src_vocab_size": 12, "tgt_vocab_size": 12}
    params = init_transformer(random.key(3), 8, 4, 16, 1, 1, **sizes)
    src, tgt = (random.permutation(random.key(seed), 16).view(4, 4) % 12 for seed in (4, 5))
    weight = random.normal(random.key(6), (4, 4, 12))
    yield "transformer", transform, params, [src, tgt, lengths, weight]


def wanted(world, plan):
    """The names of a plan's cases."""
    whole = ["transformer sgd_steps"] if world == 2 else []
    return [f"encoder_layer {case}" for case in PLANS[world][plan]] + whole


def difference(one, many):
    """The largest distance of any elements, or NaN where one is NaN."""
    pairs = list(zip(tree.leaves(one), tree.leaves(sharding.gather(many)), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return torch.stack([(a - b).detach().abs().max() for a, b in pairs]).max().item()


def found(world, plan):
    names = plan.split("_")
    mesh = sharding.mesh(**{name: world if len(names) == 1 else 2 for name in names})
    results = {}
    for name, f, params, inputs in subjects():
        sharded = sharding.shard(params, sharding.plan(params, mesh))
        placed = sharding.place(inputs, mesh)
        for case, run in CASES.items():
            if f"{name} {case}" in wanted(world, plan):
                one = run(f, params, inputs, random.key(7))
                with sharding.on_mesh():
                    many = run(f, sharded, placed, random.key(7))
                results[f"{name} {case}"] = difference(one, many)
                if case == "sgd_steps":
                    pairs = zip(tree.leaves(many), tree.leaves(sharded), strict=True)
                    kept = all(leaf.placements == before.placements for leaf, before in pairs)
                    results[f"{name} keeps placements"] = kept
        results[f"{name} jvp by params"] = jvp(partial(weighted, f, inputs=placed), sharded)
        scaled = partial(times, f, sharded, placed[:-1])
        results[f"{name} jvp by a whole tensor"] = jvp(scaled, torch.tensor(2.0))
    return results


def times(f, params, inputs, scale):
    return f(params, *inputs) * scale


def jvp(f, primal):
    """What forward mode says."""
    try:
        with sharding.on_mesh():
            torch.func.jvp(f, (primal,), (primal,))
    except NotImplementedError as error:
        return str(error)
    return ""


def adapter(wrap, world):
    """How far the weights of a wrapped adapter are from those of one process, after three steps."""
    x = random.normal(random.key(8), (4, 3, 8)).chunk(world)[dist.get_rank()]
    whole = random.normal(random.key(8), (4, 3, 8))
    many, one = (trained(wrap, x), trained(lambda module: module, whole))
    return difference(one, many)


def trained(wrap, x):
    torch.manual_seed(0)
    module = TinyTransformer(1, 1, 8, 2, 16, dropout=0.0)
    wrapped = wrap(module)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=0.1, eps=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (wrapped(x, x)[..., 0].log().mean()).backward()
        optimizer.step()
    return list(module.parameters())


ADAPTERS = {"ddp": DistributedDataParallel, "fully_shard": fully_shard}


def main(plans):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    results = {plan: found(world, plan) for plan in plans or PLANS[world]}
    results["adapter"] = {name: adapter(wrap, world) for name, wrap in ADAPTERS.items()}
    if not dist.get_rank():
        print(json.dumps(results))
    parallel.part()


if __name__ == "__main__":
    main(sys.argv[1:])
