//! Writes small GGUF files.

use squat_model::{LinearKind, ModelSpec, NormKind, ParamInfo, ParamKind, Tensors};

/// A file in the making.
#[derive(Clone, Default)]
pub struct Gguf {
    entries: Vec<(String, u32, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl Gguf {
    /// Adds or replaces an entry.
    fn entry(&mut self, key: &str, kind: u32, value: Vec<u8>) -> &mut Self {
        self.entries.retain(|(found, ..)| found != key);
        self.entries.push((key.to_owned(), kind, value));
        self
    }

    /// Adds or replaces a u32.
    pub fn number(&mut self, key: &str, value: u32) -> &mut Self {
        self.entry(key, 4, value.to_le_bytes().to_vec())
    }

    /// Adds or replaces an f32.
    pub fn float(&mut self, key: &str, value: f32) -> &mut Self {
        self.entry(key, 6, value.to_le_bytes().to_vec())
    }

    /// Adds or replaces a text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.entry(key, 8, string(value))
    }

    /// Adds or replaces an i32.
    pub fn signed(&mut self, key: &str, value: i32) -> &mut Self {
        self.entry(key, 5, value.to_le_bytes().to_vec())
    }

    /// Adds or replaces an array of texts.
    pub fn texts(&mut self, key: &str, values: &[&str]) -> &mut Self {
        let mut bytes = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| bytes.extend(string(value)));
        self.entry(key, 9, bytes)
    }

    /// Adds or replaces an array of i32.
    pub fn numbers(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, bytes)
    }

    /// Adds or replaces a tensor of a shape with the slowest dimension first; `kind` is the number of its type in the format.
    pub fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, data: Vec<u8>) -> &mut Self {
        self.tensors.retain(|(found, ..)| found != name);
        self.tensors.push((name.to_owned(), shape.iter().rev().map(|&n| n as u64).collect(), kind, data));
        self
    }

    /// Removes a tensor.
    pub fn remove(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|(found, ..)| found != name);
        self
    }

    /// Names of the tensors, in the order of the file.
    pub fn tensor_names(&self) -> Vec<String> {
        self.tensors.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// Copies the tensors of another file whose names are wanted.
    pub fn take_tensors(&mut self, from: &Self, wanted: impl Fn(&str) -> bool) {
        self.tensors.extend(from.tensors.iter().filter(|(name, ..)| wanted(name)).cloned());
    }

    /// The file, version 3.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, dimensions, kind, data) in &self.tensors {
            out.extend(string(name));
            out.extend((dimensions.len() as u32).to_le_bytes());
            dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

/// Rows of each head from pairs half a head apart to neighbours, as converters to GGUF do.
fn neighbours(values: &[f32], head_dim: usize, cols: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_dim * cols) {
        for i in 0..head_dim / 2 {
            for row in [i, i + head_dim / 2] {
                out.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    out
}

/// A model in f32 with a byte-level tokenizer of single characters and a few merges.
pub fn model(spec: &ModelSpec, tensors: &Tensors) -> Gguf {
    let mut file = Gguf::default();
    let family = spec.architecture.model_type.trim_end_matches("_text");
    file.text("general.architecture", family);
    let sizes = [
        ("context_length", spec.max_position_embeddings),
        ("embedding_length", spec.hidden_size),
        ("block_count", spec.num_hidden_layers),
        ("feed_forward_length", spec.intermediate_size),
        ("attention.head_count", spec.num_attention_heads),
        ("attention.head_count_kv", spec.num_key_value_heads),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
    ];
    for (key, size) in sizes {
        file.number(&format!("{family}.{key}"), size as u32);
    }
    file.float(&format!("{family}.attention.layer_norm_rms_epsilon"), spec.norm_eps as f32);
    file.float(&format!("{family}.rope.freq_base"), spec.rope.as_ref().unwrap().theta as f32);
    file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
    let tokens = [
        "<pad>", "<s>", "</s>", "a", "b", "c", "d", "Ġ", "Ġa", "ab", "cd", "1", "2", "Ċ", "e", "f", "g", "h",
        "i",
    ];
    file.texts("tokenizer.ggml.tokens", &tokens[..spec.vocab_size.min(19)]);
    let kinds: Vec<i32> = (0..19).map(|id| if id < 3 { 3 } else { 1 }).collect();
    file.numbers("tokenizer.ggml.token_type", &kinds);
    file.texts("tokenizer.ggml.merges", &["Ġ a", "a b", "c d"]);
    for (key, id) in [("bos", 1), ("eos", 2), ("padding", 0)] {
        file.number(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    for param in spec.parameters() {
        let values = tensors.get(&param.name).unwrap();
        let (name, rotary) = name_in_file(&param);
        // Converters reorder what the rotary embedding of these families turns, biases included.
        let neighbouring = ["llama", "granite", "smollm3", "ernie4_5"].contains(&family);
        let values = match rotary && neighbouring {
            true => neighbours(values, spec.head_dim, values.len() / param.shape[0]),
            false => values.to_vec(),
        };
        let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.tensor(&name, &param.shape, 0, data);
    }
    file
}

/// Name of a parameter in a file, and whether it makes queries or keys.
pub fn name_in_file(param: &ParamInfo) -> (String, bool) {
    let block = |name: &str, suffix: &str| format!("blk.{}.{name}.{suffix}", param.layer.unwrap_or_default());
    let linear = |kind: LinearKind, suffix: &str| {
        let name = match kind {
            LinearKind::Q => "attn_q",
            LinearKind::K => "attn_k",
            LinearKind::V => "attn_v",
            LinearKind::O => "attn_output",
            LinearKind::Gate => "ffn_gate",
            LinearKind::Up => "ffn_up",
            LinearKind::Down => "ffn_down",
        };
        (block(name, suffix), matches!(kind, LinearKind::Q | LinearKind::K))
    };
    match param.kind {
        ParamKind::Embedding => ("token_embd.weight".to_owned(), false),
        ParamKind::Positions => unreachable!("these families have none"),
        ParamKind::Head => ("output.weight".to_owned(), false),
        ParamKind::Norm(NormKind::Final) => ("output_norm.weight".to_owned(), false),
        ParamKind::Norm(NormKind::Attn) => (block("attn_norm", "weight"), false),
        ParamKind::Norm(NormKind::Mlp) => (block("ffn_norm", "weight"), false),
        ParamKind::Norm(NormKind::AttnOutput) => (block("post_attention_norm", "weight"), false),
        ParamKind::Norm(NormKind::MlpOutput) => (block("post_ffw_norm", "weight"), false),
        ParamKind::Norm(NormKind::Query) => (block("attn_q_norm", "weight"), false),
        ParamKind::Norm(NormKind::Key) => (block("attn_k_norm", "weight"), false),
        ParamKind::Linear(kind) => linear(kind, "weight"),
        ParamKind::Bias => {
            let owner = LinearKind::ALL.into_iter().find(|kind| param.name.contains(kind.module())).unwrap();
            linear(owner, "bias")
        }
    }
}
