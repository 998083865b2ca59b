#!/bin/bash
# Guess:   truncation and padding are arguments of a call; saving a tokenizer saves the tokenizer.
# Reality: a call with `truncation=True, max_length=8, padding=True` leaves both in the tokenizer, and save_pretrained writes
#          them into tokenizer.json. AutoTokenizer ignores them when it reads the file again, so nobody notices in Python;
#          the tokenizers library (and Rust or JavaScript programs on top of it) cuts every text to 8 tokens, with no message.
#          One plain call before saving resets both.
# Seen with: transformers 5.24.0, tokenizers 0.23.3. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
words = {w: i for i, w in enumerate(["<pad>", "<unk>", "one", "two", "three"])}
raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
text = "one two three " * 10
loaded = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>")
loaded([text, "one"], truncation=True, max_length=8, padding=True)
loaded.save_pretrained("after_training")
loaded(text)
loaded.save_pretrained("after_a_plain_call")
stored = json.load(open("after_training/tokenizer.json"))
library = len(Tokenizer.from_file("after_training/tokenizer.json").encode(text).ids)
python = len(AutoTokenizer.from_pretrained("after_training")(text).input_ids)
reset = json.load(open("after_a_plain_call/tokenizer.json"))
print("transformers", im.version("transformers"), "tokenizers", im.version("tokenizers"))
print("stored:", stored["truncation"], stored["padding"])
print("tokens of 30 words: tokenizers", library, "AutoTokenizer", python)
print("after a plain call:", reset["truncation"], reset["padding"])
ok = stored["truncation"]["max_length"] == 8 and stored["padding"] is not None and (library, python) == (8, 30) and reset["truncation"] is None
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
