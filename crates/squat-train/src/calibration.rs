//! Ranges of activation points, seen on real batches, turned into the first static quantizers (METHOD.md section 2).

use crate::model::{ForwardOptions, Model, ParamTensors, static_name, static_points};
use crate::parameters::Parameters;
use squat_model::QuantPlan;
use squat_quant::calibrate::mse_affine;
use squat_quant::{ActBits, ActPoint};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Values kept of each point.
const SAMPLES: usize = 1 << 15;

/// Values seen at activation points.
#[derive(Debug, Default)]
pub struct Observer {
    samples: HashMap<(Option<usize>, ActPoint), Vec<f32>>,
}

impl Observer {
    /// Keeps an even sample of `values`.
    pub fn record(&mut self, layer: Option<usize>, point: ActPoint, values: &[f32]) {
        let kept = self.samples.entry((layer, point)).or_default();
        let room = SAMPLES.saturating_sub(kept.len());
        // A quarter of the room for each call, so that several batches are seen; extremes always.
        let take = (room / 4).min(values.len());
        if take == 0 {
            return;
        }
        let stride = values.len().div_ceil(take);
        kept.extend(values.iter().step_by(stride));
        let (mut low, mut high) = (0f32, 0f32);
        for &x in values {
            low = low.min(x);
            high = high.max(x);
        }
        kept.extend([low, high]);
    }
}

/// Runs batches of `[batch, seq]` ids in full precision and sets the static parameters of `plan`'s points. Weights behind
/// transformed points are transformed already.
pub fn calibrate(
    model: &Model,
    parameters: &mut Parameters,
    plan: &QuantPlan,
    batches: &[(Vec<u32>, usize, usize)],
) {
    let points = static_points(&model.spec, plan);
    if points.is_empty() {
        return;
    }
    let seq = batches.iter().map(|b| b.2).max().unwrap_or(1);
    let plain = Model::new(model.spec.clone(), Some(plan.without_quantizers()), seq);
    let params = ParamTensors::constant(parameters);
    let observer: Arc<Mutex<Observer>> = Arc::default();
    let options = ForwardOptions { observe: Some(observer.clone()), ..ForwardOptions::default() };
    for (ids, batch, seq) in batches {
        plain.forward(&params, ids, (*batch, *seq), &options);
    }
    let observer = observer.lock().unwrap_or_else(|e| e.into_inner());
    for (layer, point) in points {
        let Some(samples) = observer.samples.get(&(layer, point)) else { continue };
        let mut values = Vec::new();
        for bits in ActBits::ALL {
            let affine = mse_affine(samples, bits.range());
            values.extend([affine.scale.ln(), affine.zero_point as f32]);
        }
        let name = static_name(layer, point);
        if let Some(parameter) = parameters.list_mut().iter_mut().find(|p| p.name == name) {
            parameter.values = values;
        }
    }
}
