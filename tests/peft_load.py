#!/usr/bin/env python3
"""Does an adapter that loraine saved load in PEFT, and does PEFT compute the same logits with it?

    python tests/peft_load.py BASE_MODEL_DIR ADAPTER_DIR LOGITS_JSON

LOGITS_JSON holds {"input_ids": [...], "logits": [[...], ...]}: one sequence and loraine's logits for each of its tokens.
Prints one JSON line; the exit status is 0 only where no key is missing or unexpected, every tensor arrived unchanged, and
the relative error of the logits is under 1e-4. Needs torch, transformers and peft (tests/fixtures/requirements.txt).
"""
import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

MAX_RELATIVE_ERROR = 1e-4


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    base, adapter, logits_file = map(Path, sys.argv[1:])
    ours = json.loads(logits_file.read_text())
    expected = torch.tensor(ours["logits"], dtype=torch.float32)

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    stored = load_file(adapter / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(model)
    missing = sorted(loaded.keys() - stored.keys())
    unexpected = sorted(stored.keys() - loaded.keys())
    shared = stored.keys() & loaded.keys()
    changed = sorted(key for key in shared if not torch.equal(stored[key].float(), loaded[key].float()))

    with torch.no_grad():
        actual = model(input_ids=torch.tensor([ours["input_ids"]])).logits[0]
        with model.disable_adapter():
            without = model(input_ids=torch.tensor([ours["input_ids"]])).logits[0]
    if actual.shape != expected.shape:
        sys.exit(f"{logits_file}: logits have shape {list(expected.shape)}, PEFT's have {list(actual.shape)}")
    error = ((actual - expected).norm() / actual.norm()).item()
    passed = not (missing or unexpected or changed) and error < MAX_RELATIVE_ERROR
    result = dict(
        passed=passed,
        tensors=len(stored),
        missing=missing,
        unexpected=unexpected,
        changed=changed,
        relative_error=error,
        max_relative_error=MAX_RELATIVE_ERROR,
        # How far the adapter moves the logits: a comparison with an adapter that does nothing would show nothing.
        adapter_effect=((actual - without).norm() / actual.norm()).item(),
        peft=peft.__version__,
        transformers=transformers.__version__,
        torch=torch.__version__,
    )
    print(json.dumps(result))
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
