//! The top-level key `squat` of `config.json`: what the other schemas cannot express.

use serde_json::{Map, Value, json};

use crate::error::ModelError;
use crate::json::{refuse_unknown, shown};
use crate::plan::QuantPlan;
use crate::spec::ModelSpec;

/// Name of the key.
pub(crate) const KEY: &str = "squat";

/// Version of the section's layout; a reader refuses a newer one.
const FORMAT_VERSION: u64 = 1;

/// The section's value for a plan.
pub(crate) fn to_json(plan: &QuantPlan) -> Value {
    json!({"format_version": FORMAT_VERSION, "plan": plan.to_json()})
}

/// Reads and validates the plan; none if the key is absent.
pub(crate) fn plan_of(
    config: &Map<String, Value>,
    spec: &ModelSpec,
) -> Result<Option<QuantPlan>, ModelError> {
    let Some(value) = config.get(KEY) else { return Ok(None) };
    let map = value.as_object().ok_or_else(|| ModelError::config(KEY, "an object", shown(value), ""))?;
    refuse_unknown(map, KEY, &["format_version", "plan"])?;
    match map.get("format_version").and_then(Value::as_u64) {
        Some(FORMAT_VERSION) => {}
        _ => {
            return Err(ModelError::config(
                "squat.format_version",
                FORMAT_VERSION.to_string(),
                map.get("format_version").map_or("nothing".to_owned(), shown),
                "; the folder was written by another version of this program",
            ));
        }
    }
    let plan = map
        .get("plan")
        .ok_or_else(|| ModelError::config("squat.plan", "a quantization plan", "nothing", ""))?;
    let plan = QuantPlan::from_json(plan)?;
    plan.validate(spec)?;
    Ok(Some(plan))
}
