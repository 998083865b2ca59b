//! Tensors by name: the trait of every source of tensors, and tensors in memory.

use std::collections::BTreeMap;

use squat_quant::{ActBits, ActPoint, Affine};

use crate::error::{ModelError, nearest_names};
use crate::plan::{static_scale_name, static_zero_point_name};

/// Types of floats, for messages.
const FLOATS: &str = "floats (F32, F16, BF16 or F64)";

/// Element type of a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// 64-bit float: read, never written.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// Name in safetensors headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I32 => "I32",
            Self::I64 => "I64",
        }
    }

    /// Whether elements are floats.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }
}

/// Anything that has tensors by name: a folder, a trained model in memory, another format.
pub trait TensorSource {
    /// Its name in messages.
    fn place(&self) -> String;

    /// Every name, sorted.
    fn names(&self) -> Vec<String>;

    /// Type and shape of a tensor, if it is there.
    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)>;

    /// Elements of a float tensor, widened to f32, row-major.
    ///
    /// # Errors
    /// No such tensor, or not floats.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError>;

    /// Elements of an i32 tensor, row-major.
    ///
    /// # Errors
    /// No such tensor, or of another type.
    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError>;

    /// Type of a tensor that is there but of a type without a [`Dtype`], in the words of its format.
    fn unknown_type(&self, _name: &str) -> Option<String> {
        None
    }

    /// Hints that a tensor will not be read again soon, so its mapped pages can be dropped. Reading it again is allowed.
    fn release(&self, _name: &str) {}
}

/// Reads a float tensor of the given shape.
///
/// # Errors
/// A missing tensor (nearest names listed), another shape, or not floats.
pub fn read_shaped(
    source: &(impl TensorSource + ?Sized),
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ModelError> {
    check_shape(source, name, shape)?;
    source.read_f32(name)
}

/// As [`read_shaped`], and every element must be finite.
///
/// # Errors
/// As [`read_shaped`], or the first element that is NaN or infinite.
pub fn read_finite(
    source: &(impl TensorSource + ?Sized),
    name: &str,
    shape: &[usize],
) -> Result<Vec<f32>, ModelError> {
    let values = read_shaped(source, name, shape)?;
    check_finite(&values, name, || source.place())?;
    Ok(values)
}

/// Checks type and shape of a float tensor without reading it.
///
/// # Errors
/// A missing tensor (nearest names listed), another shape, or not floats.
pub fn check_shape(
    source: &(impl TensorSource + ?Sized),
    name: &str,
    shape: &[usize],
) -> Result<(), ModelError> {
    let Some((dtype, got)) = source.info(name) else {
        return Err(missing(source, name));
    };
    if !dtype.is_float() {
        return Err(wrong(source, name, FLOATS, dtype.name(), ""));
    }
    if got != shape {
        let hint = "; config.json and the weights do not belong together, or one of them is damaged";
        return Err(wrong(source, name, &format!("shape {shape:?}"), &format!("{got:?}"), hint));
    }
    Ok(())
}

/// Finds the first element that is not finite.
///
/// # Errors
/// [`ModelError::NotFinite`] with its index.
pub fn check_finite(values: &[f32], name: &str, place: impl FnOnce() -> String) -> Result<(), ModelError> {
    match values.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(ModelError::NotFinite { name: name.to_owned(), place: place(), index, value: values[index] })
        }
    }
}

/// The static quantizer of a point and width, from its scale and zero-point tensors.
///
/// `layer` is `None` for the head's input.
///
/// # Errors
/// Missing tensors, other shapes, a scale that is not positive and finite, a zero point outside the codes.
pub fn read_static_affine(
    source: &(impl TensorSource + ?Sized),
    point: ActPoint,
    layer: Option<usize>,
    bits: ActBits,
) -> Result<Affine, ModelError> {
    let name = static_scale_name(point, layer, bits);
    let scale = read_finite(source, &name, &[1])?[0];
    check_scale(scale, &name, || source.place())?;
    let name = static_zero_point_name(point, layer, bits);
    let zero_point = match (source.info(&name), source.read_i32(&name)?.as_slice()) {
        (Some((_, shape)), &[zero_point]) if shape == [1] => zero_point,
        (info, _) => {
            let got = format!("{:?}", info.map(|(_, shape)| shape).unwrap_or_default());
            return Err(wrong(source, &name, "shape [1]", &got, ""));
        }
    };
    let range = bits.range();
    if !range.contains(zero_point) {
        let expected = format!("a zero point in {}..={}", range.min, range.max);
        return Err(wrong(source, &name, &expected, &zero_point.to_string(), ""));
    }
    Ok(Affine { scale, zero_point, range })
}

/// A scale must be a positive normal number, so that its reciprocal is finite.
pub(crate) fn check_scale(scale: f32, name: &str, place: impl FnOnce() -> String) -> Result<(), ModelError> {
    if scale.is_normal() && scale > 0.0 && (1.0 / scale).is_finite() {
        return Ok(());
    }
    Err(ModelError::Tensor {
        name: name.to_owned(),
        place: place(),
        expected: "positive finite scales".to_owned(),
        got: scale.to_string(),
        hint: "; the file is damaged or training diverged".to_owned(),
    })
}

/// The error of a tensor that is not there, with the nearest names.
pub fn missing_tensor(source: &(impl TensorSource + ?Sized), name: &str) -> ModelError {
    missing(source, name)
}

pub(crate) fn missing(source: &(impl TensorSource + ?Sized), name: &str) -> ModelError {
    if let Some(kind) = source.unknown_type(name) {
        return wrong(source, name, FLOATS, &kind, "; convert the model, for example to F16");
    }
    let names = source.names();
    ModelError::MissingTensor {
        name: name.to_owned(),
        place: source.place(),
        hint: nearest_names(name, names.iter().map(String::as_str)),
    }
}

pub(crate) fn wrong(
    source: &(impl TensorSource + ?Sized),
    name: &str,
    expected: &str,
    got: &str,
    hint: &str,
) -> ModelError {
    ModelError::Tensor {
        name: name.to_owned(),
        place: source.place(),
        expected: expected.to_owned(),
        got: got.to_owned(),
        hint: hint.to_owned(),
    }
}

/// Elements of a tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Floats.
    F32(Vec<f32>),
    /// Integers.
    I32(Vec<i32>),
}

/// Tensors in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    map: BTreeMap<String, (Vec<usize>, TensorData)>,
}

impl Tensors {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a float tensor.
    ///
    /// # Errors
    /// `values` has another length than `shape` says.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<f32>,
    ) -> Result<(), ModelError> {
        self.insert_data(name.into(), shape, values.len(), TensorData::F32(values))
    }

    /// Adds or replaces an integer tensor.
    ///
    /// # Errors
    /// `values` has another length than `shape` says.
    pub fn insert_i32(
        &mut self,
        name: impl Into<String>,
        shape: &[usize],
        values: Vec<i32>,
    ) -> Result<(), ModelError> {
        self.insert_data(name.into(), shape, values.len(), TensorData::I32(values))
    }

    fn insert_data(
        &mut self,
        name: String,
        shape: &[usize],
        len: usize,
        data: TensorData,
    ) -> Result<(), ModelError> {
        if shape.iter().product::<usize>() != len {
            return Err(ModelError::Tensor {
                name,
                place: self.place(),
                expected: format!("{shape:?} elements"),
                got: format!("{len}"),
                hint: String::new(),
            });
        }
        self.map.insert(name, (shape.to_vec(), data));
        Ok(())
    }

    /// Elements of a float tensor.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        match self.map.get(name) {
            Some((_, TensorData::F32(values))) => Some(values),
            _ => None,
        }
    }

    /// Elements of a float tensor, to be changed in place.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut [f32]> {
        match self.map.get_mut(name) {
            Some((_, TensorData::F32(values))) => Some(values),
            _ => None,
        }
    }

    /// Removes a tensor; whether it was there.
    pub fn remove(&mut self, name: &str) -> bool {
        self.map.remove(name).is_some()
    }

    /// Every parameter of a model, read from another source and checked for shape and finiteness.
    ///
    /// # Errors
    /// The first tensor that is missing or wrong.
    pub fn read_parameters(
        source: &(impl TensorSource + ?Sized),
        spec: &crate::ModelSpec,
    ) -> Result<Self, ModelError> {
        let mut tensors = Self::new();
        for param in spec.parameters() {
            let values = read_finite(source, &param.name, &param.shape)?;
            tensors.insert(param.name, &param.shape, values)?;
        }
        Ok(tensors)
    }
}

impl TensorSource for Tensors {
    fn place(&self) -> String {
        "the model in memory".to_owned()
    }

    fn names(&self) -> Vec<String> {
        self.map.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.map.get(name).map(|(shape, data)| match data {
            TensorData::F32(_) => (Dtype::F32, shape.clone()),
            TensorData::I32(_) => (Dtype::I32, shape.clone()),
        })
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        match self.map.get(name) {
            Some((_, TensorData::F32(values))) => Ok(values.clone()),
            Some(_) => Err(wrong(self, name, "floats", "I32", "")),
            None => Err(missing(self, name)),
        }
    }

    fn read_i32(&self, name: &str) -> Result<Vec<i32>, ModelError> {
        match self.map.get(name) {
            Some((_, TensorData::I32(values))) => Ok(values.clone()),
            Some(_) => Err(wrong(self, name, "I32", "F32", "")),
            None => Err(missing(self, name)),
        }
    }
}
