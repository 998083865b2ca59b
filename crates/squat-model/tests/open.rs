//! The kind of a model is decided by content, disagreements between files are reported, and errors name what was found.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{spec, tensors};
use serde_json::{Value, json};
use squat_model::{
    FolderContents, ModelFolder, ModelKind, ModelSpec, QuantPlan, Tensors, TokenizerFiles, WeightDtype,
    write_folder,
};

fn folder(path: &Path, spec: &ModelSpec, tensors: &Tensors) {
    let contents = FolderContents {
        spec,
        plan: None,
        tensors,
        dtype: WeightDtype::F32,
        tokenizer: &TokenizerFiles::none(),
        generation: None,
        extra_files: &[],
    };
    write_folder(path, &contents).unwrap();
}

fn edit(file: PathBuf, changes: &[(&str, Value)]) {
    let mut config: serde_json::Map<String, Value> =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (key, value) in changes {
        match value {
            Value::String(word) if word == "absent" => drop(config.remove(*key)),
            value => drop(config.insert((*key).to_owned(), value.clone())),
        }
    }
    fs::write(file, Value::Object(config).to_string()).unwrap();
}

fn error_of(path: impl AsRef<Path>) -> String {
    squat_model::open(path).unwrap_err().to_string()
}

/// The same model as a folder, inside a run, inside a cache of the hub, packed, and as a GGUF file of any name.
#[test]
fn every_kind_of_path_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (spec, tensors) = (spec(true), tensors(&spec(true)));
    folder(&at("fp"), &spec, &tensors);
    let opened = squat_model::open(at("fp")).unwrap();
    assert_eq!(
        (opened.kind(), opened.path(), opened.notes().len()),
        (ModelKind::FullPrecision, &*at("fp"), 0)
    );

    opened.pack(Some(&QuantPlan::w4a8()), at("packed")).unwrap();
    let packed = squat_model::open(at("packed")).unwrap();
    assert!(packed.kind() == ModelKind::Packed && packed.packed().is_some());
    assert!(packed.pack(None, at("x")).unwrap_err().to_string().contains("got a packed model"));

    fs::write(at("fp/model.safetensors.index.json"), "{}").unwrap();
    let notes = squat_model::open(at("fp")).unwrap().notes().join("; ");
    assert!(notes.contains("the former is used"), "{notes}");
    fs::remove_file(at("fp/model.safetensors.index.json")).unwrap();

    // A run: the last stage that has a checkpoint, the best before the last one.
    fs::create_dir_all(at("run")).unwrap();
    fs::write(
        at("run/recipe.toml"),
        "[[stage]]\nname = \"a\"\n[[stage]]\nname = \"b\"\n[[stage]]\nname = \"c\"\n",
    )
    .unwrap();
    for stage in ["a/best", "a/last", "b/last"] {
        folder(&at("run").join(stage), &spec, &tensors);
    }
    assert_eq!(squat_model::open(at("run")).unwrap().path(), at("run/b/last"));
    assert_eq!(squat_model::open(at("run/a")).unwrap().path(), at("run/a/best"));

    let snapshot = at("models--a--b/snapshots/0a1b");
    folder(&snapshot, &spec, &tensors);
    assert_eq!(squat_model::open(at("models--a--b")).unwrap().path(), snapshot);
    fs::create_dir_all(at("models--a--b/snapshots/ffff")).unwrap();
    assert!(error_of(at("models--a--b")).contains("2 snapshots"));
    fs::create_dir_all(at("models--a--b/refs")).unwrap();
    fs::write(at("models--a--b/refs/main"), "0a1b\n").unwrap();
    assert_eq!(squat_model::open(at("models--a--b")).unwrap().path(), snapshot);
    fs::write(at("models--a--b/refs/main"), "9999").unwrap();
    assert!(error_of(at("models--a--b")).contains("finish the download"));

    fs::create_dir_all(at("gguf")).unwrap();
    fs::write(at("gguf/weights.anything"), squat_test::gguf::model(&spec, &tensors).bytes()).unwrap();
    let opened = squat_model::open(at("gguf/weights.anything")).unwrap();
    assert_eq!((opened.spec(), opened.kind()), (&spec, ModelKind::FullPrecision));
    fs::rename(at("gguf/weights.anything"), at("gguf/a.gguf")).unwrap();
    assert_eq!(squat_model::open(at("gguf")).unwrap().path(), at("gguf/a.gguf"));
    fs::copy(at("gguf/a.gguf"), at("gguf/b.gguf")).unwrap();
    assert!(error_of(at("gguf")).contains("2 GGUF files"));
}

/// A llama2.c checkpoint by its header, with the tokenizer beside it; it packs, tokenizer included.
#[test]
fn llama2c_checkpoints_are_opened() {
    let Ok(data) = std::env::var("SQUAT_DATA") else {
        eprintln!("skipped: SQUAT_DATA is not set");
        return;
    };
    let source = Path::new(&data).join("stories260K");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::copy(source.join("stories260K.bin"), at("model")).unwrap();
    let opened = squat_model::open(at("model")).unwrap();
    assert!(opened.tokenizer().unwrap_err().to_string().contains("tok512.bin"));
    fs::copy(source.join("tok512.bin"), at("tok512.bin")).unwrap();
    let ids = opened.tokenizer().unwrap().encode("Once upon a time").unwrap();
    assert_eq!(ids, [403, 407, 261, 378]);
    opened.pack(Some(&QuantPlan::w4a8()), at("packed")).unwrap();
    let packed = squat_model::open(at("packed")).unwrap();
    assert_eq!(packed.tokenizer().unwrap().encode("Once upon a time").unwrap(), ids);
    let bytes = fs::read(at("model")).unwrap();
    fs::write(at("cut.bin"), &bytes[..bytes.len() - 4]).unwrap();
    assert!(error_of(at("cut.bin")).contains("expected 1056540 bytes"));
}

/// End tokens in every combination: `generation_config.json` takes precedence, and a difference is reported.
#[test]
fn end_tokens_of_two_files() {
    let dir = tempfile::tempdir().unwrap();
    let absent = || json!("absent");
    for packed in [false, true] {
        for (config, generation, want, notes) in [
            (json!(2), json!([2, 3]), vec![2, 3], 1),
            (json!([2, 3]), json!(2), vec![2], 1),
            (json!(2), Value::Null, vec![2], 1),
            (json!([3, 4]), absent(), vec![3, 4], 1),
            (Value::Null, json!([4]), vec![4], 0),
            (absent(), json!(3), vec![3], 0),
            (json!(2), json!(2), vec![2], 0),
            (Value::Null, Value::Null, vec![], 0),
        ] {
            let path = dir.path().join("model");
            let _ = fs::remove_dir_all(&path);
            folder(&path, &spec(true), &tensors(&spec(true)));
            if packed {
                squat_model::open(&path)
                    .unwrap()
                    .pack(Some(&QuantPlan::w4a8()), path.with_extension("p"))
                    .unwrap();
                fs::remove_dir_all(&path).unwrap();
                fs::rename(path.with_extension("p"), &path).unwrap();
            }
            edit(path.join("config.json"), &[("eos_token_id", config.clone())]);
            edit(path.join("generation_config.json"), &[("eos_token_id", generation.clone())]);
            let opened = squat_model::open(&path).unwrap();
            assert_eq!(opened.spec().eos_token_ids, want, "{config} {generation}");
            assert_eq!(opened.generation().eos_token_ids, want);
            assert_eq!(opened.notes().len(), notes, "{config} {generation}: {:?}", opened.notes());
        }
    }
    // Settings that would change the text are named; neutral ones are not.
    let path = dir.path().join("model");
    let generation = path.join("generation_config.json");
    edit(
        generation.clone(),
        &[("num_beams", json!(1)), ("repetition_penalty", json!(1.1)), ("min_p", Value::Null)],
    );
    let notes = squat_model::open(&path).unwrap().notes().join("; ");
    assert!(
        notes.contains("repetition_penalty") && !notes.contains("num_beams") && !notes.contains("min_p"),
        "{notes}"
    );
    // An id that the model does not have.
    let path = dir.path().join("model");
    edit(path.join("generation_config.json"), &[("eos_token_id", json!(99))]);
    assert!(error_of(&path).contains("generation_config.json.eos_token_id"));
}

/// A head beside a table that is said to serve as head: the head counts if it differs, and is packed as well.
#[test]
fn a_stored_head_of_a_tied_model_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let untied = spec(false);
    let mut tensors = tensors(&untied);
    folder(&path, &untied, &tensors);
    edit(path.join("config.json"), &[("tie_word_embeddings", json!(true))]);
    let opened = squat_model::open(&path).unwrap();
    assert!(!opened.spec().tie_word_embeddings);
    assert!(opened.notes()[0].contains("differs from the token table"), "{:?}", opened.notes());
    assert_eq!(opened.tensors().read_f32(ModelSpec::HEAD).unwrap(), tensors.get(ModelSpec::HEAD).unwrap());
    let packed = dir.path().join("packed");
    opened.pack(Some(&QuantPlan::w4a8()), &packed).unwrap();
    assert!(!squat_model::open(&packed).unwrap().spec().tie_word_embeddings);

    let table = tensors.get(ModelSpec::EMBEDDING).unwrap().to_vec();
    tensors.insert(ModelSpec::HEAD, &[untied.vocab_size, untied.hidden_size], table).unwrap();
    folder(&path, &untied, &tensors);
    edit(path.join("config.json"), &[("tie_word_embeddings", json!(true))]);
    let opened = squat_model::open(&path).unwrap();
    assert!(opened.spec().tie_word_embeddings && opened.notes().is_empty());
}

/// Whether a tokenizer adds BOS is what its files say.
#[test]
fn bos_of_the_tokenizer_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    folder(&path, &spec(true), &tensors(&spec(true)));
    let adds = || squat_model::open(&path).unwrap().adds_bos();
    assert_eq!(adds().unwrap(), None);
    for (text, want) in [
        ("{}", None),
        (r#"{"add_bos_token": false}"#, Some(false)),
        (r#"{"add_bos_token": true}"#, Some(true)),
    ] {
        fs::write(path.join("tokenizer_config.json"), text).unwrap();
        assert_eq!(adds().unwrap(), want);
    }
    fs::write(path.join("tokenizer_config.json"), r#"{"add_bos_token": "no"}"#).unwrap();
    assert!(adds().unwrap_err().to_string().contains("add_bos_token"));
}

#[test]
fn what_is_no_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    folder(&at("model"), &spec(true), &tensors(&spec(true)));
    assert!(error_of(at("modle")).contains("did you mean"));
    assert!(error_of(at("model/config.json")).contains("give its folder"));
    fs::write(at("notes.txt"), "hello").unwrap();
    assert!(error_of(at("notes.txt")).contains("expected a model"));
    fs::write(at("empty.gguf"), "").unwrap();
    assert!(error_of(at("empty.gguf")).contains("expected a model"));
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    fs::write(at("pointer.gguf"), pointer).unwrap();
    assert!(error_of(at("pointer.gguf")).contains("git lfs pull"));
    fs::copy(at("model/model.safetensors"), at("weights")).unwrap();
    fs::write(at("model/model.safetensors"), pointer).unwrap();
    assert!(error_of(at("model")).contains("git lfs pull"));
    fs::remove_file(at("model/model.safetensors")).unwrap();
    fs::write(at("model/pytorch_model.bin"), "PK").unwrap();
    let error = error_of(at("model"));
    assert!(error.contains("pytorch_model.bin") && error.contains("save_pretrained"), "{error}");
    fs::create_dir(at("lora")).unwrap();
    fs::write(at("lora/adapter_config.json"), "{}").unwrap();
    assert!(error_of(at("lora")).contains("merge_and_unload"));
    fs::create_dir(at("nothing")).unwrap();
    assert!(error_of(at("nothing")).contains("config.json is missing"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(at("blobs/123"), at("link.gguf")).unwrap();
        assert!(error_of(at("link.gguf")).contains("finish the download"));
        std::os::unix::fs::symlink(at("blobs/123"), at("model/model.safetensors")).unwrap();
        assert!(error_of(at("model")).contains("finish the download"));
        assert!(error_of("/dev/null").contains("regular file"));
        // A pipe in place of any file of a folder is named at once, and nobody waits for a writer.
        for name in ["config.json", "model.safetensors", "generation_config.json"] {
            let place = at("piped");
            folder(&place, &spec(true), &tensors(&spec(true)));
            let _ = fs::remove_file(place.join(name));
            assert!(std::process::Command::new("mkfifo").arg(place.join(name)).status().unwrap().success());
            let error = error_of(&place);
            assert!(error.contains("regular file, got a pipe") && error.contains(name), "{error}");
            fs::remove_dir_all(&place).unwrap();
        }
    }
    assert!(ModelFolder::open(at("nothing")).is_err());
}
