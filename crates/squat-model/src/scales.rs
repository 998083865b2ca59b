//! Learned scales of weights, stored beside the weights in full precision.
//!
//! A checkpoint has one tensor `X.weight_scale` for each weight `X.weight` that its plan quantizes. Checkpoints from
//! before have the natural logarithms instead, `X.weight_log_scale`; the scale is `squat_quant::math::exp` of them.

use squat_quant::math::exp;

use crate::error::ModelError;
use crate::plan::QuantPlan;
use crate::spec::{ModelSpec, ParamInfo};
use crate::tensors::{TensorSource, check_scale, check_shape, read_finite, wrong};

/// Name of the tensor with a weight's scales, `[num_scales]` f32.
pub fn scale_name(param: &ParamInfo) -> String {
    format!("{}.weight_scale", param.module())
}

/// Name of the tensor with the logarithms of a weight's scales, `[num_scales]` f32, in checkpoints from before.
pub fn log_scale_name(param: &ParamInfo) -> String {
    format!("{}.weight_log_scale", param.module())
}

/// Whether a tensor has the name of learned scales in either form.
pub(crate) fn is_scale_name(name: &str) -> bool {
    name.ends_with(".weight_scale") || name.ends_with(".weight_log_scale")
}

/// Learned scales as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum LearnedScales {
    /// The scales.
    Scales(Vec<f32>),
    /// Their logarithms.
    Logarithms(Vec<f32>),
}

impl LearnedScales {
    /// The learned scales of a weight, `num_scales` of them, all finite and positive; `None` where a source has none.
    ///
    /// # Errors
    /// Another shape, values that are not scales, or both forms at once.
    pub fn read(
        tensors: &(impl TensorSource + ?Sized),
        param: &ParamInfo,
        num_scales: usize,
    ) -> Result<Option<Self>, ModelError> {
        let Some(name) = stored_name(tensors, param)? else { return Ok(None) };
        let values = read_finite(tensors, &name, &[num_scales])?;
        let read = if name == scale_name(param) { Self::Scales(values) } else { Self::Logarithms(values) };
        let scales = read.clone().into_scales();
        scales.iter().try_for_each(|&scale| check_scale(scale, &name, || tensors.place()))?;
        Ok(Some(read))
    }

    /// The scales.
    pub fn into_scales(self) -> Vec<f32> {
        match self {
            Self::Scales(scales) => scales,
            Self::Logarithms(logs) => logs.iter().map(|&log| exp(log)).collect(),
        }
    }
}

/// The name under which a source has the learned scales of a weight.
pub(crate) fn stored_name(
    tensors: &(impl TensorSource + ?Sized),
    param: &ParamInfo,
) -> Result<Option<String>, ModelError> {
    let (scale, log) = (scale_name(param), log_scale_name(param));
    match (tensors.info(&scale).is_some(), tensors.info(&log).is_some()) {
        (true, true) => Err(wrong(
            tensors,
            &log,
            &format!("either {scale} or its logarithm"),
            "both",
            "; remove the one that is out of date",
        )),
        (true, false) => Ok(Some(scale)),
        (false, true) => Ok(Some(log)),
        (false, false) => Ok(None),
    }
}

/// Name and shape of the learned scales of every weight that a plan quantizes; empty where a source has none.
///
/// # Errors
/// Scales of some weights only, another shape, both forms at once.
pub fn stored_scales(
    tensors: &(impl TensorSource + ?Sized),
    spec: &ModelSpec,
    plan: &QuantPlan,
) -> Result<Vec<(String, Vec<usize>)>, ModelError> {
    let mut found = Vec::new();
    let mut absent = None;
    let mut logarithms = false;
    for param in spec.parameters() {
        let (Some(scheme), &[rows, cols]) = (plan.scheme_of(&param), param.shape.as_slice()) else {
            continue;
        };
        match stored_name(tensors, &param)? {
            Some(name) => {
                logarithms |= name == log_scale_name(&param);
                let shape = vec![scheme.num_scales(rows, cols)];
                check_shape(tensors, &name, &shape)?;
                found.push((name, shape));
            }
            None => absent = absent.or(Some(param)),
        }
    }
    match absent {
        Some(param) if !found.is_empty() => {
            let name = if logarithms { log_scale_name(&param) } else { scale_name(&param) };
            Err(crate::tensors::missing(tensors, &name))
        }
        _ => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::Tensors;

    fn source(names: &[(&str, f32)]) -> (Tensors, ModelSpec, QuantPlan) {
        let spec = ModelSpec { num_hidden_layers: 1, ..crate::shapes::shape("tiny").unwrap() };
        let plan = QuantPlan { embedding: None, head: None, ..QuantPlan::w4a8() };
        let mut tensors = Tensors::new();
        for param in spec.parameters().iter().filter(|param| plan.scheme_of(param).is_some()) {
            for (suffix, value) in names {
                let rows = param.shape[0];
                tensors.insert(format!("{}.{suffix}", param.module()), &[rows], vec![*value; rows]).unwrap();
            }
        }
        (tensors, spec, plan)
    }

    #[test]
    fn scales_are_read_in_either_form_and_both_at_once_are_refused() {
        let first = |spec: &ModelSpec| {
            spec.parameters().into_iter().find(|param| param.name.contains("q_proj")).unwrap()
        };
        let (tensors, spec, plan) = source(&[("weight_scale", 0.25)]);
        let param = first(&spec);
        let rows = param.shape[0];
        let read = LearnedScales::read(&tensors, &param, rows).unwrap();
        assert_eq!(read, Some(LearnedScales::Scales(vec![0.25; rows])));
        assert_eq!(stored_scales(&tensors, &spec, &plan).unwrap().len(), 7);
        let (logs, ..) = source(&[("weight_log_scale", -2.0)]);
        let read = LearnedScales::read(&logs, &param, rows).unwrap().unwrap();
        assert_eq!(read, LearnedScales::Logarithms(vec![-2.0; rows]));
        assert_eq!(read.into_scales(), vec![exp(-2.0); rows]);
        let (both, ..) = source(&[("weight_scale", 0.25), ("weight_log_scale", -2.0)]);
        let error = LearnedScales::read(&both, &param, rows).unwrap_err().to_string();
        assert!(error.contains("either") && error.contains("both"), "{error}");
        let (none, ..) = source(&[]);
        assert_eq!(LearnedScales::read(&none, &param, rows).unwrap(), None);
        assert!(stored_scales(&none, &spec, &plan).unwrap().is_empty());
    }

    #[test]
    fn scales_of_some_weights_only_and_values_that_are_not_scales_are_refused() {
        let (mut tensors, spec, plan) = source(&[("weight_scale", 0.25)]);
        tensors.remove("model.layers.0.mlp.up_proj.weight_scale");
        let error = stored_scales(&tensors, &spec, &plan).unwrap_err().to_string();
        assert!(error.contains("up_proj.weight_scale") && error.contains("missing"), "{error}");
        let (tensors, spec, _) = source(&[("weight_scale", -0.25)]);
        let param = spec.parameters().into_iter().find(|param| param.name.contains("q_proj")).unwrap();
        let error = LearnedScales::read(&tensors, &param, param.shape[0]).unwrap_err().to_string();
        assert!(error.contains("positive") && error.contains("-0.25"), "{error}");
    }
}
