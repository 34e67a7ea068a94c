"""How well does the main job's model pronounce beside nn.Transformer of the same size?

Both are trained for the same steps on the same batches, with the same rates and optimiser, and
decoded by the same greedy search. Word and phoneme error on the test words are printed at the end.

    python benchmarks/pronunciation.py [--steps 2000] [--threads 1] [--limit WORDS]
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import positive
from torch import Tensor, nn

from tinyfn import interop, positions, random, tree
from tinyfn.pronunciation import data, evaluate, model, train
from tinyfn.types import Params


class Peer(nn.Module):
    """torch's transformer between embeddings, positions and a linear map as the model has them."""

    def __init__(self, sizes: dict[str, int], dropout_p: float):
        super().__init__()
        width, self.dropout_p = sizes["num_features"], dropout_p
        self.letters = nn.Embedding(data.NUM_LETTER_TOKENS, width)
        self.phonemes = nn.Embedding(data.NUM_PHONEME_TOKENS, width)
        for embedding in (self.letters, self.phonemes):
            nn.init.normal_(embedding.weight, std=width**-0.5)
        self.transformer = nn.Transformer(
            width,
            sizes["num_heads"],
            sizes["num_encoder_layers"],
            sizes["num_decoder_layers"],
            sizes["dim_feedforward"],
            dropout_p,
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.transformer.encoder.enable_nested_tensor = False
        self.linear = nn.Linear(width, data.NUM_PHONEME_TOKENS, bias=False)

    def forward(self, batch: data.Batch) -> Tensor:
        """Logits of each next phoneme."""
        (letters, lengths), phonemes = batch.letters, batch.phonemes.ids[:, :-1]
        hidden = None
        if lengths is not None:
            hidden = torch.arange(letters.shape[1], device=letters.device) >= lengths[:, None]
        causal = nn.Transformer.generate_square_subsequent_mask(phonemes.shape[1], letters.device)
        x = self.transformer(
            self._enter(self.letters, letters),
            self._enter(self.phonemes, phonemes),
            tgt_mask=causal,
            src_key_padding_mask=hidden,
            memory_key_padding_mask=hidden,
            tgt_is_causal=True,
        )
        return self.linear(x)

    def _enter(self, embedding: nn.Embedding, ids: Tensor) -> Tensor:
        x = positions.add_sinusoidal({}, embedding(ids) * embedding.embedding_dim**0.5)
        return F.dropout(x, self.dropout_p, self.training)


def trained(plan: train.Plan, batches: data.Batches, device: str = "cpu") -> Peer:
    """The peer after a plan's steps: its batches, its rates, its optimiser."""
    torch.manual_seed(plan.seed)
    peer = Peer(plan.sizes, plan.dropout_p).to(device)
    leaves = list(peer.parameters())
    optimizer = torch.optim.AdamW(
        leaves, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=True
    )
    state = train.State({}, optimizer, random.key(plan.seed))
    with train.progress(state, plan) as bar:
        for chosen in train.choices(state, batches):
            if state.step >= plan.steps:
                break
            batch = batches.take(chosen, device)
            loss = F.cross_entropy(
                peer(batch).flatten(0, 1),
                batch.phonemes.ids[:, 1:].flatten(),
                ignore_index=data.PAD,
                label_smoothing=plan.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(leaves, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = train.rate(state.step, plan)
            optimizer.step()
            state.step += 1
            bar.update()
    return peer.eval()


def params_of(peer: Peer) -> tuple[Params, dict[str, Any]]:
    """The peer's weights and options for this package's functions, to decode with."""
    params, options = interop.from_torch(peer.transformer)
    for stack, embedding in (("encoder", peer.letters), ("decoder", peer.phonemes)):
        params[stack]["embedding"] = {"weight": embedding.weight}
    params["linear"] = {"weight": peer.linear.weight}
    params = tree.map(lambda leaf: leaf.detach(), params)
    own = {name: options[name] for name in ("norm", "norm_first", "activation")}
    return params, {**own, "position": positions.add_sinusoidal}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=positive, default=2000)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--limit", type=positive, help="use only this many words of each side")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = train.Plan(steps=given.steps, limit=given.limit)
    sides = {
        name: dict(list(words.items())[: plan.limit])
        for name, words in data.split(data.load()).items()
    }
    batches = data.Batches(data.pairs(sides["train"]), plan.max_tokens)
    words, listed = list(sides["test"]), list(sides["test"].values())
    state = train.start(plan)
    with tempfile.TemporaryDirectory() as out:
        if not train.run(state, plan, batches, sides["validation"], Path(out)):
            raise SystemExit(130)
    peer_params, options = params_of(trained(plan, batches))
    rows = {
        "tinyfn": model.pronounce(state.params, words),
        "nn.Transformer": model.pronounce(peer_params, words, options=options),
    }
    print(f"| {plan.steps} steps, {len(words)} words | word error | phoneme error |\n|---|---|---|")
    for name, found in rows.items():
        errors = evaluate.errors(found, listed)
        print(f"| {name} | {errors.word_error:.1%} | {errors.phoneme_error:.1%} |")


if __name__ == "__main__":
    main()
