//! Bytes and operations of a test, from the sizes of the model: the minimum for any engine.

use super::contestant::Contestant;
use super::measure::{Kind, Test};
use squat_engine::Weights;
use squat_model::{ModelSpec, ParamInfo, ParamKind, QuantPlan};
use squat_quant::ActPoint;

/// Work of one run of a test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Bytes of weights, keys and values that must be read, counted once for each pass over the model.
    pub bytes: f64,
    /// Multiplications and additions of the matrix products and of attention.
    pub operations: f64,
    /// Bytes of weights that one pass reads, which must fit a cache to be read from it.
    pub working_set: f64,
    /// Whether matrix products are integer products.
    pub integer: bool,
}

impl Work {
    pub fn of(contestant: &Contestant, test: &Test) -> Self {
        let (spec, plan) = (contestant.engine.spec(), contestant.engine.plan());
        let bits_of = |bits: [f64; 2]| bits[0] + contestant.share_of_8_bit * (bits[1] - bits[0]);
        let cache_bits = |point| if plan.point(point).is_some() { bits_of([4.0, 8.0]) } else { 32.0 };
        let (cache_bits, kv) = (
            cache_bits(ActPoint::Key) + cache_bits(ActPoint::Value),
            (spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim) as f64,
        );
        let cache_bytes = kv * cache_bits / 8.0;
        let (linears, head) = weights(spec);
        let working_set = weight_bytes(spec, plan, contestant.weights);
        let (tokens, depth) = (test.tokens as f64, test.depth as f64);
        let batch = test.batch as f64;
        // Context of all timed tokens together: token i sees depth + i + 1.
        let context = batch * (tokens * depth + tokens * (tokens + 1.0) / 2.0);
        let attention =
            4.0 * context * (spec.num_hidden_layers * spec.num_attention_heads * spec.head_dim) as f64;
        let (passes, heads, cached) = match test.kind {
            Kind::Prompt => (1.0, batch, batch * depth),
            // The weights that a step reads serve all sequences.
            Kind::Generation => (tokens, batch * tokens, context),
        };
        Self {
            bytes: passes * working_set + cached * cache_bytes,
            operations: 2.0 * (linears * batch * tokens + head * heads) + attention,
            working_set,
            integer: plan.weight.is_some() && plan.point(ActPoint::AttnIn).is_some(),
        }
    }
}

/// Weights of the layers' linears, and of the output projection.
fn weights(spec: &ModelSpec) -> (f64, f64) {
    let linears: usize = spec
        .parameters()
        .iter()
        .filter(|param| matches!(param.kind, ParamKind::Linear(_)))
        .map(ParamInfo::len)
        .sum();
    (linears as f64, (spec.vocab_size * spec.hidden_size) as f64)
}

/// Bytes that the pass of one token reads: every parameter except the tables of tokens and positions, of which it reads
/// one row, unless the token table is also the head.
fn weight_bytes(spec: &ModelSpec, plan: &QuantPlan, weights: Weights) -> f64 {
    let read = |param: &&ParamInfo| match param.kind {
        ParamKind::Embedding => spec.tie_word_embeddings,
        ParamKind::Positions => false,
        _ => true,
    };
    let bytes = |param: &ParamInfo| match (plan.scheme_of(param), param.shape.as_slice()) {
        (Some(scheme), &[rows, cols]) => {
            f64::from(scheme.bits.storage_bits()) * param.len() as f64 / 8.0
                + 4.0 * scheme.num_scales(rows, cols) as f64
        }
        (None, &[_, _]) if weights == Weights::F16 => 2.0 * param.len() as f64,
        _ => 4.0 * param.len() as f64,
    };
    spec.parameters().iter().filter(read).map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use squat_model::shapes;

    #[test]
    fn weights_read_for_a_token() {
        let spec = shapes::shape("smollm2-135m").unwrap();
        let mut plan = QuantPlan::named("w4a8-t4").unwrap();
        let four = weight_bytes(&spec, &plan, Weights::F32);
        // Half a byte for each of 134.5M, and scales for the channels.
        assert!((67.2e6..69.0e6).contains(&four), "{four}");
        plan = QuantPlan::full_precision();
        let parameters = spec.num_parameters() as f64;
        assert_eq!(weight_bytes(&spec, &plan, Weights::F32), 4.0 * parameters);
        let halves = weight_bytes(&spec, &plan, Weights::F16);
        assert!(halves > 2.0 * parameters && halves < 2.001 * parameters);
        // An untied table is not read.
        let untied = shapes::shape("llama-58m").unwrap();
        let table = (untied.vocab_size * untied.hidden_size) as f64;
        let all = untied.num_parameters() as f64;
        assert_eq!(weight_bytes(&untied, &plan, Weights::F32), 4.0 * (all - table));
        assert_eq!(weights(&untied), (16.0 * 2_621_440.0, table));
        // Nor are learned positions.
        let gpt2 = shapes::shape("gpt2-97m").unwrap();
        let positions = (gpt2.max_position_embeddings * gpt2.hidden_size) as f64;
        assert_eq!(
            weight_bytes(&gpt2, &plan, Weights::F32),
            4.0 * (gpt2.num_parameters() as f64 - positions)
        );
        assert_eq!(weights(&gpt2).0, 12.0 * 12.0 * 768.0 * 768.0);
    }
}
