//! Fused operations with a hand-written backward, as nodes of Burn's autodiff graph.
//!
//! A [`FusedOp`] works on the CPU's memory: it sees its inputs as `f32` slices and returns vectors. [`apply`] runs it on
//! Burn's `flex` backend, with or without the tape, so a fused operation is one file that does not depend on Burn. Other
//! devices use the tensor forms of [`crate::tensor_ops`]; tests compare the two.

mod gemm;
mod scratch;
mod simd;

pub(crate) use gemm::{Layout, columns, gemm, integer_gemm, product};
pub(crate) use scratch::scratch;
pub(crate) use simd::multiversion;

use crate::profile;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor, TensorData};
use burn_flex::FlexTensor;
use std::fmt::Debug;
use std::sync::Arc;

/// An input of a [`FusedOp`]: contiguous values in row-major order, and the shape.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Values, row-major.
    pub data: &'a [f32],
    /// Sizes, outermost first.
    pub shape: &'a [usize],
}

/// An operation on the CPU's memory with its own backward.
///
/// One value of the implementing type serves one call: it may keep what its backward needs.
pub trait FusedOp: Debug + Send + Sync + 'static {
    /// Its name in a profile.
    fn name(&self) -> &'static str;

    /// Values and shape of the output.
    fn forward(&self, inputs: &[Input<'_>]) -> (Vec<f32>, Vec<usize>);

    /// Gradients with respect to the inputs for which `needed` holds (`None` for the others), each of the input's
    /// length; `grad` is the upstream gradient, of the output's length.
    fn backward(&self, inputs: &[Input<'_>], grad: &[f32], needed: &[bool]) -> Vec<Option<Vec<f32>>>;
}

/// A shared [`FusedOp`], as it travels through Burn's dispatch.
#[derive(Clone, Debug)]
pub struct OpHandle(Arc<dyn FusedOp>);

fn tensor(data: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape))
}

fn with_inputs<R>(tensors: &[FlexTensor], run: impl FnOnce(&[Input<'_>]) -> R) -> R {
    let contiguous: Vec<FlexTensor> =
        tensors.iter().map(|t| if t.is_contiguous() { t.clone() } else { t.to_contiguous() }).collect();
    let shapes: Vec<Vec<usize>> = contiguous.iter().map(|t| t.shape().iter().copied().collect()).collect();
    let inputs: Vec<Input<'_>> = contiguous
        .iter()
        .zip(&shapes)
        .map(|(t, shape)| Input {
            data: t.as_slice::<f32>().expect("fused operations take f32 tensors"),
            shape,
        })
        .collect();
    run(&inputs)
}

fn run_forward(op: &OpHandle, tensors: &[FlexTensor]) -> FlexTensor {
    with_inputs(tensors, |inputs| {
        let mut span = profile::operation(op.0.name());
        let (data, shape) = op.0.forward(inputs);
        span.made(data.len());
        tensor(data, Shape::from(shape))
    })
}

#[derive(Debug)]
struct FusedBackward;

impl<const N: usize> Backward<Flex, N> for FusedBackward {
    type State = ([NodeId; N], OpHandle);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let upstream = grads.consume::<Flex>(&ops.node);
        let (nodes, op) = ops.state;
        let inputs: Vec<FlexTensor> =
            nodes.into_iter().map(|node| checkpointer.retrieve_node_output::<FlexTensor>(node)).collect();
        let needed: Vec<bool> = ops.parents.iter().map(Option::is_some).collect();
        let upstream = upstream.to_contiguous();
        let found = with_inputs(&inputs, |views| {
            let _span = profile::operation(op.0.name());
            op.0.backward(views, upstream.as_slice::<f32>().expect("gradients are f32"), &needed)
        });
        for ((parent, input), gradient) in ops.parents.into_iter().zip(&inputs).zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, tensor(gradient, input.shape()));
            }
        }
    }
}

macro_rules! fused_ops {
    ($($name:ident $n:literal $($x:ident)+;)+) => {
        /// [`FusedOp`]s by number of inputs, routed by Burn to the `flex` backend and to its autodiff form.
        #[backend_extension(Autodiff, Flex)]
        pub trait FusedOps: Backend {
            $(
                /// Runs `op` on the tensors.
                fn $name($($x: FloatTensor<Self>,)+ op: OpHandle) -> FloatTensor<Self>;
            )+
        }

        impl FusedOps for Flex {
            $(fn $name($($x: FlexTensor,)+ op: OpHandle) -> FlexTensor { run_forward(&op, &[$($x),+]) })+
        }

        impl<C: CheckpointStrategy> FusedOps for Autodiff<Flex, C> {
            $(fn $name($($x: FloatTensor<Self>,)+ op: OpHandle) -> FloatTensor<Self> {
                match FusedBackward.prepare::<C>([$($x.node()),+]).compute_bound().stateful() {
                    OpsKind::Tracked(mut prepared) => {
                        let nodes = [$(prepared.checkpoint(&$x)),+];
                        let output = run_forward(&op, &[$($x.into_primitive()),+]);
                        prepared.finish((nodes, op), output)
                    }
                    OpsKind::UnTracked(prepared) => {
                        prepared.finish(run_forward(&op, &[$($x.into_primitive()),+]))
                    }
                }
            })+
        }

        /// Runs `op` on tensors of the CPU device (2 dimensions in, 2 out), on the tape where an input requires it.
        ///
        /// # Panics
        /// When the number of inputs has no entry above, or the device is not the CPU.
        pub fn apply(op: impl FusedOp, inputs: Vec<Tensor<2>>) -> Tensor<2> {
            let op = OpHandle(Arc::new(op));
            let count = inputs.len();
            let mut inputs = inputs.into_iter();
            let mut next = || inputs.next().expect("as many tensors as the arm names").into_dispatch();
            match count {
                $($n => { $(let $x = next();)+ Tensor::from_dispatch(Dispatch::$name($($x,)+ op)) })+
                _ => unreachable!("fused operations take 1 to 6 tensors"),
            }
        }
    };
}

fused_ops! {
    fused_op1 1 a;
    fused_op2 2 a b;
    fused_op3 3 a b c;
    fused_op4 4 a b c d;
    fused_op5 5 a b c d e;
    fused_op6 6 a b c d e f;
}
