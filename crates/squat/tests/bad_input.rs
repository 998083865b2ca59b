//! Bad input: one clear error, exit code 1, no panic, nothing written.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used)]

mod common;

use common::command::{RECIPE, check_refusal, models, ok, output, refused, squat, text};
use std::path::Path;

fn write(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

#[test]
fn words_that_no_command_has() {
    let dir = tempfile::tempdir().unwrap();
    for (args, words) in [
        (&["evaluate", "model"][..], &["evaluate", "'eval'"][..]),
        (&["generate", "model", "--promt", "x"], &["--promt", "'--prompt'"]),
        (&["bench", "model", "-t", "two"], &["two", "--threads"]),
        (&["pack"], &["<RUN>", "--out"]),
    ] {
        refused(dir.path(), args, words);
    }
    let help = output(dir.path(), &["--help"]);
    assert_eq!((help.status.code(), text(&help.stderr)), (Some(0), String::new()));
    assert!(text(&help.stdout).contains("quickstart"));
}

#[test]
fn recipes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let train = |args: &[&str], words: &[&str]| {
        let args: Vec<&str> = ["train"].iter().chain(args).copied().chain(["--out", "run"]).collect();
        refused(dir, &args, words);
    };
    write(&dir.join("recipe.toml"), RECIPE);
    train(&["recipes.toml"], &["recipes.toml", "did you mean", "recipe.toml"]);
    train(&["no/such.toml"], &["no/such.toml", "no does not exist"]);
    train(&["."], &["cannot read recipe"]);
    for (from, to, words) in [
        ("batch_size = 4", "batchsize = 4", &["line 23", "batchsize", "did you mean `batch_size`?"][..]),
        ("seed = 3", "seed = ", &["line 3"]),
        ("seed = 3", "seeds = 3", &["unknown field `seeds`", "did you mean `seed`?"]),
        ("kind = \"qat\"", "kind = \"qad\"", &["qad", "did you mean `qat`?"]),
        ("plan = \"rho50\"", "plan = \"rho500\"", &["rho500", "did you mean \"rho50\"?"]),
        ("init = \"fp\"", "init = \"q\"", &["stage `q`", "come before"]),
        ("init = \"fp\"", "init = \"nowhere\"", &["nowhere does not exist"]),
        ("steps = 4", "steps = 0", &["stage `fp`", "positive"]),
        ("batch_size = 4", "batch_size = 3", &["not a multiple of micro_batch 2"]),
        ("num_attention_heads = 4", "num_attention_heads = 5", &["multiple", "num_attention_heads 5"]),
        ("seq_len = 24", "seq_len = 200", &["seq_len 200", "max_position_embeddings 64"]),
        ("seq_len = 24", "seq_len = 1", &["seq_len", "at least 2"]),
        ("vocab_size = 300", "vocab_size = 3", &["vocab_size", "at least 259"]),
        ("learning_rate = 4e-3", "learning_rate = nan", &["learning_rate must be positive"]),
    ] {
        write(&dir.join("bad.toml"), &RECIPE.replacen(from, to, 1));
        train(&["bad.toml"], words);
        std::fs::remove_file(dir.join("bad.toml")).unwrap();
    }
    for (setting, words) in [
        ("data.seq_length=3", &["--set data.seq_length=3", "did you mean `seq_len`?"][..]),
        ("stage.fpp.steps=3", &["--set stage.fpp.steps=3", "fpp"]),
        ("stage.fp=3", &["--set stage.fp=3"]),
        ("steps", &["--set steps", "key=value"]),
        ("=3", &["--set =3", "key=value"]),
        ("name.x=3", &["--set name.x=3", "`name` is not a table"]),
        ("stage.fp.steps=abc", &["stage.fp.steps=abc", "expected u64"]),
        ("stage.fp.steps=-1", &["stage.fp.steps=-1", "-1"]),
        ("data.train=generated", &["data.train=generated", "expected a sequence"]),
        ("stage.q.quant.policy=sinks", &["quant.policy", "sink_attention"]),
        ("stage.q.quant.points.lm_haed_input=fp", &["lm_haed_input", "lm_head_input"]),
    ] {
        train(&["recipe.toml", "--set", setting], words);
    }
}

#[test]
fn corpora() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&dir.join("recipe.toml"), RECIPE);
    write(&dir.join("texts/a.train.txt"), "A dog sleeps here.\n");
    write(&dir.join("empty/a.train.txt"), "");
    write(&dir.join("blank/a.train.txt"), "\n \n\t\n");
    write(&dir.join("picture/a.png"), "x");
    write(&dir.join("bad.train.gz"), "no gzip");
    write(&dir.join("bad.train.jsonl"), "{\"text\": 3}\n");
    for (train, words) in [
        ("text", &["no such file or folder: text", "did you mean", "texts"][..]),
        ("no/text", &["no/text", "the folder no does not exist"]),
        ("$SQUAT_DATA/text", &["SQUAT_DATA is not set"]),
        ("empty", &["corpus is empty"]),
        ("blank", &["corpus is empty"]),
        ("picture", &["no text found in picture", ".txt"]),
        ("picture/a.png", &["a.png", ".txt"]),
        ("bad.train.gz", &["bad.train.gz", "gzip"]),
        ("bad.train.jsonl", &["bad.train.jsonl line 1", "text"]),
        // Too little for one sequence of 24 tokens.
        ("texts", &["tokens"]),
    ] {
        let set = format!("data.train=[\"{train}\"]");
        refused(dir, &["train", "recipe.toml", "--out", "run", "--set", &set], words);
        if !train.starts_with('$') && train != "texts" {
            refused(dir, &["tokenizer", "train", train, "--out", "t", "--vocab-size", "300"], words);
        }
    }
    refused(
        dir,
        &["train", "recipe.toml", "--out", "run", "--set", "data.tokenizer=token"],
        &["no such file or folder: token"],
    );
    let prepare = ["data", "prepare", "texts", "--out", "shards", "--tokenizer"];
    let with = |tokenizer| prepare.iter().copied().chain([tokenizer]).collect::<Vec<_>>();
    refused(dir, &with("token"), &["no such file or folder: token"]);
    refused(dir, &with("recipe.toml"), &["recipe.toml", "tokenizer"]);
    let split: Vec<&str> = with("token").into_iter().chain(["--split", "tran"]).collect();
    refused(dir, &split, &["tran", "a similar value exists: 'train'"]);
    let tokenizer = ["tokenizer", "train", "texts", "--out", "t", "--vocab-size", "10"];
    refused(dir, &tokenizer, &["vocab_size", "10", "at least 259"]);
}

/// A change of one file of a model folder.
type Damage = fn(&mut Vec<u8>);

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = text(bytes);
    assert!(text.contains(from), "{from} in {text}");
    *bytes = text.replacen(from, to, 1).into_bytes();
}

/// Every damage that every verb must refuse.
const DAMAGES: &[(&str, Damage, &str)] = &[
    ("model.safetensors", |b| b.truncate(b.len() - 1), "model.safetensors"),
    ("model.safetensors", |b| b.truncate(b.len() / 2), "model.safetensors"),
    ("model.safetensors", |b| b.truncate(5), "model.safetensors"),
    ("model.safetensors", |b| b.clear(), "model.safetensors"),
    ("model.safetensors", |b| b[0] = 0xFF, "model.safetensors"),
    ("config.json", |b| replace(b, "\"hidden_size\": 36", "\"hidden_size\": 40"), "expected"),
    ("config.json", |b| replace(b, "\"intermediate_size\": 83", "\"intermediate_size\": 84"), "expected"),
    ("config.json", |b| replace(b, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"), "expected"),
    (
        "config.json",
        |b| replace(b, "\"num_attention_heads\": 4", "\"num_attention_heads\": 0"),
        "num_attention_heads",
    ),
    ("config.json", |b| replace(b, "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4"), "layers"),
    (
        "config.json",
        |b| replace(b, "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 123456789012"),
        "num_hidden_layers",
    ),
    (
        "config.json",
        |b| replace(b, "\"vocab_size\": 300", "\"vocab_size\": 123456789012345678"),
        "vocab_size",
    ),
    (
        "config.json",
        |b| replace(b, "LlamaForCausalLM", "LamaForCausalLM"),
        "did you mean \"LlamaForCausalLM\"?",
    ),
    ("config.json", |b| replace(b, "\"vocab_size\": 300,", ""), "vocab_size"),
    ("config.json", |b| b.truncate(40), "config.json"),
    ("config.json", |b| *b = b"[]".to_vec(), "config.json"),
];

#[test]
fn damaged_models() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    for kind in ["fp", "qat", "packed"] {
        for (index, (name, damage, word)) in DAMAGES.iter().enumerate() {
            let path = dir.join(kind).join(name);
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            damage(&mut bytes);
            std::fs::write(&path, bytes).unwrap();
            let mut verbs = vec![
                vec!["inspect", kind, "--json"],
                vec!["generate", kind, "--prompt", "A dog"],
                vec!["eval", kind, "--task", "perplexity", "--data", "text", "--json"],
            ];
            if kind != "packed" {
                verbs.push(vec!["pack", kind, "--plan", "w4a8", "--out", "out"]);
            }
            // Every verb opens a model through the same door: one of them each time is enough.
            let verb = &verbs[index % verbs.len()];
            refused(dir, verb, &[word]);
            std::fs::write(&path, whole).unwrap();
        }
    }
}

#[test]
fn weights_that_are_not_finite() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    for kind in ["fp", "qat"] {
        let path = dir.join(kind).join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        // Into the data of the token table, or a norm, or a linear: the last parameters of the file.
        let at = bytes.len() - 8000;
        bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        for verb in [
            vec!["generate", kind, "--prompt", "A dog"],
            vec!["bench", kind, "-p", "4", "-n", "4"],
            vec!["eval", kind, "--task", "perplexity", "--data", "text"],
            vec!["eval", kind, "--task", "pairs", "--data", "pairs", "--form", "fp"],
            vec!["pack", kind, "--plan", "w4a8", "--out", "out"],
        ] {
            refused(dir, &verb, &["tensor \"", "element", "NaN", "expected a finite number"]);
        }
    }
    // A scale of a packed model.
    let path = dir.join("packed/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight_scale";
    let at = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    for scale in [f32::NAN, 0.0, -1.0] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&scale.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        refused(dir, &["generate", "packed"], &[name]);
        refused(dir, &["eval", "packed", "--task", "perplexity", "--data", "text"], &[name]);
    }
}

#[test]
fn names_and_forms() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let eval = |model: &'static str, rest: &[&'static str], words: &[&str]| {
        let args: Vec<&str> = ["eval", model].into_iter().chain(rest.iter().copied()).collect();
        refused(dir, &args, words);
    };
    eval("packed", &["--task", "blimb", "--data", "pairs"], &["blimb", "similar value exists: 'blimp'"]);
    eval(
        "packed",
        &["--task", "glue", "--data", "pairs"],
        &["glue", "[possible values: blimp, supplement, pairs, perplexity]"],
    );
    eval(
        "packed",
        &["--task", "pairs", "--data", "pair"],
        &["pair does not exist", "did you mean \"pairs\"?"],
    );
    eval(
        "packed",
        &["--task", "pairs", "--data", "no/pairs"],
        &["no/pairs does not exist", "neither does no"],
    );
    eval("packed", &["--task", "pairs", "--data", "text"], &["text", ".jsonl"]);
    eval(
        "packed",
        &["--task", "perplexity", "--data", "tex"],
        &["tex does not exist", "did you mean \"text\"?"],
    );
    eval("packed", &["--task", "perplexity", "--data", "pairs"], &["pairs", ".txt"]);
    eval(
        "packed",
        &["--task", "pairs", "--data", "pairs", "--form", "pakced"],
        &["pakced", "similar value exists: 'packed'", "[possible values: fp, fake, packed]"],
    );
    let perplexity = ["--task", "perplexity", "--data", "text"];
    for (option, words) in [
        (["--limit", "64"], &["--limit counts pairs", "--context N", "--stride N"][..]),
        (["--context", "1"], &["context is 1", "2 to 128"]),
        (["--context", "129"], &["context is 129", "2 to 128"]),
        (["--stride", "0"], &["stride is 0", "1 to 127"]),
        (["--stride", "128"], &["stride is 128", "1 to 127"]),
    ] {
        eval("packed", &[&perplexity[..], &option].concat(), words);
    }
    for option in ["--context", "--stride"] {
        eval("packed", &["--task", "pairs", "--data", "pairs", option, "64"], &["perplexity", "--limit N"]);
    }
    for form in ["fp", "fake"] {
        eval(
            "packed",
            &["--task", "pairs", "--data", "pairs", "--form", form],
            &["is packed", "--form packed"],
        );
    }
    for model in ["fp", "qat"] {
        eval(
            model,
            &["--task", "pairs", "--data", "pairs", "--form", "packed"],
            &["not packed", "squat pack"],
        );
    }
    eval("fp", &["--task", "pairs", "--data", "pairs", "--form", "fake"], &["no quantization plan"]);
    eval("pack", &["--task", "pairs", "--data", "pairs"], &["pack does not exist", "packed"]);
    eval("text", &["--task", "pairs", "--data", "pairs"], &["text", "config.json is missing"]);
    eval("recipe.toml", &["--task", "pairs", "--data", "pairs"], &["recipe.toml", "expected a model"]);

    refused(dir, &["pack", "fp", "--out", "out"], &["no quantization plan", "w4a8"]);
    refused(dir, &["pack", "fp", "--out", "out", "--plan", "fp"], &["nothing to pack"]);
    refused(dir, &["pack", "fp", "--out", "out", "--plan", "w4a9"], &["w4a9", "did you mean \"w4a"]);
    refused(dir, &["pack", "fp", "--out", "out", "--plan", "rho50"], &["thresholds", "training"]);
    refused(dir, &["pack", "packed", "--out", "out"], &["packed", "expected weights in full precision"]);
    refused(dir, &["pack", "qat", "--out", "text"], &["text", "a.txt", "not a packed model", "--force"]);
    refused(dir, &["pack", "qat", "--out", "recipe.toml"], &["recipe.toml", "got a file"]);
    write(&dir.join("mine/config.json"), "{}");
    write(&dir.join("mine/thesis.tex"), "x");
    refused(
        dir,
        &["pack", "qat", "--out", "mine"],
        &["mine", "config.json", "not a packed model", "--force"],
    );
    // Forced, the model is written and the thesis stays.
    assert!(output(dir, &["pack", "qat", "--out", "mine", "--force"]).status.success());
    assert_eq!(std::fs::read_to_string(dir.join("mine/thesis.tex")).unwrap(), "x");

    for (option, value) in
        [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5")]
    {
        let name = option.trim_start_matches('-').replace('-', "_");
        refused(dir, &["generate", "packed", option, value], &[&name]);
    }
    let long = "dog ".repeat(200);
    refused(dir, &["generate", "packed", "--prompt", &long], &["do not fit", "128"]);
    refused(dir, &["bench", "packed", "-p", "200"], &["128 tokens at most"]);
    refused(dir, &["generate", "packed", "-t", "100000"], &["threads"]);
    for verb in ["inspect", "generate", "bench"] {
        refused(dir, &[verb, "pakced"], &["pakced does not exist", "did you mean", "packed"]);
    }
    let mut command = squat(dir, &["generate", "packed"]);
    let output = command.env("SQUAT_ISA", "avx3").output().unwrap();
    check_refusal(&output, &["generate"], &["avx3", "scalar"]);
}

/// A tokenizer of another model: ids outside the vocabulary are refused before they reach the model.
#[test]
fn tokenizers_of_other_models() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    write(&dir.join("other/words.train.txt"), &"Some of these words are longer than others.\n".repeat(50));
    let larger = ["tokenizer", "train", "pairs", "--out", "larger", "--vocab-size", "900", "--split", "all"];
    // Pairs have no field `text`.
    refused(dir, &larger, &["text"]);
    let many: String = (0..4000).map(|i| format!("word{} or w{}x is here.\n", i * 7919 % 4001, i)).collect();
    write(&dir.join("many/a.train.txt"), &many);
    common::command::ok(dir, &["tokenizer", "train", "many", "--out", "larger", "--vocab-size", "900"]);
    for kind in ["fp", "qat", "packed"] {
        let own = dir.join(kind).join("tokenizer.json");
        let whole = std::fs::read(&own).unwrap();
        std::fs::copy(dir.join("larger/tokenizer.json"), &own).unwrap();
        for verb in [
            vec!["generate", kind, "--prompt", "A dog"],
            vec!["eval", kind, "--task", "pairs", "--data", "pairs"],
        ] {
            refused(dir, &verb, &["vocabulary of 300", "900", "trained with"]);
        }
        std::fs::write(&own, "{}").unwrap();
        refused(dir, &["generate", kind], &["tokenizer.json"]);
        std::fs::remove_file(&own).unwrap();
        refused(dir, &["generate", kind], &["tokenizer.json is missing"]);
        std::fs::write(&own, whole).unwrap();
    }
    // A stage that starts from a model with fewer rows than the tokenizer has ids.
    let larger = ["--set", "data.tokenizer=larger", "--set", "stage.fp.init=fp0"];
    std::fs::rename(dir.join("fp"), dir.join("fp0")).unwrap();
    let args: Vec<&str> = ["train", "recipe.toml", "--out", "run"].into_iter().chain(larger).collect();
    let output = output(dir, &args);
    check_refusal(&output, &args, &["vocabulary of 300", "900", "tokenizer"]);
}

#[test]
fn a_run_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(&dir.join("recipe.toml"), RECIPE);
    let train = ["train", "recipe.toml", "--out", "run", "-t", "1"];
    assert_eq!(common::command::ok(dir, &train), "run\n");
    refused(dir, &train, &["run holds a run already", "--resume", "--out"]);
    let resume = |setting| {
        let args: Vec<&str> = train.into_iter().chain(["--resume", "--set", setting]).collect();
        let kept = |name: &str| std::fs::read(dir.join("run").join(name)).unwrap();
        let names = [
            "recipe.toml",
            "provenance.json",
            "fp/last/model.safetensors",
            "fp/metrics.jsonl",
            "tokenizer/tokenizer.json",
            "data/train/manifest.json",
        ];
        let before = names.map(kept);
        let output = output(dir, &args);
        check_refusal(&output, &args, &["another recipe, data, tokenizer or seed", "run/fp"]);
        assert!(before == names.map(kept), "{setting}");
    };
    resume("seed=4");
    resume("stage.fp.learning_rate=1e-3");
    // The same recipe again has nothing to do.
    let args: Vec<&str> = train.into_iter().chain(["--resume"]).collect();
    let finished = output(dir, &args);
    assert_eq!(finished.status.code(), Some(0));
    assert_eq!(text(&finished.stderr).matches("finished before").count(), 2);
    let device = ["train", "recipe.toml", "--out", "new", "--device", "cdua"];
    refused(dir, &device, &["cdua", "did you mean `cuda`?"]);
    // A folder that cannot be made.
    write(&dir.join("file"), "x");
    refused(dir, &["train", "recipe.toml", "--out", "file/run"], &["file"]);
    refused(dir, &["train", "recipe.toml", "--out", "file"], &["file"]);
}

/// What is there and was not written by this command stays.
#[test]
fn outputs_of_others_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    let at = |name: &str| dir.join(name);
    let text = ["text", "--split", "all"];
    let pack = |out| ["pack", "qat", "--out", out];
    let tokenizer =
        |out| [&["tokenizer", "train"], &text[..], &["--vocab-size", "300", "--out", out]].concat();
    let prepare =
        |out| [&["data", "prepare"], &text[..], &["--tokenizer", "tokenizer", "--out", out]].concat();
    // A model of another program, and folders that merely have our names.
    squat_test::files::copy(&at("fp"), &at("theirs"));
    std::fs::remove_file(at("theirs/SHA256SUMS")).unwrap();
    std::fs::write(at("theirs/README.md"), "theirs").unwrap();
    std::fs::create_dir_all(at("work/data")).unwrap();
    std::fs::write(at("work/manifest.json"), "{}").unwrap();
    refused(dir, &pack("fp"), &["fp", "a model in full precision", "--force"]);
    refused(dir, &pack("theirs"), &["theirs", "not a packed model", "--force"]);
    refused(dir, &tokenizer("theirs"), &["theirs", "not a tokenizer", "--force"]);
    refused(dir, &tokenizer("packed"), &["packed", "a packed model", "--force"]);
    refused(dir, &prepare("work"), &["work", "manifest.json", "--force"]);
    refused(dir, &["train", "recipe.toml", "--out", "work"], &["work", "data", "not a training run"]);
    refused(dir, &["quickstart", "--out", "theirs/README.md"], &["got a file"]);
    // One writer at a time: the second is told who the first is.
    let lock = squat_files::write::Lock::beside(&at("new")).unwrap();
    let own = format!("process {}", std::process::id());
    refused(dir, &pack("new"), &["new", &own, "UTC"]);
    refused(dir, &tokenizer("new"), &["new", &own]);
    drop(lock);
    let claim = |name: &str, kind| {
        squat_files::write::OutputFolder::claim(&at(name), kind, &[], |_| true, false).unwrap()
    };
    let (run, shards) = (claim("run", "training run"), claim("shards", "token shards"));
    refused(dir, &["train", "recipe.toml", "--out", "run"], &["run", &own]);
    refused(dir, &prepare("shards"), &["shards", &own]);
    drop((run, shards));
    // By force the files of a packed model are replaced, and others stay.
    ok(dir, &["pack", "qat", "--out", "theirs", "--force"]);
    assert_eq!(std::fs::read_to_string(at("theirs/README.md")).unwrap(), "theirs");
    ok(dir, &["inspect", "theirs", "--verify"]);
    ok(dir, &pack("theirs"));
    assert_eq!(std::fs::read_to_string(at("theirs/README.md")).unwrap(), "theirs");
}

/// Files that were changed after they were written are named.
#[test]
fn changed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    models(dir);
    assert!(ok(dir, &["inspect", "packed", "--verify"]).contains("verified: "));
    let change = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(dir.join(name)).unwrap();
        change(&mut bytes);
        std::fs::write(dir.join(name), bytes).unwrap();
    };
    change("packed/model.safetensors", &|bytes| {
        // A code: every value of it is legal.
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    refused(dir, &["inspect", "packed", "--verify"], &["model.safetensors", "SHA-256"]);
    let eval = ["eval", "packed", "--task", "perplexity", "--data", "text"];
    refused(dir, &eval, &["model.safetensors", "SHA-256"]);
    std::fs::remove_file(dir.join("packed/SHA256SUMS")).unwrap();
    ok(dir, &eval);
    refused(dir, &["inspect", "packed", "--verify"], &["SHA256SUMS", "missing"]);
    // A weight that is not a number is shown.
    change("fp/model.safetensors", &|bytes| {
        let last = bytes.len() - 4;
        bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let inspected = output(dir, &["inspect", "fp"]);
    let stderr = text(&inspected.stderr);
    assert!(inspected.status.success() && stderr.contains("NaN") && stderr.contains("warning"), "{stderr}");
    // Learned scales are there for all weights or for none: one is never made up.
    change("qat/model.safetensors", &|bytes| {
        let name = b"up_proj.weight_scale";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        bytes[at + name.len() - 1] = b'X';
    });
    refused(dir, &["generate", "qat", "--max-tokens", "2"], &["up_proj.weight_scale", "missing"]);
}

/// A run goes on after whatever a kill or a disk did to it, or says which file is damaged.
#[test]
fn runs_that_were_hurt_go_on_or_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("recipe.toml"), RECIPE).unwrap();
    let at = |name: &str| dir.join("run/q").join(name);
    let resume = ["train", "recipe.toml", "--out", "run", "-t", "1", "--resume"];
    ok(dir, &["train", "recipe.toml", "--out", "run", "-t", "1"]);
    std::fs::remove_file(at("finished")).unwrap();
    let zeroed = |name: &str| {
        let good = std::fs::read(at(name)).unwrap();
        std::fs::write(at(name), vec![0; good.len()]).unwrap();
        check_refusal(&output(dir, &resume), &resume, &[name.rsplit('/').next().unwrap(), "damaged"]);
        std::fs::write(at(name), good).unwrap();
    };
    ["last/optimizer_state.bin", "last/quantizer_state.bin", "last/trainer_state.json", "metrics.jsonl"]
        .iter()
        .filter(|name| at(name).exists())
        .for_each(|name| zeroed(name));
    // Killed between two renames, while a new checkpoint was written, and by an earlier version.
    let weights = std::fs::read(at("last/model.safetensors")).unwrap();
    std::fs::rename(at("last"), at(".last.old-12-0")).unwrap();
    for name in [".last.new-12-1", ".best.new-7-0"] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("model.safetensors"), "half").unwrap();
    }
    std::fs::write(at(".best.lock"), "process 7\n").unwrap();
    let resumed = output(dir, &resume);
    let stderr = text(&resumed.stderr);
    assert!(resumed.status.success() && stderr.contains("last was missing"), "{stderr}");
    assert!(stderr.contains("from step 3"), "{stderr}");
    assert_eq!(std::fs::read(at("last/model.safetensors")).unwrap(), weights);
    let mut names: Vec<String> = std::fs::read_dir(at(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["best", "finished", "last", "metrics.jsonl"]);
}
