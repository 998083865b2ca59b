//! Where weights come from: one small trait over packed folders and over anything with tensors by name.

use crate::error::Result;
use squat_model::scales::LearnedScales;
use squat_model::tensors::{TensorSource, read_finite, read_static_affine};
use squat_model::{PackedModel, ParamInfo};
use squat_quant::{ActBits, ActPoint, Affine, WeightScheme, calibrate};

/// Writes the codes of one row.
pub(crate) type FillRow<'a> = Box<dyn Fn(usize, &mut [i8]) + 'a>;

/// The codes of a tensor.
pub(crate) enum CodeRows<'a> {
    /// As in a packed file: rows one after the other, each of that many 32-bit words.
    Words(&'a [i32], usize),
    /// Made row by row.
    Fill(FillRow<'a>),
}

/// Codes and scales of a tensor, to be laid out for a kernel.
pub(crate) struct Codes<'a> {
    /// In the order of [`WeightScheme::scale_index`].
    pub scales: Vec<f32>,
    pub rows: CodeRows<'a>,
}

/// The files or tensors that a model is loaded from. Several threads read them.
pub(crate) trait Source: Sync {
    /// Values of a full-precision tensor, row-major, all finite.
    fn values(&self, param: &ParamInfo) -> Result<Vec<f32>>;
    /// Codes and scales of a tensor that the plan quantizes.
    fn codes(&self, param: &ParamInfo, scheme: WeightScheme) -> Result<Codes<'_>>;
    /// The static quantizer of a point.
    fn affine(&self, point: ActPoint, layer: Option<usize>, bits: ActBits) -> Result<Affine>;
    /// The tensor will not be read again: its mapped pages can be released.
    fn release(&self, param: &ParamInfo);
}

/// A packed folder.
impl Source for PackedModel {
    fn values(&self, param: &ParamInfo) -> Result<Vec<f32>> {
        Ok(self.tensor_f32(&param.name)?)
    }

    fn codes(&self, param: &ParamInfo, _scheme: WeightScheme) -> Result<Codes<'_>> {
        let tensor = self.tensor(&param.name)?;
        let rows = CodeRows::Words(tensor.words, tensor.words_per_row());
        Ok(Codes { scales: tensor.scales.to_vec(), rows })
    }

    fn affine(&self, point: ActPoint, layer: Option<usize>, bits: ActBits) -> Result<Affine> {
        Ok(self.static_affine(point, layer, bits)?)
    }

    fn release(&self, param: &ParamInfo) {
        TensorSource::release(self, &param.name);
    }
}

/// Tensors in full precision, quantized on load: with their learned scales if they have any, to nearest otherwise.
pub(crate) struct Unpacked<'a>(pub &'a (dyn TensorSource + Sync));

impl Source for Unpacked<'_> {
    fn values(&self, param: &ParamInfo) -> Result<Vec<f32>> {
        Ok(read_finite(self.0, &param.name, &param.shape)?)
    }

    fn codes(&self, param: &ParamInfo, scheme: WeightScheme) -> Result<Codes<'_>> {
        let weight = self.values(param)?;
        let cols = param.shape[1];
        let num_scales = scheme.num_scales(param.shape[0], cols);
        let scales = match LearnedScales::read(self.0, param, num_scales)? {
            Some(scales) => scales.into_scales(),
            None => {
                let mut scales = vec![0f32; num_scales];
                calibrate::weight_scales(&weight, param.shape[0], cols, scheme, &mut scales);
                scales
            }
        };
        let own = scales.clone();
        let range = scheme.bits.range();
        let group = scheme.group_len(cols);
        let fill: FillRow<'_> = Box::new(move |row, codes| {
            let values = &weight[row * cols..(row + 1) * cols];
            for (index, (values, codes)) in values.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
                let scale = own[scheme.scale_index(row, index * group, cols)];
                squat_quant::affine::quantize_row(values, Affine::symmetric(scale, range), codes);
            }
        });
        Ok(Codes { scales, rows: CodeRows::Fill(fill) })
    }

    fn affine(&self, point: ActPoint, layer: Option<usize>, bits: ActBits) -> Result<Affine> {
        Ok(read_static_affine(self.0, point, layer, bits)?)
    }

    fn release(&self, param: &ParamInfo) {
        self.0.release(&param.name);
    }
}
