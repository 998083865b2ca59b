//! GGUF files: what a converter writes comes back; what this project cannot run, or is damaged, is refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{spec, tensors};
use proptest::prelude::*;
use squat_model::format::gguf::{GgufFile, GgufModel};
use squat_model::rope::{Rope, RopeScaling};
use squat_model::{
    GenerationConfig, LinearSet, ModelError, ModelKind, ModelSpec, ModelSummary, PackedModel, QuantPlan,
    TensorSource, Tensors, Tokenizer, TokenizerFiles, arch,
};
use squat_model::{LinearKind, NormKind, ParamKind, Window};
use squat_test::gguf::{Gguf, model};

struct Place {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn write(bytes: &[u8]) -> Place {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Place { _dir: dir, path }
}

fn open(file: &Gguf) -> Result<GgufModel, ModelError> {
    GgufModel::open(&write(&file.bytes()).path)
}

fn refused(file: &Gguf, words: &[&str]) {
    let error = open(file).unwrap_err().to_string();
    for word in words {
        assert!(error.contains(word), "{error} should contain {word}");
    }
}

/// Sampling settings are the defaults of generation, also of what is packed from the file; those that are not applied are
/// named, unless they change nothing.
#[test]
fn sampling_settings_are_read_and_kept() {
    let spec = spec(true);
    let plain = model(&spec, &tensors(&spec));
    let mut file = plain.clone();
    file.float("general.sampling.temp", 0.7).signed("general.sampling.top_k", 20);
    file.float("general.sampling.top_p", 0.8).float("general.sampling.penalty_repeat", 1.0);
    file.signed("general.sampling.mirostat", 0).float("general.sampling.mirostat_tau", 5.0);
    let read = open(&file).unwrap();
    let want = GenerationConfig {
        do_sample: true,
        temperature: Some(0.7),
        top_k: Some(20),
        top_p: Some(0.8),
        ..GenerationConfig::of_spec(&spec)
    };
    assert_eq!((read.generation(), read.notes()), (&want, &[][..]));
    assert_eq!(open(&plain).unwrap().generation(), &GenerationConfig::of_spec(&spec));

    file.float("general.sampling.min_p", 0.05).text("general.sampling.sequence", "kp");
    file.float("general.sampling.penalty_repeat", 1.1).signed("general.sampling.top_k", -1);
    let place = write(&file.bytes());
    let opened = squat_model::open(&place.path).unwrap();
    assert_eq!(
        opened.notes(),
        ["general.sampling: min_p, penalty_repeat, sequence not supported and not applied"]
    );
    let want = GenerationConfig { top_k: Some(0), ..want };
    assert_eq!(opened.generation(), want);
    let out = place.path.with_extension("packed");
    opened.pack(Some(&QuantPlan::w4a8()), &out).unwrap();
    assert_eq!(PackedModel::open(&out).unwrap().generation(), &want);

    for (value, name) in [(-0.5, "temp"), (f32::NAN, "temp"), (1.5, "top_p"), (2.5, "top_k")] {
        let key = format!("general.sampling.{name}");
        refused(plain.clone().float(&key, value), &[&key, "expected", &value.to_string()]);
    }
    refused(plain.clone().text("general.sampling.top_k", "all"), &["top_k", "a whole number", "\"all\""]);
}

#[test]
fn a_converted_model_comes_back() {
    for tied in [true, false] {
        let spec = spec(tied);
        let tensors = tensors(&spec);
        let file = model(&spec, &tensors);
        let place = write(&file.bytes());
        let read = GgufModel::open(&place.path).unwrap();
        assert_eq!(read.spec(), &spec);
        assert_eq!(Tensors::read_parameters(&read, &spec).unwrap(), tensors);
        assert_eq!(read.names().len(), spec.parameters().len());
        assert!(read.read_i32("x").is_err() && read.read_f32("model.norm.wieght").is_err());

        let summary = ModelSummary::open(&place.path).unwrap();
        assert_eq!((summary.kind, summary.outside[0].stored_as.as_str()), (ModelKind::FullPrecision, "F32"));

        let out = place.path.with_extension("packed");
        let opened = squat_model::open(&place.path).unwrap();
        assert!(opened.pack(None, &out).unwrap_err().to_string().contains("no quantization plan"));
        opened.pack(Some(&QuantPlan::w4a8()), &out).unwrap();
        let packed = PackedModel::open(&out).unwrap();
        assert_eq!(packed.spec(), &spec);
        let again = squat_model::open(&out).unwrap().pack(None, out.with_extension("2"));
        assert!(again.unwrap_err().to_string().contains("got a packed model"));
    }
}

#[test]
fn the_tokenizer_comes_along() {
    let spec = spec(true);
    let mut file = model(&spec, &tensors(&spec));
    file.text("tokenizer.chat_template", "{{ messages }}");
    let place = write(&file.bytes());
    let tokenizer = squat_model::open(&place.path).unwrap().tokenizer().unwrap();
    // "ab", " a", single digits, a special token written out, a line end.
    assert_eq!(tokenizer.encode("ab a12</s>\n").unwrap(), [9, 8, 11, 12, 2, 13]);
    assert_eq!(tokenizer.decode(&[9, 8, 2, 13]).unwrap(), "ab a\n");
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_ids(), tokenizer.pad_id()), (Some(1), &[2][..], Some(0)));
    let files = TokenizerFiles::read(&place.path).unwrap();
    assert_eq!(files.get("chat_template.jinja"), Some(&b"{{ messages }}"[..]));
    assert!(files.get("tokenizer.json").is_some());

    for (key, value, word) in
        [("tokenizer.ggml.model", "bert", "gpt2"), ("tokenizer.ggml.pre", "kimi-k2", "smollm")]
    {
        let mut other = file.clone();
        other.text(key, value);
        let place = write(&other.bytes());
        // The model itself can be run without.
        GgufModel::open(&place.path).unwrap();
        let error = squat_model::open(&place.path).unwrap().tokenizer().unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(value), "{error}");
    }
    file.texts("tokenizer.ggml.merges", &["ab"]);
    let place = write(&file.bytes());
    let error = squat_model::open(&place.path).unwrap().tokenizer().unwrap_err().to_string();
    assert!(error.contains("pairs of tokens"), "{error}");
}

/// Families differ in their keys, in what they add, and in whether rows are reordered.
#[test]
fn qwen_models_come_back() {
    for base in [arch::qwen2::base(), arch::qwen3::base()] {
        let spec = ModelSpec {
            architecture: base.architecture,
            biases: base.biases,
            qk_norm: base.qk_norm,
            ..spec(false)
        };
        let tensors = tensors(&spec);
        let mut file = model(&spec, &tensors);
        file.text("tokenizer.ggml.pre", "qwen2");
        let opened = open(&file).unwrap();
        assert_eq!(opened.spec(), &spec);
        for param in spec.parameters() {
            assert_eq!(
                opened.read_f32(&param.name).unwrap(),
                tensors.get(&param.name).unwrap(),
                "{}",
                param.name
            );
        }
        let place = write(&file.bytes());
        let tokenizer = squat_model::open(&place.path).unwrap().tokenizer().unwrap();
        // Single digits, a line end apart from letters.
        assert_eq!(tokenizer.encode("ab12\n").unwrap(), [9, 11, 12, 13]);
    }
    // LLaMA with biases: those of queries and keys are reordered as well.
    let spec = ModelSpec { biases: LinearSet::ATTENTION, ..spec(true) };
    let tensors = tensors(&spec);
    let opened = open(&model(&spec, &tensors)).unwrap();
    assert_eq!(opened.spec(), &spec);
    let name = "model.layers.1.self_attn.k_proj.bias";
    assert_eq!(opened.read_f32(name).unwrap(), tensors.get(name).unwrap());
    // Biases that the family's configuration cannot express: it is written under one of our own.
    let spec = ModelSpec { biases: LinearSet::QKV, ..spec };
    let place = write(&model(&spec, &tensors).bytes());
    let opened = squat_model::open(&place.path).unwrap();
    assert_eq!(opened.spec(), &spec);
    let out = place.path.with_extension("out");
    opened.pack(Some(&QuantPlan::w4a8()), &out).unwrap();
    assert_eq!(squat_model::open(&out).unwrap().spec(), &spec);
}

/// What these families have beyond LLaMA: in metadata, in the names of tensors, or in neither.
#[test]
fn families_come_back() {
    let granite = |file: &mut Gguf| {
        for (key, factor) in [
            ("embedding_scale", 12.0),
            ("residual_scale", 0.25),
            ("attention.scale", 0.5),
            ("logit_scale", 8.0),
        ] {
            file.float(&format!("granite.{key}"), factor);
        }
    };
    let gemma = |file: &mut Gguf| {
        file.number("gemma3.attention.sliding_window", 5);
    };
    let nothing = |_: &mut Gguf| {};
    let root = |size: usize| (size as f64).sqrt();
    let small = spec(true);
    let (width, head) = (root(small.hidden_size), root(small.head_dim));
    // Factors of the table, of the last norm (tied), of queries and of outputs.
    let cases: [(ModelSpec, &dyn Fn(&mut Gguf), [f64; 4]); 5] = [
        (arch::granite::base(), &granite, [12.0, 1.0 / 8.0 / 12.0, 0.5 * head, 0.25]),
        (arch::ernie4_5::base(), &nothing, [1.0; 4]),
        (arch::smollm3::base(), &nothing, [1.0; 4]),
        (arch::olmo2::base(), &nothing, [1.0; 4]),
        (arch::gemma3::base(), &gemma, [width, 1.0 / width, 1.0, 1.0]),
    ];
    for (base, change, [table, last, query, output]) in cases {
        let family = base.architecture.class;
        let layers = 7;
        let mut spec = ModelSpec {
            num_hidden_layers: layers,
            architecture: base.architecture,
            norm_places: base.norm_places,
            qk_norm: base.qk_norm,
            mlp: base.mlp,
            ..spec(true)
        };
        let tensors = tensors(&spec);
        let mut file = model(&spec, &tensors);
        change(&mut file);
        if base.architecture == arch::smollm3::ARCHITECTURE {
            spec.without_rope = (0..layers).map(|layer| layer == 3).collect();
        }
        if base.architecture == arch::gemma3::ARCHITECTURE {
            let layers = (0..layers).map(|layer| layer != 5).collect();
            spec.window = Some(Window { size: 5, layers, rope: Some(Rope::new(10_000.0)) });
        }
        let opened = open(&file).unwrap();
        assert_eq!(opened.spec(), &spec);
        for param in spec.parameters() {
            let factor = match param.kind {
                ParamKind::Embedding => table,
                ParamKind::Norm(NormKind::Final) => last,
                ParamKind::Linear(LinearKind::Q) => query,
                ParamKind::Linear(LinearKind::O | LinearKind::Down) => output,
                _ => 1.0,
            };
            let want: Vec<f32> =
                tensors.get(&param.name).unwrap().iter().map(|x| x * factor as f32).collect();
            assert_eq!(opened.read_f32(&param.name).unwrap(), want, "{family}: {}", param.name);
        }
    }
    // OLMo 3 has the name of OLMo 2 in these files, and windows.
    let base = arch::olmo2::base();
    let olmo = ModelSpec {
        architecture: base.architecture,
        norm_places: base.norm_places,
        qk_norm: base.qk_norm,
        ..spec(true)
    };
    let mut file = model(&olmo, &tensors(&olmo));
    file.number("olmo2.attention.sliding_window", 8);
    refused(&file, &["olmo2.attention.sliding_window", "not supported"]);
    let mut file = model(&spec(true), &tensors(&spec(true)));
    file.float("llama.final_logit_softcapping", 30.0);
    refused(&file, &["softcapping", "not supported"]);
    let mut file =
        model(&ModelSpec { architecture: arch::granite::ARCHITECTURE, ..spec(true) }, &tensors(&spec(true)));
    file.float("granite.embedding_scale", f32::NAN);
    refused(&file, &["factor of the token table", "NaN"]);
}

/// llama.cpp takes a factor without a type for a linear one, and knows an older key; `none` switches it off.
#[test]
fn rotary_scalings_are_read_as_llama_cpp_reads_them() {
    let spec = spec(true);
    let rope = |change: fn(&mut Gguf) -> &mut Gguf| {
        let mut file = model(&spec, &tensors(&spec));
        change(&mut file);
        open(&file).unwrap().spec().rope.clone().unwrap()
    };
    let linear = |factor| Rope { theta: 10_000.0, scaling: RopeScaling::Linear { factor } };
    assert_eq!(rope(|f| f.float("llama.rope.scale_linear", 2.0)), linear(2.0));
    assert_eq!(rope(|f| f.float("llama.rope.scaling.factor", 4.0)), linear(4.0));
    let both = rope(|f| f.float("llama.rope.scaling.factor", 4.0).text("llama.rope.scaling.type", "linear"));
    assert_eq!(both, linear(4.0));
    let none = rope(|f| f.float("llama.rope.scaling.factor", 4.0).text("llama.rope.scaling.type", "none"));
    assert_eq!(none, Rope::new(10_000.0));
    assert_eq!(rope(|f| f.float("llama.rope.scale_linear", 1.0)), Rope::new(10_000.0));
}

/// Any part opens all of them; a part that is missing is named, and never taken for a tied head.
#[test]
fn parts_of_a_split_file_are_read_together() {
    let spec = spec(false);
    let tensors = tensors(&spec);
    let whole = model(&spec, &tensors);
    let count = whole.tensor_names().len() as i32;
    let dir = tempfile::tempdir().unwrap();
    let path = |number: usize| dir.path().join(format!("m-{number:05}-of-00003.gguf"));
    for number in 0..3 {
        let mut part = if number == 0 { whole.clone() } else { Gguf::default() };
        part.number("split.no", number as u32)
            .number("split.count", 3)
            .number("split.tensors.count", count as u32);
        // The first part has no tensor, as some writers leave it.
        match number {
            0 => whole.tensor_names().iter().for_each(|name| {
                part.remove(name);
            }),
            _ => part.take_tensors(&whole, |name| (name.starts_with("output")) == (number == 2)),
        }
        fs::write(path(number + 1), part.bytes()).unwrap();
    }
    for given in 1..=3 {
        let opened = squat_model::open(path(given)).unwrap();
        assert_eq!((opened.spec(), opened.kind()), (&spec, ModelKind::FullPrecision));
        for param in spec.parameters() {
            assert_eq!(opened.tensors().read_f32(&param.name).unwrap(), tensors.get(&param.name).unwrap());
        }
    }
    // The folder holds one model.
    assert_eq!(squat_model::open(dir.path()).unwrap().spec(), &spec);
    let bytes = fs::read(path(3)).unwrap();
    fs::remove_file(path(3)).unwrap();
    for given in 1..=2 {
        let error = squat_model::open(path(given)).unwrap_err().to_string();
        assert!(error.contains("part 3 of 3") && error.contains("m-00003-of-00003.gguf"), "{error}");
    }
    // A part without its number.
    let mut part = Gguf::default();
    part.number("split.count", 3);
    fs::write(path(3), part.bytes()).unwrap();
    assert!(squat_model::open(path(3)).unwrap_err().to_string().contains("split.no is missing"));
    // A part of another model, one twice, one under another name.
    fs::copy(path(2), path(3)).unwrap();
    assert!(squat_model::open(path(1)).unwrap_err().to_string().contains("00003-of-00003"));
    fs::write(path(3), &bytes).unwrap();
    let renamed = dir.path().join("x.gguf");
    fs::copy(path(1), &renamed).unwrap();
    assert!(squat_model::open(&renamed).unwrap_err().to_string().contains("-00001-of-00003.gguf"));
    fs::remove_file(renamed).unwrap();
    fs::write(path(3), model(&spec, &tensors).bytes()).unwrap();
    assert!(squat_model::open(path(1)).is_err());
}

#[test]
fn blocks_are_widened() {
    let spec = spec(true);
    let mut tensors = tensors(&spec);
    let file = model(&spec, &tensors);
    // The up projection, 37 x 24, cannot be stored in blocks of 32; the down projection's rows of 37 neither.
    let name = "blk.0.ffn_up.weight";
    let mut blocks = file.clone();
    blocks.tensor(name, &[37, 24], 2, vec![0; 37 * 24 / 32 * 18]);
    refused(&blocks, &[name, "24 columns", "32 of Q4_0"]);
    let halves: Vec<u8> =
        (0..37 * 24).flat_map(|i| half::f16::from_f32(i as f32 * 0.5).to_le_bytes()).collect();
    let mut half = file.clone();
    half.tensor(name, &[37, 24], 1, halves);
    let ours = "model.layers.0.mlp.up_proj.weight";
    tensors.insert(ours, &[37, 24], (0..37 * 24).map(|i| i as f32 * 0.5).collect()).unwrap();
    assert_eq!(Tensors::read_parameters(&open(&half).unwrap(), &spec).unwrap(), tensors);
}

#[test]
fn what_cannot_be_run_is_refused() {
    let spec = spec(true);
    let file = model(&spec, &tensors(&spec));
    let changed = |change: fn(&mut Gguf) -> &mut Gguf| {
        let mut file = file.clone();
        change(&mut file);
        file
    };
    refused(&changed(|f| f.text("general.architecture", "gemma9")), &["llama", "qwen3", "gemma9"]);
    refused(&changed(|f| f.text("llama.rope.scaling.type", "yarn")), &["scaling", "yarn"]);
    refused(&changed(|f| f.number("llama.expert_count", 8)), &["expert_count"]);
    refused(&changed(|f| f.number("llama.attention.head_count", 5)), &["num_attention_heads = 5"]);
    refused(&changed(|f| f.number("llama.rope.dimension_count", 4)), &["dimension_count", "6"]);
    refused(&changed(|f| f.number("split.count", 99_999)), &["split.count"]);
    refused(&changed(|f| f.number("llama.block_count", 3)), &["blk.2"]);
    refused(&changed(|f| f.text("llama.context_length", "long")), &["context_length", "long"]);
    refused(&changed(|f| f.number("llama.context_length", 0)), &["max_position_embeddings"]);
    refused(&changed(|f| f.number("general.alignment", 24)), &["alignment"]);
    refused(&changed(|f| f.remove("blk.1.attn_k.weight")), &["blk.1.attn_k", "missing"]);
    // A bias in the first layer is one in every layer.
    refused(&changed(|f| f.tensor("blk.0.attn_q.bias", &[24], 0, vec![0; 96])), &["blk.1.attn_q.bias"]);
    refused(
        &changed(|f| f.tensor("blk.0.attn_q_norm.weight", &[6], 0, vec![0; 24])),
        &["attn_q_norm", "LlamaForCausalLM"],
    );
    refused(
        &changed(|f| f.tensor("output_norm.weight", &[24], 16, vec![0; 96])),
        &["output_norm", "IQ2_XXS", "Q8_0"],
    );
    refused(
        &changed(|f| f.tensor("rope_freqs.weight", &[3], 0, vec![0; 12])),
        &["rope_freqs", "not supported"],
    );
    refused(
        &changed(|f| f.tensor("output_norm.weight", &[24], 21, vec![0; 96])),
        &["output_norm.weight", "IQ3_S"],
    );
    refused(&changed(|f| f.tensor("output_norm.weight", &[23], 0, vec![0; 92])), &["[24]", "[23]"]);

    let bytes = file.bytes();
    let error = GgufFile::open(&write(&bytes[..bytes.len() - 1]).path).unwrap_err().to_string();
    assert!(error.contains("truncated") && error.contains("copy"), "{error}");
    let mut other = bytes.clone();
    other[4] = 1;
    assert!(GgufFile::open(&write(&other).path).unwrap_err().to_string().contains("version"));
    assert!(GgufFile::open(&write(b"").path).is_err());
    assert!(GgufFile::open(&write(b"PK\x03\x04 something").path).unwrap_err().to_string().contains("GGUF"));
    let place = write(&bytes);
    let missing = GgufFile::open(&place.path.with_file_name("modle.gguf")).unwrap_err().to_string();
    assert!(missing.contains("did you mean"), "{missing}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Flipped bytes, most of them in the header, and cut files: errors or other numbers, never a panic.
    #[test]
    fn damage(
        edits in prop::collection::vec((0.0f64..1.0, any::<u8>(), prop::bool::ANY), 0..8),
        cut in prop::option::of(0.0f64..1.0),
    ) {
        let spec = spec(true);
        let mut bytes = model(&spec, &tensors(&spec)).bytes();
        for (at, value, anywhere) in edits {
            let range = if anywhere { bytes.len() } else { 3000 };
            bytes[(at * range as f64) as usize] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        let place = write(&bytes);
        if let Ok(file) = GgufFile::open(&place.path) {
            let names: Vec<String> = file.names().map(str::to_owned).collect();
            for name in names {
                let _ = (file.read_f32(&name), file.stored_as(&name));
            }
        }
        if let Ok(model) = GgufModel::open(&place.path) {
            for name in model.names() {
                prop_assert!(model.read_f32(&name).is_ok());
            }
            let _ = Tokenizer::open(&place.path, model.spec()).and_then(|t| t.encode("ab a1"));
        }
        let _ = ModelSummary::open(&place.path);
    }
}
