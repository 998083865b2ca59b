//! Attention over caches of mixed precision: every kernel set of this CPU equals the plain loops, bit for bit.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Random, bits, kernels};
use proptest::prelude::*;
use squat_kernels::{
    AttentionScheme, AttentionScratch, CacheError, Causal, FloatKvHead, KvHead, MAX_CONTEXT, QuantizedRows,
    RowQuantizer, StaticAffines, float, reference,
};
use squat_quant::{ActBits, Affine};

/// Widths of positions: all 8, all 4, or mixed.
fn width(random: &mut Random, mix: u8) -> ActBits {
    match mix {
        0 => ActBits::A8,
        1 => ActBits::A4,
        _ => ActBits::ALL[random.next() as usize % 2],
    }
}

fn affines(random: &mut Random) -> StaticAffines {
    let mut one = |bits: ActBits| Affine {
        scale: random.float(0.2).abs() + 1e-3,
        zero_point: random.between(-128, 127),
        range: bits.range(),
    };
    StaticAffines::new(ActBits::ALL.map(&mut one)).unwrap()
}

struct Setup {
    head: KvHead,
    queries: QuantizedRows,
}

/// `rows` rows of queries of both widths over a cache of `len` positions.
fn setup(dim: usize, len: usize, rows: usize, mix: u8, mode: u8, fixed: Option<u32>, seed: u64) -> Setup {
    let mut random = Random(seed);
    let (keys, values, query) = (affines(&mut random), affines(&mut random), affines(&mut random));
    let scheme = match fixed {
        Some(probability_bits) => AttentionScheme::Static { keys, values, probability_bits },
        None => AttentionScheme::Dynamic,
    };
    let mut head = KvHead::new(dim, scheme);
    let mut pair = QuantizedRows::new();
    pair.reset(2, dim);
    for _ in 0..len {
        let bits = width(&mut random, mix);
        for (i, affines) in [keys, values].into_iter().enumerate() {
            let codes = random.codes(dim, bits.range().min, bits.range().max, mode);
            let (scale, zero) = match fixed {
                Some(_) => (affines.get(bits).scale, affines.get(bits).zero_point),
                None => (random.float(0.1).abs() + 1e-4, 0),
            };
            pair.as_mut().set(i, &codes, scale, zero, bits);
        }
        head.push(pair.row(0), pair.row(1)).unwrap();
    }
    let mut queries = QuantizedRows::new();
    queries.reset(rows, dim);
    for i in 0..rows {
        let bits = width(&mut random, 2);
        let codes = random.codes(dim, bits.range().min, bits.range().max, mode);
        let zero = if fixed.is_some() { query.get(bits).zero_point } else { 0 };
        queries.as_mut().set(i, &codes, query.get(bits).scale * 0.2, zero, bits);
    }
    Setup { head, queries }
}

/// Compares every kernel set with the reference, for the first `rows` queries.
fn check(setup: &Setup, rows: usize, causal: Causal) -> Result<(), TestCaseError> {
    let dim = setup.head.head_dim();
    let queries = setup.queries.view(0..rows);
    let want: Vec<_> = (0..rows)
        .map(|r| reference::attend(&setup.head, causal.start_of(r)..causal.len_of(r), queries.row(r)))
        .collect();
    for kernels in kernels() {
        let mut scratch = AttentionScratch::new();
        // Twice: the second time with stale buffers.
        for _ in 0..2 {
            let (mut out, mut sink_probs) = (vec![f32::NAN; rows * dim], vec![f32::NAN; rows]);
            kernels.attend(&setup.head, causal, queries, &mut scratch, &mut out, &mut sink_probs);
            for (r, (want, p)) in want.iter().enumerate() {
                let out = &out[r * dim..(r + 1) * dim];
                prop_assert_eq!(bits(out), bits(want), "{}, row {} of {}", kernels.name(), r, rows);
                prop_assert_eq!(sink_probs[r].to_bits(), p[0].to_bits());
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_kernel_equals_the_reference(
        dim in prop_oneof![Just(64usize), Just(8), Just(128), 1usize..150],
        len in prop_oneof![1usize..90, 1usize..4, 15usize..18, 250usize..300],
        rows in prop_oneof![Just(3usize), 1usize..20],
        group in 1usize..4,
        mix in 0u8..3,
        mode in 0u8..4,
        fixed in prop_oneof![Just(None), Just(Some(8u32)), Just(Some(4))],
        seed: u64,
        part in 0.0f64..1.0,
    ) {
        let rows = rows.min(len * group);
        let mut setup = setup(dim, len, rows, mix, mode, fixed, seed);
        check(&setup, rows, Causal { len: len - (rows - 1) / group, group, window: usize::MAX })?;
        // With a window, of one position to more than there are.
        let window = 1 + (len as f64 * 1.2 * part) as usize;
        check(&setup, rows, Causal { len: len - (rows - 1) / group, group, window })?;
        // A prefix of the cache equals a shorter cache.
        let shorter = 1 + ((len - 1) as f64 * part) as usize;
        check(&setup, 1, Causal { len: shorter, group, window: usize::MAX })?;
        let before = reference::attend(&setup.head, 0..shorter, setup.queries.row(0));
        setup.head.truncate(shorter);
        prop_assert_eq!(setup.head.len(), shorter);
        prop_assert_eq!(reference::attend(&setup.head, 0..shorter, setup.queries.row(0)), before);
        check(&setup, 1, Causal { len: shorter, group, window: usize::MAX })?;
        // Rows appended after a truncation replace the dropped rows.
        let fresh = self::setup(dim, len, rows, 2, mode, fixed, seed ^ 1);
        let (mut key, mut value) = (vec![0; dim], vec![0; dim]);
        let mut pair = QuantizedRows::new();
        pair.reset(2, dim);
        let (scales, width) = (fresh.head.read(0, &mut key, &mut value), fresh.head.bits(0));
        if fixed.is_none() {
            pair.as_mut().set(0, &key, scales.0, 0, width);
            pair.as_mut().set(1, &value, scales.1, 0, width);
            setup.head.push(pair.row(0), pair.row(1)).unwrap();
            let (mut key_back, mut value_back) = (vec![0; dim], vec![0; dim]);
            prop_assert_eq!(setup.head.read(shorter, &mut key_back, &mut value_back), scales);
            prop_assert_eq!((key_back, value_back), (key, value));
            check(&setup, 1, Causal { len: shorter + 1, group, window: usize::MAX })?;
        }
    }

    #[test]
    fn float_attention_follows_its_definition(
        dim in prop_oneof![Just(64usize), 1usize..150], len in 1usize..60, rows in 1usize..20, group in 1usize..4,
        window in prop_oneof![Just(usize::MAX), 1usize..70], seed: u64
    ) {
        let mut random = Random(seed);
        let mut head = FloatKvHead::new(dim);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for _ in 0..len {
            keys.push(random.floats(dim, 2.0));
            values.push(random.floats(dim, 2.0));
            head.push(keys.last().unwrap(), values.last().unwrap()).unwrap();
        }
        let rows = rows.min(len * group);
        let causal = Causal { len: len - (rows - 1) / group, group, window };
        let queries = random.floats(rows * dim, 2.0);
        let (mut want, mut first) = (vec![0f32; rows * dim], Vec::new());
        for (r, (q, want)) in queries.chunks(dim).zip(want.chunks_mut(dim)).enumerate() {
            let inv = 1.0 / (dim as f32).sqrt();
            let mut p: Vec<f32> = keys[..causal.len_of(r)].iter().map(|k| float::dot(q, k) * inv).collect();
            p[..causal.start_of(r)].fill(f32::NEG_INFINITY);
            float::softmax(&mut p);
            first.push(p[0]);
            for (p, v) in p.iter().zip(&values) {
                for (out, v) in want.iter_mut().zip(v) {
                    *out = p.mul_add(*v, *out);
                }
            }
        }
        for kernels in kernels() {
            let (mut out, mut sink_probs) = (vec![f32::NAN; rows * dim], vec![f32::NAN; rows]);
            kernels.attend_float(&head, causal, &queries, &mut AttentionScratch::new(), &mut out, &mut sink_probs);
            prop_assert_eq!(bits(&out), bits(&want), "{}", kernels.name());
            prop_assert_eq!(bits(&sink_probs), bits(&first));
        }
    }

    #[test]
    fn several_positions_at_once_are_the_same_as_one_by_one(
        dim in 1usize..70,
        parts in prop::collection::vec(0usize..40, 1..6),
        mix in 0u8..3,
        seed: u64,
    ) {
        let mut random = Random(seed);
        let (mut together, mut single) =
            (KvHead::new(dim, AttentionScheme::Dynamic), KvHead::new(dim, AttentionScheme::Dynamic));
        for count in parts {
            let mut rows = [QuantizedRows::new(), QuantizedRows::new()];
            rows.iter_mut().for_each(|rows| rows.reset(count, dim));
            for row in 0..count {
                let bits = width(&mut random, mix);
                for rows in &mut rows {
                    let codes = random.codes(dim, bits.range().min, bits.range().max, 0);
                    rows.as_mut().set(row, &codes, random.float(0.1).abs(), 0, bits);
                }
                single.push(rows[0].row(row), rows[1].row(row)).unwrap();
            }
            together.extend(rows[0].as_view(), rows[1].as_view()).unwrap();
            // Rows appended after a truncation replace the dropped rows.
            let kept = together.len() - together.len() / 7;
            together.truncate(kept);
            single.truncate(kept);
        }
        prop_assert_eq!(together.len(), single.len());
        let read = |head: &KvHead, position: usize| {
            let (mut key, mut value) = (vec![0; dim], vec![0; dim]);
            let scales = head.read(position, &mut key, &mut value);
            (head.bits(position), key, value, scales)
        };
        for position in 0..single.len() {
            prop_assert_eq!(read(&together, position), read(&single, position));
        }
        if !single.is_empty() {
            let mut queries = QuantizedRows::new();
            queries.reset(1, dim);
            let codes = random.codes(dim, -127, 127, 0);
            queries.as_mut().set(0, &codes, 0.1, 0, ActBits::A8);
            let len = single.len();
            let (a, b) = (reference::attend(&together, 0..len, queries.row(0)), reference::attend(&single, 0..len, queries.row(0)));
            prop_assert_eq!(a, b);
        }
    }

    #[test]
    fn quantized_attention_is_close_to_real_attention(dim in 16usize..100, len in 1usize..60, seed: u64) {
        // A check of accuracy rather than bits: at 8 bits the output is close to the unquantized one.
        let mut random = Random(seed);
        let kernels = squat_kernels::Kernels::detect();
        let (mut head, mut exact) = (KvHead::new(dim, AttentionScheme::Dynamic), FloatKvHead::new(dim));
        let mut rows = QuantizedRows::new();
        for _ in 0..len {
            let x = random.floats(2 * dim, 1.0);
            kernels.quantize_rows(&mut rows, &x, dim, &[ActBits::A8], &RowQuantizer::DYNAMIC);
            head.push(rows.row(0), rows.row(1)).unwrap();
            exact.push(&x[..dim], &x[dim..]).unwrap();
        }
        let q = random.floats(dim, 1.0);
        kernels.quantize_rows(&mut rows, &q, dim, &[ActBits::A8], &RowQuantizer::DYNAMIC);
        let (mut got, mut want) = (vec![0f32; dim], vec![0f32; dim]);
        let (causal, mut first) = (Causal { len, group: 1, window: usize::MAX }, [0.0]);
        let mut scratch = AttentionScratch::new();
        kernels.attend(&head, causal, rows.as_view(), &mut scratch, &mut got, &mut first);
        kernels.attend_float(&exact, causal, &q, &mut scratch, &mut want, &mut first);
        for (got, want) in got.iter().zip(&want) {
            prop_assert!((got - want).abs() < 0.03, "{got} {want}");
        }
    }
}

#[test]
fn long_contexts_do_not_overflow() {
    let dim = 8;
    let far = Affine { scale: 0.01, zero_point: -128, range: ActBits::A8.range() };
    let affines = StaticAffines::new([Affine { range: ActBits::A4.range(), ..far }, far]).unwrap();
    let schemes = [
        AttentionScheme::Dynamic,
        AttentionScheme::Static { keys: affines, values: affines, probability_bits: 8 },
    ];
    for scheme in schemes {
        let mut head = KvHead::new(dim, scheme);
        let mut rows = QuantizedRows::new();
        rows.reset(1, dim);
        let fixed = scheme != AttentionScheme::Dynamic;
        let zero = if fixed { far.zero_point } else { 0 };
        rows.as_mut().set(0, &[127; 8], 0.01, zero, ActBits::A8);
        for _ in 0..MAX_CONTEXT {
            head.push(rows.row(0), rows.row(0)).unwrap();
        }
        assert_eq!(head.push(rows.row(0), rows.row(0)), Err(CacheError::Full(MAX_CONTEXT)));
        // All probabilities are equal; with 2^15 positions their static codes are 0, and their dynamic codes 255.
        let want = reference::attend(&head, 0..MAX_CONTEXT, rows.row(0)).0;
        if !fixed {
            assert!((want[0] - 1.27).abs() < 1e-3, "{want:?}");
        }
        for kernels in kernels() {
            let mut out = [0f32; 8];
            let causal = Causal { len: MAX_CONTEXT, group: 1, window: usize::MAX };
            kernels.attend(&head, causal, rows.as_view(), &mut AttentionScratch::new(), &mut out, &mut [0.0]);
            assert_eq!(out[..], want[..], "{}", kernels.name());
        }
    }
}

#[test]
fn bad_rows_are_refused_and_leave_the_cache_alone() {
    let mut head = KvHead::new(4, AttentionScheme::Dynamic);
    let mut rows = QuantizedRows::new();
    rows.reset(2, 4);
    rows.as_mut().set(0, &[7, 7, 7, 7], 1.0, 0, ActBits::A4);
    rows.as_mut().set(1, &[7, 7, 8, 7], 1.0, 0, ActBits::A4);
    assert_eq!(head.push(rows.row(0), rows.row(1)), Err(CacheError::Code(2, 8, 4)));
    assert!(head.is_empty() && head.bytes_used() == 0);
    rows.as_mut().set(1, &[7, 7, 7, 7], 1.0, 0, ActBits::A8);
    assert_eq!(head.push(rows.row(0), rows.row(1)), Err(CacheError::Widths(4, 8)));
    let mut longer = QuantizedRows::new();
    longer.reset(1, 5);
    assert_eq!(head.push(longer.row(0), longer.row(0)), Err(CacheError::Dim(4, 5)));
    assert_eq!(head.extend(rows.as_view(), longer.as_view()), Err(CacheError::Count(2, 1)));
    assert!(head.is_empty() && head.bytes_used() == 0);
    assert_eq!(FloatKvHead::new(4).push(&[0.0; 4], &[0.0; 3]), Err(CacheError::Dim(4, 3)));
}

#[test]
fn four_bit_rows_take_half_the_room() {
    let mut sizes = Vec::new();
    for bits in ActBits::ALL {
        let setup = setup(64, 96, 1, if bits == ActBits::A8 { 0 } else { 1 }, 0, None, 1);
        sizes.push(setup.head.bytes_used());
    }
    // Codes and scales, and 6 bytes per 16 positions that record their widths.
    assert_eq!(sizes, [2 * 96 * (32 + 4) + 36, 2 * 96 * (64 + 4) + 36]);
}
