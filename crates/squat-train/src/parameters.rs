//! The trainable parameters of a model, by name, in the CPU's memory.

use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// How the optimizer treats a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Matrices: weight decay.
    Weight,
    /// Norm gains and biases: no weight decay.
    Norm,
    /// Quantizer scales and zero points: no weight decay, their own learning rate.
    Scale,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face tensor name, or one derived from it for quantizer parameters.
    pub name: String,
    /// Two sizes; vectors are `[1, n]`.
    pub shape: [usize; 2],
    /// Values, row-major.
    pub values: Vec<f32>,
    /// How the optimizer treats it.
    pub group: Group,
}

/// Parameters in a fixed order, found by name.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    by_name: HashMap<String, usize>,
}

impl Parameters {
    /// Adds a parameter at the end.
    ///
    /// # Panics
    /// When the name is taken or the shape does not fit the values: both are errors of this crate.
    pub fn push(&mut self, name: String, shape: [usize; 2], values: Vec<f32>, group: Group) {
        assert_eq!(values.len(), shape[0] * shape[1], "{name}");
        let taken = self.by_name.insert(name.clone(), self.list.len());
        assert!(taken.is_none(), "{name} occurs twice");
        self.list.push(Parameter { name, shape, values, group });
    }

    /// Position of a name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index(name).map(|index| &self.list[index])
    }

    /// All, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter> {
        self.list.iter()
    }

    /// All, in order, mutable.
    pub fn list_mut(&mut self) -> &mut [Parameter] {
        &mut self.list
    }

    /// SHA-256 of all values, to compare processes by.
    pub fn digest(&self) -> Vec<u8> {
        let mut hasher = Sha256::new();
        let mut bytes = Vec::new();
        for p in &self.list {
            bytes.clear();
            crate::parallel::encode(&p.values, &mut bytes);
            hasher.update(&bytes);
        }
        hasher.finalize().to_vec()
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first non-finite value, if any: name and position.
    pub fn non_finite(&self) -> Option<(&str, usize)> {
        self.list
            .iter()
            .find_map(|p| p.values.iter().position(|x| !x.is_finite()).map(|i| (p.name.as_str(), i)))
    }
}
