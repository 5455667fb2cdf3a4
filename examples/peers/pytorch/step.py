"""QLoRA steps of PyTorch, PEFT and bitsandbytes on the CPU, of the same model and batch as the bench's `stories15m:4x256`: random
weights in NF4 with double quantization, rank 16 on all linear layers, AdamW. Prints one JSON object."""

import json
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

SEQUENCES, LENGTH = 4, 256
STEPS = 6


def model():
    config = LlamaConfig(
        hidden_size=288, intermediate_size=768, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=6,
        vocab_size=32000, max_position_embeddings=8192, tie_word_embeddings=True,
    )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    with tempfile.TemporaryDirectory() as directory:
        LlamaForCausalLM(config).save_pretrained(directory)
        base = AutoModelForCausalLM.from_pretrained(
            directory, quantization_config=quantization, device_map="cpu", dtype=torch.float32
        )
    return get_peft_model(base, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))


def main():
    torch.manual_seed(1)
    peft = model()
    peft.train()
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(0, 32000, (SEQUENCES, LENGTH))
    best = float("inf")
    for step in range(STEPS):
        started = time.perf_counter()
        loss = peft(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 0:
            best = min(best, time.perf_counter() - started)
    print(json.dumps({
        "peer": "pytorch", "torch": torch.__version__, "threads": torch.get_num_threads(), "ms": round(1e3 * best, 1),
        "tokens_per_s": round(SEQUENCES * LENGTH / best, 1), "loss": round(loss.item(), 3),
    }))


if __name__ == "__main__":
    main()
