"""Models of transformers as params, and params as weights of theirs."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from tinyfn import _checks, tree
from tinyfn.interop import _bart, _bert, _gpt2, _llama, _options, _t5, _tables, _texts, _vit
from tinyfn.types import Params

FAMILIES: dict[str, Callable[[Any, Collection[str]], _tables.Counterpart]] = {
    "bart": _bart.bart,
    "bert": _bert.bert,
    "distilbert": _bert.bert,
    "gpt2": _gpt2.gpt2,
    "llama": _llama.llama,
    "marian": _bart.marian,
    "mistral": _llama.mistral,
    "qwen2": _llama.qwen2,
    "qwen3": _llama.qwen3,
    "roberta": _bert.bert,
    "t5": _t5.t5,
    "vit": _vit.vit,
}
"""By `config.model_type`: what is made of a config and the names of weights, theirs or ours."""


def from_hugging_face(
    model: nn.Module | Mapping[str, Tensor], config: Any = None
) -> tuple[Params, dict[str, Any], Callable[..., Any]]:
    """Params of a model of transformers, keyword arguments, and the function that agrees with it.

    | model | function |
    |---|---|
    | GPT2LMHeadModel, GPT2Model | language_model, decoder |
    | LlamaForCausalLM, LlamaModel; those of Mistral, Qwen2, Qwen3 | language_model, decoder |
    | BartForConditionalGeneration, BartModel, MarianMTModel, MarianModel | transformer |
    | T5ForConditionalGeneration (T5Model is read as one) | transformer |
    | T5EncoderModel | f(params, src, src_mask, key) |
    | BertModel, RobertaModel, DistilBertModel | f(params, tokens, mask, key, token_types) |
    | their ForSequenceClassification, ForTokenClassification, ForMaskedLM | the same |
    | ViTForImageClassification, ViTModel | f(params, image, mask, key) |

    Functions that are given as `f` here, of texts and images, are reached through this result only.
    The keyword arguments of a model that decodes are those of caches and generation too. A sliding
    window is among them as `self_mask`; combine it with others by `&`. Dropout needs a `key`.

    The params are copies. What the config asks for and no function here does is refused by name, as
    is a weight that finds no place, or a place that finds no weight.

    Args:
        model: Of transformers, or its `state_dict()`.
        config: That the weights were made with; a model has its own.

    Raises:
        TypeError: The model is of another kind, or the config is missing.
        ValueError: The config has another `model_type`, or an option that is not reproduced; a
            weight finds no place, or a place no weight.

    Example:
        >>> import transformers
        >>> sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 10}
        >>> ends = {"bos_token_id": 0, "eos_token_id": 0}
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends)).eval()
        >>> params, options, function = from_hugging_face(model)
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> logits = function(params, tokens, **options)
        >>> torch.allclose(logits, model(tokens).logits, atol=1e-5)
        True
    """
    name = "interop.from_hugging_face"
    if isinstance(model, nn.Module):
        state = model.state_dict()
        config = getattr(model, "config", None) if config is None else config
    else:
        state = model
    if not isinstance(state, Mapping):
        requirement, kind = "be a model of transformers or a state dict", _checks.kind_of(model)
        raise _checks.fail(TypeError, name, "model", requirement, kind, "Pass model.state_dict()")
    match = _counterpart(name, config, state)
    _check_head(name, model, config, match)
    return _tables.read(name, match, state), match.options, match.function


def _check_head(function: str, model: Any, config: Any, match: _tables.Counterpart) -> None:
    """One class of each choice has the weights of classes of a text, and compares texts."""
    given = isinstance(model, nn.Module)
    kinds = [type(model).__name__] if given else getattr(config, "architectures", None) or ()
    for kind in kinds:
        if match.function is _texts.classify_text and kind.endswith("MultipleChoice"):
            argument, requirement = "model", "be of another class than ...ForMultipleChoice"
            remedy = "Load its weights into the ...ForSequenceClassification with num_labels=1"
            if not given:
                argument, requirement = "config.architectures", "name no ...ForMultipleChoice"
            raise _checks.fail(ValueError, function, argument, requirement, kind, remedy)


def to_hugging_face(params: Params, config: Any) -> dict[str, Tensor]:
    """The state dict of a model of transformers: what `from_hugging_face` reads, written back.

    A weight that is tied there stands under each of its names. Gradients by the params are
    gradients by the weights in the same way. A ViT has the names of today's transformers, also
    where it was read under the older ones that its file has.

    Args:
        params: As `from_hugging_face` gives them.
        config: Of the model that is to load them, by `load_state_dict`.

    Raises:
        TypeError: `config` is not one of transformers.
        ValueError: As `from_hugging_face`.

    Example:
        >>> import transformers
        >>> sizes = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 10}
        >>> ends = {"bos_token_id": 0, "eos_token_id": 0}
        >>> model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends))
        >>> params, _, _ = from_hugging_face(model)
        >>> model.load_state_dict(to_hugging_face(params, model.config))
        <All keys matched successfully>
    """
    name = "interop.to_hugging_face"
    return _tables.write(name, _counterpart(name, config, tree.flatten(params)), params)


def _counterpart(function: str, config: Any, names: Collection[str]) -> _tables.Counterpart:
    kind = getattr(config, "model_type", None)
    if kind is None:
        remedy = "Pass model.config, or transformers.AutoConfig.for_model(**json)"
        requirement, actual = "be a config of transformers", _checks.kind_of(config)
        raise _checks.fail(TypeError, function, "config", requirement, actual, remedy)
    if kind not in FAMILIES:
        requirement = f"be one of {', '.join(sorted(FAMILIES))}"
        remedy = "Convert its parts by hand"
        raise _checks.fail(
            ValueError, function, "config.model_type", requirement, repr(kind), remedy
        )
    try:
        return FAMILIES[kind](config, names)
    except _options.Refused as refused:
        raise _checks.fail(ValueError, function, *refused.args) from None
