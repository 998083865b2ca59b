//! A model as data and as files.
//!
//! | module | holds |
//! |---|---|
//! | [`spec`] | [`ModelSpec`]: the sizes of an architecture, its parameters and their names |
//! | [`arch`] | the registry of architectures |
//! | [`plan`] | [`QuantPlan`]: what is quantized and how |
//! | [`rope`] | tables of the rotary position embedding |
//! | [`error`] | [`ModelError`] |
#![warn(missing_docs)]

pub mod arch;
pub mod error;
mod json;
pub mod plan;
mod plan_json;
pub mod rope;
pub mod spec;

pub use arch::Architecture;
pub use error::ModelError;
pub use plan::QuantPlan;
pub use spec::{LinearKind, ModelSpec, ParamInfo, ParamKind};
