//! Weight quantizers: where the scales of a weight come from, and what is learned for them.
//!
//! A quantizer is one file in this folder and one line in [`REGISTRY`]; recipes select it by name
//! (`quant = { plan = "w4a8", quantizer = "lsq" }`). Whatever it learns, it must end in the scales of a
//! [`WeightScheme`]: checkpoints store those as `X.weight_scale`, so packing and running depend on no quantizer.

mod lsq;
mod lsq_log;

use crate::error::TrainError;
use crate::fake_quant::Weight;
use burn::tensor::Tensor;
use squat_quant::WeightScheme;
use std::fmt::Debug;

/// How the scales of a weight follow from learned parameters.
///
/// The parameters of a weight are one vector `[1, n]`, trained in the group [`crate::parameters::Group::Scale`].
pub trait WeightQuantizer: Debug + Send + Sync {
    /// Name in recipes and checkpoints.
    fn name(&self) -> &'static str;

    /// First values of the parameters, from scales that calibration found.
    fn parameters(&self, weight: Weight<'_>, scales: &[f32]) -> Vec<f32>;

    /// The scales, as many as the scheme has; finite and positive for finite parameters.
    fn scales(&self, weight: Weight<'_>, parameters: &[f32]) -> Vec<f32>;

    /// Turns `grad`, the gradient of the fake-quantized weight, into that of the weight, in place; returns the gradient
    /// of the parameters.
    fn backward(&self, weight: Weight<'_>, parameters: &[f32], grad: &mut [f32]) -> Vec<f32>;

    /// [`Self::scales`] as a tensor `[1, n]` on the tape, whose gradient reaches the parameters as [`Self::backward`]
    /// says; for devices except the CPU.
    fn scale_tensor(&self, weight: &Tensor<2>, scheme: WeightScheme, parameters: Tensor<2>) -> Tensor<2>;

    /// Moves parameters back to where they are valid, after each step of the optimizer.
    fn project(&self, parameters: &mut [f32]) {
        let _ = parameters;
    }

    /// Whether the parameters are the scales themselves, so that a checkpoint needs nothing else to resume from.
    fn stores_scales(&self) -> bool {
        false
    }
}

/// Every quantizer.
static REGISTRY: [&dyn WeightQuantizer; 2] = [&lsq_log::LsqLog, &lsq::Lsq];

/// Every quantizer, the default first.
pub fn registry() -> &'static [&'static dyn WeightQuantizer] {
    &REGISTRY
}

/// The quantizer that recipes get without naming one.
pub fn default_quantizer() -> &'static dyn WeightQuantizer {
    &lsq_log::LsqLog
}

/// The quantizer whose parameters are the scales: for models that are read to be evaluated or to teach.
pub(crate) fn stored_scales() -> &'static dyn WeightQuantizer {
    &lsq::Lsq
}

/// The quantizer of that name.
///
/// # Errors
/// An unknown name, with the nearest.
pub fn named(name: &str) -> Result<&'static dyn WeightQuantizer, TrainError> {
    let names = || REGISTRY.iter().map(|quantizer| quantizer.name());
    REGISTRY.iter().copied().find(|quantizer| quantizer.name() == name).ok_or_else(|| {
        let near = squat_quant::spelling::nearest(name, names());
        let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
        let names: Vec<_> = names().collect();
        TrainError::Recipe(format!(
            "quant.quantizer: expected one of {}, got `{name}`{hint}",
            names.join(", ")
        ))
    })
}

/// A weight's scheme and the quantizer that learns its scales.
#[derive(Clone, Copy, Debug)]
pub struct WeightQuant {
    /// Bits and granularity.
    pub scheme: WeightScheme,
    /// Where scales come from.
    pub quantizer: &'static dyn WeightQuantizer,
}

impl WeightQuant {
    /// The weight `[rows, cols]` under this scheme, and its scales.
    pub(crate) fn of<'a>(
        &self,
        values: &'a [f32],
        cols: usize,
        parameters: &[f32],
    ) -> (Weight<'a>, Vec<f32>) {
        let weight = Weight { values, cols, scheme: self.scheme };
        (weight, self.quantizer.scales(weight, parameters))
    }
}

/// Name under which a quantizer's parameters for a weight are trained.
pub fn parameter_name(weight: &str) -> String {
    format!("{}{SUFFIX}", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// End of the names that [`parameter_name`] gives.
pub(crate) const SUFFIX: &str = ".weight_quantizer";

#[cfg(test)]
mod tests;
