//! First codes and scales of a model that was trained in full precision: better ones than rounding gives.
//!
//! | file | holds |
//! |---|---|
//! | `gram` | inputs of linears, summed to `X^T X` |
//! | `factor` | the Cholesky factor of such a sum |
//! | `migrate` | scales that move between inputs and weights |
//! | `solve` | codes and scales of one weight |
//! | `pass` | the model, layer by layer |
//!
//! The layers are quantized in order, and the inputs of each are those of the model as quantized so far, so a layer also
//! makes up for the errors of those below.

mod factor;
mod gram;
mod migrate;
mod pass;
mod solve;

pub use pass::{Progress, Started, start};

use squat_model::{LinearKind, ModelSpec, Norm, QuantPlan};
use squat_quant::{ActBits, ActPoint, Clip, Transform};
use std::str::FromStr;

/// Largest block of a transform of the input of linears. Before the down projection with activations of 8 bits, SmolLM2-135M
/// loses as little with blocks of 64 as with whole rows of 1536, at an eighth of the time.
const MIXED: usize = 64;

/// Largest block of the transform before the down projection with activations of 4 bits, which lose much less than with 64.
const WIDE: usize = 512;

/// Share of a row's largest value that 4-bit codes reach. SmolLM2-135M loses least at 0.85, against 0.75, 0.9 and 1.
const CLIP: f32 = 0.85;

/// Which methods find the first codes and scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Methods {
    /// Points are transformed ([`Methods::plan`]), and the values of each head: outliers are spread, and a scale for each
    /// channel loses less (QuaRot, arXiv 2404.00456).
    pub rotate: bool,
    /// Scales move between transformed inputs and their weights.
    pub migrate: bool,
    /// 4-bit codes of activations end before the largest value of the row.
    pub clip: bool,
    /// Scales of least error of the output, by a search of clip ratios; otherwise of least error of the weight.
    pub output_error: bool,
    /// Error-compensating rounding (GPTQ, arXiv 2210.17323, in the form of LDLQ, arXiv 2307.13304).
    pub compensate: bool,
    /// Rounds of coordinate descent over codes and scales after rounding.
    pub refine: usize,
    /// The share, 0 to 1, of the errors of layers below that a layer makes up for (GPTAQ, arXiv 2504.02692).
    pub correct: f32,
    /// Added to the diagonal of `X^T X`, as a share of its mean.
    pub damping: f32,
}

impl Default for Methods {
    fn default() -> Self {
        Self {
            rotate: true,
            migrate: true,
            clip: true,
            output_error: true,
            compensate: true,
            refine: 2,
            correct: 0.5,
            damping: 0.01,
        }
    }
}

impl Methods {
    /// Rounding to nearest with scales of least squared error of the weight: what packing does by itself.
    pub const NONE: Self = Self {
        rotate: false,
        migrate: false,
        clip: false,
        output_error: false,
        compensate: false,
        refine: 0,
        correct: 0.0,
        damping: 0.01,
    };

    /// The plan with the transforms and the clipping of the methods, for a model.
    ///
    /// With 8-bit activations the residual stream is transformed as a whole, at no cost. With 4-bit ones, of all tokens or of some,
    /// the inputs of linears are instead, one by one: a transformed stream needs the gains of norms within the weights, and
    /// so holds outliers that those gains were there to make small.
    pub fn plan(&self, mut plan: QuantPlan, spec: &ModelSpec) -> QuantPlan {
        let inputs = QuantPlan::TRANSFORMED.map(LinearKind::input_point);
        let four =
            inputs.iter().any(|&at| plan.point(at).is_some() && plan.widths(at).contains(&ActBits::A4));
        if self.rotate && plan.weight.is_some() && spec.norm == Norm::Rms {
            let blocks = |kind: LinearKind, most: usize, make: fn(usize) -> Option<Transform>| {
                let part = (1 << spec.linear_shape(kind)[1].trailing_zeros()).min(most);
                // Small powers of two spread little; there the largest block is worth its time.
                if part < 16 { Transform::Largest } else { make(part).unwrap_or_default() }
            };
            let mut set = |point: ActPoint, transform| plan.transforms[point.index()] = transform;
            if four {
                set(ActPoint::AttnIn, blocks(LinearKind::Q, MIXED, Transform::hadamard));
                set(ActPoint::MlpIn, blocks(LinearKind::Up, MIXED, Transform::hadamard));
                // Each head is transformed already, so this mixes heads.
                set(ActPoint::OProjInput, blocks(LinearKind::O, MIXED, Transform::interleaved));
                set(ActPoint::DownProjInput, blocks(LinearKind::Down, WIDE, Transform::hadamard));
                set(ActPoint::Query, Transform::Largest);
                set(ActPoint::Key, Transform::Largest);
            } else {
                set(ActPoint::DownProjInput, blocks(LinearKind::Down, MIXED, Transform::interleaved));
                plan.residual = Transform::Largest;
            }
        }
        if self.clip && four {
            plan.clip = Clip::new(CLIP).unwrap_or_default();
        }
        plan.for_model(spec)
    }

    /// Whether the inputs of linears are needed at all.
    pub(crate) fn calibrates(&self) -> bool {
        self.output_error || self.compensate || self.refine > 0
    }
}

impl std::fmt::Display for Methods {
    /// The names that [`FromStr`] reads: `rotate, scales`, or `none`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = [
            (self.rotate, "rotate"),
            (self.migrate, "migrate"),
            (self.clip, "clip"),
            (self.output_error, "scales"),
            (self.compensate, "compensate"),
            (self.refine > 0, "refine"),
            (self.correct > 0.0, "correct"),
        ];
        let used: Vec<&str> = names.into_iter().filter(|(used, _)| *used).map(|(_, name)| name).collect();
        f.write_str(if used.is_empty() { "none".to_owned() } else { used.join(", ") }.as_str())
    }
}

impl FromStr for Methods {
    type Err = String;

    /// Names joined by commas: `rotate`, `migrate`, `clip`, `scales`, `compensate`, `refine`, `correct`; `none`; `all` is the default.
    fn from_str(names: &str) -> Result<Self, String> {
        let all = Self::default();
        let mut methods = Self::NONE;
        for name in names.split(',') {
            match name {
                "none" => {}
                "all" => methods = all,
                "rotate" => methods.rotate = true,
                "migrate" => methods.migrate = true,
                "clip" => methods.clip = true,
                "scales" => methods.output_error = true,
                "compensate" => methods.compensate = true,
                "refine" => methods.refine = all.refine,
                "correct" => methods.correct = all.correct,
                other => {
                    return Err(format!(
                        "expected none, all, or some of rotate, migrate, clip, scales, compensate, refine, correct, joined by commas; \
                         got `{other}`"
                    ));
                }
            }
        }
        Ok(methods)
    }
}

#[cfg(test)]
mod tests;
