#!/bin/bash
# Guess:   a conversion to GGUF keeps the tokens that end a text: those of generation_config.json, or at least of config.json.
# Reality: SpecialVocab, which converters use for the ids of special tokens, never opens generation_config.json, and skips an
#          eos_token_id of config.json that is a list: then the GGUF has no end token from there at all (other special
#          tokens, plain numbers, are kept). GGUF has one number for "eos"; further end tokens have no key of their own but
#          eot and eom, which SpecialVocab does not fill from these files either.
# Seen with: gguf 0.19.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check gguf==0.19.0
cat > run.py <<'P'
import importlib.metadata as im, json, pathlib, sys, gguf
def kept(config, generation):
    folder = pathlib.Path("m"); folder.mkdir(exist_ok=True)
    json.dump({"bos_token_id": 1, "eos_token_id": config}, open(folder / "config.json", "w"))
    json.dump({"eos_token_id": generation}, open(folder / "generation_config.json", "w"))
    found = gguf.SpecialVocab(folder, n_vocab=32).special_token_ids
    print(f"config {config!s:8} generation_config {generation!s:8} -> {found}")
    return found
print("gguf", im.version("gguf"))
ok = kept(2, [2, 4]) == {"bos": 1, "eos": 2}
ok &= kept(2, 3) == {"bos": 1, "eos": 2}
ok &= kept([2, 4], [2, 4]) == {"bos": 1}
ok &= kept(None, 3) == {"bos": 1}
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
