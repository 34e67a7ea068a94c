"""The transformer from letters to phonemes: its params, its loss, and decoding."""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tinyfn import (
    _checks,
    cross_entropy,
    generation,
    init_rms_norm,
    init_transformer,
    masks,
    positions,
    rms_norm,
    transformer,
    transformer_attention_weights,
    tree,
)
from tinyfn.pronunciation import data, graphones
from tinyfn.types import Key, Params

SIZES = {
    "num_features": 128,
    "num_heads": 4,
    "dim_feedforward": 256,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
}
OPTIONS: dict[str, Any] = {
    "norm": rms_norm,
    "norm_first": True,
    "position": positions.add_sinusoidal,
}
LENGTH_PENALTY = 0.0  # the likeliest pronunciation, not the likeliest phoneme on average
JUDGED = 0.6  # a judge's say beside the model's, chosen by the validation words


def init(key: Key, sizes: dict[str, int]) -> Params:
    """Params of a transformer from letter tokens to phoneme tokens.

    Args:
        key: Randomness of the weights.
        sizes: As `SIZES`.

    Example:
        >>> from tinyfn import random
        >>> list(init(random.key(0), SIZES))
        ['encoder', 'decoder', 'linear']
    """
    made: dict[str, Any] = {"final_norm": True, "init_norm": init_rms_norm, "bias": False}
    made |= {"src_vocab_size": data.NUM_LETTER_TOKENS, "tgt_vocab_size": data.NUM_PHONEME_TOKENS}
    return init_transformer(key, **sizes, **made)


def sizes(params: Params) -> dict[str, int]:
    """The sizes of params, read from their shapes.

    Example:
        >>> from tinyfn import random
        >>> sizes(init(random.key(0), SIZES)) == SIZES
        True
    """
    layers = params["encoder"]["layers"]
    return {
        "num_features": params["encoder"]["embedding"]["weight"].shape[1],
        "num_heads": layers[0]["self_attention"]["q_proj"]["weight"].shape[0],
        "dim_feedforward": layers[0]["feed_forward"]["up_proj"]["weight"].shape[0],
        "num_encoder_layers": len(layers),
        "num_decoder_layers": len(params["decoder"]["layers"]),
    }


def deepened(params: Params, num_encoder_layers: int, num_decoder_layers: int) -> Params:
    """Params of more layers that give the same logits.

    A layer that is added is a copy of the one before it, but that its output projections are zero.

    Args:
        params: From `init`.
        num_encoder_layers: As many as there are, or more.
        num_decoder_layers: As many as there are, or more.

    Raises:
        ValueError: There are more layers than asked for.

    Example:
        >>> from tinyfn import random
        >>> sizes(deepened(init(random.key(0), SIZES), 4, 2))["num_encoder_layers"]
        4

    Reference: Chen et al., "Net2Net", ICLR 2016, arXiv 1511.05641.
    """
    wanted = {"encoder": num_encoder_layers, "decoder": num_decoder_layers}
    parts = {
        name: {**params[name], "layers": _repeated(name, params[name]["layers"], many)}
        for name, many in wanted.items()
    }
    return {**params, **parts}


def _repeated(part: str, layers: list[Params], many: int) -> list[Params]:
    if many < len(layers):
        requirement, remedy = f"be at least {len(layers)}", "No layer is taken out"
        name = f"num_{part}_layers"
        raise _checks.fail(ValueError, "deepened", name, requirement, many, remedy)
    sources = [place * len(layers) // many for place in range(many)]
    return [
        _silent(layers[source]) if source == before else layers[source]
        for before, source in zip([None, *sources], sources, strict=False)
    ]


def _silent(layer: Params) -> Params:
    """A copy with zeros where its parts join the residual, which it then leaves as it is."""
    last = {"out_proj", "down_proj"}
    flat = {
        path: torch.zeros_like(leaf) if last & set(path.split(".")) else leaf.clone()
        for path, leaf in tree.flatten(layer).items()
    }
    return tree.unflatten(flat)


def chances(
    teachers: Sequence[Params], batch: data.Batch
) -> Float[Tensor, "words next_phonemes vocab"]:
    """The mean of several models' probabilities of each token as the next.

    Args:
        teachers: Each from `init`, at least one.
        batch: Words and their pronunciations.

    Example:
        >>> from tinyfn import random
        >>> chances([init(random.key(0), SIZES)], data.pairs({"a": [("AH",)]})).shape
        torch.Size([1, 2, 42])
    """
    _checks.at_least("chances", "the number of teachers", len(teachers))
    return torch.stack([logits(params, batch).softmax(-1) for params in teachers]).mean(0)


def logits(
    params: Params, batch: data.Batch, key: Key | None = None, *, dropout_p: float = 0.0
) -> Float[Tensor, "words next_phonemes vocab"]:
    """How likely each token is as the next, at every phoneme but the last.

    Args:
        params: From `init`.
        batch: Words and their pronunciations.
        key: Randomness for dropout.
        dropout_p: Chance of a drop.

    Example:
        >>> from tinyfn import random
        >>> logits(init(random.key(0), SIZES), data.pairs({"a": [("AH",)]})).shape
        torch.Size([1, 2, 42])
    """
    letters, phonemes = batch.letters, batch.phonemes
    seen = _seen(letters)
    # Padding follows the phonemes, so the causal mask hides it from them.
    return transformer(
        params,
        letters.ids,
        phonemes.ids[:, :-1],
        seen,
        masks.causal(),
        seen,
        key,
        dropout_p=dropout_p,
        **OPTIONS,
    )


def _seen(letters: data.Tokens) -> masks.Mask | None:
    return None if letters.lengths is None else masks.padding(letters.lengths)


def loss(
    params: Params,
    batch: data.Batch,
    key: Key | None = None,
    *,
    dropout_p: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of each next phoneme, over those that are not padding.

    Half of each target is what `batch.taught` says, where there is that.

    Args:
        params: From `init`.
        batch: Words and their pronunciations.
        key: Randomness for dropout.
        dropout_p: Chance of a drop.
        label_smoothing: How much of the target's probability is spread over all tokens.

    Example:
        >>> from tinyfn import random
        >>> loss(init(random.key(0), SIZES), data.pairs({"a": [("AH",)]})).shape
        torch.Size([])

    Reference: Sun et al., "Token-Level Ensemble Distillation for Grapheme-to-Phoneme Conversion",
    Interspeech 2019 (`taught`).
    """
    found = logits(params, batch, key, dropout_p=dropout_p)
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    targets = batch.phonemes.ids[:, 1:]
    real = targets != data.PAD
    # F.cross_entropy's mean is wrong for DTensors of which the parts have unequal padding.
    losses = cross_entropy(found, targets, real, label_smoothing=label_smoothing)
    if batch.taught is not None:
        others = -(batch.taught * found.log_softmax(-1)).sum(-1)
        losses = (losses + torch.where(real, others, 0.0)) / 2
    return losses.sum() / real.sum()


def decode(
    params: Params,
    letters: data.Tokens,
    *,
    max_len: int,
    num_beams: int = 1,
    judge: graphones.Judge | None = None,
    options: dict[str, Any] = OPTIONS,
) -> Int64[Tensor, "words seq"]:
    """The likeliest phonemes of each word.

    Args:
        params: From `init`.
        letters: The words.
        max_len: How many phonemes at most.
        num_beams: How many beginnings are kept; 1 takes the likeliest phoneme each time.
        judge: What has a say in which beam is taken: that with the largest sum of both log
            chances, the judge's times `JUDGED`.
        options: As the model was trained with.

    Raises:
        ValueError: There are a `judge` and one beam, of which it has nothing to choose.

    Example:
        >>> from tinyfn import random
        >>> decode(init(random.key(0), SIZES), data.encode_words(["a"]), max_len=1).shape
        torch.Size([1, 1])
    """
    if judge is not None and num_beams == 1:
        requirement, remedy = "be 2 or more beside a judge", "Keep more beams, or leave it out"
        raise _checks.fail(ValueError, "decode", "num_beams", requirement, num_beams, remedy)
    start = letters.ids.new_full((len(letters.ids), 1), data.START)
    given = (params, start, None, letters.ids, _seen(letters))
    limits = {"max_len": max_len, "end": data.END}
    if num_beams == 1:
        return generation.greedy(*given, **limits, **options).tokens
    beams: dict[str, Any] = {"num_beams": num_beams, "length_penalty": LENGTH_PENALTY}
    if judge is None:
        return generation.beam_search(*given, **limits, **beams, **options).tokens[:, 0]
    found = generation.beam_search(*given, **limits, **beams, n_best=num_beams, **options)
    scores = found.scores + JUDGED * _judged(judge, letters, found)
    rows = torch.arange(len(scores), device=scores.device)
    return found.tokens[rows, scores.argmax(-1)]


def _judged(
    judge: graphones.Judge, letters: data.Tokens, beams: generation.Beams
) -> Float[Tensor, "words beams"]:
    """The log chance that a judge gives each beam; 0 for a word whose first it could not read."""
    lengths = beams.lengths.cpu().unsqueeze(-1)
    places = torch.arange(int(lengths.max()))  # and nothing behind the longest
    ids = torch.where(places < lengths, beams.tokens.cpu()[..., : len(places)], data.END)
    words = letters.ids.cpu().repeat_interleave(ids.shape[1], 0)
    spoken = graphones.of_tokens(words, ids.flatten(0, 1))
    found = graphones.log_chances(judge, spoken).view(beams.lengths.shape)
    return torch.where(found[:, :1].isfinite(), found, 0.0).to(beams.scores)


def pronounce(
    params: Params,
    words: list[str],
    *,
    batch_size: int = 256,
    workers: int = 1,
    num_beams: int = 1,
    judge: graphones.Judge | None = None,
    options: dict[str, Any] = OPTIONS,
) -> list[data.Pronunciation]:
    """The phonemes of words.

    Args:
        params: From `init`.
        words: Of the letters a to z.
        batch_size: How many beams are decoded at once, of words of similar length.
        workers: How many batches are decoded side by side, where they are on the CPU. It pays
            where each product takes one thread only (`torch.set_num_threads`).
        num_beams: As in `decode`.
        judge: As in `decode`.
        options: As the model was trained with.

    Raises:
        ValueError: A word is empty, or has other characters, there are a `judge` and one beam, or
            `batch_size`, `workers` or `num_beams` is below 1.

    Example:
        >>> from tinyfn import random
        >>> len(pronounce(init(random.key(0), SIZES), ["a", "few", "words"]))
        3
    """
    for name, many in (("batch_size", batch_size), ("workers", workers), ("num_beams", num_beams)):
        _checks.at_least("pronounce", name, many)
    device = params["linear"]["weight"].device
    by_length = sorted(range(len(words)), key=lambda i: -len(words[i]))  # the longest work first
    size = max(1, batch_size // num_beams)
    batches = [by_length[i : i + size] for i in range(0, len(words), size)]
    search = {"num_beams": num_beams, "judge": judge, "options": options}

    def say(chosen: list[int]) -> list[data.Pronunciation]:
        letters = data.encode_words([words[i] for i in chosen]).to(device)
        most = _most_phonemes(letters.ids.shape[-1])
        found = data.decode_pronunciations(decode(params, letters, max_len=most, **search))
        return [one[: _most_phonemes(len(words[i]))] for i, one in zip(chosen, found, strict=True)]

    if device.type == "cpu" and min(workers, len(batches)) > 1:
        with ThreadPoolExecutor(workers) as pool:
            said = list(pool.map(say, batches))
    else:
        said = list(map(say, batches))
    found: list[data.Pronunciation] = [()] * len(words)
    for i, phonemes in zip(by_length, itertools.chain(*said), strict=True):
        found[i] = phonemes
    return found


def _most_phonemes(letters: int) -> int:
    return 8 + 2 * letters  # a letter by itself, as w, has many


def cross_attention(
    params: Params, word: str, phonemes: data.Pronunciation
) -> list[Float[Tensor, "heads phonemes letters"]]:
    """Where each layer's heads look as each phoneme of a word comes next.

    The last row is that of the end, which follows the last phoneme.

    Example:
        >>> from tinyfn import random
        >>> weights = cross_attention(init(random.key(0), SIZES), "be", ("B", "IY"))
        >>> weights[0].shape
        torch.Size([4, 3, 2])
    """
    device = params["linear"]["weight"].device
    letters = data.encode_words([word]).ids[0].to(device)
    said = data.encode_pronunciations([phonemes]).ids[0, :-1].to(device)
    with torch.no_grad():
        weights = transformer_attention_weights(params, letters, said, **OPTIONS)
    return [layer["cross_attention"] for layer in weights["decoder"]]
