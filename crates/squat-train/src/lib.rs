//! Quantization-aware training and distillation. The only crate that knows Burn.
//!
//! | module | holds |
//! |---|---|
//! | [`recipe`] | experiments as TOML |
//! | [`run`] | a whole recipe in one folder |
//! | [`stage`] | a training stage from first step to last, resumable bit for bit |
//! | [`checkpoint`] | model folders and training state on disk |
//! | [`model`] | the forward pass, full precision or fake-quantized |
//! | [`step`] | loss and gradients of a micro-batch |
//! | `recompute` | the same with one layer on the tape at a time |
//! | [`ops`] | fused operations with hand-written backward |
//! | `half_matrix` | weights of frozen models in bf16 |
//! | [`autograd`] | how such an operation becomes a node of Burn's tape |
//! | [`tensor_ops`] | the same operations as tensor expressions, for other devices |
//! | [`execution`] | where and with whom training runs |
//! | [`device`] | devices by name |
//! | [`quantizer`] | where the scales of weights come from: one file each |
//! | [`fake_quant`] | fake-quantized weights and activations |
//! | [`calibration`], [`thresholds`] | first static quantizers; thresholds of the token policy |
//! | [`start`] | first codes and scales of a model trained in full precision |
//! | [`trainer`] | one optimizer step after another, in memory |
//! | [`bench`](mod@bench), [`profile`], [`process`] | the speed of a step, and where its time and memory go |
//! | [`parallel`] | several processes that train one model |
//! | [`optimizer`], [`parameters`] | AdamW, parameter groups |
//! | [`basis`] | the basis in which AdamW sees a transformed weight |
//! | [`memory`] | how the allocator treats freed memory |
//! | [`evaluate`] | log-likelihoods of a trained model |

pub mod autograd;
pub mod basis;
pub mod bench;
pub mod calibration;
pub mod checkpoint;
pub mod device;
pub mod error;
pub mod evaluate;
pub mod execution;
pub mod fake_quant;
mod half_matrix;
pub mod memory;
mod metrics;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod parallel;
pub mod parameters;
pub mod process;
pub mod profile;
pub mod quantizer;
pub mod recipe;
mod recompute;
pub mod run;
pub mod stage;
pub mod start;
pub mod step;
pub mod tensor_ops;
pub mod thresholds;
pub mod trainer;
pub mod tune;

pub use error::TrainError;
pub use model::Model;
pub use parameters::Parameters;
pub use recipe::Recipe;
