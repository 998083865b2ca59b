#!/bin/bash
# Guess:   AutoTokenizer reads tokenizer.json as it is; `tokenizer_class` in tokenizer_config.json decides otherwise.
# Reality: where config.json says `"model_type": "qwen2"`, transformers loads its class Qwen2Tokenizer whatever
#          `tokenizer_class` says (TokenizersBackend and PreTrainedTokenizerFast included). That class takes vocabulary and
#          merges from tokenizer.json and puts its own normalizer (NFC) and pre-tokenizer (Qwen's regular expression) in
#          place of those in the file; the post-processor (BOS) stays. A model with a tokenizer of its own gets other ids,
#          with no message. The same files beside `"model_type": "qwen3"` or `"llama"` are read as they are.
#          PreTrainedTokenizerFast.from_pretrained(folder) reads the file as it is for every model type.
# Seen with: transformers 5.24.0, tokenizers 0.23.3. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
own = Tokenizer(models.BPE())
own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
own.decoder = decoders.ByteLevel()
text = "The year 12345 and the cafe\u0301, they DON'T  know  it. "
own.train_from_iterator([text * 20], trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>", "<s>"],
                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", own.token_to_id("<s>"))])
want = own.encode(text).ids
def ids(model_type, tokenizer_class, reader=AutoTokenizer):
    os.makedirs("m", exist_ok=True)
    own.save("m/tokenizer.json")
    json.dump({"model_type": model_type}, open("m/config.json", "w"))
    json.dump({"tokenizer_class": tokenizer_class, "eos_token": "<|endoftext|>", "bos_token": "<s>"}, open("m/tokenizer_config.json", "w"))
    loaded = reader.from_pretrained("m")
    got = loaded(text).input_ids
    print(f"{model_type:6} {tokenizer_class:24} {reader.__name__:24} -> {type(loaded).__name__:24} {len(got)} ids, those of the file: {got == want}")
    return type(loaded).__name__, got
print("transformers", im.version("transformers"), "tokenizers", im.version("tokenizers"), "the file itself:", len(want), "ids")
ok = True
for given in ("TokenizersBackend", "PreTrainedTokenizerFast"):
    name, got = ids("qwen2", given)
    ok &= name == "Qwen2Tokenizer" and got != want and got[0] == want[0]
    for model_type in ("qwen3", "llama"):
        ok &= ids(model_type, given)[1] == want
ok &= ids("qwen2", "TokenizersBackend", PreTrainedTokenizerFast)[1] == want
print("as stated" if ok else "DIFFERENT from what the header states"); sys.exit(not ok)
P
v/bin/python run.py
