//! Checkpoints: a Hugging Face folder with the quantizers' parameters beside the weights, and, for resuming, the
//! optimizer's moments and the trainer's place. Both are written in one atomic step.

use crate::error::TrainError;
use crate::model::{
    Leaves, Model, add_quantizer_parameters, check_trainable, matrix_shape, pack_linears, static_name,
    static_points,
};
use crate::optimizer::Moments;
use crate::parameters::{Group, Parameters};
use crate::quantizer::STATIC_PARAMETERS;
use serde::{Deserialize, Serialize};
use squat_model::plan::{static_scale_name, static_zero_point_name};
use squat_model::tensors::{Tensors, read_finite};
use squat_model::{FolderContents, ModelFolder, TokenizerFiles, WeightDtype, write_folder};
use squat_model::{ModelSpec, ParamKind, QuantPlan};
use squat_quant::ActPoint;
use squat_quant::math::exp;
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const MOMENTS: &str = "optimizer_state.bin";

/// The trainer's place, beside the moments.
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
}

/// Writes a checkpoint folder; with `state` it can be resumed.
///
/// # Errors
/// Failures of the file system; the folder that was there before stays.
pub fn save(
    path: &Path,
    spec: &ModelSpec,
    plan: Option<&QuantPlan>,
    parameters: &Parameters,
    tokenizer: &TokenizerFiles,
    state: Option<(&State, &Moments)>,
) -> Result<(), TrainError> {
    let mut tensors = Tensors::new();
    for info in spec.parameters() {
        if let Some(p) = parameters.get(&info.name) {
            tensors.insert(info.name.clone(), &info.shape, p.values.clone())?;
        }
        let logs = crate::model::log_scale_name(&info.name);
        if let Some(p) = parameters.get(&logs) {
            tensors.insert(logs, &[p.values.len()], p.values.clone())?;
        }
    }
    if let Some(plan) = plan {
        for (layer, point) in static_points(spec, plan) {
            let Some(p) = parameters.get(&static_name(layer, point)) else { continue };
            for &bits in plan.widths(point) {
                let affine = crate::quantizer::static_affine(&p.values, bits);
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
        for list in lists {
            bytes.extend(list.iter().flat_map(|x| x.to_le_bytes()));
        }
        extra.push((MOMENTS.to_owned(), bytes));
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

/// Reads a model folder: full precision, or a quantization-aware checkpoint.
///
/// # Errors
/// Missing or damaged files, tensors that do not fit, an architecture that cannot be trained.
pub fn load(path: &Path) -> Result<Loaded, TrainError> {
    let folder = ModelFolder::open(path)?;
    let spec = folder.spec().clone();
    check_trainable(&spec)?;
    let plan = folder.plan().cloned();
    let mut parameters = Parameters::default();
    for info in spec.parameters() {
        let values = read_finite(&folder, &info.name, &info.shape)?;
        let group = if matches!(info.kind, ParamKind::Norm(_)) { Group::Norm } else { Group::Weight };
        parameters.push(info.name, matrix_shape(&info.shape), values, group);
    }
    if let Some(plan) = &plan {
        let mut fresh = parameters.clone();
        add_quantizer_parameters(&mut fresh, &spec, plan);
        for p in fresh.iter().skip(parameters.len()).cloned().collect::<Vec<_>>() {
            let values = match static_values(&folder, &spec, plan, &p.name)? {
                Some(values) => values,
                None => read_finite(&folder, &p.name, &[p.values.len()])?,
            };
            parameters.push(p.name, p.shape, values, Group::Step);
        }
    }
    Ok(Loaded { spec, plan, parameters })
}

fn static_values(
    folder: &ModelFolder,
    spec: &ModelSpec,
    plan: &QuantPlan,
    name: &str,
) -> Result<Option<Vec<f32>>, TrainError> {
    let Some((layer, point)) =
        static_points(spec, plan).into_iter().find(|&(l, p)| static_name(l, p) == name)
    else {
        return Ok(None);
    };
    // A width that the plan never uses is not stored, and nothing reads its values.
    let mut values = vec![0.0; STATIC_PARAMETERS];
    for &bits in plan.widths(point) {
        let affine = squat_model::tensors::read_static_affine(folder, point, layer, bits)?;
        let at = 2 * bits.index();
        values[at..at + 2].copy_from_slice(&[log_of(affine.scale), affine.zero_point as f32]);
    }
    Ok(Some(values))
}

/// A number whose `exp` is exactly `scale`: the scale on disk is what the model uses.
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

/// Reads what a resume needs.
///
/// # Errors
/// A folder without training state, or one that does not fit the parameters.
pub fn load_state(path: &Path, parameters: &mut Parameters) -> Result<(State, Moments), TrainError> {
    let bad = |message: String| TrainError::Checkpoint { path: path.to_path_buf(), message };
    let state = read_state(path)?;
    let bytes =
        std::fs::read(path.join(MOMENTS)).map_err(TrainError::io("cannot read", path.join(MOMENTS)))?;
    let total: usize = parameters.iter().map(|p| p.values.len()).sum();
    if bytes.len() != total * 8 {
        let message = format!(
            "{MOMENTS} has {} bytes, expected {} for this model; it is truncated or of another model: delete \
             the folder to train the stage anew",
            bytes.len(),
            total * 8
        );
        return Err(bad(message));
    }
    let mut values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let mut lists = || -> Vec<Vec<f32>> {
        parameters.iter().map(|p| values.by_ref().take(p.values.len()).collect()).collect()
    };
    let moments = Moments { first: lists(), second: lists() };
    for (name, bits) in &state.static_points {
        let name = present_static_name(name);
        if let Some(p) = parameters.list_mut().iter_mut().find(|p| p.name == name) {
            p.values = bits.iter().map(|&b| f32::from_bits(b)).collect();
        }
    }
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

/// Fingerprint of the stage that a checkpoint belongs to; none where there is no training state.
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
             {} to train the stage anew",
            stage.display()
        ),
    }
}

fn read_state(path: &Path) -> Result<State, TrainError> {
    let file = path.join(STATE);
    let text = std::fs::read(&file).map_err(TrainError::io("cannot read", &file))?;
    serde_json::from_slice(&text).map_err(|e| TrainError::Checkpoint {
        path: path.to_path_buf(),
        message: format!("{STATE} is damaged ({e}); delete the folder to train the stage anew"),
    })
}

/// Whether a folder can be resumed from.
pub fn resumable(path: &Path) -> bool {
    path.join(STATE).is_file()
}

/// The checkpoint of a stage of a run.
pub fn locate_stage(run: &Path, stage: &str) -> PathBuf {
    let folder = run.join(stage);
    ["best", "last"]
        .into_iter()
        .map(|n| folder.join(n))
        .find(|p| p.join("config.json").is_file())
        .unwrap_or(folder)
}

impl Loaded {
    /// The model, for sequences of up to `max_seq` tokens, and its parameters as tensors.
    pub fn into_model(mut self, max_seq: usize) -> (Model, Leaves) {
        let device = burn::tensor::Device::flex();
        let model = Model::new(self.spec, self.plan, max_seq);
        let packed = pack_linears(&model, &self.parameters, &device, 1);
        (model, Leaves::take(&mut self.parameters, &device).with_packed(packed))
    }
}
