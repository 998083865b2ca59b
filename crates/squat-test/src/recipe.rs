//! A recipe that trains in a second or two.

/// Two stages on generated English: full precision, and half of the tokens at 8 bits.
pub const RECIPE: &str = r#"
name = "tiny"
seed = 3

[data]
train = ["generated"]
valid = ["generated"]
generated_words = 12000
vocab_size = 300
seq_len = 24

[model]
hidden_size = 32
intermediate_size = 56
num_hidden_layers = 2
num_attention_heads = 4
max_position_embeddings = 64

[[stage]]
name = "fp"
kind = "pretrain"
steps = 4
batch_size = 4
micro_batch = 2
learning_rate = 4e-3
eval_sequences = 8

[[stage]]
name = "q"
kind = "qat"
init = "fp"
teachers = ["fp"]
steps = 3
batch_size = 4
micro_batch = 2
learning_rate = 1e-3
eval_sequences = 8
quant = { plan = "rho50" }
"#;
