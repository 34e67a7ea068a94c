"""Encoders, and encoders with decoders, of transformers: tiny models made from their configs."""

from functools import partial

import pytest
import torch
import transformers

import tinyfn
from tinyfn import generation, interop, masks, positions, random, tree
from tinyfn._attend import dot_product_attention
from tinyfn._transformer import encode

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCES)
BERT = {
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "max_position_embeddings": 12,
    "num_labels": 3,
}
DISTILBERT = {
    "vocab_size": 11,
    "dim": 8,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 6,
    "max_position_embeddings": 12,
    "num_labels": 3,
}
CONFIGS = {
    "Bert": partial(transformers.BertConfig, **BERT),
    "Roberta": partial(transformers.RobertaConfig, **BERT),
    "DistilBert": partial(transformers.DistilBertConfig, **DISTILBERT),
}
T5 = {
    "vocab_size": 11,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 6,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 5,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": 11,
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 6,
    "decoder_ffn_dim": 5,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
CONFIGS["Bart"] = partial(transformers.BartConfig, **BART)
CONFIGS["Marian"] = partial(transformers.MarianConfig, **BART)
CONFIGS["T5"] = partial(transformers.T5Config, **T5)
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "image_size": (4, 9),
    "patch_size": (2, 3),
    "num_channels": 2,
    "num_labels": 3,
}
CONFIGS["ViT"] = partial(transformers.ViTConfig, **VIT)
HEADS = "Model", "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"
TEXT_MODELS = [(family, head) for family in ("Bert", "Roberta", "DistilBert") for head in HEADS]
LENGTHS = torch.tensor([6, 3])
IMAGES = random.normal(random.key(0), (3, 2, 4, 9), dtype=torch.float64)
TOKENS = torch.tensor([[3, 5, 7, 8, 10, 4], [3, 9, 4, 1, 1, 1]])
REAL = torch.arange(6) < LENGTHS[:, None]


def made(family, head, dtype=torch.float64, **options):
    """A model in evaluation, no weight at a special value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, family + head)(CONFIGS[family](**options))
        for weight in model.parameters():
            weight.data += 0.3 * torch.randn_like(weight)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer += torch.randn_like(buffer)
    return model.to(dtype).eval()


def conditional(family, dtype=torch.float64, **options):
    return made(
        family, "MTModel" if family == "Marian" else "ForConditionalGeneration", dtype, **options
    )


def close(actual, expected):
    tolerance = TOLERANCES[expected.dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def only_real(x):
    """Of features of tokens those that stand for something; of a text's, all."""
    return x[REAL] if x.ndim == 3 else x


@DTYPES
@pytest.mark.parametrize(("family", "head"), TEXT_MODELS)
def test_text_encoders_agree(family, head, dtype):
    model = made(family, head, dtype)
    params, options, function = interop.from_hugging_face(model)
    tokens = TOKENS.clone()
    tokens[1, 3:] = 6  # no padding: every position counts
    close(function(params, tokens, **options), model(tokens)[0])
    padded = model(TOKENS, attention_mask=REAL.long())[0]
    ours = function(params, TOKENS, masks.padding(LENGTHS), **options)
    close(only_real(ours), only_real(padded))


@pytest.mark.parametrize(("family", "head"), TEXT_MODELS)
def test_text_encoders_go_there_and_back_bit_for_bit(family, head):
    there_and_back(made(family, head))


def there_and_back(model):
    params, _, _ = interop.from_hugging_face(model)
    back, theirs = interop.to_hugging_face(params, model.config), model.state_dict()
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[name], theirs[name]) for name in back)
    again, _, _ = interop.from_hugging_face(theirs, model.config)
    tree.map(lambda a, b: torch.testing.assert_close(a, b, rtol=0, atol=0), again, params)


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_token_types_are_an_input(family):
    model = made(family, "ForSequenceClassification", type_vocab_size=3)
    params, options, function = interop.from_hugging_face(model)
    types = torch.tensor([[0, 0, 1, 1, 2, 0], [2, 1, 0, 0, 0, 0]])
    expected = model(TOKENS, attention_mask=REAL.long(), token_type_ids=types).logits
    ours = function(params, TOKENS, masks.padding(LENGTHS), None, types, **options)
    close(ours, expected)
    assert (expected - model(TOKENS, attention_mask=REAL.long()).logits).abs().min() > 1e-3


def test_params_without_token_types_refuse_them():
    params, options, function = interop.from_hugging_face(made("DistilBert", "Model"))
    with pytest.raises(ValueError, match="token_types must be None for params without token types"):
        function(params, TOKENS, None, None, TOKENS, **options)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 1), (2, 2, 6), ()])
def test_token_types_of_another_shape_are_refused(shape):
    params, options, function = interop.from_hugging_face(made("Bert", "Model"))
    types = torch.zeros(shape, dtype=torch.long)
    said = r"^encode_text: token_types must have the shape of tokens, \(2, 6\), got shape \("
    with pytest.raises(ValueError, match=said):
        function(params, TOKENS, None, None, types, **options)
    f = partial(function, params, TOKENS[0], None, None, **options)
    types = TOKENS % 2
    close(torch.vmap(f)(types), torch.stack([f(x) for x in types]))


def test_padding_before_a_text_is_not_counted():
    model = made("Roberta", "Model")
    params, options, function = interop.from_hugging_face(model)
    tokens, real = TOKENS.flip(1), REAL.flip(1)
    ours = function(params, tokens, real[:, None, None], **options)
    close(ours[real], model(tokens, attention_mask=real.long())[0][real])


def test_more_positions_than_there_are_rows_are_refused():
    for family, least in (("Bert", 13), ("Roberta", 11)):  # its padding takes two rows
        params, options, function = interop.from_hugging_face(made(family, "Model"))
        tokens = torch.full((1, least), 3)
        function(params, tokens[:, 1:], **options)
        with pytest.raises(ValueError, match="seq must end within max_len=12"):
            function(params, tokens, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_act": "gelu_new", "layer_norm_eps": 0.1},
        {"hidden_act": "relu", "pad_token_id": 0},
        {
            "hidden_dropout_prob": 0.3,
            "attention_probs_dropout_prob": 0.2,
            "position_embedding_type": "absolute",
        },
    ],
)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_options_of_a_config_are_read(family, options):
    model = made(family, "ForMaskedLM", **options)
    params, keywords, function = interop.from_hugging_face(model)
    close(function(params, TOKENS, **keywords), model(TOKENS).logits)


@pytest.mark.parametrize(
    ("family", "head", "options", "message"),
    [
        ("Bert", "Model", {"is_decoder": True}, "is_decoder must be False, got True"),
        ("Roberta", "Model", {"add_cross_attention": True, "is_decoder": True}, "is_decoder must"),
        ("Bert", "ForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings must be True"),
        (
            "Bert",
            "Model",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type must be 'absolute', got 'relative_key'",
        ),
        ("DistilBert", "Model", {"activation": "gelu_10"}, "activation must be one of gelu"),
    ],
)
def test_options_that_are_not_reproduced_are_refused(family, head, options, message):
    model = made(family, head, **options)
    with pytest.raises(ValueError, match=f"from_hugging_face: config.{message}"):
        interop.from_hugging_face(model)


@pytest.mark.parametrize("head", ["ForQuestionAnswering", "ForNextSentencePrediction"])
def test_heads_without_a_function_are_refused(head):
    with pytest.raises(ValueError, match=r"no place for .*(qa_outputs|seq_relationship).weight"):
        interop.from_hugging_face(made("Bert", head))


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_choices_are_not_taken_for_classes_of_a_text(family):
    model = made(family, "ForMultipleChoice")
    said = rf"^interop.from_hugging_face: model must be of another class .*got {family}ForMul"
    with pytest.raises(ValueError, match=said):
        interop.from_hugging_face(model)
    config = CONFIGS[family](num_labels=1, architectures=[f"{family}ForMultipleChoice"])
    with pytest.raises(ValueError, match=r"config.architectures must name no \.\.\.ForMultiple"):
        interop.from_hugging_face(model.state_dict(), config)
    alone = made(family, "Model")  # loaded from such a file
    interop.from_hugging_face(alone.state_dict(), config)
    other = made(family, "ForSequenceClassification", architectures=config.architectures)
    interop.from_hugging_face(other)


TEXTS = (TOKENS,)
DROPS = [
    ("Bert", "Model", TEXTS, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
    ("Bert", "ForSequenceClassification", TEXTS, ("classifier_dropout",)),
    ("Roberta", "ForTokenClassification", TEXTS, ("hidden_dropout_prob", "classifier_dropout")),
    ("DistilBert", "Model", TEXTS, ("dropout", "attention_dropout")),
    ("DistilBert", "ForSequenceClassification", TEXTS, ("seq_classif_dropout",)),
    ("Bart", "Model", (TOKENS, TOKENS), ("dropout", "attention_dropout", "activation_dropout")),
    ("T5", "ForConditionalGeneration", (TOKENS, TOKENS), ("dropout_rate",)),
    ("ViT", "Model", None, ("hidden_dropout_prob", "attention_probs_dropout_prob")),
]


@pytest.mark.parametrize(("family", "head", "inputs", "names"), DROPS)
def test_each_dropout_comes_with_a_key(family, head, inputs, names):
    every = {name: 0.0 for *_, some in DROPS for name in some if hasattr(CONFIGS[family](), name)}
    for name in (None, *names):
        chances = every if name is None else {**every, name: 0.5}
        params, options, function = interop.from_hugging_face(made(family, head, **chances))
        given = (IMAGES,) if inputs is None else inputs
        draw = partial(function, params, *given, **options)
        once, again, other = (draw(key=random.key(seed)) for seed in (0, 0, 1))
        assert torch.equal(once, again)
        assert torch.equal(once, other) == (name is None)


def test_roberta_drops_before_its_pooler_and_behind_it():
    model = made("Roberta", "ForSequenceClassification", hidden_dropout_prob=0.0)
    params, options, function = interop.from_hugging_face(model)
    chances = {"head_dropout_p": 0.0, "first_dropout_p": 0.0, "attend": dot_product_attention}
    plain = function(params, TOKENS, **options)
    for name in (None, "head_dropout_p", "first_dropout_p"):
        given = {**options, **chances} | ({name: 0.5} if name else {})
        drawn = function(params, TOKENS, None, random.key(0), **given)
        assert torch.equal(drawn, plain) == (name is None)


def gradients_agree(model, call, theirs, loss=lambda x: x.sin().sum()):
    """Gradients by our params are theirs by the weights, where tied ones add up."""
    params, options, function = interop.from_hugging_face(model)
    ours = torch.func.grad(lambda params: loss(call(function, params, options)))(params)
    loss(theirs(model)).backward()
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad
        for name, weight in (*model.named_parameters(remove_duplicate=False), *buffers_of(model))
    }
    expected, _, _ = interop.from_hugging_face(found, model.config)
    fixed = {"linear.bias"} if buffers_of(model) else set()  # a weight here, a buffer there
    fixed |= (
        {"encoder.position.weight", "decoder.position.weight"}
        if "Marian" in str(type(model))
        else set()
    )
    ours, expected = tree.flatten(ours), tree.flatten(expected)
    assert ours.keys() == expected.keys()
    for name in ours.keys() - fixed:
        close(ours[name], expected[name])


def buffers_of(model):
    return [(name, x) for name, x in model.named_buffers() if name == "final_logits_bias"]


@pytest.mark.parametrize(("family", "head"), TEXT_MODELS)
def test_gradients_of_text_encoders_agree(family, head):
    model = made(family, head)
    call = lambda f, params, options: f(params, TOKENS, masks.padding(LENGTHS), **options)  # noqa: E731 (short)
    gradients_agree(
        model,
        lambda *given: only_real(call(*given)),
        lambda model: only_real(model(TOKENS, attention_mask=REAL.long())[0]),
    )


@pytest.fixture
def exact_norms(monkeypatch):
    """Theirs computes the variance in float32, whatever the weights are."""

    def forward(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    norm = transformers.models.t5.modeling_t5.T5LayerNorm
    monkeypatch.setattr(norm, "forward", forward)


TARGET = torch.tensor([[0, 5, 7, 8, 10, 4, 9], [0, 9, 3, 2, 5, 6, 6]])
PAIRS = [
    ("T5", {}),
    ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    ("T5", {"feed_forward_proj": "gated-silu", "layer_norm_epsilon": 0.1, "d_kv": 5}),
    ("Bart", {}),
    ("Bart", {"scale_embedding": True, "activation_function": "relu", "encoder_layers": 1}),
    ("Marian", {"activation_function": "swish"}),
    ("Marian", {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 13}),
]
WITH_PAIRS = pytest.mark.parametrize(("family", "options"), PAIRS)


@DTYPES
@WITH_PAIRS
@pytest.mark.usefixtures("exact_norms")
def test_encoders_with_decoders_agree(family, options, dtype):
    model = conditional(family, dtype, **options)
    params, options, function = interop.from_hugging_face(model)
    close(
        function(params, TOKENS, TARGET, **options),
        model(TOKENS, decoder_input_ids=TARGET).logits,
    )
    real = masks.padding(LENGTHS)
    expected = model(TOKENS, attention_mask=REAL.long(), decoder_input_ids=TARGET).logits
    close(function(params, TOKENS, TARGET, real, memory_mask=real, **options), expected)


@WITH_PAIRS
@pytest.mark.usefixtures("exact_norms")
def test_a_token_at_a_time_agrees(family, options, name_of_cache):
    model = conditional(family, **options)
    params, options, _ = interop.from_hugging_face(model)
    real, cross = masks.padding(LENGTHS), {"cross_attend": options["cross_attend"]}
    own = {name: x for name, x in options.items() if name not in ("cross_attend", "output")}
    memory = encode(params, TOKENS, real, **own)
    cache = tinyfn.init_cache(params, memory, real, capacity=TARGET.shape[1], **cross)
    past = None
    for at in range(TARGET.shape[1]):
        token = TARGET[:, at]
        given = {"attention_mask": REAL.long(), name_of_cache(model): past, "use_cache": True}
        theirs = model(TOKENS, decoder_input_ids=token[:, None], **given)
        past = theirs[name_of_cache(model)]
        logits, cache = tinyfn.decode_step(params, cache, token, cross_mask=real, **options)
        close(logits, theirs.logits[:, 0])


@WITH_PAIRS
def test_generation_of_encoders_with_decoders_agrees(family, options):
    # Theirs makes a cache for as many layers as the encoder has.
    options = {**options, "num_decoder_layers": 2} if family == "T5" else options
    model = conditional(family, torch.float32, **options)
    params, options, _ = interop.from_hugging_face(model)
    start, real = TARGET[:, :1], masks.padding(LENGTHS)
    ours, _ = generation.greedy(params, start, None, TOKENS, real, max_len=6, **options)
    given = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 1}
    theirs = model.generate(
        TOKENS, attention_mask=REAL.long(), decoder_input_ids=start, eos_token_id=None, **given
    )
    assert torch.equal(ours, theirs[:, 1:])


@WITH_PAIRS
@pytest.mark.usefixtures("exact_norms")
def test_encoders_with_decoders_go_there_and_back(family, options):
    model = conditional(family, **options)
    there_and_back(model)
    real = masks.padding(LENGTHS)
    gradients_agree(
        model,
        lambda f, p, options: f(p, TOKENS, TARGET, real, memory_mask=real, **options),
        lambda model: model(TOKENS, attention_mask=REAL.long(), decoder_input_ids=TARGET).logits,
    )


@pytest.mark.usefixtures("exact_norms")
def test_the_encoder_of_t5_alone():
    model = made("T5", "EncoderModel")
    params, options, function = interop.from_hugging_face(model)
    ours = function(params, TOKENS, masks.padding(LENGTHS), **options)
    close(ours[REAL], model(TOKENS, attention_mask=REAL.long())[0][REAL])
    there_and_back(model)


@pytest.mark.usefixtures("exact_norms")
def test_an_output_of_its_own_is_read_where_there_is_one():
    model = made("T5", "ForConditionalGeneration", tie_word_embeddings=False)
    model.lm_head.weight = torch.nn.Parameter(2 * model.shared.weight.detach().flip(0))
    params, options, function = interop.from_hugging_face(model)
    close(function(params, TOKENS, TARGET, **options), model(TOKENS, decoder_input_ids=TARGET)[0])
    there_and_back(model)


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (4, 3), (20, 1000), (48, 64)])
def test_every_distance_lies_in_their_range(buckets, distance):
    find = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    table = torch.arange(float(buckets))[:, None]
    at = -torch.arange(1200)
    theirs = find(at, False, buckets, distance)
    ours = positions.relative_bias({"before": table}, 1200, 1, max_distance=distance)
    assert torch.equal(ours[0, :, 0].long(), theirs)
    both = dict(zip(("before", "after"), table.chunk(2), strict=True))
    ours = positions.relative_bias(both, 600, 600, max_distance=distance)
    at = torch.arange(600)
    assert torch.equal(ours[0].long(), find(at - at[:, None], True, buckets, distance))


@pytest.mark.parametrize("family", ["Bart", "Marian"])
def test_encoders_with_decoders_without_a_head_agree(family):
    model = made(family, "Model")
    params, options, function = interop.from_hugging_face(model)
    close(function(params, TOKENS, TARGET, **options), model(TOKENS, decoder_input_ids=TARGET)[0])
    there_and_back(model)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("Bart", {"encoder_layerdrop": 0.1}, "encoder_layerdrop must be 0.0, got 0.1"),
        ("Bart", {"normalize_before": True}, "normalize_before must be False, got True"),
        (
            "Marian",
            {"static_position_embeddings": False},
            "static_position_embeddings must be True",
        ),
        ("Marian", {"normalize_embedding": True}, "normalize_embedding must be False, got True"),
        ("Bart", {"tie_word_embeddings": False}, "tie_word_embeddings must be True, got False"),
        ("T5", {"feed_forward_proj": "gelu_10"}, "dense_act_fn must be one of gelu"),
    ],
)
def test_options_of_encoders_with_decoders_are_refused(family, options, message):
    with pytest.raises(ValueError, match=f"from_hugging_face: config.{message}"):
        interop.from_hugging_face(conditional(family, **options))


SQUARE = {"image_size": 6, "patch_size": 3, "qkv_bias": False, "hidden_act": "gelu_new"}
OF_IMAGES = [
    ("ForImageClassification", {}, IMAGES),
    ("Model", {"layer_norm_eps": 0.1}, IMAGES),
    ("ForImageClassification", SQUARE, IMAGES.repeat(1, 1, 2, 1)[..., :6, :6]),
]


@pytest.mark.parametrize(("head", "options", "images"), OF_IMAGES)
def test_images_agree(head, options, images):
    model = made("ViT", head, **options)
    there_and_back(model)
    for dtype in TOLERANCES:
        params, keywords, function = interop.from_hugging_face(model.to(dtype))
        x = images.to(dtype)
        close(function(params, x, **keywords), model(x)[0])
    gradients_agree(
        model.double(),
        lambda f, params, keywords: f(params, images, **keywords),
        lambda model: model(images)[0],
    )


OF_TEXTS = {
    "encode_text": ("Model", ["embedding", "encoder"]),
    "classify_text": ("ForSequenceClassification", ["pooler", "linear"]),
    "classify_tokens": ("ForTokenClassification", ["linear"]),
    "predict_masked": ("ForMaskedLM", ["transform", "transform_norm", "linear"]),
}
OF_VIT = {"encode_image": ["in_proj", "class_token", "encoder"], "classify_image": ["linear"]}
EATEN = [("Bert", *places, TOKENS, name) for name, places in OF_TEXTS.items()]
EATEN += [("ViT", "ForImageClassification", x, IMAGES, name) for name, x in OF_VIT.items()]


@pytest.mark.parametrize(("family", "head", "names", "x", "eater"), EATEN)
def test_a_part_that_is_missing_is_named(family, head, names, x, eater):
    params, options, function = interop.from_hugging_face(made(family, head))
    for name in names:
        less = {other: part for other, part in params.items() if other != name}
        with pytest.raises(ValueError, match=f"^{eater}: params must have '{name}', got .*from_hu"):
            function(less, x, **options)
    for name in ("token", "position", "norm") if eater == "encode_text" else ():
        tables = {other: part for other, part in params["embedding"].items() if other != name}
        with pytest.raises(ValueError, match=f"^encode_text: params must have '{name}', got .*"):
            function({**params, "embedding": tables}, x, **options)


PUBLISHED_VIT = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


@pytest.mark.parametrize(("head", "options", "images"), OF_IMAGES)
def test_the_older_names_of_an_image_model_are_read(head, options, images):
    model = made("ViT", head, **options)
    state = {}
    for name, weight in model.state_dict().items():
        for new, old in PUBLISHED_VIT.items():
            name = name.replace(new, old)
        state[name] = weight
    assert {name.partition("layer.0.")[2] for name in state} >= {
        "attention.attention.query.weight",
        "attention.output.dense.bias",
        "intermediate.dense.weight",
        "output.dense.weight",
        "layernorm_before.weight",
    }
    params, keywords, function = interop.from_hugging_face(state, model.config)
    close(function(params, images, **keywords), model(images)[0])
    state[f"{'' if head == 'Model' else 'vit.'}layers.0.mlp.fc1.weight"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"no place for (vit\.)?layers\.0\.mlp\.fc1\.weight"):
        interop.from_hugging_face(state, model.config)


def test_images_of_another_size_are_refused():
    params, options, function = interop.from_hugging_face(made("ViT", "ForImageClassification"))
    with pytest.raises(ValueError, match=r"image must have shape \(..., channels, 4, 9\), got"):
        function(params, IMAGES.transpose(-1, -2), **options)
    with pytest.raises(ValueError, match=r"config.image_size must be a multiple of patch_size"):
        interop.from_hugging_face(made("ViT", "Model", image_size=(4, 10)))


PUBLISHED = {
    "bert": {
        "directionality": "bidi",
        "gradient_checkpointing": False,
        "pooler_fc_size": 768,
        "pooler_type": "first_token_transform",
        "position_embedding_type": "absolute",
    },
    "distilbert": {"finetuning_task": "sst-2", "output_past": True, "tie_weights_": True},
    "bart": {
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "classif_dropout": 0.1,
        "early_stopping": True,
        "extra_pos_embeddings": 2,
        "force_bos_token_to_be_generated": True,
        "normalize_before": False,
        "normalize_embedding": True,
        "num_beams": 4,
        "prefix": " ",
        "static_position_embeddings": False,
    },
    "marian": {
        "_num_labels": 3,
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "bad_words_ids": [[10]],
        "normalize_before": False,
        "normalize_embedding": False,
        "num_beams": 6,
        "static_position_embeddings": True,
    },
    "t5": {
        "feed_forward_proj": "gated-gelu",
        "n_positions": 512,
        "output_past": True,
        "task_specific_params": {"summarization": {"num_beams": 4}},
        "tie_word_embeddings": False,
    },
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_configs_as_they_are_published(kind):
    family = {"bert": "Bert", "distilbert": "DistilBert", "bart": "Bart", "marian": "Marian"}
    config = CONFIGS[family.get(kind, "T5")]().to_dict() | PUBLISHED[kind]
    config = transformers.AutoConfig.for_model(**config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "t5":
            model = transformers.T5ForConditionalGeneration(config).eval()
        else:
            model = transformers.AutoModel.from_config(config).eval()
    params, options, function = interop.from_hugging_face(model.state_dict(), config)
    if "bert" in kind:
        close(function(params, TOKENS, **options), model(TOKENS)[0])
    else:
        expected = model(TOKENS, decoder_input_ids=TARGET)[0]
        close(function(params, TOKENS, TARGET, **options), expected)


EACH = [
    ("Bert", "ForSequenceClassification", (TOKENS,)),
    ("Roberta", "ForMaskedLM", (TOKENS,)),
    ("Bart", "ForConditionalGeneration", (TOKENS, TARGET)),
    ("T5", "ForConditionalGeneration", (TOKENS, TARGET)),
    ("ViT", "ForImageClassification", (IMAGES,)),
]


@pytest.mark.parametrize(("family", "head", "inputs"), EACH)
def test_one_example_is_one_of_a_batch_and_transforms_hold(family, head, inputs):
    params, options, function = interop.from_hugging_face(made(family, head))
    f = partial(function, **options)
    batch = f(params, *inputs)
    close(f(params, *(x[1] for x in inputs)), batch[1])
    close(f(params, *(x[None] for x in inputs)), batch[None])
    close(torch.vmap(f, (None, *(0 for _ in inputs)))(params, *inputs), batch)

    def loss(params, **more):
        return f(params, *inputs, **more).sin().sum()

    plain, again = torch.func.grad(loss)(params), torch.func.grad(partial(loss, remat=True))(params)
    tree.map(close, again, plain)
    pairs = zip(tree.leaves(plain), tree.leaves(params), strict=True)
    along = sum((grad * leaf).sum() for grad, leaf in pairs)
    close(torch.func.jvp(loss, (params,), (params,))[1], along)
