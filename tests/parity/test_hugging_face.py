"""`from_hugging_face` and the functions agree with models of transformers that generate text.

The models are tiny and random. In float64, transformers' own float32 steps are made float64.
"""

import contextlib
import re
from functools import partial

import pytest
import torch
import transformers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import tinyfn
from tinyfn import generation, interop, masks, positions, random, testing, tree
from tinyfn.interop import _options

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
ENDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
GPT2 = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, **ENDS}
LLAMA = {
    "vocab_size": 11,
    "hidden_size": 12,
    "intermediate_size": 5,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    **ENDS,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 0}
ROPES = {
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "longrope": {
        "short_factor": [1.0, 2.0, 3.0],
        "long_factor": [2.0, 3.0, 4.0],
        "original_max_position_embeddings": 3,
    },
}


def roped(kind, theta=50.0, **options):
    """Options of a Llama; a low theta turns every pair within a few positions."""
    rope = {"rope_type": kind, "rope_theta": theta, **ROPES.get(kind, {}), **options}
    return {"head_dim": 6, "rope_parameters": rope}


MODELS = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT2),
    "gpt2_untied": (
        GPT2LMHeadModel,
        GPT2Config,
        {**GPT2, "tie_word_embeddings": False, "activation_function": "relu", "n_inner": 5},
    ),
    "gpt2_without_head": (GPT2Model, GPT2Config, {**GPT2, "layer_norm_epsilon": 0.1}),
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA | roped("default")),
    "llama_biased_and_tied": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
        | {"head_dim": 8, "hidden_act": "gelu", "rms_norm_eps": 0.1},
    ),
    "llama_without_head": (LlamaModel, LlamaConfig, LLAMA | {"head_dim": 2}),
    **{f"llama_{kind}": (LlamaForCausalLM, LlamaConfig, LLAMA | roped(kind)) for kind in ROPES},
    "llama_dynamic_beyond": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA | roped("dynamic") | {"max_position_embeddings": 3},
    ),
    "llama_yarn_with_scales": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA | roped("yarn", mscale=0.7, mscale_all_dim=0.3, truncate=False, beta_fast=4),
    ),
    "llama_longrope_scaled": (
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA | roped("longrope", attention_factor=1.3, factor=2.0),
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {**LLAMA, "sliding_window": 2, "head_dim": 4}),
    "mistral_without_window": (
        MistralForCausalLM,
        MistralConfig,
        {**LLAMA, "sliding_window": None, "head_dim": 4},
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, LLAMA | {"num_attention_heads": 6}),
    "qwen2_sliding": (
        Qwen2ForCausalLM,
        Qwen2Config,
        LLAMA | {"num_attention_heads": 2, "tie_word_embeddings": True} | SLIDING,
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, LLAMA | {"head_dim": 6, "attention_bias": True}),
}
LANGUAGE_MODELS = [name for name in MODELS if "without_head" not in name]
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES)
every = pytest.mark.parametrize("name", MODELS)
every_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


def model_of(name, dtype=torch.float64):
    """A model in evaluation, no weight at a special value."""
    kind, config, options = MODELS[name]
    generator = torch.Generator().manual_seed(len(name))
    model = kind(config(**options)).to(dtype).eval()
    for p in model.parameters():
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.data += 0.3 * noise.to(dtype)
    return model


TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every
@DTYPES
def test_logits(name, dtype, in_double):
    with in_double() if dtype == torch.float64 else contextlib.nullcontext():
        model = model_of(name, dtype)
        expected = model(TOKENS)[0]
    params, options, f = interop.from_hugging_face(model)
    assert tree.leaves(params)[0].dtype == dtype
    close(f(params, TOKENS, **options), expected, TOLERANCES[dtype])


@every
@DTYPES
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(name, side, dtype, in_double):
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, slice(0, 3) if side == "left" else slice(4, 7)] = False
    with in_double() if dtype == torch.float64 else contextlib.nullcontext():
        model = model_of(name, dtype)
        expected = model(TOKENS, attention_mask=real.long())[0]
    params, options, f = interop.from_hugging_face(model)
    mask = options.pop("self_mask", masks.causal())
    shown = masks.dense(real[:, None]) if side == "left" else masks.padding(real.sum(1))
    actual = f(params, TOKENS, self_mask=mask & shown, **options)
    close(actual[real], expected[real], TOLERANCES[dtype])
    if side == "left":
        assert not torch.allclose(actual, f(params, TOKENS, self_mask=mask, **options))


@every_language_model
@DTYPES
def test_a_token_at_a_time_with_a_cache(name, dtype, in_double, name_of_cache):
    """The cache of a sliding window is a ring no longer than it."""
    steps, kept = [], None
    exact = in_double() if dtype == torch.float64 else contextlib.nullcontext()
    with exact, torch.no_grad():
        model = model_of(name, dtype)
        for token in TOKENS.T:
            out = model(token[:, None], **{name_of_cache(model): kept}, use_cache=True)
            steps.append(out.logits[:, 0])
            kept = out[name_of_cache(model)]
    params, options, _ = interop.from_hugging_face(model)
    back, _ = masks.reach(options.get("self_mask", masks.causal()))
    cache = tinyfn.init_cache(params, capacity=7 if back is None else back + 1, batch=(2,))
    for token, expected in zip(TOKENS.T, steps, strict=True):
        logits, cache = tinyfn.decode_step(params, cache, token, **options)
        close(logits, expected, TOLERANCES[dtype])


LATER = ["llama_dynamic_beyond", "llama_longrope"]
"""Whose frequencies depend on the length: what was kept has turned by those of its time."""


@pytest.mark.parametrize("name", ["gpt2", "llama_yarn", "mistral", "qwen3", *LATER])
def test_a_cache_gives_what_the_whole_gives(name):
    params, options, _ = interop.from_hugging_face(model_of(name))
    check = partial(testing.check_decoding, params, TOKENS[0, :5], **options)
    if name in LATER:
        with pytest.raises(AssertionError):
            check()
    else:
        check()


@pytest.mark.parametrize("name", ["gpt2", "llama_yarn", "mistral", "qwen3"])
def test_generation(name):
    model = model_of(name, torch.float32)
    ids = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(TOKENS[:, :3], attention_mask=torch.ones(2, 3).long(), **ids)
    params, options, _ = interop.from_hugging_face(model)
    drawn = generation.greedy(params, TOKENS[:, :3], max_len=4, **options)
    assert torch.equal(drawn.tokens, whole[:, 3:])


@every
def test_there_and_back(name):
    model = model_of(name, torch.float32)
    weights = model.state_dict()
    params, _, _ = interop.from_hugging_face(weights, model.config)
    back = interop.to_hugging_face(params, model.config)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[weight], weights[weight]) for weight in weights)
    assert all(weight.is_contiguous() for weight in back.values())
    again, _, _ = interop.from_hugging_face(back, model.config)
    for one, two in zip(tree.leaves(params), tree.leaves(again), strict=True):
        assert torch.equal(one, two)
    assert tree.size(params) == sum(p.numel() for p in model.parameters())


@every
def test_gradients(name, in_double):
    with in_double():
        model = model_of(name)
        model(TOKENS)[0].sin().sum().backward()
    params, options, f = interop.from_hugging_face(model)
    gradient = torch.func.grad(lambda p: f(p, TOKENS, **options).sin().sum())(params)
    by_name = interop.to_hugging_face(gradient, model.config)
    for weight, p in model.named_parameters():
        close(by_name[weight], p.grad, 1e-9)


def test_params_are_copies():
    model = model_of("gpt2")
    params, _, _ = interop.from_hugging_face(model)
    before = [leaf.clone() for leaf in tree.leaves(params)]
    back = interop.to_hugging_face(params, model.config)
    for weight in [*model.parameters(), *back.values()]:
        weight.data.add_(1)
    for old, new in zip(before, tree.leaves(params), strict=True):
        assert torch.equal(old, new)
        assert not new.requires_grad


def test_masks_and_frequencies_that_older_versions_saved_have_no_place_and_need_none():
    for name, buffer in (
        ("gpt2", "transformer.h.1.attn.bias"),
        ("gpt2_without_head", "h.0.attn.masked_bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("llama_without_head", "layers.0.self_attn.rotary_emb.inv_freq"),
    ):
        model = model_of(name)
        interop.from_hugging_face(model.state_dict() | {buffer: torch.ones(1)}, model.config)


def test_a_tied_weight_need_not_be_there_twice():
    model = model_of("gpt2")
    weights = model.state_dict()
    del weights["lm_head.weight"]
    interop.from_hugging_face(weights, model.config)
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    match = "have one matrix at transformer.wte.weight and lm_head.weight, .*got two"
    with pytest.raises(ValueError, match=f"^interop.from_hugging_face: the weights must {match}"):
        interop.from_hugging_face(weights, model.config)


def test_a_config_beside_a_model_is_the_one_that_is_read():
    model = model_of("gpt2")
    config = GPT2Config(**GPT2, activation_function="relu")
    _, options, _ = interop.from_hugging_face(model, config)
    assert options["activation"] is torch.relu


def changed(name, without=(), **more):
    model = model_of(name)
    weights = {key: w for key, w in model.state_dict().items() if key not in without}
    return weights | more, model.config


def classifier():
    return LlamaForSequenceClassification(LlamaConfig(**{**LLAMA, "pad_token_id": 0}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            changed("gpt2", ["transformer.h.1.ln_1.bias", "transformer.ln_f.weight"]),
            "be those of the config, got no transformer.h.1.ln_1.bias, transformer.ln_f.weight. ",
        ),
        (
            changed("llama", ["model.norm.weight"], one=torch.ones(1), two=torch.ones(1)),
            "be those of the config, got no model.norm.weight and no place for one, two. ",
        ),
        (
            (classifier(),),
            "be those of the config, got no lm_head.weight and no place for score.weight. ",
        ),
    ],
)
def test_every_weight_without_a_place_and_every_place_without_a_weight_is_named(
    arguments, message, unchecked
):
    with pytest.raises(ValueError, match=f"^interop.from_hugging_face: the weights must {message}"):
        interop.from_hugging_face(*arguments)


def test_every_leaf_without_a_place_and_every_place_without_a_leaf_is_named():
    model = model_of("gpt2")
    params, _, _ = interop.from_hugging_face(model)
    del params["decoder"]["layers"][1]["self_attention"]["k_proj"]["bias"]
    params["pooler"] = {"weight": torch.ones(1)}
    match = (
        "^interop.to_hugging_face: the params must be those of the config, got no "
        "decoder.layers.1.self_attention.k_proj.bias and no place for pooler.weight. "
    )
    with pytest.raises(ValueError, match=match):
        interop.to_hugging_face(params, model.config)


def test_weights_of_other_sizes_are_refused():
    weights, config = changed("llama")
    config.num_key_value_heads = 4
    match = r"its shape must fit .* at model.layers.0.self_attn.k_proj.weight, got \(12, 12\)"
    with pytest.raises(ValueError, match=f"^interop.from_hugging_face: {match}"):
        interop.from_hugging_face(weights, config)
    model = model_of("gpt2")
    params, _, _ = interop.from_hugging_face(model)
    attention = params["decoder"]["layers"][0]["self_attention"]
    attention["k_proj"]["bias"] = torch.ones(1, 4)
    match = r"the params must have one shape at .*q_proj.bias, .*, got \[\(2, 4\), \(1, 4\), "
    with pytest.raises(ValueError, match=f"^interop.to_hugging_face: {match}"):
        interop.to_hugging_face(params, model.config)


@pytest.mark.parametrize(
    ("config", "options", "option", "message"),
    [
        (GPT2Config, {"scale_attn_weights": False}, "scale_attn_weights", "be True, got False"),
        (
            GPT2Config,
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx",
            "be False, got True",
        ),
        (GPT2Config, {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn", "be False, got"),
        (GPT2Config, {"add_cross_attention": True}, "add_cross_attention", "be False, got True"),
        (GPT2Config, {"activation_function": "gelu_10"}, "activation_function", "be one of gelu, "),
        (GPT2Config, {"embd_pdrop": 0.2}, "resid_pdrop", "be that of embd_pdrop, got {'resid_pdr"),
        (GPT2Config, {"novelty": 1}, "novelty", "be absent, got 1. No function here reads it: de"),
        (LlamaConfig, {"pretraining_tp": 2}, "pretraining_tp", "be 1, got 2"),
        (LlamaConfig, roped("proportional"), "rope_parameters['rope_type']", "be one of default, "),
        (
            LlamaConfig,
            roped("default", partial_rotary_factor=0.5),
            "rope_parameters['partial_rotary_factor']",
            "be absent, got 0.5",
        ),
        (
            LlamaConfig,
            roped("linear", beta_fast=3),
            "rope_parameters['beta_fast']",
            "be absent, got 3",
        ),
        *(
            (
                LlamaConfig,
                roped("longrope", **{f"{name}_factor": [1.0] * size}),
                f"rope_parameters['{name}_factor']",
                f"have one number for each pair of features, 3, got {size} of them",
            )
            for name, size in (("short", 1), ("long", 4))
        ),
        (
            MistralConfig,
            {**LLAMA, "layer_types": ["full_attention"] * 2},
            "layer_types",
            "be absent, got ['full_attention', 'full_attention']",
        ),
        (
            Qwen2Config,
            LLAMA | SLIDING | {"max_window_layers": 1},
            "layer_types",
            "be full_attention for every layer, or sliding_attention with a sliding_window, got [",
        ),
        (
            Qwen2Config,
            {**LLAMA, "layer_types": ["sliding_attention"] * 2},
            "layer_types",
            "be full_attention for every layer, or sliding_attention with a sliding_window, got [",
        ),
        (Qwen2Config, {"use_mrope": True}, "use_mrope", "be absent, got True"),
        (Qwen3Config, {"rms_norm_eps": 1e-5}, "rms_norm_eps", "be 1e-6, as in norms of q and k, g"),
        (transformers.BloomConfig, {}, "model_type", "be one of bart, bert, "),
    ],
)
def test_an_option_that_is_not_reproduced_is_refused_by_name(
    config, options, option, message, unchecked
):
    sentence = re.escape(f"config.{option} must {message}")
    for convert in (interop.from_hugging_face, interop.to_hugging_face):
        with pytest.raises(ValueError, match=rf"^interop\.{convert.__name__}: {sentence}"):
            convert({}, config(**options))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.nn.Linear(2, 2),), "config must be a config of transformers, got NoneType"),
        (({}, {"model_type": "gpt2"}), "config must be a config of transformers, got dict. Pass"),
        (("gpt2",), "model must be a model of transformers or a state dict, got str 'gpt2'. Pass"),
    ],
)
def test_what_is_no_model_is_refused(arguments, message, unchecked):
    with pytest.raises(TypeError, match=f"^interop.from_hugging_face: {message}"):
        interop.from_hugging_face(*arguments)


PUBLISHED = {
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "bos_token_id": 0,
        "embd_pdrop": 0.1,
        "eos_token_id": 0,
        "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 8,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": [1, 8, 9],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.43.0.dev0",
        "use_cache": True,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": {"factor": 4, "original_max_position_embeddings": 8, "type": "yarn"},
        "sliding_window": 131072,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
    },
}
"""What config.json says of models that are well known, but for the sizes."""


@pytest.mark.parametrize("kind", PUBLISHED)
def test_configs_as_they_are_published(kind, in_double):
    sizes = GPT2 if kind == "gpt2" else LLAMA | {"num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(kind, **(sizes | PUBLISHED[kind]))
    with in_double():
        model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
        expected = model(TOKENS)[0]
    params, options, f = interop.from_hugging_face(model.state_dict(), config)
    close(f(params, TOKENS, **options), expected, 1e-9)


@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "yarn"])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_frequencies_of_real_sizes(kind, head_dim, theta, in_double):
    rope = {**ROPES[kind], "factor": 8.0}
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = 8192
    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": kind, "rope_theta": theta, **rope},
    )
    with in_double():
        expected, _ = ROPE_INIT_FUNCTIONS[kind](config, seq_len=100000)
    sizes = {"factor": 8.0, "theta": theta}
    actual = {
        "linear": lambda: positions.frequencies(head_dim, theta=theta) / 8.0,
        "dynamic": lambda: positions.ntk_scaled(100000, head_dim=head_dim, max_len=65536, **sizes),
        "llama3": lambda: positions.llama3(head_dim, max_len=8192, **sizes),
        "yarn": lambda: positions.yarn(head_dim, max_len=8192, **sizes),
    }[kind]()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_dropout_falls_where_it_falls_there():
    q, key = random.normal(random.key(0), (2, 3, 4)), random.key(1)
    kept = _options.dropping(0.5, 0.0)(q, q, q, None, key)
    assert torch.equal(kept, tinyfn.dot_product_attention(q, q, q, None, key, dropout_p=0.5))
    params = tinyfn.init_feed_forward(key, 4, 3)
    whole = _options.keeps_hidden(params, q, key, dropout_p=0.9)
    assert torch.equal(whole, tinyfn.feed_forward(params, q))
    for drops in ({"attn_pdrop": 0.5}, {"resid_pdrop": 0.5, "embd_pdrop": 0.5}):
        none = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(**GPT2, **(none | drops)))
        params, options, f = interop.from_hugging_face(model)
        assert options["dropout_p"] == drops.get("resid_pdrop", 0.0)
        without = f(params, TOKENS, **options)
        assert not torch.allclose(f(params, TOKENS, key=key, **options), without)


def test_dropout_of_a_llama_falls_on_attention_weights_only():
    model = LlamaForCausalLM(LlamaConfig(**LLAMA | roped("default"), attention_dropout=0.5))
    params, options, f = interop.from_hugging_face(model)
    key = random.key(0)
    silent = options | {"attend": positions.rotary(tinyfn.dot_product_attention, theta=50.0)}
    dropped = f(params, TOKENS, key=key, **options)
    assert torch.equal(f(params, TOKENS, key=key, **silent), f(params, TOKENS, **options))
    assert not torch.allclose(dropped, f(params, TOKENS, **options))
