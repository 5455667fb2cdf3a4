"""What transformers, bitsandbytes and PEFT make of directories that loraine wrote.

    loraine quantize --model MODEL --out QUANTIZED
    loraine merge --model MODEL --adapter ADAPTER --out MERGED --dtype f32
    python export_load.py MODEL ADAPTER QUANTIZED MERGED

Prints the relative error of the logits of QUANTIZED against bitsandbytes' own quantization of MODEL, and of MERGED against
PEFT's merge_and_unload.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

model, adapter, quantized, merged = sys.argv[1:]
ids = torch.arange(1, 65).reshape(1, -1)


def logits(loaded):
    with torch.no_grad():
        # In eval mode the CPU form of bitsandbytes wants sizes that small models do not have; nothing here drops out.
        return loaded.train()(input_ids=ids).logits.double()


def error(got, want):
    return float((got - want).norm() / want.norm())


own = AutoModelForCausalLM.from_pretrained(
    model,
    dtype=torch.float32,
    device_map={"": "cpu"},
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
)
ours = AutoModelForCausalLM.from_pretrained(quantized, dtype=torch.float32, device_map={"": "cpu"})
same = all(
    torch.equal(a, b)
    for (name, a), (_, b) in zip(own.named_parameters(), ours.named_parameters(), strict=True)
    if "proj" in name
)
print(f"quantized: packed weights identical: {same}, logits {error(logits(ours), logits(own)):.1e}")

base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
want = PeftModel.from_pretrained(base, adapter).merge_and_unload()
got = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
names = dict(want.named_parameters())
worst = max(error(p.double(), names[n].double()) for n, p in got.named_parameters())
print(f"merged: worst tensor {worst:.1e}, logits {error(logits(got), logits(want)):.1e}")
