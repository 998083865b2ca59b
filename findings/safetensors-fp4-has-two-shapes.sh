#!/bin/bash
# Guess:   the shape in a safetensors header is the shape of the tensor, and get_slice reads rows of every type.
# Reality: 4-bit floats (torch.float4_e2m1fn_x2, header "F4") are stored with the shape in NUMBERS: torch's [2, 8], two numbers in
#          a byte, is [2, 16] in the header and from get_shape(), and [2, 8] again from get_tensor. get_slice of such a tensor
#          fails for every range, rows included (it reads the bytes, then views them by the header's shape), so a tensor
#          cannot be read in parts; numpy cannot read it at all. The 8-bit types (F8_E4M3, F8_E8M0) are stored as they are.
# Seen with: safetensors 0.8.0, torch 2.15.0, numpy 2.4.6. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check safetensors==0.8.0 torch==2.15.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
def header(path):
    data = open(path, "rb").read()
    return json.loads(data[8:8 + int.from_bytes(data[:8], "little")])["a"]
def outcome(read):
    try: return tuple(read().shape)
    except Exception as e: return f"{type(e).__name__}: {e}"
facts = {}
print({n: im.version(n) for n in ("safetensors", "torch", "numpy")})
for name, kind in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E8M0", torch.float8_e8m0fnu), ("F4", torch.float4_e2m1fn_x2)):
    save_file({"a": torch.arange(16, dtype=torch.uint8).reshape(2, 8).view(kind)}, "a.safetensors")
    stored, file = header("a.safetensors"), safe_open("a.safetensors", "pt")
    row, whole = outcome(lambda: file.get_slice("a")[0:1]), outcome(lambda: file.get_tensor("a"))
    shape = file.get_slice("a").get_shape()
    print(f"{name:8} header {stored['dtype']} {stored['shape']} get_shape {shape} get_tensor {whole} first row by get_slice: {row}")
    if name == "F4":
        facts["F4: header and get_shape count numbers"] = stored == {"dtype": "F4", "shape": [2, 16], "data_offsets": [0, 16]} and shape == [2, 16]
        facts["F4: get_tensor has torch's shape"] = whole == (2, 8)
        facts["F4: no slice can be read"] = all("Error" in str(outcome(lambda: file.get_slice("a")[k])) for k in ((slice(0, 1),), (slice(None), slice(0, 8)), (slice(None), slice(0, 16))))
        facts["F4: numpy cannot read it"] = "Error" in str(outcome(lambda: safe_open("a.safetensors", "np").get_tensor("a")))
    else: facts[name + ": as it is"] = stored["shape"] == [2, 8] and row == (1, 8) and whole == (2, 8)
for k, v in facts.items(): print(f"{k:44} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py
