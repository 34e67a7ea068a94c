"""Language models with the matrix that makes logits, with a tied one, or without."""

from collections.abc import Collection

from tinyfn._transformer import decoder
from tinyfn.interop._tables import Counterpart, Line, bare

_OURS, _THEIRS = "linear.weight", "lm_head.weight"


def with_output(match: Counterpart, names: Collection[str], *, tie: bool) -> Counterpart:
    """The counterpart of a language model, or of its decoder where these are a decoder's weights.

    Args:
        match: Of the language model, its table without the output matrix and the embedding first.
        names: Of the weights, theirs or ours.
        tie: Whether the embedding is the output matrix.

    Example:
        >>> lines = (Line("decoder.embedding.weight", "model.wte.weight"),)
        >>> match = Counterpart(print, {}, lines, {}, {})
        >>> with_output(match, [_THEIRS], tie=True).table[0].theirs
        ('model.wte.weight', 'lm_head.weight')
        >>> with_output(match, ["wte.weight"], tie=True).table[0].ours
        'embedding.weight'
    """
    embedding, *rest = match.table
    ours, theirs = str(embedding.ours), str(embedding.theirs)
    prefixes = "decoder.", f"{theirs.partition('.')[0]}."
    if ours.removeprefix(prefixes[0]) in names or theirs.removeprefix(prefixes[1]) in names:
        buffers = tuple(name.removeprefix(prefixes[1]) for name in match.buffers)
        table = bare(match.table, *prefixes)
        return match._replace(function=decoder, table=table, buffers=buffers)
    if tie:
        table = (embedding._replace(theirs=(theirs, _THEIRS)), *rest)
    else:
        table = (*match.table, Line(_OURS, _THEIRS))
    return match._replace(table=table)
