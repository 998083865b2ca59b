//! Parameters as tensors, and quantized weights in the layout of the integer kernels.

use super::Model;
use crate::device::is_cpu;
use crate::half_matrix::HalfMatrix;
use crate::parameters::{Group, Parameter, Parameters};
use crate::profile::{self, Phase};
use crate::quantizer::{SUFFIX, WeightQuant, parameter_name};
use burn::tensor::{Device, Tensor, TensorData};
use squat_kernels::PackedMatrix;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Parameters as tensors of one device, on the tape after [`Self::require_grad`].
pub struct ParamTensors {
    tensors: HashMap<String, Held>,
    packed: Arc<HashMap<String, Arc<PackedMatrix>>>,
}

impl ParamTensors {
    /// Copies parameters to tensors on the CPU, without a tape.
    pub fn constant(parameters: &Parameters) -> Self {
        Self::on(parameters, &Device::flex())
    }

    /// Copies parameters to tensors of a device, without a tape.
    pub fn on(parameters: &Parameters, device: &Device) -> Self {
        Self::from_values(parameters.iter().map(|p| (p, p.values.clone())), device)
    }

    /// Takes the parameters' values as tensors of a device, without a tape; [`Self::give_back`] returns them. On the CPU
    /// nothing is copied.
    pub fn take(parameters: &mut Parameters, device: &Device) -> Self {
        let values: Vec<Vec<f32>> =
            parameters.list_mut().iter_mut().map(|p| std::mem::take(&mut p.values)).collect();
        Self::from_values(parameters.iter().zip(values), device)
    }

    /// Takes the values of a frozen model as [`Self::take`] does on the CPU, weights rounded to bf16.
    pub fn take_half(parameters: &mut Parameters) -> Self {
        let device = Device::flex();
        let held = parameters.list_mut().iter_mut().map(|p| {
            let values = std::mem::take(&mut p.values);
            let held = match p.group {
                Group::Weight => Held::Half(Arc::new(HalfMatrix::new(&values, p.shape))),
                _ => Held::Tensor(Tensor::from_data(TensorData::new(values, p.shape), &device)),
            };
            (p.name.clone(), held)
        });
        Self { tensors: held.collect(), packed: Arc::default() }
    }

    /// Returns what [`Self::take`] took.
    ///
    /// # Panics
    /// When the parameters are others, an error of this crate.
    pub fn give_back(mut self, parameters: &mut Parameters) {
        for parameter in parameters.list_mut() {
            let Some(Held::Tensor(tensor)) = self.tensors.remove(&parameter.name) else {
                panic!("the parameters that were taken: {}", parameter.name)
            };
            parameter.values = tensor.into_data().try_into_vec::<f32>().expect("parameters are f32");
        }
    }

    fn from_values<'a>(values: impl Iterator<Item = (&'a Parameter, Vec<f32>)>, device: &Device) -> Self {
        let tensors = values
            .map(|(p, values)| {
                let tensor = Tensor::from_data(TensorData::new(values, p.shape), device);
                (p.name.clone(), Held::Tensor(tensor))
            })
            .collect();
        Self { tensors, packed: Arc::default() }
    }

    /// With weights that [`pack_linears`] packed from the same parameters; they serve every forward that follows.
    pub fn with_packed(self, packed: PackedLinears) -> Self {
        Self { packed: packed.0, ..self }
    }

    /// The same memory as leaves of a new tape; bf16 weights stay off it.
    pub fn require_grad(&self) -> Self {
        let track = |held: &Held| match held {
            Held::Tensor(tensor) => Held::Tensor(Tensor::from_inner(tensor.clone()).require_grad()),
            Held::Half(half) => Held::Half(half.clone()),
        };
        let tensors = self.tensors.iter().map(|(name, held)| (name.clone(), track(held))).collect();
        Self { tensors, packed: self.packed.clone() }
    }

    /// The tensor of that name; a bf16 weight is widened on every call.
    ///
    /// # Panics
    /// When it does not exist: the parameters do not belong to the spec, an error of this crate.
    pub fn get(&self, name: &str) -> Tensor<2> {
        match self.tensors.get(name) {
            Some(Held::Tensor(tensor)) => tensor.clone(),
            Some(Held::Half(half)) => half.widened(),
            None => panic!("no parameter {name}"),
        }
    }

    /// These rows of a tensor, if it is held as bf16.
    pub(super) fn half_rows(&self, name: &str, rows: &[u32]) -> Option<Tensor<2>> {
        match self.tensors.get(name) {
            Some(Held::Half(half)) => Some(half.rows(rows)),
            _ => None,
        }
    }

    /// The packed weight of that name, if there is one.
    pub(super) fn packed(&self, name: &str) -> Option<Arc<PackedMatrix>> {
        self.packed.get(name).cloned()
    }

    /// Bytes of all tensors, packed weights left out.
    pub fn bytes(&self) -> usize {
        let bytes = |held: &Held| match held {
            Held::Tensor(tensor) => tensor.shape().num_elements() * size_of::<f32>(),
            Held::Half(half) => half.bytes(),
        };
        self.tensors.values().map(bytes).sum()
    }
}

/// How a parameter is held.
#[allow(clippy::large_enum_variant)] // One for each weight, and nearly always the large one.
enum Held {
    Tensor(Tensor<2>),
    Half(Arc<HalfMatrix>),
}

impl Model {
    /// Moves the parameters of weight quantizers back to where they are valid.
    pub(crate) fn project(&self, parameters: &mut Parameters) {
        for p in parameters.list_mut().iter_mut().filter(|p| p.name.ends_with(SUFFIX)) {
            self.quantizer.project(&mut p.values);
        }
    }
}

/// Quantized weights as the integer kernels take them, by name.
#[derive(Clone, Debug, Default)]
pub struct PackedLinears(Arc<HashMap<String, Arc<PackedMatrix>>>);

/// Quantizes and packs every linear of the model that runs on the integer kernels; none on other devices than the CPU.
pub fn pack_linears(
    model: &Model,
    parameters: &Parameters,
    device: &Device,
    threads: usize,
) -> PackedLinears {
    if !is_cpu(device) {
        return PackedLinears::default();
    }
    let mut jobs: Vec<(String, WeightQuant, &Parameter, &Parameter)> = model
        .integer_linears()
        .into_iter()
        .filter_map(|(name, quant)| {
            let (weight, learned) = (parameters.get(&name)?, parameters.get(&parameter_name(&name))?);
            Some((name, quant, weight, learned))
        })
        .collect();
    // The largest first, so that threads end together.
    jobs.sort_by_key(|(_, _, weight, _)| weight.values.len());
    let threads = threads.min(jobs.len());
    let jobs = Mutex::new(jobs);
    let packed = Mutex::new(HashMap::new());
    let work = || {
        loop {
            let next = jobs.lock().unwrap_or_else(|e| e.into_inner()).pop();
            let Some((name, quant, weight, learned)) = next else { return };
            let (weight, scales) = quant.of(&weight.values, weight.shape[1], &learned.values);
            if let Some(matrix) = weight.pack(&scales) {
                packed.lock().unwrap_or_else(|e| e.into_inner()).insert(name, Arc::new(matrix));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|| {
                let _phase = profile::phase(Phase::Parameters);
                work();
            });
        }
        work();
    });
    PackedLinears(Arc::new(packed.into_inner().unwrap_or_else(|e| e.into_inner())))
}
