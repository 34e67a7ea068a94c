"""The specification: a transformer in plain Python, on nested lists, one number at a time.

It imports nothing of tinyfn, and is written to be read. `plain` makes its arguments out of tensors.
A sequence is a list of vectors, the heads of it a list of sequences, a mask `mask[query][key]` is
True where the query may look, and a bias is `bias[head][query][key]`. There are no batches.
"""

import math


def plain(tree):
    """Tensors to nested lists of floats, in params or alone."""
    if isinstance(tree, dict):
        return {name: plain(branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(branch) for branch in tree]
    return tree.tolist() if hasattr(tree, "tolist") else tree


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def plus(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


# Parts: of one vector to one vector


def relu(x):
    return max(x, 0.0)


def silu(x):
    return x / (1 + math.exp(-x))


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def linear(params, x):
    bias = params.get("bias", [0.0] * len(params["weight"]))
    return [dot(row, x) + b for row, b in zip(params["weight"], bias, strict=True)]


def layer_norm(params, x, eps=1e-5):
    mean = sum(x) / len(x)
    variance = sum((number - mean) ** 2 for number in x) / len(x)
    return scale_and_shift(params, [(number - mean) / math.sqrt(variance + eps) for number in x])


def rms_norm(params, x, eps=1e-6):
    mean_square = sum(number**2 for number in x) / len(x)
    return scale_and_shift(params, [number / math.sqrt(mean_square + eps) for number in x])


def scale_and_shift(params, x):
    bias = params.get("bias", [0.0] * len(x))
    return [number * w + b for number, w, b in zip(x, params["weight"], bias, strict=True)]


def feed_forward(params, x, activation=relu):
    hidden = [activation(number) for number in linear(params["up_proj"], x)]
    return linear(params["down_proj"], hidden)


def gated_feed_forward(params, x, activation=silu):
    gate, up = linear(params["gate_proj"], x), linear(params["up_proj"], x)
    hidden = [activation(g) * u for g, u in zip(gate, up, strict=True)]
    return linear(params["down_proj"], hidden)


def embedding(params, tokens):
    return [params["weight"][token] for token in tokens]


def scaled_embedding(params, tokens):
    rows = embedding(params, tokens)
    return [[math.sqrt(len(row)) * number for number in row] for row in rows]


# Masks: mask[query][key]


def grid(q_seq, kv_seq, may_look):
    return [[may_look(i, j) for j in range(kv_seq)] for i in range(q_seq)]


def full(q_seq, kv_seq):
    return grid(q_seq, kv_seq, lambda i, j: True)


def causal(q_seq, kv_seq, offset=0):
    return grid(q_seq, kv_seq, lambda i, j: j <= i + offset)


def padding(q_seq, kv_seq, length):
    return grid(q_seq, kv_seq, lambda i, j: j < length)


def prefix(q_seq, kv_seq, n):
    return grid(q_seq, kv_seq, lambda i, j: j < n)


def window(q_seq, kv_seq, left=math.inf, right=math.inf):
    return grid(q_seq, kv_seq, lambda i, j: i - left <= j <= i + right)


def segments(q_ids, kv_ids):
    return grid(len(q_ids), len(kv_ids), lambda i, j: q_ids[i] == kv_ids[j])


# Positions


def sinusoidal(seq, num_features, offset=0, theta=10000.0):
    def number(position, feature):
        angle = position / theta ** (2 * (feature // 2) / num_features)
        return math.cos(angle) if feature % 2 else math.sin(angle)

    return [[number(offset + i, f) for f in range(num_features)] for i in range(seq)]


def learned(params, seq, offset=0):
    return [params["weight"][offset + i] for i in range(seq)]


def add(x, table):
    return [plus(vector, row) for vector, row in zip(x, table, strict=True)]


def concatenate(x, table):
    return [vector + row for vector, row in zip(x, table, strict=True)]


def add_sinusoidal(params, x):
    return add(x, sinusoidal(len(x), len(x[0])))


def rotate(x, position, theta=10000.0):
    """Numbers i and i + half of a vector are one complex number, turned by position · frequency."""
    half = len(x) // 2
    turned = [0.0] * len(x)
    for i in range(half):
        angle = position * theta ** (-i / half)
        number = complex(x[i], x[i + half]) * complex(math.cos(angle), math.sin(angle))
        turned[i], turned[i + half] = number.real, number.imag
    return turned


def rotary(attend, offset=0, theta=10000.0):
    def rotary_attend(q, k, v, mask=None, bias=None):
        q = [[rotate(x, offset + i, theta) for i, x in enumerate(head)] for head in q]
        k = [[rotate(x, i, theta) for i, x in enumerate(head)] for head in k]
        return attend(q, k, v, mask, bias)

    return rotary_attend


def alibi_slopes(num_heads):
    """Powers of 2^(-8/n) for n a power of two, and for others every second one of twice as many."""
    nearest = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (i + 1) / nearest) for i in range(nearest)]
    between = [2 ** (-8 * (i + 1) / (2 * nearest)) for i in range(0, 2 * nearest, 2)]
    return slopes + between[: num_heads - nearest]


def alibi_bias(num_heads, q_seq, kv_seq, offset=0):
    return [
        [[-slope * abs(i + offset - j) for j in range(kv_seq)] for i in range(q_seq)]
        for slope in alibi_slopes(num_heads)
    ]


def alibi(attend, offset=0):
    def alibi_attend(q, k, v, mask=None, bias=None):
        falling = alibi_bias(len(q), len(q[0]), len(k[0]), offset)
        if bias is not None:
            falling = [add(own, more) for own, more in zip(falling, bias, strict=True)]
        return attend(q, k, v, mask, falling)

    return alibi_attend


# Attention


def dot_product(q, k):
    return dot(q, k)


def scaled_dot_product(q, k, scale=None):
    return dot(q, k) * (1 / math.sqrt(len(q)) if scale is None else scale)


def additive(params, q, k):
    hidden = plus(linear(params["q_proj"], q), linear(params["k_proj"], k))
    return linear(params["out_proj"], [math.tanh(number) for number in hidden])[0]


def weights_of_query(similarity, q, k, allowed, bias):
    """The softmax over the keys that one query may look at; zeros if there are none."""
    scores = [similarity(q, key) + b for key, b in zip(k, bias, strict=True)]
    highest = max((s for s, may in zip(scores, allowed, strict=True) if may), default=0.0)
    raised = [math.exp(s - highest) if may else 0.0 for s, may in zip(scores, allowed, strict=True)]
    return [r / sum(raised) if any(allowed) else 0.0 for r in raised]


def heads_weights(similarity, q, k, mask=None, bias=None):
    """weights[head][query][key]; each head of k serves the next len(q) // len(k) heads of q."""
    group = len(q) // len(k)
    weights = []
    for h, queries in enumerate(q):
        keys = k[h // group]
        weights.append(
            [
                weights_of_query(
                    similarity,
                    query,
                    keys,
                    [True] * len(keys) if mask is None else mask[i],
                    [0.0] * len(keys) if bias is None else bias[h][i],
                )
                for i, query in enumerate(queries)
            ]
        )
    return weights


def similarity_attention(similarity, q, k, v, mask=None, bias=None):
    group = len(q) // len(k)
    return [
        [[dot(row, column) for column in zip(*v[h // group], strict=True)] for row in rows]
        for h, rows in enumerate(heads_weights(similarity, q, k, mask, bias))
    ]


def dot_product_attention(q, k, v, mask=None, bias=None, scale=None):
    def similarity(query, key):
        return scaled_dot_product(query, key, scale)

    return similarity_attention(similarity, q, k, v, mask, bias)


def additive_attention(params, q, k, v, mask=None, bias=None):
    def similarity(query, key):
        return additive(params, query, key)

    return similarity_attention(similarity, q, k, v, mask, bias)


def split_heads(proj, x):
    biases = proj.get("bias", [None] * len(proj["weight"]))
    heads = []
    for weight, bias in zip(proj["weight"], biases, strict=True):
        head = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        heads.append([linear(head, vector) for vector in x])
    return heads


def merge_heads(proj, heads):
    """out_proj sums over heads and over the numbers of each."""
    flat = {**proj, "weight": [[w for head in row for w in head] for row in proj["weight"]]}
    return [linear(flat, [n for part in parts for n in part]) for parts in zip(*heads, strict=True)]


def attention(params, q, k, v, mask=None, bias=None, attend=dot_product_attention):
    heads = [
        split_heads(params[name], x) for name, x in (("q_proj", q), ("k_proj", k), ("v_proj", v))
    ]
    own = [params["attend"]] if "attend" in params else []
    return merge_heads(params["out_proj"], attend(*own, *heads, mask, bias))


def attention_weights(params, q, k, mask=None, bias=None):
    q, k = split_heads(params["q_proj"], q), split_heads(params["k_proj"], k)
    return heads_weights(scaled_dot_product, q, k, mask, bias)


# Layers and stacks


def residual(norm_params, x, sublayer, norm, norm_first):
    """norm(x + sublayer(x)), or x + sublayer(norm(x)); a sublayer takes and gives a sequence."""
    if norm_first:
        y = sublayer([norm(norm_params, vector) for vector in x])
        return [plus(a, b) for a, b in zip(x, y, strict=True)]
    return [norm(norm_params, plus(a, b)) for a, b in zip(x, sublayer(x), strict=True)]


def encoder_layer(params, x, mask=None, *, attend=dot_product_attention, **options):
    def look(y):
        return attention(params["self_attention"], y, y, y, mask, attend=attend)

    return layer(params, x, {"self_attention": look}, **options)


def decoder_layer(
    params,
    x,
    memory=None,
    self_mask=None,
    cross_mask=None,
    *,
    attend=dot_product_attention,
    cross_attend=dot_product_attention,
    **options,
):
    """Without a `self_mask` the target looks back only; without a memory at itself only."""
    self_mask = causal(len(x), len(x)) if self_mask is None else self_mask

    def look(y):
        return attention(params["self_attention"], y, y, y, self_mask, attend=attend)

    def look_across(y):
        cross = params["cross_attention"]
        return attention(cross, y, memory, memory, cross_mask, attend=cross_attend)

    across = {} if memory is None else {"cross_attention": look_across}
    return layer(params, x, {"self_attention": look, **across}, **options)


def layer(
    params,
    x,
    sublayers,
    norm=layer_norm,
    activation=relu,
    norm_first=False,
    feed_forward=feed_forward,
):
    """The sublayers, then the feed-forward, each with its residual and its norm."""

    def think(y):
        return [feed_forward(params["feed_forward"], vector, activation) for vector in y]

    for name, sublayer in {**sublayers, "feed_forward": think}.items():
        x = residual(params[f"{name}_norm"], x, sublayer, norm, norm_first)
    return x


def encoder(params, x, mask=None, **options):
    return stack(params, x, encoder_layer, (mask,), **options)


def decoder(params, x, memory=None, self_mask=None, cross_mask=None, **options):
    return stack(params, x, decoder_layer, (memory, self_mask, cross_mask), **options)


def stack(params, x, layer, inputs, position=None, embed=scaled_embedding, **options):
    if "embedding" in params:
        x = embed(params["embedding"], x)
    if position is not None:
        x = position(params.get("position", {}), x)
    for layer_params in params["layers"]:
        x = layer(layer_params, x, *inputs, **options)
    norm = options.get("norm", layer_norm)
    return [norm(params["final_norm"], vector) for vector in x] if "final_norm" in params else x


def transformer(
    params,
    src,
    tgt,
    src_mask=None,
    tgt_mask=None,
    memory_mask=None,
    *,
    position=add_sinusoidal,
    **options,
):
    """The output layer is `linear`, else the target's embedding, else there is none."""
    shared = {"embedding": params["embedding"]} if "embedding" in params else {}
    encoder_params, decoder_params = (
        {**shared, **params["encoder"]},
        {**shared, **params["decoder"]},
    )
    memory = encoder(encoder_params, src, src_mask, position=position, **options)
    y = decoder(decoder_params, tgt, memory, tgt_mask, memory_mask, position=position, **options)
    output = params.get("linear", decoder_params.get("embedding"))
    return y if output is None else [linear(output, vector) for vector in y]
