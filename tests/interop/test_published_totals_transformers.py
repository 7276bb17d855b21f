"""Published formulas for transformers, against counts of Hugging Face's models at their published sizes.

Sources:
    Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1: FLOPs of the forward pass, per token.
    Chowdhery et al. 2022, "PaLM", appendix B: FLOPs of a training step, per token.
    Ainslie et al. 2023, "GQA", section 2.2: grouped-query attention.
"""

import pytest
import torch
from model_cases import torchvision

import energy_models as em

torchvision()  # which transformers imports
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
BATCH, CONTEXT = 2, 512
GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20)}  # layers, width, heads
WORDS = 50257


def gpt2(name, attention):
    layers, dim, heads = GPT2[name]
    config = transformers.GPT2Config(n_layer=layers, n_embd=dim, n_head=heads, attn_implementation=attention)
    with torch.device("meta"):
        return transformers.GPT2LMHeadModel(config), layers, dim


def tokens(batch=BATCH, context=CONTEXT):
    return {"input_ids": torch.zeros(batch, context, dtype=torch.long), "use_cache": False}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", GPT2)
def test_forward_pass_of_gpt2(name, attention):
    """2 N + 2 n_layer n_ctx d_attn, which leaves the output layer and the masked half of attention out."""
    model, layers, dim = gpt2(name, attention)
    weights = layers * 12 * dim**2
    per_token = 2 * weights + 2 * layers * CONTEXT * dim
    masked_half = 2 * layers * CONTEXT * dim
    found = em.count(model, tokens(), training=False).total_macs
    assert 2 * found == BATCH * CONTEXT * (per_token + masked_half + 2 * dim * WORDS)


def test_training_step_of_gpt2():
    """6 N + 12 L H Q T, with N the multiplied weights, the tied output layer's among them."""
    model, layers, dim = gpt2("gpt2", "eager")
    per_token = 6 * (layers * 12 * dim**2 + dim * WORDS) + 12 * layers * dim * CONTEXT
    batch = tokens() | {"labels": torch.zeros(BATCH, CONTEXT, dtype=torch.long)}
    assert 2 * em.count(model, batch).total_macs == BATCH * CONTEXT * per_token


@pytest.mark.parametrize("kv_heads", [32, 8, 1])
def test_llama_with_grouped_queries(kv_heads):
    """Fewer keys and values are computed; every query head still reads as many."""
    layers, dim, hidden, heads, words = 2, 4096, 11008, 32, 32000
    config = transformers.LlamaConfig(num_hidden_layers=layers, num_key_value_heads=kv_heads)
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (dim, hidden, words)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    block = 2 * dim**2 + 2 * dim**2 * kv_heads // heads + 3 * dim * hidden
    products = 2 * dim * CONTEXT
    expected = BATCH * CONTEXT * (layers * (block + products) + dim * words)
    found = em.count(model, tokens(), training=False)
    # Rotary positions are written as a product of positions and frequencies.
    rotary = sum(gemm.macs for gemm in found.gemms if gemm.layer.endswith("rotary_emb"))
    assert found.total_macs - rotary == expected and rotary <= CONTEXT * dim


def test_bert():
    """Devlin et al. 2019, section 3: 12 layers of 768, attention both ways."""
    layers, dim = 12, 768
    with torch.device("meta"):
        model = transformers.BertModel(transformers.BertConfig())
    inputs = {"input_ids": torch.zeros(BATCH, CONTEXT, dtype=torch.long)}
    pooler = BATCH * dim**2
    expected = BATCH * CONTEXT * layers * (12 * dim**2 + 2 * dim * CONTEXT) + pooler
    assert em.count(model, inputs, training=False).total_macs == expected
