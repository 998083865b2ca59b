//! A LLaMA-family model over named parameters, full precision or fake-quantized.
//!
//! | file | holds |
//! |---|---|
//! | `forward` | the forward pass |
//! | `params` | parameters as tensors; weights packed for the integer kernels |
//! | `initial` | first values of weights and quantizers, and how the optimizer treats each |
//! | `transforms` | weights rewritten for the transforms of a plan |

mod forward;
mod initial;
mod params;
mod transforms;

pub(crate) use forward::mean_of_terms;
pub use forward::{ForwardOptions, ForwardOutput, Model};
pub use initial::{
    add_quantizer_parameters, check_trainable, group_of, initial_parameters, matrix_shape, static_name,
    static_points,
};
pub use params::{PackedLinears, ParamTensors, pack_linears};
pub use transforms::{transform_values, transform_weights, undo_transforms};
