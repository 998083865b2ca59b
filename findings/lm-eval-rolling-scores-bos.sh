#!/bin/bash
# Guess:   the perplexity tasks of lm-eval (loglikelihood_rolling) score a text after one BOS token, as its other tasks do.
# Reality: with a tokenizer that adds BOS itself (LLaMA's) the text is scored after TWO: the prefix token, then the tokenizer's own
#          BOS, whose log-probability given the first is added to the sum; loglikelihood of the same text with an empty context
#          has one. Only `add_bos_token=False` gives the same number in both. With a tokenizer without BOS (Qwen's) the prefix
#          is the tokenizer's EOS, whatever bos_token_id of config.json says: <|endoftext|> for a base model, <|im_end|> for its
#          chat version, so that the two are not conditioned on the same token.
# Seen with: lm_eval 0.4.13, transformers 5.24.0, torch 2.15.0. 2026-11-27.
set -euo pipefail
T=$(mktemp -d); trap 'rm -rf "$T"' EXIT; cd "$T"
python3 -m venv v && v/bin/pip install -q --no-compile --disable-pip-version-check "lm_eval[hf]==0.4.13" transformers==5.24.0 torch==2.15.0 numpy==2.4.6
cat > run.py <<'P'
import importlib.metadata as im, json, os, sys, torch, transformers
os.environ["HF_HUB_OFFLINE"] = "1"; os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
transformers.logging.set_verbosity_error()
torch.set_num_threads(1); torch.manual_seed(0)
TEXT = "The quick brown fox jumps over lazy dogs."
tokenizer = Tokenizer(models.BPE()); tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False); tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator([TEXT * 20], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>", "<|im_end|>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
bare = tokenizer.encode(TEXT).ids
model = LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
                                     initializer_range=0.3, bos_token_id=0, eos_token_id=0))
model.save_pretrained("m")
def score(*ids):
    rows = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return sum(rows[i, t].item() for i, t in enumerate(ids[1:]))
def measured(special, bos, **keys):
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A" if bos else "$A", special_tokens=[("<s>", 2)])
    tokenizer.save("m/tokenizer.json")
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|endoftext|>"} | special, open("m/tokenizer_config.json", "w"))
    lm = HFLM(pretrained="m", device="cpu", batch_size=1, dtype="float32", **keys)
    return (lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0)], disable_tqdm=True)[0],
            lm.loglikelihood([Instance("loglikelihood", {}, ("", TEXT), 0)], disable_tqdm=True)[0][0])
near = lambda a, b: abs(a - b) < 1e-3
facts, with_bos = {}, {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
rolling, single = measured(with_bos, True)
print("one BOS", score(2, *bare), "two", score(2, 2, *bare), "rolling", rolling, "loglikelihood", single)
facts["LLaMA's kind: rolling scores the text after two BOS"] = near(rolling, score(2, 2, *bare)) and not near(rolling, score(2, *bare))
facts["loglikelihood of the same text: one"] = near(single, score(2, *bare))
facts["add_bos_token=False: one in both"] = all(near(x, score(2, *bare)) for x in measured(with_bos, True, add_bos_token=False))
facts["Qwen's kind, base: after <|endoftext|>"] = near(measured({"eos_token": "<|endoftext|>"}, False)[0], score(0, *bare))
facts["Qwen's kind, chat: after <|im_end|>"] = near(measured({"eos_token": "<|im_end|>"}, False)[0], score(1, *bare))
print({n: im.version(n) for n in ("lm_eval", "transformers", "torch")})
for k, v in facts.items(): print(f"{k:56} {v}")
print("as stated" if all(facts.values()) else "DIFFERENT from what the header states"); sys.exit(not all(facts.values()))
P
v/bin/python run.py
