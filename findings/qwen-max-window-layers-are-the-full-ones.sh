#!/bin/bash
# Guess:   `max_window_layers` of Qwen2 and Qwen3 is the number of layers with a sliding window, and head_dim defaults to
#          hidden_size / num_attention_heads as in LLaMA.
# Reality: the FIRST max_window_layers layers have full attention and those after them slide, so a config with
#          `use_sliding_window: true` and max_window_layers >= num_hidden_layers has no window anywhere. `layer_types` in the
#          file overrides both keys. Without `use_sliding_window` the config loses its `sliding_window` at once: null, also in
#          the file it saves. head_dim of Qwen3 defaults to 128, whatever the other sizes are; Qwen2 has no such key.
# Seen with: transformers 5.24.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0
cat > run.py <<'P'
import importlib.metadata as im, sys
from transformers import Qwen2Config, Qwen3Config
F, S = "full_attention", "sliding_attention"
print("transformers", im.version("transformers"))
ok = True
for kind in (Qwen2Config, Qwen3Config):
    def make(**keys):
        return kind(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, sliding_window=8, **keys)
    for first in (0, 1, 3, 4):
        types = make(use_sliding_window=True, max_window_layers=first).layer_types
        print(kind.__name__, "max_window_layers", first, types)
        ok &= types == [F] * first + [S] * (4 - first)
    listed = make(use_sliding_window=True, max_window_layers=4, layer_types=[S, F, F, F]).layer_types
    off = make(max_window_layers=1)
    print(kind.__name__, "listed:", listed, "switched off:", off.sliding_window, off.layer_types, "head_dim:", getattr(off, "head_dim", None))
    ok &= listed == [S, F, F, F] and off.sliding_window is None and off.to_dict()["sliding_window"] is None and off.layer_types == [F] * 4
    ok &= getattr(off, "head_dim", None) == (128 if kind is Qwen3Config else None)
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
