//! The quantization of a stage, in a recipe's words.

use crate::error::TrainError;
use crate::quantizer::{WeightQuantizer, default_quantizer};
use serde::{Deserialize, Serialize};
use squat_model::QuantPlan;
use squat_quant::spelling::nearest;
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActPoint, ActScheme, Clip, Granularity, Transform, WeightBits, WeightScheme};
use std::collections::BTreeMap;

/// The quantization of a `qat` stage: a named plan and what differs from it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct QuantConfig {
    /// Named plan: `w4a8`, `w4a4`, `w8a8`, `w2a8`, `rho50`, ...
    pub plan: String,
    /// Where the scales of weights come from: `lsq-log` (the default) or another name of [`crate::quantizer`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizer: Option<String>,
    /// Granularity of linears: `tensor`, `channel`, or a group size.
    #[serde(default)]
    pub weight_granularity: Option<String>,
    /// Bits of the token table: `8`, `4`, `fp`.
    #[serde(default)]
    pub embedding: Option<String>,
    /// Bits of the head: `8`, `4`, `fp`.
    #[serde(default)]
    pub head: Option<String>,
    /// Scheme of all activation points: `dynamic` or `static`.
    #[serde(default)]
    pub activations: Option<String>,
    /// Scheme of single points: `dynamic`, `static` or `fp`. Names are kept as they were written, former ones too, so that
    /// a run that began with them can be resumed.
    #[serde(default)]
    pub points: BTreeMap<String, String>,
    /// Transforms of the inputs of linear layers (`attn_in`, `o_proj_input`, `mlp_in`, `down_proj_input`), of queries and keys
    /// (`query` and `key`, both alike), and of the residual stream (`residual`): `hadamard(SIZE)`, or `hadamard` for the largest size that fits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub transforms: BTreeMap<String, String>,
    /// Weight schemes of single layers, by name: `"layers.0.down_proj_input" = "w8"`, as in the name of a plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exceptions: BTreeMap<String, String>,
    /// Share of a row's largest value that the 4-bit codes of dynamic points reach; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f32>,
    /// Bits of the attention probabilities: 8 or 4.
    #[serde(default)]
    pub attn_probs_bits: Option<u32>,
    /// Token policy: `sink_attention`, `random`, `first`, `activation_norm` (the last three are controls).
    #[serde(default)]
    pub policy: Option<String>,
    /// Share of 8-bit tokens.
    #[serde(default)]
    pub rho: Option<f32>,
}

impl QuantConfig {
    /// The weight quantizer that this names.
    ///
    /// # Errors
    /// An unknown name.
    pub fn quantizer(&self) -> Result<&'static dyn WeightQuantizer, TrainError> {
        self.quantizer.as_deref().map_or(Ok(default_quantizer()), crate::quantizer::named)
    }

    /// The quantization plan that this describes.
    ///
    /// # Errors
    /// Unknown names.
    pub fn plan(&self, seq_len: usize, seed: u64) -> Result<QuantPlan, TrainError> {
        let fail = |key: &str, got: &str, known: &str| {
            TrainError::Recipe(format!("quant.{key}: expected {known}, got `{got}`"))
        };
        let mut plan = QuantPlan::named(&self.plan)?;
        if let (Some(granularity), Some(weight)) = (&self.weight_granularity, &mut plan.weight) {
            weight.granularity = match granularity.as_str() {
                "tensor" => Granularity::PerTensor,
                "channel" => Granularity::PerChannel,
                other => match other.parse() {
                    Ok(group) if group > 0 => Granularity::PerGroup(group),
                    _ => {
                        return Err(fail("weight_granularity", other, "`tensor`, `channel` or a group size"));
                    }
                },
            };
        }
        let table = |key: &str, bits: &Option<String>, now: Option<WeightScheme>| match bits.as_deref() {
            None => Ok(now),
            Some("fp") => Ok(None),
            Some(name) => WeightBits::from_name(name)
                .map(|bits| Some(WeightScheme::per_channel(bits)))
                .ok_or_else(|| fail(key, name, "8, 4, 3, 2, ternary or fp")),
        };
        plan.embedding = table("embedding", &self.embedding, plan.embedding)?;
        plan.head = table("head", &self.head, plan.head)?;
        let scheme = |key: &str, name: &str| match name {
            "fp" => Ok(None),
            _ => ActScheme::from_name(name).map(Some).ok_or_else(|| fail(key, name, "dynamic, static or fp")),
        };
        if let Some(name) = &self.activations {
            let scheme = scheme("activations", name)?;
            for point in ActPoint::ALL {
                if plan.point(point).is_some() {
                    plan.set_point(point, scheme);
                }
            }
        }
        for (name, value) in &self.points {
            let point = point_of("points", name)?;
            if name != point.name() && self.points.contains_key(point.name()) {
                let message = format!("`{name}` and `{}` are the same point; give one of them", point.name());
                return Err(TrainError::Recipe(format!("quant.points: {message}")));
            }
            plan.set_point(point, scheme("points", value)?);
        }
        for (name, value) in &self.exceptions {
            let place = squat_model::plan::exception_of(name).ok_or_else(|| {
                TrainError::Recipe(format!(
                    "quant.exceptions: expected a name such as `layers.3.down_proj_input`, got `{name}`"
                ))
            })?;
            let scheme = QuantPlan::named(value).ok().and_then(|plan| plan.weight);
            let scheme =
                scheme.ok_or_else(|| fail("exceptions", value, "w8, w4-g64, ternary or the like"))?;
            plan.exceptions.insert(place, scheme);
        }
        for (name, value) in &self.transforms {
            let expected =
                "none, hadamard or hadamard(SIZE), SIZE a power of two, or one times 12, 20, 28 or 36";
            let transform = Transform::from_name(value).ok_or_else(|| fail("transforms", value, expected))?;
            match name.as_str() {
                QuantPlan::RESIDUAL => plan.residual = transform,
                name => plan.transforms[point_of("transforms", name)?.index()] = transform,
            }
        }
        if let Some(share) = self.clip {
            plan.clip = Clip::new(share)
                .ok_or_else(|| fail("clip", &share.to_string(), "a share above 0, at most 1"))?;
        }
        if let Some(bits) = self.attn_probs_bits {
            if bits != 8 && bits != 4 {
                return Err(fail("attn_probs_bits", &bits.to_string(), "8 or 4"));
            }
            plan.attn_probs_bits = bits;
        }
        if let Some(rho) = self.rho {
            if !(0.0..=1.0).contains(&rho) {
                return Err(fail("rho", &rho.to_string(), "a share in 0..=1"));
            }
            plan.rho = rho;
            plan.policy = TokenPolicy::SinkAttention;
        }
        if let Some(policy) = &self.policy {
            let rho = plan.rho;
            plan.policy = match policy.as_str() {
                "sink_attention" => TokenPolicy::SinkAttention,
                "random" => TokenPolicy::Random { rho, seed },
                "first" => TokenPolicy::First { count: (rho * seq_len as f32).round() as usize },
                "activation_norm" => TokenPolicy::ActivationNorm,
                other => {
                    return Err(fail("policy", other, "sink_attention, random, first or activation_norm"));
                }
            };
        }
        Ok(plan)
    }
}

/// The activation point of that name, in a table of the recipe.
fn point_of(table: &str, name: &str) -> Result<ActPoint, TrainError> {
    ActPoint::from_name(name).ok_or_else(|| {
        let near = nearest(name, ActPoint::ALL.map(ActPoint::name)).unwrap_or("attn_in");
        TrainError::Recipe(format!("quant.{table}: no point `{name}`; did you mean `{near}`?"))
    })
}
