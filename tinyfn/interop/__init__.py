"""Weights of other libraries as params, and params as their weights.

    from_torch          modules of torch.nn, and `to_torch` back
    from_hugging_face   models of transformers (extra `hf`), and `to_hugging_face` back

What a model computes and a function here cannot is refused by name, never left out.
"""

from tinyfn.interop._hugging_face import from_hugging_face as from_hugging_face
from tinyfn.interop._hugging_face import to_hugging_face as to_hugging_face
from tinyfn.interop._to_torch import to_torch as to_torch
from tinyfn.interop._torch import from_torch as from_torch
