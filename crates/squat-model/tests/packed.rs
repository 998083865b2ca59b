//! Packed folders: the same numbers as the fake-quantized model, and refusal of everything that is wrong.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{add_scales, add_static, listing, spec, tensors, tokenizer_files};
use squat_model::packed::{PackSource, PackedModel, pack};
use squat_model::{
    FolderContents, ModelFolder, ModelKind, ModelSpec, ModelSummary, PackReport, QuantPlan, TensorSource,
    Tensors, WeightDtype, reference, write_folder,
};
use squat_quant::calibrate::weight_scales;
use squat_quant::{ActBits, ActPoint, Affine, Granularity, WeightBits, WeightScheme};
use squat_test::data::stories;

fn run(spec: &ModelSpec, plan: &QuantPlan, tensors: &Tensors, out: &Path) -> Result<PackReport, String> {
    let tokenizer = tokenizer_files();
    let source = PackSource { spec, plan, tensors, tokenizer: &tokenizer, generation: None };
    pack(&source, out).map_err(|error| error.to_string())
}

fn error_of(path: &Path) -> String {
    let text = PackedModel::open(path).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

/// What training sees: every weight fake-quantized, written down naively.
fn fake_quantized(spec: &ModelSpec, plan: &QuantPlan, tensors: &Tensors, learned: bool) -> Tensors {
    let mut out = Tensors::new();
    for param in spec.parameters() {
        let mut values = tensors.get(&param.name).unwrap().to_vec();
        if let Some(scheme) = plan.scheme_of(&param) {
            let (rows, cols) = (param.shape[0], param.shape[1]);
            let mut scales = vec![0.0; scheme.num_scales(rows, cols)];
            if learned {
                scales.copy_from_slice(tensors.get(&squat_model::plan::scale_name(&param)).unwrap());
            } else {
                weight_scales(&values, rows, cols, scheme, &mut scales);
            }
            for (i, x) in values.iter_mut().enumerate() {
                let scale = scales[scheme.scale_index(i / cols, i % cols, cols)];
                *x = Affine::symmetric(scale, scheme.bits.range()).fake_quantize(*x);
            }
        }
        out.insert(param.name, &param.shape, values).unwrap();
    }
    out
}

fn every_scheme() -> Vec<WeightScheme> {
    let granularities = [
        Granularity::PerTensor,
        Granularity::PerChannel,
        Granularity::PerGroup(8),
        Granularity::PerGroup(10),
    ];
    let with = |bits| granularities.map(|granularity| WeightScheme { bits, granularity });
    WeightBits::ALL.into_iter().flat_map(with).collect()
}

#[test]
fn packed_is_fake_quantized_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    for scheme in every_scheme() {
        for (tied, learned) in [(false, true), (true, true), (false, false)] {
            let spec = spec(tied);
            let mut tensors = tensors(&spec);
            let plan = QuantPlan {
                weight: Some(scheme),
                embedding: Some(scheme),
                head: Some(scheme),
                ..QuantPlan::default()
            };
            if learned {
                add_scales(&spec, &plan, &mut tensors);
            }
            let report = run(&spec, &plan, &tensors, &out).unwrap();
            assert_eq!(report.learned_scales, learned);
            let want = fake_quantized(&spec, &plan, &tensors, learned);
            let model = PackedModel::open(&out).unwrap();
            assert_eq!((model.spec(), model.plan()), (&spec, &plan));
            common::assert_same(&model, &want, &want.names());
            model.check_codes().unwrap();
            let tokens = [1, 4, 18, 2];
            assert_eq!(
                reference::forward(&spec, &model, &tokens).unwrap(),
                reference::forward(&spec, &want, &tokens).unwrap()
            );
        }
    }
}

/// Checkpoints from before hold the logarithms of the scales: they are packed with the exponentials of them.
#[test]
fn logarithms_of_scales_are_packed_as_the_scales() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, plan) = (spec(false), QuantPlan::w4a8());
    let (mut present, mut former) = (tensors(&spec), tensors(&spec));
    for param in spec.parameters() {
        let Some(scheme) = plan.scheme_of(&param) else { continue };
        let n = scheme.num_scales(param.shape[0], param.shape[1]);
        let logs: Vec<f32> = (0..n).map(|i| -3.0 - 0.01 * i as f32).collect();
        let scales = logs.iter().map(|&log| squat_quant::math::exp(log)).collect();
        former.insert(format!("{}.weight_log_scale", param.module()), &[n], logs).unwrap();
        present.insert(format!("{}.weight_scale", param.module()), &[n], scales).unwrap();
    }
    let [a, b] = [("present", &present), ("former", &former)].map(|(name, tensors)| {
        assert!(run(&spec, &plan, tensors, &dir.path().join(name)).unwrap().learned_scales);
        fs::read(dir.path().join(name).join("model.safetensors")).unwrap()
    });
    assert!(a == b);
}

#[test]
fn bytes_are_what_the_report_says() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let spec = spec(false);
    let report = run(&spec, &QuantPlan::w4a8(), &tensors(&spec), &out).unwrap();
    assert_eq!(report.entries.len(), spec.parameters().len());
    let up = report.entries.iter().find(|e| e.name.ends_with("0.mlp.down_proj.weight")).unwrap();
    // 24 rows of 37 codes of 4 bits: 5 words and a scale each, and the shape.
    assert_eq!((up.bytes_before, up.bytes_after), (24 * 37 * 4, 24 * (5 * 4 + 4) + 16));
    assert!(up.quantized && up.scheme == "4 bits per channel" && up.relative_error > 0.01);
    let parts: u64 = report.entries.iter().map(|e| e.bytes_after).sum();
    assert_eq!(report.bytes_after, fs::metadata(out.join("model.safetensors")).unwrap().len());
    assert!(report.bytes_after > parts && report.bytes_after < parts + 8192);
    let summary = ModelSummary::open(&out).unwrap();
    assert_eq!((summary.kind, summary.weight_bytes), (ModelKind::Packed, report.bytes_after));
    let listed: u64 = summary.layers.iter().map(|l| l.bytes).sum::<u64>()
        + summary.outside.iter().map(|t| t.bytes).sum::<u64>();
    assert_eq!(listed, parts);
    assert_eq!(summary.layers[0].tensors[8].stored_as, "int4");
    assert_eq!(summary.outside[0].stored_as, "int8");
    assert!(serde_json::to_string(&summary).unwrap().contains("\"per_channel\""));
}

#[test]
fn checkpoints_are_packed_with_thresholds_and_static_quantizers() {
    let dir = tempfile::tempdir().unwrap();
    let (fp, out) = (dir.path().join("qat"), dir.path().join("packed"));
    let spec = spec(true);
    let mut tensors = tensors(&spec);
    let mut plan = QuantPlan::with_rho(0.5);
    add_scales(&spec, &plan, &mut tensors);
    add_static(&spec, &mut plan, &mut tensors);
    let tokenizer = tokenizer_files();
    let write = |plan: &QuantPlan| {
        let contents = FolderContents {
            spec: &spec,
            plan: Some(plan),
            tensors: &tensors,
            dtype: WeightDtype::F32,
            tokenizer: &tokenizer,
            generation: None,
            extra_files: &[],
        };
        write_folder(&fp, &contents).unwrap();
        ModelFolder::open(&fp).unwrap()
    };
    let error = write(&plan).pack(None, &out).unwrap_err().to_string();
    assert!(error.contains("plan.thresholds") && error.contains("freezes"), "{error}");
    assert_eq!(listing(dir.path()), ["qat"]);
    plan.thresholds = vec![0.0, 0.7];
    let folder = write(&plan);
    let error = folder.pack(None, dir.path().join("../").join(dir.path().file_name().unwrap()).join("qat"));
    assert!(error.unwrap_err().to_string().contains("own folder"));
    folder.pack(None, &out).unwrap();
    let model = PackedModel::open(&out).unwrap();
    assert_eq!(model.plan(), &plan);
    assert_eq!(
        listing(&out),
        ["SHA256SUMS", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    );
    for (point, layer, bits) in plan.static_quantizers(&spec) {
        let want = squat_model::tensors::read_static_affine(&tensors, point, layer, bits).unwrap();
        assert_eq!(model.static_affine(point, layer, bits).unwrap(), want);
    }
    assert!(model.static_affine(ActPoint::LmHeadInput, None, ActBits::A4).is_err());
    assert!(ModelFolder::open(&out).unwrap_err().to_string().contains("packed model"));
    assert!(error_of(&fp).contains("pack it first"));
}

#[test]
fn partial_plans_keep_the_rest_in_full_precision() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let spec = spec(false);
    let tensors = tensors(&spec);
    let plan = QuantPlan { embedding: None, head: None, ..QuantPlan::named("w2").unwrap() };
    run(&spec, &plan, &tensors, &out).unwrap();
    let model = PackedModel::open(&out).unwrap();
    assert!(!model.is_packed("lm_head.weight") && model.is_packed("model.layers.0.mlp.up_proj.weight"));
    assert_eq!(model.tensor_f32("lm_head.weight").unwrap(), tensors.get("lm_head.weight").unwrap());
    let error = model.tensor("lm_head.weight").unwrap_err().to_string();
    assert!(error.contains("packed tensors") && error.contains("nearest"), "{error}");
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["ignore"], serde_json::json!(["lm_head"]));
    let error = run(&spec, &QuantPlan::full_precision(), &tensors, &out).unwrap_err();
    assert!(error.contains("nothing to pack"), "{error}");
    assert!(PackedModel::open(&out).is_ok(), "the old folder is kept");
}

#[test]
fn wrong_sources_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let spec = spec(false);
    let plan = QuantPlan::w4a8();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let mut nan = tensors(&spec);
    nan.get_mut(name).unwrap()[30] = f32::NAN;
    let error = run(&spec, &plan, &nan, &out).unwrap_err();
    assert!(error.contains(name) && error.contains("element 30 is NaN"), "{error}");
    let mut missing = tensors(&spec);
    missing.remove(name);
    let error = run(&spec, &plan, &missing, &out).unwrap_err();
    assert!(error.contains(name) && error.contains("nearest: model.layers"), "{error}");
    let mut shape = tensors(&spec);
    shape.insert(name, &[24, 25], vec![0.0; 600]).unwrap();
    let error = run(&spec, &plan, &shape, &out).unwrap_err();
    assert!(error.contains("expected shape [24, 24], got [24, 25]"), "{error}");
    let mut scales = tensors(&spec);
    add_scales(&spec, &plan, &mut scales);
    scales.remove("lm_head.weight_scale");
    let error = run(&spec, &plan, &scales, &out).unwrap_err();
    assert!(error.contains("lm_head.weight_scale"), "{error}");
    add_scales(&spec, &plan, &mut scales);
    scales.get_mut("lm_head.weight_scale").unwrap()[2] = f32::NEG_INFINITY;
    let error = run(&spec, &plan, &scales, &out).unwrap_err();
    assert!(error.contains("lm_head.weight_scale") && error.contains("element 2"), "{error}");
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn damaged_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let spec = spec(false);
    let plan =
        QuantPlan { weight: Some(WeightScheme::per_channel(WeightBits::Ternary)), ..QuantPlan::w4a8() };
    run(&spec, &plan, &tensors(&spec), &out).unwrap();
    let (weights, config) = (out.join("model.safetensors"), out.join("config.json"));
    let bytes = fs::read(&weights).unwrap();
    let text = fs::read_to_string(&config).unwrap();

    for keep in [3, 40, bytes.len() / 3, bytes.len() - 4] {
        fs::write(&weights, &bytes[..keep]).unwrap();
        assert!(error_of(&out).contains("truncated"), "{keep}");
    }
    // Edits of the header that keep its length.
    let edit = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect(from);
        let mut bytes = bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&weights, bytes).unwrap();
        error_of(&out)
    };
    let error = edit("model.layers.0.mlp.up_proj.weight_packed", "model.layers.0.mlp.up_prok.weight_packed");
    assert!(error.contains("is missing") && error.contains("nearest: model.layers.0.mlp.up_prok"), "{error}");
    let error = edit("\"I32\",\"shape\":[12,2]", "\"I32\",\"shape\":[2,12]");
    assert!(error.contains("expected I32 [12, 2]") && error.contains("ternary per channel"), "{error}");
    let error = edit("\"F32\",\"shape\":[19,1]", "\"F32\",\"shape\":[1,19]");
    assert!(error.contains("weight_scale") && error.contains("[19, 1]"), "{error}");

    // A negative scale, a wrong weight_shape, a code that is not ternary.
    let n = bytes.len();
    let mut negative = bytes.clone();
    // The head's scales are the last tensor.
    negative[n - 4..].copy_from_slice(&(-1f32).to_le_bytes());
    fs::write(&weights, negative).unwrap();
    let error = error_of(&out);
    assert!(error.contains("lm_head.weight_scale") && error.contains("got -1"), "{error}");
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut shape = bytes.clone();
    shape[8 + header] = 20;
    fs::write(&weights, shape).unwrap();
    assert!(error_of(&out).contains("[20, 24]"));
    let shapes = 16 * spec.parameters().iter().filter(|p| plan.scheme_of(p).is_some()).count();
    let mut code = bytes.clone();
    let embedding = 19 * 24 + 19 * 4;
    // Behind the shapes, the embedding and the first norm: the first words of q_proj.
    code[8 + header + shapes + embedding + 24 * 4] = 0;
    fs::write(&weights, code).unwrap();
    let error = PackedModel::open(&out).unwrap().check_codes().unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("-2 at row 0, column 0"), "{error}");
    fs::write(&weights, &bytes).unwrap();

    let lie = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(&config, text.replacen(from, to, 1)).unwrap();
        error_of(&out)
    };
    assert!(lie("pack-quantized", "int-quantized").contains("quantization_config"));
    assert!(lie("\"num_bits\": 2", "\"num_bits\": 4").contains("config.json was edited"));
    assert!(lie("\"bits\": \"ternary\"", "\"bits\": 4").contains("config_groups"));
    assert!(lie("\"rho\"", "\"roh\"").contains("did you mean \"rho\""));
    assert!(lie("\"squat\"", "\"quat\"").contains("no key squat"));
    assert!(lie("\"vocab_size\": 19", "\"vocab_size\": 20").contains("model.embed_tokens"));
    fs::write(&config, &text).unwrap();
    PackedModel::open(&out).unwrap().check_codes().unwrap();
}

#[test]
fn a_file_that_is_not_aligned_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let spec = spec(false);
    run(&spec, &QuantPlan::w4a8(), &tensors(&spec), &out).unwrap();
    let want = PackedModel::open(&out).unwrap().codes("lm_head.weight").unwrap();
    let weights = out.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // Two more spaces at the end of the header move the data off its alignment.
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes.splice(8 + header..8 + header, *b"  ");
    bytes[..8].copy_from_slice(&(header as u64 + 2).to_le_bytes());
    // A new inode: the old file is still mapped above.
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    assert_eq!(PackedModel::open(&out).unwrap().codes("lm_head.weight").unwrap(), want);
}

#[test]
fn the_real_model_survives_packing() {
    let Some(stories) = stories() else { return };
    let (spec, tensors) =
        squat_model::format::llama2c::load_checkpoint(stories.join("stories260K.bin")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let tokens = [1, 403, 407, 261, 378];
    let exact = reference::forward(&spec, &tensors, &tokens).unwrap();
    let mut errors = Vec::new();
    for name in ["w8", "w4", "w3", "w2"] {
        let out = dir.path().join(name);
        run(&spec, &QuantPlan::named(name).unwrap(), &tensors, &out).unwrap();
        let model = PackedModel::open(&out).unwrap();
        let logits = reference::forward(&spec, &model, &tokens).unwrap();
        let squares = |v: &[f32]| v.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let difference: Vec<f32> = logits.iter().zip(&exact).map(|(a, b)| a - b).collect();
        errors.push((squares(&difference) / squares(&exact)).sqrt());
    }
    assert!(errors.windows(2).all(|pair| pair[0] < pair[1]), "fewer bits, larger error: {errors:?}");
    assert!(errors[0] < 0.02, "{errors:?}");
}
