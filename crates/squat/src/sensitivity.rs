//! What each layer and each activation point costs when it alone is quantized, and which bits each layer gets for a number of
//! bytes.

use crate::fidelity::Fidelity;
use anyhow::{Context, Result};
use squat_engine::{Engine, EngineOptions};
use squat_model::plan::QuantPlan;
use squat_model::{LinearKind, ModelSpec, Tensors, packed_bytes};
use squat_quant::calibrate::weight_scales;
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActBits, ActPoint, Affine, WeightBits, WeightScheme};
use squat_train::checkpoint::Loaded;
use squat_train::model::transform_weights;
use std::collections::BTreeMap;

/// Widths that a layer may get, widest first.
pub const WIDTHS: [WeightBits; 4] = [WeightBits::W8, WeightBits::W4, WeightBits::W3, WeightBits::W2];

/// The linears of one input of a layer: they are quantized alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    pub layer: usize,
    pub point: ActPoint,
    /// KL(original || quantized) in nats per token, the unit alone rounded at the width of the plan.
    pub divergence: f64,
    /// Squared errors of its weights at each of [`WIDTHS`] over that at the plan's.
    pub errors: [f64; 4],
}

/// What everything costs, each by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    pub units: Vec<Unit>,
    /// Nats per token of token table and head at the plan's bits.
    pub tables: f64,
    /// Nats per token of each quantized activation point, in all layers together.
    pub points: Vec<(ActPoint, f64)>,
}

/// The original in the form that `plan` transforms, and what it says on some windows.
struct Bench<'a> {
    spec: &'a ModelSpec,
    plain: QuantPlan,
    tensors: Tensors,
    windows: &'a [Vec<u32>],
    logits: Vec<Vec<f32>>,
    threads: usize,
}

impl Bench<'_> {
    fn engine(&self, plan: &QuantPlan) -> Result<Engine> {
        Ok(Engine::from_parts(self.spec, plan, &self.tensors, EngineOptions::threads(self.threads))?)
    }

    /// Mean divergence under a plan.
    fn divergence(&self, plan: &QuantPlan) -> Result<f64> {
        let engine = self.engine(plan)?;
        let mut total = Fidelity::default();
        for (window, logits) in self.windows.iter().zip(&self.logits) {
            squat_files::interrupt::check()?;
            total.add(&Fidelity::from_logits(logits, &engine, window)?);
        }
        Ok(total.mean_divergence())
    }
}

/// Measures on windows of token ids that begin with BOS. `report` hears of each unit that is done, and of how many there are.
///
/// # Errors
/// A plan without weights, a model that is none, a wish to stop.
pub fn measure(
    model: &Loaded,
    plan: &QuantPlan,
    windows: &[Vec<u32>],
    threads: usize,
    report: &mut dyn FnMut(usize, usize),
) -> Result<Sensitivity> {
    let spec = &model.spec;
    let scheme = plan.weight.context("expected a plan that quantizes weights, such as w4a8")?;
    // Thresholds are found with the first codes; without them every token counts as one of 4 bits.
    let unknown = plan.needs_thresholds() && plan.thresholds.is_empty();
    let policy = if unknown { TokenPolicy::Uniform(ActBits::A4) } else { plan.policy };
    let mut parameters = model.parameters.clone();
    transform_weights(&mut parameters, spec, plan);
    let mut tensors = Tensors::new();
    for info in spec.parameters() {
        let values = parameters.get(&info.name).with_context(|| format!("the model lacks {}", info.name))?;
        tensors.insert(info.name, &info.shape, values.values.clone())?;
    }
    let plain = plan.without_quantizers();
    let mut bench = Bench { spec, plain, tensors, windows, logits: Vec::new(), threads };
    let original = bench.engine(&bench.plain)?;
    for window in windows {
        bench.logits.push(original.session()?.prefill_all(&window[..window.len() - 1])?);
    }
    drop(original);
    let places: Vec<(usize, ActPoint)> = (0..spec.num_hidden_layers)
        .flat_map(|layer| QuantPlan::TRANSFORMED.map(|kind| (layer, kind.input_point())))
        .collect();
    let mut units = Vec::with_capacity(places.len());
    for &(layer, point) in &places {
        let mut kept = Vec::new();
        let mut errors = [0f64; 4];
        let mut own = 0f64;
        for &kind in spec.linears().iter().filter(|kind| kind.input_point() == point) {
            let name = spec.linear_name(layer, kind);
            let values = &parameters.get(&name).with_context(|| format!("the model lacks {name}"))?.values;
            let cols = spec.linear_shape(kind)[1];
            for (error, bits) in errors.iter_mut().zip(WIDTHS) {
                *error += rounded(values, cols, WeightScheme { bits, ..scheme }).1;
            }
            let (values, error) = rounded(values, cols, scheme);
            own += error;
            kept.push((name.clone(), kind));
            bench.tensors.insert(name, &spec.linear_shape(kind), values)?;
        }
        let divergence = bench.divergence(&bench.plain)?;
        let errors = errors.map(|error| if own > 0.0 { error / own } else { 0.0 });
        units.push(Unit { layer, point, divergence, errors });
        restore(&mut bench.tensors, spec, &parameters, &kept)?;
        report(units.len(), places.len());
    }
    let tables = QuantPlan { embedding: plan.embedding, head: plan.head, ..bench.plain.clone() };
    let tables = bench.divergence(&tables)?;
    let mut points = Vec::new();
    for point in ActPoint::ALL.into_iter().filter(|&point| plan.point(point).is_some()) {
        let mut alone = bench.plain.clone();
        alone.set_point(point, plan.point(point));
        (alone.policy, alone.rho, alone.attn_probs_bits) = (policy, plan.rho, plan.attn_probs_bits);
        alone.clip = plan.clip;
        points.push((point, bench.divergence(&alone)?));
    }
    Ok(Sensitivity { units, tables, points })
}

fn restore(
    tensors: &mut Tensors,
    spec: &ModelSpec,
    parameters: &squat_train::Parameters,
    kept: &[(String, LinearKind)],
) -> Result<()> {
    for (name, kind) in kept {
        let values = parameters.get(name).map(|p| p.values.clone()).unwrap_or_default();
        tensors.insert(name.clone(), &spec.linear_shape(*kind), values)?;
    }
    Ok(())
}

/// Weights rounded to nearest, and the sum of their squared errors.
fn rounded(values: &[f32], cols: usize, scheme: WeightScheme) -> (Vec<f32>, f64) {
    let rows = values.len() / cols;
    let mut scales = vec![0f32; scheme.num_scales(rows, cols)];
    weight_scales(values, rows, cols, scheme, &mut scales);
    let mut error = 0f64;
    let round = |(at, &x): (usize, &f32)| {
        let scale = scales[scheme.scale_index(at / cols, at % cols, cols)];
        let y = Affine::symmetric(scale, scheme.bits.range()).fake_quantize(x);
        error += f64::from(y - x).powi(2);
        y
    };
    (values.iter().enumerate().map(round).collect(), error)
}

/// Refuses fewer bytes than the narrowest widths take.
///
/// # Errors
/// That.
pub fn check_bytes(plan: &QuantPlan, spec: &ModelSpec, bytes: u64) -> Result<()> {
    let narrowest = WIDTHS[WIDTHS.len() - 1];
    let weight = plan.weight.map(|scheme| WeightScheme { bits: narrowest, ..scheme });
    let least = packed_bytes(spec, &QuantPlan { weight, exceptions: BTreeMap::new(), ..plan.clone() });
    anyhow::ensure!(
        least <= bytes,
        "{bytes} bytes are too few: with 2 bits for every linear layer the model takes {least}; give more, or a --plan with \
         -t4, whose token table and head have 4 bits"
    );
    Ok(())
}

impl Sensitivity {
    /// Expected divergence of a unit at a width: what it cost at the plan's, by the squared error of its weights.
    fn expected(unit: &Unit, width: usize) -> f64 {
        unit.divergence.max(0.0) * unit.errors[width]
    }

    /// The plan with a width for each layer and input that costs least for weights of at most `bytes` in all: beginning with the
    /// narrowest, the width that saves most for its bytes is chosen again and again.
    ///
    /// # Errors
    /// Fewer bytes than the narrowest widths take.
    pub fn allocate(&self, plan: &QuantPlan, spec: &ModelSpec, bytes: u64) -> Result<QuantPlan> {
        let scheme = plan.weight.context("expected a plan that quantizes weights, such as w4a8")?;
        let mut widths: Vec<usize> = vec![WIDTHS.len() - 1; self.units.len()];
        let with = |widths: &[usize]| {
            let exceptions: BTreeMap<_, _> = self
                .units
                .iter()
                .zip(widths)
                .map(|(unit, &width)| {
                    ((unit.layer, unit.point), WeightScheme { bits: WIDTHS[width], ..scheme })
                })
                .filter(|(_, own)| *own != scheme)
                .collect();
            QuantPlan { exceptions, ..plan.clone() }
        };
        check_bytes(plan, spec, bytes)?;
        // Bytes of a unit at a width, without the names in the file, which the check at the end counts.
        let size = |unit: &Unit, width: usize| -> f64 {
            let own = spec.linears().iter().filter(|kind| kind.input_point() == unit.point);
            let elements: usize = own.map(|&kind| spec.linear_shape(kind).iter().product::<usize>()).sum();
            f64::from(WIDTHS[width].storage_bits()) * elements as f64 / 8.0
        };
        let mut full = vec![false; self.units.len()];
        loop {
            // The best next step of any unit, over all wider widths: errors need not fall evenly.
            let mut best: Option<(f64, usize, usize)> = None;
            for (index, unit) in self.units.iter().enumerate().filter(|(index, _)| !full[*index]) {
                for width in 0..widths[index] {
                    let saved = Self::expected(unit, widths[index]) - Self::expected(unit, width);
                    let gain = saved / (size(unit, width) - size(unit, widths[index]));
                    if best.is_none_or(|(most, _, _)| gain > most) {
                        best = Some((gain, index, width));
                    }
                }
            }
            let Some((_, index, width)) = best else { break };
            let before = std::mem::replace(&mut widths[index], width);
            if packed_bytes(spec, &with(&widths)) > bytes {
                widths[index] = before;
                full[index] = true;
            }
        }
        Ok(with(&widths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_model::shapes;

    fn made(spec: &ModelSpec) -> Sensitivity {
        let units = (0..spec.num_hidden_layers)
            .flat_map(|layer| QuantPlan::TRANSFORMED.map(|kind| (layer, kind.input_point())))
            .map(|(layer, point)| {
                let dear = layer == 0 && point == ActPoint::DownProjInput;
                let divergence = if dear { 1.0 } else { 0.001 };
                Unit { layer, point, divergence, errors: [0.004, 1.0, 5.0, 30.0] }
            })
            .collect();
        Sensitivity { units, tables: 0.0, points: Vec::new() }
    }

    #[test]
    fn bytes_go_where_they_save_most() {
        let spec = shapes::shape("smollm2-135m").unwrap();
        let plan = QuantPlan { head: QuantPlan::w4a8().embedding, ..QuantPlan::w4a8() };
        let costs = made(&spec);
        let uniform = packed_bytes(&spec, &plan);
        for bytes in [uniform, uniform * 4 / 5, uniform * 6 / 5] {
            let found = costs.allocate(&plan, &spec, bytes).unwrap();
            let taken = packed_bytes(&spec, &found);
            assert!(taken <= bytes && taken > bytes * 97 / 100, "{taken} of {bytes}");
            let dear = found.weight_of(0, LinearKind::Down).unwrap();
            assert_eq!(dear.bits, WeightBits::W8);
            found.validate(&spec).unwrap();
        }
        let error = costs.allocate(&plan, &spec, 1000).unwrap_err().to_string();
        assert!(error.contains("too few") && error.contains("-t4"), "{error}");
        // As wide as there is.
        let all = costs.allocate(&plan, &spec, u64::MAX).unwrap();
        assert!(spec.linears().iter().all(|&kind| all.weight_of(7, kind).unwrap().bits == WeightBits::W8));
    }
}
