"""Text from a model: pure functions of params, a prompt (or a source) and a key.

    greedy        the likeliest token at each step
    sample        one drawn by key
    beam_search   the likeliest texts that keeping the `num_beams` best prefixes finds
    stream        the tokens of `greedy` or `sample` as they come
    log_probs     what a text scores, differentiable
    prepare       params whose steps are compiled, for the first four

They take params of `language_model` and of `transformer`, and the options that those are called
with. A prompt is the beginning of the text; a source is what the encoder reads. What may follow is
a function that you pass as `adjust`: (logits, history) to logits. `temperature`, `top_k`, `top_p`,
`min_p` and `repetition_penalty` make some, `chain` joins them, and a constraint is one of yours,
which sets to -inf what may not come.
"""

from tinyfn.generation._adjust import Adjust as Adjust
from tinyfn.generation._adjust import chain as chain
from tinyfn.generation._adjust import min_p as min_p
from tinyfn.generation._adjust import repetition_penalty as repetition_penalty
from tinyfn.generation._adjust import temperature as temperature
from tinyfn.generation._adjust import top_k as top_k
from tinyfn.generation._adjust import top_p as top_p
from tinyfn.generation._beams import Beams as Beams
from tinyfn.generation._beams import beam_search as beam_search
from tinyfn.generation._log_probs import log_probs as log_probs
from tinyfn.generation._loop import Generated as Generated
from tinyfn.generation._loop import greedy as greedy
from tinyfn.generation._loop import sample as sample
from tinyfn.generation._loop import stream as stream
from tinyfn.generation._prepare import Prepared as Prepared
from tinyfn.generation._prepare import prepare as prepare
