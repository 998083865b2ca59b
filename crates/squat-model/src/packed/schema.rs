//! compressed-tensors' `quantization_config`, as far as its schema can say what a plan says.
//!
//! It knows weights, and for each linear one quantizer of its input. It cannot say: ternary codes (written as 2 bits),
//! bits chosen by token (written as 8, the wider), learned static activation quantizers with their own scales for
//! each width, queries, keys, values and probabilities, and transforms (said by another `quant_method`). All of that is under
//! the key `squat`.

use serde_json::{Map, Value, json};
use squat_quant::{ActPoint, ActScheme, Granularity, WeightScheme};

use crate::error::ModelError;
use crate::json::shown;
use crate::plan::QuantPlan;
use crate::spec::ModelSpec;

/// Name of the key in `config.json`.
pub const KEY: &str = "quantization_config";
/// compressed-tensors' name of the layout.
pub const FORMAT: &str = "pack-quantized";
/// Its `quant_method`.
pub const METHOD: &str = "compressed-tensors";
/// The `quant_method` of a plan with transforms or clipped rows, which that schema cannot say: programs that know it alone refuse
/// the folder instead of running another model.
pub const OWN_METHOD: &str = "squat";

/// The `quantization_config` of a plan.
pub fn quantization_config(spec: &ModelSpec, plan: &QuantPlan) -> Value {
    let mut list = Vec::new();
    let mut ignore: Vec<&str> = Vec::new();
    let mut add = |targets: Vec<String>, scheme: WeightScheme, input: Value| {
        list.push(json!({
            "targets": targets,
            "weights": weight_args(scheme),
            "input_activations": input,
            "output_activations": null,
            "format": FORMAT,
        }));
    };
    // Single layers come first: the first group with a target that matches is a layer's.
    for (&(layer, point), &scheme) in &plan.exceptions {
        let targets = spec
            .linears()
            .iter()
            .filter(|kind| kind.input_point() == point)
            .map(|kind| format!("re:.*layers\\.{layer}\\..*{}$", kind.module()))
            .collect();
        add(targets, scheme, input_args(plan, point));
    }
    if let Some(scheme) = plan.weight {
        // Linears that share an input point have one quantizer.
        for point in [ActPoint::AttnIn, ActPoint::OProjInput, ActPoint::MlpIn, ActPoint::DownProjInput] {
            let targets = spec
                .linears()
                .iter()
                .filter(|kind| kind.input_point() == point)
                .map(|kind| format!("re:.*{}$", kind.module()))
                .collect();
            add(targets, scheme, input_args(plan, point));
        }
    }
    if let Some(scheme) = plan.embedding {
        add(vec!["re:.*embed_tokens$".to_owned()], scheme, Value::Null);
    }
    match plan.head {
        Some(scheme) if !spec.tie_word_embeddings => {
            add(vec!["re:.*lm_head$".to_owned()], scheme, input_args(plan, ActPoint::LmHeadInput));
        }
        Some(_) => {}
        None => ignore.push("lm_head"),
    }
    // Names in the order of their numbers, which a program may sort.
    let digits = list.len().saturating_sub(1).to_string().len();
    let named = |(index, group)| (format!("group_{index:0digits$}"), group);
    let groups: Map<String, Value> = list.into_iter().enumerate().map(named).collect();
    json!({
        "config_groups": groups,
        "format": FORMAT,
        "global_compression_ratio": null,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "quant_method": if plan.is_own() { OWN_METHOD } else { METHOD },
        "quantization_status": "compressed",
    })
}

fn weight_args(scheme: WeightScheme) -> Value {
    let (strategy, group_size) = match scheme.granularity {
        Granularity::PerTensor => ("tensor", Value::Null),
        Granularity::PerChannel => ("channel", Value::Null),
        Granularity::PerGroup(group) => ("group", json!(group)),
    };
    json!({
        "num_bits": scheme.bits.storage_bits(),
        "type": "int",
        "symmetric": true,
        "group_size": group_size,
        "strategy": strategy,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "mse",
        "observer_kwargs": {},
    })
}

/// The quantizer of a linear's input: said only if it is dynamic per token.
fn input_args(plan: &QuantPlan, point: ActPoint) -> Value {
    if plan.point(point) != Some(ActScheme::Dynamic) {
        return Value::Null;
    }
    let bits = plan.widths(point).iter().map(|width| width.bits()).max().unwrap_or(8);
    json!({
        "num_bits": bits,
        "type": "int",
        "symmetric": true,
        "group_size": null,
        "strategy": "token",
        "block_structure": null,
        "dynamic": true,
        "actorder": null,
        "observer": null,
        "observer_kwargs": {},
    })
}

/// Checks that the `quantization_config` of a file agrees with the plan.
///
/// # Errors
/// Another method or format, or groups that contradict the plan.
pub fn check(found: &Value, spec: &ModelSpec, plan: &QuantPlan) -> Result<(), ModelError> {
    let expected = quantization_config(spec, plan);
    for key in ["quant_method", "format"] {
        if found.get(key) != expected.get(key) {
            return Err(ModelError::config(
                format!("{KEY}.{key}"),
                expected.get(key).map(shown).unwrap_or_default(),
                found.get(key).map_or("nothing".to_owned(), shown),
                "; only models packed by this program can be run",
            ));
        }
    }
    for key in ["config_groups", "ignore"] {
        if found.get(key) != expected.get(key) {
            return Err(ModelError::config(
                format!("{KEY}.{key}"),
                "what the plan under the key squat says",
                "something else",
                "; config.json was edited, pack the model again",
            ));
        }
    }
    Ok(())
}
