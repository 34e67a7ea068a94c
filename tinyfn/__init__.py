"""A transformer as pure functions over dicts of tensors, closed under every torch.func transform.

Functions stand at the top (`tinyfn.attention`), and what they are combined with in namespaces:
`random`, `tree`, `initializers`, `masks`, `positions`, `transforms`, `generation`, `interop`,
`types`. Edges that need an optional package are imported by name: `tinyfn.testing`,
`tinyfn.plotting`, `tinyfn.checkpoint`; so is `tinyfn.sharding`, which needs torch.distributed.
"""

from tinyfn import generation as generation
from tinyfn import initializers as initializers
from tinyfn import interop as interop
from tinyfn import masks as masks
from tinyfn import positions as positions
from tinyfn import random as random
from tinyfn import transforms as transforms
from tinyfn import tree as tree
from tinyfn import types as types
from tinyfn._attend import attend_weights as attend_weights
from tinyfn._attend import dot_product_attention as dot_product_attention
from tinyfn._attention import attention as attention
from tinyfn._attention import attention_weights as attention_weights
from tinyfn._attention import init_attention as init_attention
from tinyfn._cache import Cache as Cache
from tinyfn._cache import decode_step as decode_step
from tinyfn._cache import init_cache as init_cache
from tinyfn._cache import prefill as prefill
from tinyfn._dropout import dropout as dropout
from tinyfn._encoder_model import encoder_model as encoder_model
from tinyfn._encoder_model import first_pool as first_pool
from tinyfn._encoder_model import init_encoder_model as init_encoder_model
from tinyfn._encoder_model import mean_pool as mean_pool
from tinyfn._explicit import additive_attention as additive_attention
from tinyfn._explicit import explicit_attention as explicit_attention
from tinyfn._explicit import similarity_attention as similarity_attention
from tinyfn._fused import fused_attention as fused_attention
from tinyfn._language_model import init_language_model as init_language_model
from tinyfn._language_model import language_model as language_model
from tinyfn._layers import decoder_layer as decoder_layer
from tinyfn._layers import encoder_layer as encoder_layer
from tinyfn._layers import init_decoder_layer as init_decoder_layer
from tinyfn._layers import init_encoder_layer as init_encoder_layer
from tinyfn._losses import cross_entropy as cross_entropy
from tinyfn._losses import perplexity as perplexity
from tinyfn._module import TinyTransformer as TinyTransformer
from tinyfn._primitives import embedding as embedding
from tinyfn._primitives import feed_forward as feed_forward
from tinyfn._primitives import gated_feed_forward as gated_feed_forward
from tinyfn._primitives import init_embedding as init_embedding
from tinyfn._primitives import init_feed_forward as init_feed_forward
from tinyfn._primitives import init_gated_feed_forward as init_gated_feed_forward
from tinyfn._primitives import init_layer_norm as init_layer_norm
from tinyfn._primitives import init_linear as init_linear
from tinyfn._primitives import init_rms_norm as init_rms_norm
from tinyfn._primitives import layer_norm as layer_norm
from tinyfn._primitives import linear as linear
from tinyfn._primitives import rms_norm as rms_norm
from tinyfn._primitives import scaled_embedding as scaled_embedding
from tinyfn._similarity import additive as additive
from tinyfn._similarity import dot_product as dot_product
from tinyfn._similarity import init_additive as init_additive
from tinyfn._similarity import scaled_dot_product as scaled_dot_product
from tinyfn._transformer import decoder as decoder
from tinyfn._transformer import decoder_attention_weights as decoder_attention_weights
from tinyfn._transformer import encoder as encoder
from tinyfn._transformer import encoder_attention_weights as encoder_attention_weights
from tinyfn._transformer import init_decoder as init_decoder
from tinyfn._transformer import init_encoder as init_encoder
from tinyfn._transformer import init_transformer as init_transformer
from tinyfn._transformer import transformer as transformer
from tinyfn._transformer import transformer_attention_weights as transformer_attention_weights
