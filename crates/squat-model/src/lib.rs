//! A model as data and as files.
//!
//! | module | holds |
//! |---|---|
//! | [`spec`] | [`ModelSpec`]: features and sizes of an architecture, its parameters and their names |
//! | [`arch`] | the registry of architectures: how each is read and written |
//! | [`plan`] | [`QuantPlan`]: what is quantized and how |
//! | [`shapes`] | models of named shapes with random weights |
//! | [`rope`] | tables of the rotary position embedding |
//! | [`scales`] | learned scales of weights |
//! | [`tensors`] | [`TensorSource`]: whatever has tensors by name; [`Tensors`] in memory |
//! | [`hf`] | Hugging Face folders in full precision, and training checkpoints |
//! | [`packed`] | packed models: writing and reading |
//! | [`generation`] | `generation_config.json` |
//! | [`atomic`] | folders that appear whole or not at all |
//! | [`format`](mod@format) | file formats |
//! | [`reference`](mod@reference) | the forward pass, slow and readable |
//! | [`tokenizer`] | text to ids and back |
//! | [`tokenizer_files`] | its files, carried from folder to folder |
//! | [`mod@open`] | [`open()`]: whatever model a path holds |
//! | [`summary`] | an opened model, described |
//! | [`error`] | [`ModelError`] |
#![warn(missing_docs)]

pub mod arch;
pub mod error;
pub mod format;
pub mod generation;
pub mod hf;
mod json;
pub mod open;
pub mod packed;
pub mod plan;
mod plan_json;
pub mod reference;
pub mod rope;
pub mod scales;
pub mod shapes;
pub mod spec;
mod squat_config;
pub mod summary;
pub mod tensors;
pub mod token_stream;
pub mod tokenizer;
pub mod tokenizer_files;
mod tokenizer_guard;
mod tokenizer_json;
mod weights;

pub use error::ModelError;
pub use generation::GenerationConfig;
pub use hf::{FolderContents, ModelFolder, WeightDtype, write_folder};
pub use open::{ModelKind, OpenedModel, open};
pub use packed::{Output, PackReport, PackSource, PackedModel, PackedTensor, pack, packed_bytes};
pub use plan::QuantPlan;
pub use spec::{
    Architecture, LinearKind, LinearSet, Mlp, ModelSpec, Norm, NormKind, NormPlaces, ParamInfo, ParamKind,
    QkNorm, Window,
};
pub use summary::ModelSummary;
pub use tensors::{Dtype, TensorSource, Tensors};
pub use token_stream::TokenStream;
pub use tokenizer::Tokenizer;
pub use tokenizer_files::TokenizerFiles;
