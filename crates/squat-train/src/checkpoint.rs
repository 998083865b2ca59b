//! Checkpoints: a Hugging Face folder with the scales of quantizers next to the weights, and the training state for
//! resuming. All of it is written in one atomic step.
//!
//! ```text
//! model.safetensors      weights, X.weight_scale, scales and zero points of static points
//! config.json            sizes, and the plan
//! trainer_state.json     step, thresholds, the weight quantizer's name, static points before rounding
//! quantizer_state.bin    parameters of the weight quantizer, f32, where they are not the scales themselves
//! optimizer_state.bin    moments, f32
//! ```

use crate::error::TrainError;
use crate::fake_quant::{STATIC_PARAMETERS, Weight};
use crate::model::{
    Model, ParamTensors, check_trainable, group_of, matrix_shape, pack_linears, static_name, static_points,
    undo_transforms,
};
use crate::optimizer::Moments;
use crate::parallel::encode;
use crate::parameters::{Group, Parameter, Parameters};
use crate::quantizer::{self, WeightQuantizer, default_quantizer, parameter_name, stored_scales};
use serde::{Deserialize, Serialize};
use squat_files::read::{self, Limit};
use squat_model::plan::{static_scale_name, static_zero_point_name};
use squat_model::scales::{LearnedScales, scale_name};
use squat_model::tensors::{Tensors, missing_tensor, read_finite};
use squat_model::{
    FolderContents, ModelKind, OpenedModel, TensorSource, TokenizerFiles, WeightDtype, write_folder,
};
use squat_model::{ModelSpec, QuantPlan};
use squat_quant::ActPoint;
use squat_quant::math::exp;
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const MOMENTS: &str = "optimizer_state.bin";
const QUANTIZER: &str = "quantizer_state.bin";

/// The trainer's position; the moments are a file of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub step: u64,
    /// Running thresholds of the token policy, as bits of `f32` so that they read back exactly.
    pub thresholds: Vec<u32>,
    /// Best held-out cross-entropy so far, as bits of `f64`; absent before the first evaluation.
    pub best: Option<u64>,
    /// Hash of the resolved stage, data and tokenizer: a resume with anything else is refused.
    pub fingerprint: String,
    /// Learned values of static points `[log_scale, zero_point]` before rounding, by name, as bits.
    pub static_points: Vec<(String, Vec<u32>)>,
    /// Name of the weight quantizer; states from before there was a choice have none, which is `lsq-log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<String>,
}

/// A model read from disk: everything that is needed to train, evaluate or teach.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Sizes.
    pub spec: ModelSpec,
    /// Plan, if it is a quantization-aware checkpoint.
    pub plan: Option<QuantPlan>,
    /// Weights and quantizer parameters.
    pub parameters: Parameters,
    /// The quantizer that the parameters of quantized weights belong to.
    pub quantizer: &'static dyn WeightQuantizer,
}

/// Writes a checkpoint folder; with `state` it can be resumed.
///
/// # Errors
/// Failures of the file system; the folder that was there before stays.
pub fn save(
    path: &Path,
    spec: &ModelSpec,
    (plan, quantizer): (Option<&QuantPlan>, &dyn WeightQuantizer),
    parameters: &Parameters,
    tokenizer: &TokenizerFiles,
    state: Option<(&State, &Moments)>,
) -> Result<(), TrainError> {
    let mut tensors = Tensors::new();
    for info in spec.parameters() {
        let Some(weight) = parameters.get(&info.name) else { continue };
        tensors.insert(info.name.clone(), &info.shape, weight.values.clone())?;
        if let Some(scheme) = plan.and_then(|plan| plan.scheme_of(&info))
            && let Some(learned) = parameters.get(&parameter_name(&info.name))
        {
            let weight = Weight { values: &weight.values, cols: weight.shape[1], scheme };
            let scales = quantizer.scales(weight, &learned.values);
            tensors.insert(scale_name(&info), &[scales.len()], scales)?;
        }
    }
    if let Some(plan) = plan {
        for (layer, point) in static_points(spec, plan) {
            let Some(p) = parameters.get(&static_name(layer, point)) else { continue };
            for &bits in plan.widths(point) {
                let affine = crate::fake_quant::static_affine(&p.values, bits);
                tensors.insert(static_scale_name(point, layer, bits), &[1], vec![affine.scale])?;
                tensors.insert_i32(
                    static_zero_point_name(point, layer, bits),
                    &[1],
                    vec![affine.zero_point],
                )?;
            }
        }
    }
    let mut extra = Vec::new();
    if let Some((state, moments)) = state {
        let json = serde_json::to_vec_pretty(state).map_err(|e| TrainError::Input(e.to_string()))?;
        extra.push((STATE.to_owned(), json));
        let lists = moments.first.iter().chain(&moments.second);
        let mut bytes = Vec::with_capacity(lists.clone().map(|l| l.len() * 4).sum());
        lists.for_each(|list| encode(list, &mut bytes));
        extra.push((MOMENTS.to_owned(), bytes));
        if plan.is_some() && !quantizer.stores_scales() {
            let mut bytes = Vec::new();
            learned(parameters).for_each(|p| encode(&p.values, &mut bytes));
            extra.push((QUANTIZER.to_owned(), bytes));
        }
    }
    let contents = FolderContents {
        spec,
        plan,
        tensors: &tensors,
        dtype: WeightDtype::F32,
        tokenizer,
        generation: None,
        extra_files: &extra,
    };
    write_folder(path, &contents)?;
    Ok(())
}

/// Parameters of weight quantizers, in order.
fn learned(parameters: &Parameters) -> impl Iterator<Item = &Parameter> {
    parameters.iter().filter(|p| p.name.ends_with(crate::quantizer::SUFFIX))
}

/// Reads a model of any kind ([`squat_model::open()`]) in full precision, or a quantization-aware checkpoint. Its scales
/// are taken as they are stored; [`load_state`] adds the training state.
///
/// # Errors
/// Missing or damaged files, tensors that do not fit, an architecture that cannot be trained, a packed model.
pub fn load(path: &Path) -> Result<Loaded, TrainError> {
    let model = open_trainable(path)?;
    let (spec, folder) = (model.spec().clone(), model.tensors());
    let plan = model.plan().cloned();
    let mut parameters = Parameters::default();
    for info in spec.parameters() {
        let values = read_finite(folder, &info.name, &info.shape)?;
        parameters.push(info.name, matrix_shape(&info.shape), values, group_of(info.kind));
    }
    let mut quantizer = stored_scales();
    if let Some(plan) = &plan {
        for info in spec.parameters() {
            let (Some(scheme), &[rows, cols]) = (plan.scheme_of(&info), info.shape.as_slice()) else {
                continue;
            };
            let shape = [1, scheme.num_scales(rows, cols)];
            let values = match LearnedScales::read(folder, &info, shape[1])? {
                Some(LearnedScales::Scales(scales)) => scales,
                Some(LearnedScales::Logarithms(logs)) => {
                    quantizer = default_quantizer();
                    logs
                }
                None => return Err(missing_tensor(folder, &scale_name(&info)).into()),
            };
            parameters.push(parameter_name(&info.name), shape, values, Group::Scale);
        }
        for (layer, point) in static_points(&spec, plan) {
            let values = static_values(folder, plan, layer, point)?;
            parameters.push(static_name(layer, point), [1, STATIC_PARAMETERS], values, Group::Scale);
        }
    }
    Ok(Loaded { spec, plan, parameters, quantizer })
}

/// Opens a model to be trained or to teach.
///
/// # Errors
/// As [`squat_model::open()`]; an architecture that cannot be trained, a packed model.
pub fn open_trainable(path: &Path) -> Result<OpenedModel, TrainError> {
    let model = squat_model::open(path)?;
    check_trainable(model.spec())?;
    if model.kind() == ModelKind::Packed {
        return Err(TrainError::Checkpoint {
            path: model.path().to_path_buf(),
            message:
                "expected weights in full precision, got a packed model; give the one it was packed from"
                    .to_owned(),
        });
    }
    Ok(model)
}

fn static_values(
    folder: &dyn TensorSource,
    plan: &QuantPlan,
    layer: Option<usize>,
    point: ActPoint,
) -> Result<Vec<f32>, TrainError> {
    // A width that the plan never uses is not stored, and nothing reads its values.
    let mut values = vec![0.0; STATIC_PARAMETERS];
    for &bits in plan.widths(point) {
        let affine = squat_model::tensors::read_static_affine(folder, point, layer, bits)?;
        let at = 2 * bits.index();
        values[at..at + 2].copy_from_slice(&[log_of(affine.scale), affine.zero_point as f32]);
    }
    Ok(values)
}

/// A number whose `exp` is exactly `scale`, so that the model uses the scale on disk.
fn log_of(scale: f32) -> f32 {
    let guess = scale.ln();
    // The exponential is about one unit off at most: look at the neighbours.
    let mut best = guess;
    for offset in -8i32..=8 {
        let candidate = f32::from_bits((guess.to_bits() as i32 + offset) as u32);
        if exp(candidate) == scale {
            return candidate;
        }
        if (exp(candidate) - scale).abs() < (exp(best) - scale).abs() {
            best = candidate;
        }
    }
    best
}

/// Reads the training state: position and moments. `loaded` gets the parameters as they were trained.
///
/// # Errors
/// A folder without training state, or one that does not fit the parameters.
pub fn load_state(path: &Path, loaded: &mut Loaded) -> Result<(State, Moments), TrainError> {
    let state = read_state(path)?;
    let parameters = &mut loaded.parameters;
    for (name, bits) in &state.static_points {
        let name = present_static_name(name);
        if let Some(p) = parameters.list_mut().iter_mut().find(|p| p.name == name) {
            p.values = bits.iter().map(|&b| f32::from_bits(b)).collect();
        }
    }
    let quantizer = match &state.quantizer {
        Some(name) => quantizer::named(name)?,
        None => default_quantizer(),
    };
    if loaded.plan.is_some() && quantizer.name() != loaded.quantizer.name() {
        let count = learned(parameters).map(|p| p.values.len()).sum();
        let mut values = read_floats(path, QUANTIZER, count)?.into_iter();
        for p in parameters.list_mut().iter_mut().filter(|p| p.name.ends_with(quantizer::SUFFIX)) {
            p.values = values.by_ref().take(p.values.len()).collect();
        }
        loaded.quantizer = quantizer;
    }
    let total: usize = parameters.iter().map(|p| p.values.len()).sum();
    let mut values = read_floats(path, MOMENTS, 2 * total)?.into_iter();
    let mut lists = || -> Vec<Vec<f32>> {
        parameters.iter().map(|p| values.by_ref().take(p.values.len()).collect()).collect()
    };
    let moments = Moments { first: lists(), second: lists() };
    Ok((state, moments))
}

/// The name of a static point's parameter that an older state may have under a former name of the point.
fn present_static_name(name: &str) -> String {
    let stem = name.strip_suffix(".static").and_then(|stem| stem.rsplit_once('.'));
    match stem.and_then(|(parent, point)| Some((parent, ActPoint::from_name(point)?))) {
        Some((parent, point)) => format!("{parent}.{}.static", point.name()),
        None => name.to_owned(),
    }
}

/// A file of `count` f32.
fn read_floats(path: &Path, name: &str, count: usize) -> Result<Vec<f32>, TrainError> {
    let bytes = read::whole(&path.join(name), Limit::Weights)?;
    if bytes.len() != count * 4 {
        let message = format!(
            "{name} has {} bytes, expected {} for this model; it is truncated or of another model: delete the folder \
             to train the stage again",
            bytes.len(),
            count * 4
        );
        return Err(TrainError::Checkpoint { path: path.to_path_buf(), message });
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Fingerprint of the stage that a checkpoint belongs to; `None` without training state.
///
/// # Errors
/// A training state that cannot be read.
pub fn fingerprint(path: &Path) -> Result<Option<String>, TrainError> {
    if !resumable(path) {
        return Ok(None);
    }
    read_state(path).map(|state| Some(state.fingerprint))
}

/// The error of a checkpoint whose fingerprint is another than the stage's.
pub(crate) fn made_with_another(path: &Path) -> TrainError {
    let stage = path.parent().unwrap_or(path);
    TrainError::Checkpoint {
        path: path.to_path_buf(),
        message: format!(
            "was made with another recipe, data, tokenizer or seed; give the same ones, choose another --out, or delete \
             {} to train the stage again",
            stage.display()
        ),
    }
}

fn read_state(path: &Path) -> Result<State, TrainError> {
    let file = path.join(STATE);
    let text = read::whole(&file, Limit::Weights)?;
    serde_json::from_slice(&text).map_err(|e| TrainError::Checkpoint {
        path: path.to_path_buf(),
        message: format!("{STATE} is damaged ({e}); delete the folder to train the stage again"),
    })
}

/// Whether a folder can be resumed from.
pub fn resumable(path: &Path) -> bool {
    path.join(STATE).is_file()
}

/// The checkpoint of a stage of a run.
pub fn locate_stage(run: &Path, stage: &str) -> PathBuf {
    best_or_last(&run.join(stage))
}

/// The checkpoint in the folder of a stage.
pub(crate) fn best_or_last(folder: &Path) -> PathBuf {
    ["best", "last"]
        .into_iter()
        .map(|n| folder.join(n))
        .find(|p| p.join("config.json").is_file())
        .unwrap_or_else(|| folder.to_path_buf())
}

impl Loaded {
    /// A model without quantizers.
    pub fn full_precision(spec: ModelSpec, parameters: Parameters) -> Self {
        Self { spec, plan: None, parameters, quantizer: default_quantizer() }
    }

    /// The same model in full precision: quantizers and transforms are taken off.
    pub fn without_quantizers(mut self) -> Self {
        let Some(plan) = self.plan.take() else { return self };
        undo_transforms(&mut self.parameters, &self.spec, &plan);
        let mut weights = Parameters::default();
        for info in self.spec.parameters() {
            if let Some(index) = self.parameters.index(&info.name) {
                let p = &mut self.parameters.list_mut()[index];
                weights.push(info.name, p.shape, std::mem::take(&mut p.values), p.group);
            }
        }
        Self::full_precision(self.spec, weights)
    }

    /// The model, for sequences of up to `max_seq` tokens, and its parameters as tensors.
    pub fn into_model(mut self, max_seq: usize) -> (Model, ParamTensors) {
        let device = burn::tensor::Device::flex();
        let mut model = Model::new(self.spec, self.plan, max_seq);
        model.quantizer = self.quantizer;
        let packed = pack_linears(&model, &self.parameters, &device, 1);
        (model, ParamTensors::take(&mut self.parameters, &device).with_packed(packed))
    }
}
