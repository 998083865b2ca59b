//! A model as data and as files.
//!
//! | module | holds |
//! |---|---|
//! | [`spec`] | [`ModelSpec`]: the sizes of an architecture, its parameters and their names |
//! | [`arch`] | the registry of architectures |
//! | [`plan`] | [`QuantPlan`]: what is quantized and how |
//! | [`random`] | models of known shapes with random weights |
//! | [`rope`] | tables of the rotary position embedding |
//! | [`tensors`] | [`TensorSource`]: whatever has tensors by name; [`Tensors`] in memory |
//! | [`hf`] | Hugging Face folders in full precision, and training checkpoints |
//! | [`packed`] | packed models: writing and reading |
//! | [`generation`] | `generation_config.json` |
//! | [`atomic`] | folders that appear whole or not at all |
//! | [`format`](mod@format) | file formats |
//! | [`reference`](mod@reference) | the forward pass, slow and readable |
//! | [`tokenizer`] | text to ids and back |
//! | [`tokenizer_files`] | its files, carried from folder to folder |
//! | [`summary`] | any model folder, opened and described |
//! | [`error`] | [`ModelError`] |
#![warn(missing_docs)]

pub mod arch;
pub mod atomic;
pub mod error;
pub mod format;
pub mod generation;
pub mod hf;
mod json;
pub mod packed;
pub mod plan;
mod plan_json;
pub mod random;
pub mod reference;
pub mod rope;
mod section;
pub mod spec;
pub mod summary;
pub mod tensors;
pub mod tokenizer;
pub mod tokenizer_files;
mod weights;

pub use arch::{Architecture, Mlp, Norm};
pub use atomic::write_folder_atomically;
pub use error::ModelError;
pub use generation::GenerationConfig;
pub use hf::{FolderContents, ModelFolder, WeightDtype, write_folder};
pub use packed::{PackReport, PackSource, PackedModel, PackedTensor, pack};
pub use plan::QuantPlan;
pub use spec::{LinearKind, ModelSpec, ParamInfo, ParamKind};
pub use summary::{FolderKind, ModelSummary, OpenedModel};
pub use tensors::{Dtype, TensorSource, Tensors};
pub use tokenizer::Tokenizer;
pub use tokenizer_files::TokenizerFiles;
