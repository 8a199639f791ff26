"""Models of a published size without their memory: every parameter is one number expanded to its shape."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}


def shaped_llama(settings: dict, layers: int = 1) -> LlamaForCausalLM:
    """A Llama of these sizes that can be traced; its weights are meaningless."""
    config = LlamaConfig(**settings, num_hidden_layers=layers, bos_token_id=1, eos_token_id=None, pad_token_id=None)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = made.setdefault(id(parameter), torch.nn.Parameter(torch.zeros(1).expand(parameter.shape)))
            setattr(module, name, kept)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model
