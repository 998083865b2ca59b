//! The quantization plan of a model: which tensors and points are quantized, how, and which tokens get which bits
//! (METHOD.md sections 3 and 5).

use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActBits, ActPoint, ActScheme, Clip, Granularity, Transform, WeightBits, WeightScheme};
use std::collections::BTreeMap;

use crate::error::ModelError;
pub use crate::scales::scale_name;
use crate::spec::{LinearKind, ModelSpec, Norm, ParamInfo, ParamKind};

/// Everything about a model's quantizers that is not a tensor.
///
/// Its JSON form is stored in `config.json` under the key `squat`; see [`QuantPlan::to_json`].
#[derive(Clone, Debug, PartialEq)]
pub struct QuantPlan {
    /// Scheme of every linear of every layer; none leaves them in full precision.
    pub weight: Option<WeightScheme>,
    /// Schemes of single layers in place of `weight`, by layer and input point: linears of one input have one scheme.
    pub exceptions: BTreeMap<(usize, ActPoint), WeightScheme>,
    /// Scheme of the token table.
    pub embedding: Option<WeightScheme>,
    /// Scheme of the output projection; equal to `embedding` in a tied model.
    pub head: Option<WeightScheme>,
    /// Scheme of each activation point, by [`ActPoint::index`]; none is not quantized. The range of
    /// [`ActPoint::AttnProbs`] is known, so it is `Some(Dynamic)` or `None`: there is nothing to learn.
    pub points: [Option<ActScheme>; 9],
    /// What is applied to the rows of each point before they are quantized, by [`ActPoint::index`]. The weights behind the input
    /// of a linear are stored transformed likewise ([`QuantPlan::TRANSFORMED`]). Queries and keys, head by head after RoPE, have
    /// one transform, which their products undo. Other points have none.
    pub transforms: [Transform; 9],
    /// What is applied to the residual stream as a whole, for models with RMSNorm: each of its rows is the transform of what it
    /// would be. Token table and head, and the weights that read the stream or add to it, are stored to match, so it costs
    /// nothing within the layers (QuaRot, arXiv 2404.00456). The final norm keeps its gain: the stream is transformed before it,
    /// which undoes the transform, and once more behind it. So a tied table stays one table.
    pub residual: Transform,
    /// How far the 4-bit codes of dynamic points reach.
    pub clip: Clip,
    /// Bits of the attention probabilities: 8 or 4.
    pub attn_probs_bits: u32,
    /// Which tokens get 8-bit activations.
    pub policy: TokenPolicy,
    /// Target share of 8-bit tokens, 0 to 1.
    pub rho: f32,
    /// Frozen threshold of each layer; empty until frozen, and for policies that have none.
    pub thresholds: Vec<f32>,
}

impl Default for QuantPlan {
    /// W4 per channel, embedding and head in 8 bits per row, every point in 8 bits with dynamic scales.
    fn default() -> Self {
        Self::weights_only(WeightBits::W4).with_uniform_points(ActBits::A8)
    }
}

impl QuantPlan {
    /// The most common names of [`QuantPlan::named`], shown in messages; others follow the same grammar.
    pub const NAMES: [&'static str; 8] = ["fp", "w8a8", "w4a8", "w4a4", "w2a8", "ternary-a8", "w4", "rho50"];

    /// Nothing quantized.
    pub fn full_precision() -> Self {
        Self {
            weight: None,
            exceptions: BTreeMap::new(),
            embedding: None,
            head: None,
            points: [None; 9],
            transforms: [Transform::None; 9],
            residual: Transform::None,
            clip: Clip::NONE,
            attn_probs_bits: 8,
            policy: TokenPolicy::Uniform(ActBits::A8),
            rho: 1.0,
            thresholds: Vec::new(),
        }
    }

    /// Linears of `bits` per channel, embedding and head of 8 bits per row, activations in full precision.
    pub fn weights_only(bits: WeightBits) -> Self {
        let table = Some(WeightScheme::per_channel(WeightBits::W8));
        Self {
            weight: Some(WeightScheme::per_channel(bits)),
            embedding: table,
            head: table,
            ..Self::full_precision()
        }
    }

    /// 4-bit weights, 8-bit activations.
    pub fn w4a8() -> Self {
        Self::default()
    }

    /// 4-bit weights, 4-bit activations (attention probabilities and the head's input stay at 8 bits).
    pub fn w4a4() -> Self {
        Self::weights_only(WeightBits::W4).with_uniform_points(ActBits::A4)
    }

    /// 4-bit weights, activations of 8 bits for the share `rho` of tokens that attend most to the initial token, of 4
    /// bits for the others. Thresholds are not frozen yet.
    pub fn with_rho(rho: f32) -> Self {
        Self { policy: TokenPolicy::SinkAttention, rho, ..Self::default() }
    }

    /// The plan with this name.
    ///
    /// `fp`; `wW` (weights only) or `wWaA` with W in 8, 4, 3, 2 and A in 8, 4; `ternary` or `ternary-aA`; `rhoN` or
    /// `wW-rhoN` with N the percentage of 8-bit tokens; `rhoN-random` draws these tokens at random, as a control. A suffix
    /// `-tT` sets the bits of the tables (embedding and head), which have 8 otherwise: `w4a8-t4`; a suffix `-gN` gives every group of N inputs of a linear layer a scale of its own:
    /// `w4a8-g64`.
    ///
    /// # Errors
    /// A name outside this grammar, with the nearest usual name.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        Self::parse_name(name)
            .ok_or_else(|| ModelError::unknown_name("quantization plan", name, &Self::NAMES))
    }

    fn parse_name(name: &str) -> Option<Self> {
        if name == "fp" {
            return Some(Self::full_precision());
        }
        if let Some((rest, bits)) = name.rsplit_once("-t")
            && let Some(bits) = WeightBits::from_name(bits)
        {
            let table = Some(WeightScheme::per_channel(bits));
            let plan = Self::parse_name(rest).filter(|plan| plan.weight.is_some())?;
            return Some(Self { embedding: table, head: table, ..plan });
        }
        if let Some((rest, len)) = name.rsplit_once("-g") {
            let len = Some(len).filter(|len| len.len() <= 5 && len.bytes().all(|b| b.is_ascii_digit()))?;
            let granularity = len.parse().ok().filter(|&len| len > 0).map(Granularity::PerGroup)?;
            let plan = Self::parse_name(rest)?;
            let weight = plan.weight.filter(|weight| weight.granularity == Granularity::PerChannel)?;
            return Some(Self { weight: Some(WeightScheme { granularity, ..weight }), ..plan });
        }
        let (bits, rest) = if let Some(rest) = name.strip_prefix("ternary") {
            (WeightBits::Ternary, rest)
        } else if let Some(rest) = name.strip_prefix('w') {
            let bits = WeightBits::from_name(rest.get(..1)?)?;
            (bits, &rest[1..])
        } else if name.starts_with("rho") {
            (WeightBits::W4, name)
        } else {
            return None;
        };
        let rest = rest.strip_prefix('-').filter(|rest| !rest.is_empty()).unwrap_or(rest);
        let plan = Self::weights_only(bits);
        match rest {
            "" => Some(plan),
            "a8" => Some(plan.with_uniform_points(ActBits::A8)),
            "a4" => Some(plan.with_uniform_points(ActBits::A4)),
            _ => {
                let digits = rest.strip_prefix("rho")?;
                let (digits, random) =
                    digits.strip_suffix("-random").map_or((digits, false), |digits| (digits, true));
                let digits =
                    Some(digits).filter(|d| d.len() <= 3 && d.bytes().all(|b| b.is_ascii_digit()))?;
                let percent: u32 = digits.parse().ok()?;
                let plan = plan.with_uniform_points(ActBits::A8);
                let rho = percent as f32 / 100.0;
                let policy = match random {
                    true => TokenPolicy::Random { rho, seed: 1 },
                    false => TokenPolicy::SinkAttention,
                };
                (percent <= 100).then_some(Self { policy, rho, ..plan })
            }
        }
    }

    /// The same plan with every point quantized dynamically, every token at `bits`.
    pub fn with_uniform_points(mut self, bits: ActBits) -> Self {
        self.points = [Some(ActScheme::Dynamic); 9];
        self.policy = TokenPolicy::Uniform(bits);
        self.rho = if bits == ActBits::A8 { 1.0 } else { 0.0 };
        self
    }

    /// Scheme of a point.
    pub const fn point(&self, point: ActPoint) -> Option<ActScheme> {
        self.points[point.index()]
    }

    /// Sets the scheme of a point; `Static` at [`ActPoint::AttnProbs`] is taken as `Dynamic`.
    pub fn set_point(&mut self, point: ActPoint, scheme: Option<ActScheme>) {
        let fixed = point == ActPoint::AttnProbs && scheme.is_some();
        self.points[point.index()] = if fixed { Some(ActScheme::Dynamic) } else { scheme };
    }

    /// A linear of each input that may be transformed; others of the same input have the same width.
    pub const TRANSFORMED: [LinearKind; 4] = [LinearKind::Q, LinearKind::O, LinearKind::Up, LinearKind::Down];

    /// The plan for a model: a tied head has the scheme of the token table, and [`Transform::Largest`] becomes the transform of
    /// the largest block that divides the width of its point, or of the residual stream.
    pub fn for_model(mut self, spec: &ModelSpec) -> Self {
        if spec.tie_word_embeddings {
            self.head = self.embedding;
        }
        for kind in Self::TRANSFORMED {
            let transform = &mut self.transforms[kind.input_point().index()];
            *transform = transform.for_width(spec.linear_shape(kind)[1]);
        }
        for point in [ActPoint::Query, ActPoint::Key] {
            let transform = &mut self.transforms[point.index()];
            *transform = transform.for_width(spec.head_dim);
        }
        self.residual = self.residual.for_width(spec.hidden_size);
        self
    }

    /// Transform of a point.
    pub const fn transform(&self, point: ActPoint) -> Transform {
        self.transforms[point.index()]
    }

    /// Whether some point or the residual stream is transformed.
    pub fn has_transforms(&self) -> bool {
        self.all_transforms().next().is_some()
    }

    /// Whether the plan has what no other program knows: transforms, or rows that are clipped.
    pub fn is_own(&self) -> bool {
        self.has_transforms() || self.clip != Clip::NONE
    }

    /// Name and transform of whatever is transformed.
    pub(crate) fn all_transforms(&self) -> impl Iterator<Item = (&'static str, Transform)> {
        let points = ActPoint::ALL.into_iter().map(|point| (point.name(), self.transform(point)));
        points.chain([(Self::RESIDUAL, self.residual)]).filter(|(_, transform)| !transform.is_none())
    }

    /// What the residual stream is called among the transforms.
    pub const RESIDUAL: &'static str = "residual";

    /// Whether weights stored for one plan serve the other as they are.
    pub fn same_transforms(&self, other: &Self) -> bool {
        self.transforms == other.transforms && self.residual == other.residual
    }

    /// Nothing quantized, and the same transforms.
    pub fn without_quantizers(&self) -> Self {
        Self { transforms: self.transforms, residual: self.residual, ..Self::full_precision() }
    }

    /// The transforms in words: `o_proj_input hadamard(64)`, or `none`.
    pub fn describe_transforms(&self) -> String {
        let words: Vec<String> =
            self.all_transforms().map(|(name, transform)| format!("{name} {transform}")).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }

    fn validate_exceptions(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        for (&(layer, point), &scheme) in &self.exceptions {
            let key = format!("plan.exceptions.{}", exception_name(layer, point));
            let refuse = |expected: String, got: String| Err(ModelError::config(&*key, expected, got, ""));
            if layer >= spec.num_hidden_layers {
                return refuse(format!("a layer below {}", spec.num_hidden_layers), layer.to_string());
            }
            if !Self::TRANSFORMED.iter().any(|kind| kind.input_point() == point) {
                let points = Self::TRANSFORMED.map(|kind| kind.input_point().name());
                return refuse(
                    format!("the input of linears: {}", points.join(", ")),
                    point.name().to_owned(),
                );
            }
            if scheme.granularity == Granularity::PerGroup(0) {
                return refuse("a positive group size".to_owned(), "0".to_owned());
            }
        }
        Ok(())
    }

    fn validate_transforms(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        let [query, key] = [ActPoint::Query, ActPoint::Key].map(|point| self.transform(point));
        if query != key {
            let expected = format!("{query}, as for query: their products undo a transform that both have");
            return Err(ModelError::config("plan.transforms.key", expected, key.to_string(), ""));
        }
        check_width(query, spec.head_dim, "plan.transforms.query")?;
        let turned = |point: &ActPoint| matches!(point, ActPoint::Query | ActPoint::Key);
        for point in
            ActPoint::ALL.into_iter().filter(|point| !turned(point) && !self.transform(*point).is_none())
        {
            let (key, got) = (format!("plan.transforms.{}", point.name()), self.transform(point).to_string());
            let Some(kind) = Self::TRANSFORMED.into_iter().find(|kind| kind.input_point() == point) else {
                let points = Self::TRANSFORMED.map(|kind| kind.input_point().name());
                let expected = format!("none: only query, key, {} can be transformed", points.join(", "));
                return Err(ModelError::config(key, expected, got, ""));
            };
            check_width(self.transform(point), spec.linear_shape(kind)[1], &key)?;
        }
        let key = format!("plan.transforms.{}", Self::RESIDUAL);
        if !self.residual.is_none() && spec.norm != Norm::Rms {
            let expected = "none, because the norms of the model are no RMSNorms";
            return Err(ModelError::config(key, expected, self.residual.to_string(), ""));
        }
        // Weights that add to the stream are transformed by blocks of their outputs that follow each other.
        if matches!(self.residual, Transform::Interleaved(_)) {
            return Err(ModelError::config(key, "hadamard(SIZE)", self.residual.to_string(), ""));
        }
        check_width(self.residual, spec.hidden_size, &key)
    }

    /// Whether no activation point is quantized.
    pub fn is_weight_only(&self) -> bool {
        self.points.iter().all(Option::is_none)
    }

    /// Whether nothing at all is quantized.
    pub fn is_full_precision(&self) -> bool {
        let weights = [self.weight, self.embedding, self.head];
        self.is_weight_only() && weights.iter().all(Option::is_none) && self.exceptions.is_empty()
    }

    /// Whether the token policy compares a score with a threshold for each layer.
    pub fn needs_thresholds(&self) -> bool {
        !self.is_weight_only()
            && matches!(self.policy, TokenPolicy::SinkAttention | TokenPolicy::ActivationNorm)
    }

    /// Threshold of a layer; 0 if the plan has none (policies without thresholds ignore it).
    pub fn threshold(&self, layer: usize) -> f32 {
        self.thresholds.get(layer).copied().unwrap_or(0.0)
    }

    /// Scheme of a linear of a layer.
    pub fn weight_of(&self, layer: usize, kind: LinearKind) -> Option<WeightScheme> {
        self.exceptions.get(&(layer, kind.input_point())).copied().or(self.weight)
    }

    /// Scheme of a parameter; `None` for norms, biases, learned positions and everything left in full precision.
    pub fn scheme_of(&self, param: &ParamInfo) -> Option<WeightScheme> {
        match param.kind {
            ParamKind::Embedding => self.embedding,
            ParamKind::Head => self.head,
            ParamKind::Linear(kind) => self.weight_of(param.layer.unwrap_or(0), kind),
            ParamKind::Norm(_) | ParamKind::Bias | ParamKind::Positions => None,
        }
    }

    /// Activation widths that occur at a point: one under a uniform policy, else both; 8 alone at the head's input,
    /// and the fixed width at the probabilities.
    pub fn widths(&self, point: ActPoint) -> &'static [ActBits] {
        let uniform = match point {
            ActPoint::LmHeadInput => Some(ActBits::A8),
            ActPoint::AttnProbs => ActBits::from_bits(self.attn_probs_bits),
            _ => self.policy.uniform(),
        };
        match uniform {
            Some(ActBits::A4) => &[ActBits::A4],
            Some(ActBits::A8) => &[ActBits::A8],
            None => &ActBits::ALL,
        }
    }

    /// Every static quantizer of the plan: point, layer (`None` for the head's input), width.
    pub fn static_quantizers(&self, spec: &ModelSpec) -> Vec<(ActPoint, Option<usize>, ActBits)> {
        let mut list = Vec::new();
        for layer in (0..spec.num_hidden_layers).map(Some).chain([None]) {
            for point in ActPoint::ALL {
                let here = (point == ActPoint::LmHeadInput) == layer.is_none();
                if here && point != ActPoint::AttnProbs && self.point(point) == Some(ActScheme::Static) {
                    list.extend(self.widths(point).iter().map(|&bits| (point, layer, bits)));
                }
            }
        }
        list
    }

    /// Checks the plan by itself and against a model.
    ///
    /// Thresholds that are still empty are accepted here; [`QuantPlan::validate_frozen`] demands them.
    ///
    /// # Errors
    /// The first field with a wrong value, what was expected and what to do.
    pub fn validate(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        for (key, scheme) in [("weight", self.weight), ("embedding", self.embedding), ("head", self.head)] {
            if let Some(WeightScheme { granularity: Granularity::PerGroup(0), .. }) = scheme {
                let key = format!("plan.{key}.group_size");
                return Err(ModelError::config(key, "a positive number", "0", ""));
            }
        }
        if spec.tie_word_embeddings && self.embedding != self.head {
            return Err(ModelError::config(
                "plan.head",
                "the scheme of plan.embedding, because the model ties them into one tensor",
                describe(self.head),
                format!("; set both to {}", describe(self.embedding)),
            ));
        }
        self.validate_exceptions(spec)?;
        self.validate_transforms(spec)?;
        if ActBits::from_bits(self.attn_probs_bits).is_none() {
            let got = self.attn_probs_bits.to_string();
            return Err(ModelError::config("plan.attn_probs_bits", "8 or 4", got, ""));
        }
        if self.point(ActPoint::AttnProbs) == Some(ActScheme::Static) {
            let expected = "\"dynamic\" or none, because the range of probabilities is known";
            return Err(ModelError::config("plan.points.attn_probs", expected, "\"static\"", ""));
        }
        if !(0.0..=1.0).contains(&self.rho) {
            return Err(ModelError::config(
                "plan.rho",
                "a share of 8-bit tokens between 0 and 1",
                self.rho.to_string(),
                "",
            ));
        }
        if let TokenPolicy::Random { rho, .. } = self.policy
            && rho != self.rho
        {
            return Err(ModelError::config("plan.policy", "the same rho as plan.rho", rho.to_string(), ""));
        }
        let wrong_length = !self.thresholds.is_empty() && self.thresholds.len() != spec.num_hidden_layers;
        if wrong_length {
            return Err(ModelError::config(
                "plan.thresholds",
                format!("one for each of {} layers", spec.num_hidden_layers),
                self.thresholds.len().to_string(),
                "",
            ));
        }
        if let Some(layer) = self.thresholds.iter().position(|theta| !theta.is_finite()) {
            return Err(ModelError::config(
                format!("plan.thresholds[{layer}]"),
                "a finite number",
                self.thresholds[layer].to_string(),
                "",
            ));
        }
        Ok(())
    }

    /// [`QuantPlan::validate`], and thresholds must be present if the policy needs them: required to run a model.
    ///
    /// # Errors
    /// As [`QuantPlan::validate`], or missing thresholds.
    pub fn validate_frozen(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        self.validate(spec)?;
        if self.needs_thresholds() && self.thresholds.is_empty() {
            return Err(ModelError::config(
                "plan.thresholds",
                format!("one for each of {} layers", spec.num_hidden_layers),
                "none",
                format!(
                    "; the policy {} needs thresholds, which quantization-aware training freezes",
                    self.policy.name()
                ),
            ));
        }
        Ok(())
    }
}

/// What an exception is called: `layers.3.down_proj_input`.
pub(crate) fn exception_name(layer: usize, point: ActPoint) -> String {
    format!("layers.{layer}.{}", point.name())
}

/// The layer and the point that [`exception_name`] names.
pub fn exception_of(name: &str) -> Option<(usize, ActPoint)> {
    let (layer, point) = name.strip_prefix("layers.")?.split_once('.')?;
    let layer = layer.parse().ok().filter(|number: &usize| number.to_string() == layer)?;
    Some((layer, ActPoint::from_name(point)?))
}

/// Refuses a transform that does not fit rows of that many values.
fn check_width(transform: Transform, width: usize, key: &str) -> Result<(), ModelError> {
    if transform.fits(width) {
        return Ok(());
    }
    let expected = format!("a size that divides the {width} values of the point");
    let hint = match Transform::Largest.for_width(width) {
        Transform::None => "; no size fits".to_owned(),
        largest => format!("; the largest is {largest}"),
    };
    Err(ModelError::config(key, expected, transform.to_string(), hint))
}

/// A weight scheme in words: `4 bits per channel`, `ternary per group of 64`, `full precision`.
pub fn describe(scheme: Option<WeightScheme>) -> String {
    let Some(scheme) = scheme else { return "full precision".to_owned() };
    let bits = match scheme.bits {
        WeightBits::Ternary => "ternary".to_owned(),
        bits => format!("{} bits", bits.name()),
    };
    match scheme.granularity {
        Granularity::PerTensor => format!("{bits} per tensor"),
        Granularity::PerChannel => format!("{bits} per channel"),
        Granularity::PerGroup(group) => format!("{bits} per group of {group}"),
    }
}

/// Name of a static activation quantizer's scale, `[1]` f32.
pub fn static_scale_name(point: ActPoint, layer: Option<usize>, bits: ActBits) -> String {
    format!("{}.a{}_scale", static_stem(point, layer), bits.bits())
}

/// Name of a static activation quantizer's zero point, `[1]` i32.
pub fn static_zero_point_name(point: ActPoint, layer: Option<usize>, bits: ActBits) -> String {
    format!("{}.a{}_zero_point", static_stem(point, layer), bits.bits())
}

fn static_stem(point: ActPoint, layer: Option<usize>) -> String {
    match layer {
        Some(layer) => format!("model.layers.{layer}.{}", point.name()),
        None => format!("model.{}", point.name()),
    }
}

/// The present name of a static quantizer's tensor that bears a former one: `model.layers.0.attn_out.a8_scale` is now
/// `model.layers.0.o_proj_input.a8_scale`. `None` for all other names.
pub(crate) fn present_quantizer_name(name: &str) -> Option<String> {
    let (module, suffix) = name.rsplit_once('.')?;
    let (parent, point) = module.rsplit_once('.')?;
    let known = ActBits::ALL.iter().any(|bits| {
        let width = format!("a{}", bits.bits());
        suffix.strip_prefix(&*width).is_some_and(|rest| matches!(rest, "_scale" | "_zero_point"))
    });
    let point = ActPoint::from_name(point).filter(|present| known && present.name() != point)?;
    Some(format!("{parent}.{}.{suffix}", point.name()))
}
