//! Typed reading of JSON objects, with errors that name the key.

use std::path::Path;

use serde_json::{Map, Value};

use squat_files::read::{self, Limit};
use squat_quant::spelling::nearest;

use crate::error::{ModelError, did_you_mean};

/// A value as it appears in a message, cut short.
pub(crate) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.chars().count() > 80 {
        text = text.chars().take(77).collect::<String>() + "...";
    }
    text
}

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ModelError> {
    let bytes = read::whole(path, Limit::Config)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(ModelError::file(path, format!("expected one JSON object, got {}", shown(&other)))),
        Err(error) => {
            let advice = "the file is damaged or incomplete, copy it again";
            Err(ModelError::file(path, format!("invalid JSON: {error}; {advice}")))
        }
    }
}

/// The value at `key`; null counts as absent.
fn get<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

fn missing(map: &Map<String, Value>, key: &str, expected: &str) -> ModelError {
    // A key that is spelt almost the same is the likely cause.
    let hint = match nearest(key, map.keys().map(String::as_str)) {
        Some(near) => format!("; there is a key \"{near}\""),
        None => String::new(),
    };
    ModelError::config(key, expected, "nothing", hint)
}

pub(crate) fn optional_size(map: &Map<String, Value>, key: &str) -> Result<Option<usize>, ModelError> {
    let Some(value) = get(map, key) else { return Ok(None) };
    match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
        Some(n) => Ok(Some(n)),
        None => Err(ModelError::config(key, "a whole number", shown(value), "")),
    }
}

pub(crate) fn size(map: &Map<String, Value>, key: &str) -> Result<usize, ModelError> {
    optional_size(map, key)?.ok_or_else(|| missing(map, key, "a whole number"))
}

pub(crate) fn optional_number(map: &Map<String, Value>, key: &str) -> Result<Option<f64>, ModelError> {
    let Some(value) = get(map, key) else { return Ok(None) };
    value.as_f64().map(Some).ok_or_else(|| ModelError::config(key, "a number", shown(value), ""))
}

pub(crate) fn optional_bool(map: &Map<String, Value>, key: &str) -> Result<Option<bool>, ModelError> {
    let Some(value) = get(map, key) else { return Ok(None) };
    value.as_bool().map(Some).ok_or_else(|| ModelError::config(key, "true or false", shown(value), ""))
}

/// One token id, a list of them, or none; -1 means none, as in old files.
pub(crate) fn token_ids(map: &Map<String, Value>, key: &str) -> Result<Vec<u32>, ModelError> {
    let Some(value) = get(map, key) else { return Ok(Vec::new()) };
    let wrong = || ModelError::config(key, "a token id or a list of token ids", shown(value), "");
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        value if value.as_i64() == Some(-1) => Ok(Vec::new()),
        value => one(value).map(|id| vec![id]),
    }
}

/// What [`token_ids`] reads back.
pub(crate) fn token_ids_value(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => Value::from(*id),
        ids => Value::from(ids),
    }
}

/// Rejects keys that are not in `known`; `place` is the path of the object, such as `squat.plan`.
pub(crate) fn refuse_unknown(
    map: &Map<String, Value>,
    place: &str,
    known: &[&str],
) -> Result<(), ModelError> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ModelError::Config {
            key: format!("{place}.{key}"),
            expected: format!("one of the keys {}", known.join(", ")),
            got: "an unknown key".to_owned(),
            hint: did_you_mean(key, known.iter().copied()),
        }),
    }
}
