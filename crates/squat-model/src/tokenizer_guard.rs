//! Parts of a `tokenizer.json` that would hang, fill the memory or change from call to call.

use serde_json::Value;
use squat_files::contain::contain;
use tokenizers::models::ModelWrapper;

/// Most times that the rules of a tokenizer may lengthen a text, all together.
const MOST_GROWTH: f64 = 1000.0;

/// Builds a tokenizer, checks its parts, and switches off what only training uses.
pub(crate) fn build(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let built = contain(|| tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| error.to_string()));
    let mut tokenizer = built.map_err(|panic| format!("the library failed on it: {panic}"))??;
    // Lengths are the caller's business: a tokenizer that cuts or fills would change the model's input silently.
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    tokenizer.with_padding(None);
    // With dropout a text has other ids each time.
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some()
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(bpe);
    }
    let part = |value: Result<Value, serde_json::Error>| value.map_err(|error| error.to_string());
    let parts = [
        ("normalizer", part(serde_json::to_value(tokenizer.get_normalizer()))?),
        ("pre_tokenizer", part(serde_json::to_value(tokenizer.get_pre_tokenizer()))?),
        ("decoder", part(serde_json::to_value(tokenizer.get_decoder()))?),
    ];
    for (name, value) in parts {
        let growth = growth(&value).map_err(|problem| format!("{name}: {problem}"))?;
        if growth > MOST_GROWTH {
            return Err(format!(
                "{name}: its rules lengthen a text {growth:.0} times, expected at most {MOST_GROWTH}"
            ));
        }
    }
    Ok(tokenizer)
}

/// How much longer a text can become by a part and the parts within it; a part that never ends is an error.
fn growth(part: &Value) -> Result<f64, String> {
    match part {
        Value::Array(parts) => parts.iter().try_fold(1.0, |product, part| Ok(product * growth(part)?)),
        Value::Object(map) => {
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            let own = match text("type") {
                Some("FixedLength") if map.get("length").and_then(Value::as_u64) == Some(0) => {
                    return Err("FixedLength with the length 0".to_owned());
                }
                Some("Replace") => {
                    let content = text("content").unwrap_or_default().len() as f64;
                    let pattern = &map["pattern"];
                    let found = match pattern.get("String").and_then(Value::as_str) {
                        Some("") => return Err("Replace of the empty text".to_owned()),
                        Some(pattern) => pattern.len() as f64,
                        // A pattern may match as little as one byte.
                        None => 1.0,
                    };
                    (content / found).max(1.0)
                }
                Some("Prepend") => 1.0 + text("prepend").unwrap_or_default().len() as f64,
                _ => 1.0,
            };
            let nested = ["normalizers", "pretokenizers", "decoders"].iter().filter_map(|key| map.get(*key));
            nested.map(growth).try_fold(own, |product, growth| Ok(product * growth?))
        }
        _ => Ok(1.0),
    }
}
