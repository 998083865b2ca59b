//! The forward pass in full precision, slow and readable: the definition that trainer and engine are tested against.

use crate::error::ModelError;
use crate::spec::{LinearKind, Mlp, ModelSpec, Norm, NormKind, bias_name};
use crate::tensors::{TensorSource, read_shaped};

/// Logits of one sequence, `[tokens, vocab]` row-major.
///
/// Sums run in index order in f32, so results differ from a faster implementation by rounding alone.
///
/// # Errors
/// Missing or misshaped tensors, a token id outside the vocabulary, a sequence longer than the model takes.
pub fn forward(
    spec: &ModelSpec,
    tensors: &(impl TensorSource + ?Sized),
    tokens: &[u32],
) -> Result<Vec<f32>, ModelError> {
    let hidden = spec.hidden_size;
    if tokens.len() > spec.max_position_embeddings {
        return Err(ModelError::config(
            "tokens",
            format!("at most max_position_embeddings = {}", spec.max_position_embeddings),
            tokens.len().to_string(),
            "; shorten the text",
        ));
    }
    if let Some(id) = tokens.iter().find(|&&id| id as usize >= spec.vocab_size) {
        return Err(ModelError::config(
            "token id",
            format!("below vocab_size = {}", spec.vocab_size),
            id.to_string(),
            "; use the tokenizer that belongs to the model",
        ));
    }
    let linear = |layer: usize, kind: LinearKind, x: &[f32]| -> Result<Vec<f32>, ModelError> {
        let [out, cols] = spec.linear_shape(kind);
        let name = spec.linear_name(layer, kind);
        let mut y = matmul(x, &read_shaped(tensors, &name, &[out, cols])?, cols);
        if spec.biases.contains(kind) {
            let bias = read_shaped(tensors, &bias_name(&name), &[out])?;
            y.chunks_exact_mut(out).for_each(|row| add(row, &bias));
        }
        Ok(y)
    };
    let norm = |name: &str, x: &[f32]| -> Result<Vec<f32>, ModelError> {
        let gain = read_shaped(tensors, name, &[hidden])?;
        let eps = spec.norm_eps as f32;
        match spec.norm {
            Norm::Rms => Ok(rms_norm(x, &gain, eps)),
            Norm::Layer => Ok(layer_norm(x, &gain, &read_shaped(tensors, &bias_name(name), &[hidden])?, eps)),
        }
    };
    let table_shape = [spec.vocab_size, hidden];
    let table = read_shaped(tensors, ModelSpec::EMBEDDING, &table_shape)?;
    let mut x: Vec<f32> = tokens
        .iter()
        .flat_map(|&id| table[id as usize * hidden..(id as usize + 1) * hidden].iter().copied())
        .collect();
    if spec.rope.is_none() {
        let shape = [spec.max_position_embeddings, hidden];
        add(&mut x, &read_shaped(tensors, ModelSpec::POSITIONS, &shape)?);
    }
    for layer in 0..spec.num_hidden_layers {
        let rope = spec.rope_of(layer).map(|rope| rope.tables(tokens.len(), spec.head_dim));
        let block_norm = |kind, x: &[f32]| match spec.block_norm_name(layer, kind) {
            Some(name) => norm(&name, x),
            None => Ok(x.to_vec()),
        };
        let h = block_norm(NormKind::Attn, &x)?;
        let mut q = linear(layer, LinearKind::Q, &h)?;
        let mut k = linear(layer, LinearKind::K, &h)?;
        let v = linear(layer, LinearKind::V, &h)?;
        for (kind, x) in [(LinearKind::Q, &mut q), (LinearKind::K, &mut k)] {
            if let Some((_, width)) = spec.qk_norm_of(kind) {
                let name = ModelSpec::head_norm_name(layer, kind);
                *x = rms_norm(x, &read_shaped(tensors, &name, &[width])?, spec.norm_eps as f32);
            }
        }
        if let Some((cos, sin)) = &rope {
            rotate(&mut q, spec.num_attention_heads, spec.head_dim, cos, sin);
            rotate(&mut k, spec.num_key_value_heads, spec.head_dim, cos, sin);
        }
        let attended = attention(spec, layer, &q, &k, &v, tokens.len());
        add(&mut x, &block_norm(NormKind::AttnOutput, &linear(layer, LinearKind::O, &attended)?)?);
        let h = block_norm(NormKind::Mlp, &x)?;
        let up = linear(layer, LinearKind::Up, &h)?;
        let mid: Vec<f32> = match spec.mlp {
            Mlp::SwiGlu => {
                let gate = linear(layer, LinearKind::Gate, &h)?;
                gate.iter().zip(&up).map(|(&g, &u)| g / (1.0 + (-g).exp()) * u).collect()
            }
            Mlp::GeGlu => {
                let gate = linear(layer, LinearKind::Gate, &h)?;
                gate.iter().zip(&up).map(|(&g, &u)| gelu(g) * u).collect()
            }
            Mlp::Gelu => up.into_iter().map(gelu).collect(),
        };
        add(&mut x, &block_norm(NormKind::MlpOutput, &linear(layer, LinearKind::Down, &mid)?)?);
    }
    let h = norm(ModelSpec::FINAL_NORM, &x)?;
    if spec.tie_word_embeddings {
        Ok(matmul(&h, &table, hidden))
    } else {
        Ok(matmul(&h, &read_shaped(tensors, ModelSpec::HEAD, &table_shape)?, hidden))
    }
}

/// Greedy continuation: `tokens` and `count` more, or fewer if an end token comes.
///
/// # Errors
/// As [`forward`], or an empty prompt.
pub fn generate_greedy(
    spec: &ModelSpec,
    tensors: &(impl TensorSource + ?Sized),
    tokens: &[u32],
    count: usize,
) -> Result<Vec<u32>, ModelError> {
    let mut tokens = tokens.to_vec();
    if tokens.is_empty() {
        return Err(ModelError::config("prompt", "at least one token, such as BOS", "none", ""));
    }
    for _ in 0..count {
        let logits = forward(spec, tensors, &tokens)?;
        let last = &logits[logits.len() - spec.vocab_size..];
        let mut best = 0;
        for (id, logit) in last.iter().enumerate() {
            if *logit > last[best] {
                best = id;
            }
        }
        if spec.eos_token_ids.contains(&(best as u32)) {
            break;
        }
        tokens.push(best as u32);
    }
    Ok(tokens)
}

/// `x` `[rows, cols]` times the transpose of `weight` `[out, cols]`.
fn matmul(x: &[f32], weight: &[f32], cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len() / cols * (weight.len() / cols));
    for row in x.chunks_exact(cols) {
        for w in weight.chunks_exact(cols) {
            out.push(row.iter().zip(w).map(|(a, b)| a * b).sum());
        }
    }
    out
}

fn rms_norm(x: &[f32], scale: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(scale.len()) {
        let mean_square = row.iter().map(|x| x * x).sum::<f32>() / scale.len() as f32;
        let factor = 1.0 / (mean_square + eps).sqrt();
        out.extend(row.iter().zip(scale).map(|(x, s)| x * factor * s));
    }
    out
}

fn layer_norm(x: &[f32], gain: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(gain.len()) {
        let mean = row.iter().sum::<f32>() / gain.len() as f32;
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / gain.len() as f32;
        let factor = 1.0 / (variance + eps).sqrt();
        out.extend(row.iter().zip(gain).zip(bias).map(|((x, g), b)| (x - mean) * factor * g + b));
    }
    out
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`
fn gelu(x: f32) -> f32 {
    let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// Applies the rotary embedding to `[tokens, heads, head_dim]` in place; paired elements are half a head apart.
fn rotate(x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    for (position, row) in x.chunks_exact_mut(heads * head_dim).enumerate() {
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (c, s) = (cos[position * half + i], sin[position * half + i]);
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * c - b * s;
                head[i + half] = b * c + a * s;
            }
        }
    }
}

/// Causal grouped-query attention; `q` `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]`.
fn attention(spec: &ModelSpec, layer: usize, q: &[f32], k: &[f32], v: &[f32], tokens: usize) -> Vec<f32> {
    let (heads, kv_heads, dim) = (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim);
    let group = heads / kv_heads;
    let at =
        |row: usize, heads: usize, head: usize| (row * heads + head) * dim..(row * heads + head + 1) * dim;
    let mut out = vec![0f32; tokens * heads * dim];
    for query in 0..tokens {
        for head in 0..heads {
            let q = &q[at(query, heads, head)];
            let first = spec.window_of(layer).map_or(0, |window| (query + 1).saturating_sub(window));
            let scores: Vec<f32> = (first..=query)
                .map(|key| {
                    let k = &k[at(key, kv_heads, head / group)];
                    q.iter().zip(k).map(|(a, b)| a * b).sum::<f32>() / (dim as f32).sqrt()
                })
                .collect();
            let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f32> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f32 = weights.iter().sum();
            let out = &mut out[at(query, heads, head)];
            for (key, weight) in (first..).zip(&weights) {
                for (o, v) in out.iter_mut().zip(&v[at(key, kv_heads, head / group)]) {
                    *o += weight / total * v;
                }
            }
        }
    }
    out
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
