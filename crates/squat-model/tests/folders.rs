//! Full-precision folders: round trips, and one clear line for everything that can be wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{add_scales, add_static, assert_same, listing, spec, tensors, tokenizer_files};
use serde_json::{Value, json};
use squat_model::{
    FolderContents, GenerationConfig, ModelFolder, ModelKind, ModelSpec, ModelSummary, QuantPlan,
    TensorSource, Tensors, Tokenizer, TokenizerFiles, WeightDtype, reference, write_folder,
};

fn write(path: &Path, spec: &ModelSpec, tensors: &Tensors) {
    write_with(path, spec, tensors, None, WeightDtype::F32).unwrap();
}

fn write_with(
    path: &Path,
    spec: &ModelSpec,
    tensors: &Tensors,
    plan: Option<&QuantPlan>,
    dtype: WeightDtype,
) -> Result<(), String> {
    let tokenizer = tokenizer_files();
    let contents = FolderContents {
        spec,
        plan,
        tensors,
        dtype,
        tokenizer: &tokenizer,
        generation: None,
        extra_files: &[],
    };
    write_folder(path, &contents).map_err(|error| error.to_string())
}

/// One clear line.
fn error_of<T>(result: Result<T, squat_model::ModelError>) -> String {
    let text = result.map(|_| ()).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn reads_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    for tied in [false, true] {
        let (spec, path) = (spec(tied), dir.path().join(format!("model-{tied}")));
        let tensors = tensors(&spec);
        write(&path, &spec, &tensors);
        let folder = ModelFolder::open(&path).unwrap();
        assert_eq!((folder.spec(), folder.plan()), (&spec, None));
        assert_eq!(folder.names(), tensors.names());
        assert_same(&folder, &tensors, &tensors.names());
        folder.check_finite().unwrap();
        let tokens = [1, 5, 7, 3];
        assert_eq!(
            reference::forward(&spec, &folder, &tokens).unwrap(),
            reference::forward(&spec, &tensors, &tokens).unwrap()
        );
        assert_eq!(
            listing(&path),
            ["SHA256SUMS", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
        );
        assert_eq!(listing(dir.path()).len(), 1 + usize::from(tied), "nothing temporary stays");
        assert_eq!(folder.generation().eos_token_ids, [2]);
    }
}

#[test]
fn checkpoints_carry_plan_scales_and_quantizers() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("qat"));
    let mut tensors = tensors(&spec);
    let mut plan = QuantPlan::with_rho(0.5);
    plan.thresholds = vec![0.0, 1.0 / 3.0];
    add_scales(&spec, &plan, &mut tensors);
    add_static(&spec, &mut plan, &mut tensors);
    write_with(&path, &spec, &tensors, Some(&plan), WeightDtype::F32).unwrap();
    let folder = ModelFolder::open(&path).unwrap();
    assert_eq!(folder.plan(), Some(&plan));
    assert_eq!(folder.names(), tensors.names());
    assert_same(&folder, &tensors, &tensors.names());
    // Learned scales are there for all or none.
    tensors.remove("model.layers.1.mlp.up_proj.weight_scale");
    let error = write_with(&path, &spec, &tensors, Some(&plan), WeightDtype::F32).unwrap_err();
    assert!(error.contains("up_proj.weight_scale") && error.contains("missing"), "{error}");
    assert_eq!(ModelFolder::open(&path).unwrap().plan(), Some(&plan), "the old folder is kept");
    let summary = ModelSummary::open(&path).unwrap();
    assert_eq!((summary.kind, summary.learned_scales), (ModelKind::Checkpoint, true));
    assert_eq!(summary.layers[1].threshold, Some(1.0 / 3.0));
    assert_eq!(summary.num_parameters, spec.num_parameters());
}

#[test]
fn a_checkpoint_with_former_names_of_points_is_read_and_packed_with_present_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path, out) = (spec(false), dir.path().join("qat"), dir.path().join("packed"));
    let mut tensors = tensors(&spec);
    let mut plan = QuantPlan::with_rho(0.5);
    plan.thresholds = vec![0.0, 0.25];
    add_static(&spec, &mut plan, &mut tensors);
    write_with(&path, &spec, &tensors, Some(&plan), WeightDtype::F32).unwrap();
    let rename = |text: &str| {
        [("o_proj_input", "attn_out"), ("down_proj_input", "mlp_mid"), ("lm_head_input", "head_in")]
            .iter()
            .fold(text.to_owned(), |text, (present, former)| text.replace(present, former))
    };
    let config = rename(&fs::read_to_string(path.join("config.json")).unwrap());
    fs::write(path.join("config.json"), config).unwrap();
    let file = fs::read(path.join("model.safetensors")).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = rename(std::str::from_utf8(header).unwrap());
    assert!(header.contains("model.layers.1.attn_out.a4_scale") && header.contains("model.head_in.a8_scale"));
    let old = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(path.join("model.safetensors"), old).unwrap();

    let folder = ModelFolder::open(&path).unwrap();
    assert_eq!(folder.plan(), Some(&plan));
    assert_eq!(folder.names(), tensors.names());
    assert_same(&folder, &tensors, &tensors.names());
    folder.pack(None, &out).unwrap();
    let config = fs::read_to_string(out.join("config.json")).unwrap();
    assert!(config.contains("lm_head_input") && !config.contains("head_in\""), "{config}");
    let packed = squat_model::PackedModel::open(&out).unwrap();
    for (point, layer, bits) in plan.static_quantizers(&spec) {
        let want = squat_model::tensors::read_static_affine(&tensors, point, layer, bits).unwrap();
        assert_eq!(packed.static_affine(point, layer, bits).unwrap(), want);
    }
}

#[test]
fn half_precision_and_bfloat_are_widened() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(true), dir.path().join("half"));
    let mut tensors = tensors(&spec);
    write_with(&path, &spec, &tensors, None, WeightDtype::F16).unwrap();
    let folder = ModelFolder::open(&path).unwrap();
    let name = spec.linear_name(1, squat_model::LinearKind::V);
    for (x, y) in tensors.get(&name).unwrap().iter().zip(folder.tensor_f32(&name).unwrap()) {
        assert_eq!(half::f16::from_f32(*x).to_f32(), y);
    }
    assert!(folder.weight_bytes() < 2 * spec.num_parameters() as u64 + 4096);
    tensors.get_mut(&name).unwrap()[3] = 1e6;
    let error = write_with(&path, &spec, &tensors, None, WeightDtype::F16).unwrap_err();
    assert!(error.contains("half precision") && error.contains("element 3"), "{error}");
    // bfloat16, written by the reference library.
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = spec
        .parameters()
        .into_iter()
        .map(|p| {
            let values = tensors.get(&p.name).unwrap();
            let bytes = values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
            (p.name, p.shape, bytes)
        })
        .collect();
    let views: Vec<(String, safetensors::tensor::TensorView<'_>)> = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
            (name.clone(), view.unwrap())
        })
        .collect();
    fs::write(path.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let folder = ModelFolder::open(&path).unwrap();
    assert_eq!(
        folder.tensor_f32(&name).unwrap()[0],
        half::bf16::from_f32(tensors.get(&name).unwrap()[0]).to_f32()
    );
}

/// A folder whose final norm has these bytes in a type.
fn with_norm(path: &Path, dtype: safetensors::Dtype, bytes: &[u8]) {
    let spec = spec(false);
    let tensors = tensors(&spec);
    write(path, &spec, &tensors);
    let values: Vec<_> = spec
        .parameters()
        .into_iter()
        .map(|p| {
            let own: Vec<u8> = tensors.get(&p.name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
            match p.name == "model.norm.weight" {
                true => (p.name, p.shape, dtype, bytes.to_vec()),
                false => (p.name, p.shape, safetensors::Dtype::F32, own),
            }
        })
        .collect();
    let views = values.iter().map(|(name, shape, dtype, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn doubles_are_rounded_and_other_types_named() {
    let dir = tempfile::tempdir().unwrap();
    let width = spec(false).hidden_size;
    let doubles: Vec<f64> = (0..width).map(|i| 1.0 + i as f64 / 3.0).collect();
    let bytes: Vec<u8> = doubles.iter().flat_map(|x| x.to_le_bytes()).collect();
    with_norm(&dir.path().join("f64"), safetensors::Dtype::F64, &bytes);
    let folder = ModelFolder::open(dir.path().join("f64")).unwrap();
    let nearest: Vec<f32> = doubles.iter().map(|&x| x as f32).collect();
    assert_eq!(folder.tensor_f32("model.norm.weight").unwrap(), nearest);
    with_norm(&dir.path().join("u8"), safetensors::Dtype::U8, &vec![1; width]);
    let error = error_of(ModelFolder::open(dir.path().join("u8")));
    assert!(
        error.contains("\"model.norm.weight\"") && error.contains("got U8") && error.contains("F64"),
        "{error}"
    );
}

#[test]
fn the_reference_library_reads_our_files() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("m"));
    let tensors = tensors(&spec);
    write(&path, &spec, &tensors);
    let bytes = fs::read(path.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), tensors.names().len());
    let view = file.tensor("lm_head.weight").unwrap();
    assert_eq!((view.shape(), view.dtype()), (&[19usize, 24][..], safetensors::Dtype::F32));
    let first = f32::from_le_bytes(view.data()[..4].try_into().unwrap());
    assert_eq!(first, tensors.get("lm_head.weight").unwrap()[0]);
}

#[test]
fn shards() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("m"));
    let tensors = tensors(&spec);
    write(&path, &spec, &tensors);
    let mut map = serde_json::Map::new();
    for (shard, odd) in
        [("model-00001-of-00002.safetensors", true), ("model-00002-of-00002.safetensors", false)]
    {
        let parts: Vec<_> = spec
            .parameters()
            .into_iter()
            .enumerate()
            .filter(|(i, _)| (i % 2 == 1) == odd)
            .map(|(_, p)| p)
            .collect();
        let bytes: Vec<Vec<u8>> = parts
            .iter()
            .map(|p| tensors.get(&p.name).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect())
            .collect();
        let views = parts.iter().zip(&bytes).map(|(p, bytes)| {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, p.shape.clone(), bytes);
            (p.name.clone(), view.unwrap())
        });
        fs::write(path.join(shard), safetensors::serialize(views, None).unwrap()).unwrap();
        map.extend(parts.iter().map(|p| (p.name.clone(), json!(shard))));
    }
    fs::remove_file(path.join("model.safetensors")).unwrap();
    let index = |map: &serde_json::Map<String, Value>| {
        fs::write(path.join("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    };
    index(&map);
    assert_same(&ModelFolder::open(&path).unwrap(), &tensors, &tensors.names());
    // The index promises a tensor that no shard has and the model does not need, and forgets one that a shard has.
    let mut wrong = map.clone();
    wrong.insert("rotary.inv_freq".to_owned(), json!("model-00001-of-00002.safetensors"));
    wrong.remove("model.norm.weight").unwrap();
    index(&wrong);
    assert_same(&ModelFolder::open(&path).unwrap(), &tensors, &tensors.names());
    wrong.insert("lm_head.weight".to_owned(), json!("../secret.safetensors"));
    index(&wrong);
    assert!(error_of(ModelFolder::open(&path)).contains("expected a file name"));
    map.insert("lm_head.weight".to_owned(), json!("model-00003.safetensors"));
    index(&map);
    let error = error_of(ModelFolder::open(&path));
    assert!(error.contains("does not exist") && error.contains("did you mean"), "{error}");
}

#[test]
fn wrong_folders_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("my-model"));
    let good = tensors(&spec);
    write(&path, &spec, &good);
    let error = error_of(ModelFolder::open(dir.path().join("my-modle")));
    assert!(error.contains("does not exist; did you mean") && error.contains("my-model"), "{error}");
    assert!(error_of(ModelFolder::open("/no/such/place")).contains("neither does /no/such"));
    assert!(error_of(ModelFolder::open(path.join("config.json"))).contains("got a file"));

    let weights = path.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    for keep in [0, 5, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&weights, &bytes[..keep]).unwrap();
        let error = error_of(ModelFolder::open(&path));
        assert!(error.contains("truncated") && error.contains("model.safetensors"), "{keep}: {error}");
    }
    let mut corrupt = bytes.clone();
    corrupt[20] = b'\\';
    fs::write(&weights, &corrupt).unwrap();
    assert!(error_of(ModelFolder::open(&path)).contains("corrupt"));
    fs::remove_file(&weights).unwrap();
    assert!(error_of(ModelFolder::open(&path)).contains("weights are missing"));
    fs::write(&weights, &bytes).unwrap();

    let config = fs::read_to_string(path.join("config.json")).unwrap();
    let lie = |from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        fs::write(path.join("config.json"), config.replace(from, to)).unwrap();
        error_of(ModelFolder::open(&path))
    };
    let error = lie("\"intermediate_size\": 37", "\"intermediate_size\": 38");
    assert!(
        error.contains("gate_proj.weight") && error.contains("expected shape [38, 24], got [37, 24]"),
        "{error}"
    );
    let error = lie("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert!(error.contains("model.layers.2.") && error.contains("nearest: model.layers."), "{error}");
    assert!(lie("{", "[").contains("invalid JSON"));
    let error = lie("\"hidden_act\"", "\"squat\": {\"format_version\": 1, \"plam\": {}}, \"hidden_act\"");
    assert!(error.contains("squat.plam") && error.contains("did you mean \"plan\""), "{error}");
    assert!(
        lie("\"hidden_act\"", "\"squat\": {\"format_version\": 2}, \"hidden_act\"")
            .contains("another version")
    );
    fs::rename(path.join("config.json"), path.join("confg.json")).unwrap();
    assert!(error_of(ModelFolder::open(&path)).contains("did you mean \"confg.json\""));
}

#[test]
fn nan_and_foreign_tensors_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("m"));
    let mut bad = tensors(&spec);
    bad.get_mut("model.layers.1.self_attn.k_proj.weight").unwrap()[17] = f32::NAN;
    let error = write_with(&path, &spec, &bad, None, WeightDtype::F32).unwrap_err();
    assert!(error.contains("k_proj.weight") && error.contains("element 17 is NaN"), "{error}");
    let mut foreign = tensors(&spec);
    foreign.insert("model.layers.0.mlp.upproj.weight", &[2], vec![0.0; 2]).unwrap();
    let error = write_with(&path, &spec, &foreign, None, WeightDtype::F32).unwrap_err();
    assert!(error.contains("did you mean \"model.layers.0.mlp.up_proj.weight\""), "{error}");
    let mut missing = tensors(&spec);
    missing.remove("model.norm.weight");
    let error = write_with(&path, &spec, &missing, None, WeightDtype::F32).unwrap_err();
    assert!(error.contains("\"model.norm.weight\" is missing"), "{error}");
    assert!(listing(dir.path()).is_empty());
    // A damaged file is opened, and the check finds the element.
    write(&path, &spec, &tensors(&spec));
    let weights = path.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let n = bytes.len();
    bytes[n - 8..n - 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let error = error_of(ModelFolder::open(&path).unwrap().check_finite());
    assert!(error.contains("\"lm_head.weight\"") && error.contains("element 454 is inf"), "{error}");
}

#[test]
fn extra_files_and_generation_config() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("m"));
    let tensors = tensors(&spec);
    let generation =
        GenerationConfig { temperature: Some(0.7), do_sample: true, ..GenerationConfig::of_spec(&spec) };
    let none = TokenizerFiles::none();
    let contents = |extra_files| FolderContents {
        spec: &spec,
        plan: None,
        tensors: &tensors,
        dtype: WeightDtype::F32,
        tokenizer: &none,
        generation: Some(&generation),
        extra_files,
    };
    let extra = [("optimizer.bin".to_owned(), vec![1, 2, 3])];
    write_folder(&path, &contents(&extra)).unwrap();
    write_folder(&path, &contents(&extra)).unwrap();
    assert_eq!(fs::read(path.join("optimizer.bin")).unwrap(), [1, 2, 3]);
    assert_eq!(ModelFolder::open(&path).unwrap().generation(), &generation);
    // What was written here is replaced as a whole; a file of somebody else's stays.
    fs::write(path.join("notes.txt"), "mine").unwrap();
    write_folder(&path, &contents(&[])).unwrap();
    assert!(!path.join("optimizer.bin").exists());
    assert_eq!(fs::read_to_string(path.join("notes.txt")).unwrap(), "mine");
    let clash = [("config.json".to_owned(), vec![])];
    assert!(error_of(write_folder(dir.path().join("n"), &contents(&clash))).contains("not in use"));
    fs::write(path.join("generation_config.json"), "{\"top_p\": 3}").unwrap();
    assert!(error_of(ModelFolder::open(&path)).contains("top_p"));
}

#[test]
fn tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, path) = (spec(false), dir.path().join("m"));
    write(&path, &spec, &tensors(&spec));
    let tokenizer = Tokenizer::open(&path, &spec).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.pad_id()), (19, Some(1), Some(0)));
    // The file requests truncation to two tokens, which is ignored.
    assert_eq!(tokenizer.encode("w3 w4 w5 w18").unwrap(), [3, 4, 5, 18]);
    assert_eq!(tokenizer.encode("").unwrap(), Vec::<u32>::new());
    assert_eq!(tokenizer.decode(&[1, 3, 4, 2]).unwrap(), "w3 w4");
    assert_eq!((tokenizer.token(1).as_deref(), tokenizer.id("w7")), (Some("<s>"), Some(7)));
    assert!(error_of(tokenizer.decode(&[19])).contains("below 19, got 19"));
    assert_eq!(tokenizer.size_note(), None);
    // One id more than the table has rows: refused where a text has it, and nowhere else.
    let mut other = spec.clone();
    other.vocab_size = 18;
    let larger = Tokenizer::open(&path, &other).unwrap();
    assert_eq!(larger.encode("w3 w17").unwrap(), [3, 17]);
    let error = error_of(larger.encode("w3 w18"));
    assert!(error.contains("\"w18\" with the id 18") && error.contains("ids below 18"), "{error}");
    assert!(larger.size_note().unwrap().contains("19 ids, the model 18"));
    // A table with more rows: they stand for no text, also where they arrive one at a time.
    other.vocab_size = 1000;
    let padded = Tokenizer::open(&path, &other).unwrap();
    assert_eq!(padded.decode(&[1, 3, 500, 4]).unwrap(), "w3 w4");
    let mut stream = padded.stream();
    let mut text: String = [3, 999, 4].iter().map(|&id| stream.push(id).unwrap()).collect();
    text += &stream.finish().unwrap();
    assert_eq!(text, "w3 w4");
    assert!(stream.push(1000).is_err() && padded.decode(&[1000]).is_err());
    assert!(padded.size_note().unwrap().contains("19 ids, the model 1000"));
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    assert!(error_of(Tokenizer::open(&path, &spec)).contains("invalid tokenizer.json"));
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert!(error_of(Tokenizer::open(&path, &spec)).contains("tokenizer.json is missing; copy it"));
    fs::write(path.join("tokenizer.model"), "").unwrap();
    let error = error_of(Tokenizer::open(&path, &spec));
    assert!(
        error.contains("tokenizer.model")
            && error.contains("AutoTokenizer")
            && error.contains("save_pretrained"),
        "{error}"
    );
}
