//! The JSON form of a plan, and its serde implementations for recipes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use squat_quant::token_policy::TokenPolicy;
use squat_quant::{ActBits, ActPoint, ActScheme, Clip, Granularity, Transform, WeightBits, WeightScheme};

use crate::error::{ModelError, did_you_mean};
use crate::json::{optional_number, optional_size, refuse_unknown, shown};
use crate::plan::{QuantPlan, exception_name, exception_of};

const PLAN_KEYS: [&str; 11] = [
    "weight",
    "exceptions",
    "embedding",
    "head",
    "points",
    "transforms",
    "clip",
    "attn_probs_bits",
    "policy",
    "rho",
    "thresholds",
];
const SCHEME_KEYS: [&str; 3] = ["bits", "granularity", "group_size"];
const POLICY_KEYS: [&str; 4] = ["name", "bits", "seed", "count"];
const GRANULARITIES: [&str; 3] = ["per_tensor", "per_channel", "per_group"];
const POLICIES: [&str; 5] = ["uniform", "sink_attention", "random", "first", "activation_norm"];

impl QuantPlan {
    /// The JSON form:
    ///
    /// ```json
    /// {"weight": {"bits": 4, "granularity": "per_channel"}, "embedding": null,
    ///  "exceptions": {"layers.0.down_proj_input": {"bits": 8, "granularity": "per_channel"}},
    ///  "head": {"bits": "ternary", "granularity": "per_group", "group_size": 64},
    ///  "points": {"attn_in": "dynamic", "query": "static", "attn_probs": "fixed", "lm_head_input": null},
    ///  "transforms": {"o_proj_input": "hadamard(64)", "residual": "hadamard(576)"},
    ///  "clip": 0.85, "attn_probs_bits": 8, "policy": {"name": "sink_attention"}, "rho": 0.5, "thresholds": [0.0, 1.25]}
    /// ```
    pub fn to_json(&self) -> Value {
        let mut points = Map::new();
        for point in ActPoint::ALL {
            let scheme = self.point(point).map(|scheme| match point {
                ActPoint::AttnProbs => "fixed",
                _ => scheme.name(),
            });
            points.insert(point.name().to_owned(), json!(scheme));
        }
        let policy = match self.policy {
            TokenPolicy::Uniform(bits) => json!({"name": "uniform", "bits": bits.bits()}),
            TokenPolicy::Random { seed, .. } => json!({"name": "random", "seed": seed}),
            TokenPolicy::First { count } => json!({"name": "first", "count": count}),
            TokenPolicy::SinkAttention | TokenPolicy::ActivationNorm => json!({"name": self.policy.name()}),
        };
        let mut json = json!({
            "weight": scheme_to_json(self.weight),
            "embedding": scheme_to_json(self.embedding),
            "head": scheme_to_json(self.head),
            "points": points,
            "attn_probs_bits": self.attn_probs_bits,
            "policy": policy,
            "rho": self.rho,
            "thresholds": self.thresholds,
        });
        if !self.exceptions.is_empty() {
            json["exceptions"] = self
                .exceptions
                .iter()
                .map(|(&(layer, point), &scheme)| {
                    (exception_name(layer, point), scheme_to_json(Some(scheme)))
                })
                .collect();
        }
        if self.clip != Clip::NONE {
            json["clip"] = shortest(self.clip.share());
        }
        if self.has_transforms() {
            json["transforms"] = self
                .all_transforms()
                .map(|(name, transform)| (name.to_owned(), json!(transform.to_string())))
                .collect();
        }
        json
    }

    /// Reads the JSON form.
    ///
    /// A key that is absent has the value of [`QuantPlan::default`], except that an absent point is quantized
    /// dynamically only if `points` is absent altogether; null means full precision. Without a policy, `rho` chooses
    /// one: 0 and 1 are uniform, between them tokens are chosen by their attention to the initial token.
    ///
    /// # Errors
    /// Unknown keys and names with the nearest valid one, values of the wrong type or range.
    pub fn from_json(value: &Value) -> Result<Self, ModelError> {
        let map = object(value, "plan")?;
        refuse_unknown(map, "plan", &PLAN_KEYS)?;
        let default = Self::default();
        let scheme = |key: &str, default| match map.get(key) {
            Some(value) => scheme_from_json(value, key),
            None => Ok(default),
        };
        let mut plan = Self {
            weight: scheme("weight", default.weight)?,
            embedding: scheme("embedding", default.embedding)?,
            head: scheme("head", default.head)?,
            ..default
        };
        if let Some(exceptions) = map.get("exceptions") {
            for (name, value) in object(exceptions, "plan.exceptions")? {
                let key = || format!("plan.exceptions.{name}");
                let place = exception_of(name).ok_or_else(|| {
                    ModelError::config(key(), "a name such as \"layers.3.down_proj_input\"", shown(value), "")
                })?;
                let scheme = scheme_from_json(value, &format!("exceptions.{name}"))?
                    .ok_or_else(|| ModelError::config(key(), "a scheme", "null", ""))?;
                plan.exceptions.insert(place, scheme);
            }
        }
        if let Some(points) = map.get("points") {
            plan.points = points_from_json(points)?;
        }
        if let Some(transforms) = map.get("transforms") {
            (plan.transforms, plan.residual) = transforms_from_json(transforms)?;
        }
        if let Some(share) = optional_number(map, "clip")? {
            plan.clip = Clip::new(share as f32).ok_or_else(|| {
                ModelError::config("plan.clip", "a share above 0, at most 1", share.to_string(), "")
            })?;
        }
        if let Some(bits) = optional_size(map, "attn_probs_bits")? {
            plan.attn_probs_bits = u32::try_from(bits).unwrap_or(u32::MAX);
        }
        let rho = optional_number(map, "rho")?.map(|rho| rho as f32);
        if let Some(policy) = map.get("policy") {
            plan.policy = policy_from_json(policy, rho.unwrap_or(plan.rho))?;
        } else if let Some(rho) = rho {
            plan.policy = match rho {
                0.0 => TokenPolicy::Uniform(ActBits::A4),
                1.0 => TokenPolicy::Uniform(ActBits::A8),
                _ => TokenPolicy::SinkAttention,
            };
        }
        plan.rho = match (rho, plan.policy) {
            (Some(rho), _) => rho,
            (None, TokenPolicy::Uniform(ActBits::A4)) => 0.0,
            (None, _) => 1.0,
        };
        if let Some(thresholds) = map.get("thresholds").filter(|value| !value.is_null()) {
            let numbers = thresholds.as_array().and_then(|list| {
                list.iter()
                    .map(|theta| theta.as_f64().map(|theta| theta as f32))
                    .collect::<Option<Vec<f32>>>()
            });
            plan.thresholds = numbers.ok_or_else(|| {
                ModelError::config("plan.thresholds", "a list of numbers", shown(thresholds), "")
            })?;
        }
        Ok(plan)
    }
}

fn object<'a>(value: &'a Value, key: &str) -> Result<&'a Map<String, Value>, ModelError> {
    value.as_object().ok_or_else(|| ModelError::config(key, "an object", shown(value), ""))
}

fn scheme_to_json(scheme: Option<WeightScheme>) -> Value {
    let Some(scheme) = scheme else { return Value::Null };
    let bits = match scheme.bits {
        WeightBits::Ternary => json!(scheme.bits.name()),
        bits => json!(bits.storage_bits()),
    };
    match scheme.granularity {
        Granularity::PerTensor => json!({"bits": bits, "granularity": GRANULARITIES[0]}),
        Granularity::PerChannel => json!({"bits": bits, "granularity": GRANULARITIES[1]}),
        Granularity::PerGroup(group) => {
            json!({"bits": bits, "granularity": GRANULARITIES[2], "group_size": group})
        }
    }
}

fn scheme_from_json(value: &Value, key: &str) -> Result<Option<WeightScheme>, ModelError> {
    if value.is_null() {
        return Ok(None);
    }
    let place = format!("plan.{key}");
    let map = object(value, &place)?;
    refuse_unknown(map, &place, &SCHEME_KEYS)?;
    let bits = match map.get("bits") {
        Some(Value::Number(n)) => WeightBits::from_name(&n.to_string()),
        Some(Value::String(name)) => WeightBits::from_name(name),
        _ => None,
    };
    let bits = bits.ok_or_else(|| {
        let got = map.get("bits").map_or("nothing".to_owned(), shown);
        ModelError::config(format!("{place}.bits"), "8, 4, 3, 2 or \"ternary\"", got, "")
    })?;
    let group_size = optional_size(map, "group_size")?;
    let name = match map.get("granularity") {
        None if group_size.is_some() => GRANULARITIES[2],
        None => GRANULARITIES[1],
        Some(Value::String(name)) => name.as_str(),
        Some(other) => {
            return Err(ModelError::config(format!("{place}.granularity"), "a name", shown(other), ""));
        }
    };
    let granularity = match (name, group_size) {
        ("per_tensor", None) => Granularity::PerTensor,
        ("per_channel", None) => Granularity::PerChannel,
        ("per_group", Some(group)) if group > 0 => Granularity::PerGroup(group),
        ("per_group", got) => {
            let got = got.map_or("nothing".to_owned(), |group| group.to_string());
            return Err(ModelError::config(format!("{place}.group_size"), "a positive number", got, ""));
        }
        ("per_tensor" | "per_channel", Some(group)) => {
            let hint = "; write granularity \"per_group\" to use groups";
            return Err(ModelError::config(
                format!("{place}.group_size"),
                "nothing",
                group.to_string(),
                hint,
            ));
        }
        (other, _) => return Err(ModelError::unknown_name("granularity", other, &GRANULARITIES)),
    };
    Ok(Some(WeightScheme { bits, granularity }))
}

fn points_from_json(value: &Value) -> Result<[Option<ActScheme>; 9], ModelError> {
    let map = object(value, "plan.points")?;
    let names = ActPoint::ALL.map(ActPoint::name);
    let mut points = [None; 9];
    for (name, value) in map {
        let Some(point) = ActPoint::from_name(name) else {
            return Err(ModelError::config(
                format!("plan.points.{name}"),
                format!("one of the keys {}", names.join(", ")),
                "an unknown key",
                did_you_mean(name, names.iter().copied()),
            ));
        };
        if name != point.name() && map.contains_key(point.name()) {
            let expected = format!("one of {name} and {}, which are the same point", point.name());
            return Err(ModelError::config("plan.points", expected, "both", ""));
        }
        let scheme = match (point, value) {
            (_, Value::Null) => None,
            (ActPoint::AttnProbs, Value::String(scheme)) if scheme == "fixed" => Some(ActScheme::Dynamic),
            (_, Value::String(scheme)) => Some(ActScheme::from_name(scheme).ok_or_else(|| {
                ModelError::unknown_name("activation scheme", scheme, &["dynamic", "static"])
            })?),
            (_, other) => {
                let expected = "\"dynamic\", \"static\" or null";
                return Err(ModelError::config(format!("plan.points.{name}"), expected, shown(other), ""));
            }
        };
        points[point.index()] = scheme;
    }
    Ok(points)
}

/// A number with the fewest digits that give it back.
fn shortest(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, |x| json!(x))
}

/// The transforms of the points, and that of the residual stream.
fn transforms_from_json(value: &Value) -> Result<([Transform; 9], Transform), ModelError> {
    let map = object(value, "plan.transforms")?;
    let (mut transforms, mut residual) = ([Transform::None; 9], Transform::None);
    for (name, value) in map {
        let place = match ActPoint::from_name(name) {
            Some(point) => &mut transforms[point.index()],
            None if name == QuantPlan::RESIDUAL => &mut residual,
            None => {
                let names: Vec<&str> =
                    ActPoint::ALL.iter().map(|point| point.name()).chain([QuantPlan::RESIDUAL]).collect();
                return Err(ModelError::unknown_name("activation point", name, &names));
            }
        };
        let transform = value.as_str().and_then(Transform::from_name).ok_or_else(|| {
            let key = format!("plan.transforms.{name}");
            ModelError::config(
                key,
                "\"none\" or \"hadamard(SIZE)\", SIZE a power of two, or one times 12, 20, 28 or 36",
                shown(value),
                "",
            )
        })?;
        *place = transform;
    }
    Ok((transforms, residual))
}

fn policy_from_json(value: &Value, rho: f32) -> Result<TokenPolicy, ModelError> {
    let map = object(value, "plan.policy")?;
    refuse_unknown(map, "plan.policy", &POLICY_KEYS)?;
    let name = map.get("name").and_then(Value::as_str).ok_or_else(|| {
        let got = map.get("name").map_or("nothing".to_owned(), shown);
        ModelError::config("plan.policy.name", POLICIES.join(", "), got, "")
    })?;
    let (policy, own_keys): (TokenPolicy, &[&str]) = match name {
        "uniform" => {
            let bits = optional_size(map, "bits")?.unwrap_or(8);
            let bits = u32::try_from(bits)
                .ok()
                .and_then(ActBits::from_bits)
                .ok_or_else(|| ModelError::config("plan.policy.bits", "8 or 4", bits.to_string(), ""))?;
            (TokenPolicy::Uniform(bits), &["bits"])
        }
        "sink_attention" => (TokenPolicy::SinkAttention, &[]),
        "activation_norm" => (TokenPolicy::ActivationNorm, &[]),
        "random" => {
            let seed = match map.get("seed") {
                None => 0,
                Some(seed) => seed.as_u64().ok_or_else(|| {
                    ModelError::config("plan.policy.seed", "a whole number", shown(seed), "")
                })?,
            };
            (TokenPolicy::Random { rho, seed }, &["seed"])
        }
        "first" => {
            let count = optional_size(map, "count")?.ok_or_else(|| {
                ModelError::config("plan.policy.count", "a number of positions", "nothing", "")
            })?;
            (TokenPolicy::First { count }, &["count"])
        }
        other => return Err(ModelError::unknown_name("token policy", other, &POLICIES)),
    };
    let known: Vec<&str> = ["name"].iter().chain(own_keys).copied().collect();
    refuse_unknown(map, "plan.policy", &known)?;
    Ok(policy)
}

impl Serialize for QuantPlan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for QuantPlan {
    /// A name of [`QuantPlan::named`], or the object of [`QuantPlan::from_json`].
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Self::named(&name),
            value => Self::from_json(&value),
        }
        .map_err(serde::de::Error::custom)
    }
}
