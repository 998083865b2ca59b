//! Helpers that the integration tests of several crates share: a dev-dependency only.
//!
//! Unit tests inside `squat-quant` and `squat-model` cannot use it, since they would see two versions of their own
//! types. `squat-kernels` does not use it either: its tests also run on targets that the tokenizer does not build for.
//!
//! | module | holds |
//! |---|---|
//! | [`data`] | real data and models in the folder that `SQUAT_DATA` names |
//! | [`files`] | listing and copying folders |
//! | [`gguf`] | a writer of GGUF files |
//! | [`llama2c`] | a model and a tokenizer in the layout of llama2.c |
//! | [`model`] | specs and random weights of tiny models |
//! | [`random`] | seeded numbers |
//! | [`recipe`] | a recipe of two short stages |
//! | [`tokenizer`] | tiny `tokenizer.json` files |
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub mod data;
pub mod files;
pub mod gguf;
pub mod llama2c;
pub mod model;
pub mod random;
pub mod recipe;
pub mod tokenizer;

/// Bits of floats, for comparisons that also tell 0 from -0.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// Largest absolute difference of two slices of the same length; NaN if there is one.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, x| if x > worst || x.is_nan() { x } else { worst })
}
