"""What does a token cost with a cache, as a multiple of Hugging Face's generate?

Greedy texts of a GPT-2 of 6 layers, 512 features and 8 heads after a prompt of 16 tokens. A size is
batch x new tokens; the time of a token is the median over their number. Peers that are not
installed are left out.

    python benchmarks/decoding.py [--rounds 5] [--threads 1] [--sizes 1x256 8x256] [--compiled]
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import Calls, Questions, run
from torch import Tensor
from torch.nn import functional as F

import tinyfn
from tinyfn import generation, positions, random

LAYERS, FEATURES, HEADS, HIDDEN, VOCAB, PROMPT = 6, 512, 8, 2048, 1000, 16
OPTIONS: dict[str, Any] = {
    "position": positions.add_learned,
    "embed": tinyfn.embedding,
    "norm_first": True,
    "activation": partial(F.gelu, approximate="tanh"),
}


def candidates(batch: int, new: int) -> Questions:
    """A call for each that makes the tokens."""
    torch.manual_seed(0)
    prompt = torch.randint(VOCAB, (batch, PROMPT))
    params = tinyfn.init_language_model(
        random.key(0),
        FEATURES,
        HEADS,
        HIDDEN,
        LAYERS,
        VOCAB,
        tie_embeddings=True,
        final_norm=True,
        init_position=partial(positions.init_learned, max_len=1024, num_features=FEATURES),
    )
    step = partial(tinyfn.decode_step, **OPTIONS)
    # A compiled step must not find the last one's cache changed: it gives another one.
    compiled = torch.compile(step, fullgraph=True, dynamic=False)

    def stepwise(step: Callable[..., Any]) -> Tensor:
        with torch.no_grad():
            cache = tinyfn.init_cache(params, capacity=PROMPT + new, batch=(batch,))
            logits, cache = tinyfn.prefill(params, cache, prompt, **OPTIONS)
            tokens = [logits.argmax(-1)]
            while len(tokens) < new:
                logits, cache = step(params, cache, tokens[-1])
                tokens.append(logits.argmax(-1))
        return torch.stack(tokens, -1)

    ready = generation.prepare(params)

    def greedy(params: Any = params) -> Tensor:
        return generation.greedy(params, prompt, max_len=new, **OPTIONS).tokens

    own: Calls = {
        "tinyfn.generation.greedy": greedy,
        "tinyfn.decode_step": partial(stepwise, step),
        "tinyfn.decode_step, compiled": partial(stepwise, compiled),
        "tinyfn.generation.greedy, prepared, compiled": partial(greedy, ready),
    }
    assert torch.equal(greedy(), stepwise(step))
    return {"greedy": hugging_face(prompt, new) | x_transformers(prompt, new) | own}


def hugging_face(prompt: Tensor, new: int) -> Calls:
    """GPT-2 by `generate`."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return {}
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=1024,
        n_embd=FEATURES,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=HIDDEN,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: Any = GPT2LMHeadModel(config).eval()
    attended = torch.ones_like(prompt)

    def generate() -> object:
        return model.generate(
            prompt,
            attention_mask=attended,
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )

    return {"Hugging Face GPT-2": generate}


def x_transformers(prompt: Tensor, new: int) -> Calls:
    """The same sizes by its autoregressive wrapper."""
    try:
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper
    except ImportError:
        return {}
    layers = Decoder(dim=FEATURES, depth=LAYERS, heads=HEADS, ff_mult=HIDDEN / FEATURES)
    wrapped = TransformerWrapper(num_tokens=VOCAB, max_seq_len=1024, attn_layers=layers)
    model = AutoregressiveWrapper(wrapped).eval()

    def generate() -> object:
        with torch.no_grad():
            return model.generate(prompt, new, temperature=0.0, cache_kv=True)

    return {"x-transformers": generate}


if __name__ == "__main__":
    run(__doc__, candidates, rounds=5, sizes=["1x256", "8x256"])
