//! Speed of every kernel set of this CPU, on one core:
//! `cargo run --release -p squat-kernels --example speed [isa ...] [limits|products|streams|floats|attention ...]`.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use squat_kernels::{
    AttentionScheme, AttentionScratch, Causal, ColumnsMut, FloatKvHead, Kernels, KvHead, PackedMatrix,
    QuantizedRows, RowQuantizer, paired::PairedMatrix, probe,
};
use squat_quant::{ActBits, Granularity, Transform, WeightBits, WeightScheme};
use std::hint::black_box;
use std::time::Instant;

/// Seconds per call: the best of many short rounds, so that some rounds are undisturbed by other processes.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed().as_secs_f64() < 0.0005 {
        f();
        calls += 1;
    }
    let mut best = f64::MAX;
    for _ in 0..100 {
        let start = Instant::now();
        for _ in 0..calls {
            f();
        }
        best = best.min(start.elapsed().as_secs_f64() / f64::from(calls));
    }
    best
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next() as f32 / (1u32 << 30) as f32 - 1.0).collect()
    }
    fn matrix(&mut self, n: usize, k: usize, scheme: WeightScheme) -> PackedMatrix {
        let range = scheme.bits.range();
        let span = (range.max - range.min + 1) as u32;
        let codes: Vec<i8> = (0..n * k).map(|_| (range.min + (self.next() % span) as i32) as i8).collect();
        PackedMatrix::from_codes(n, k, scheme, &codes, &vec![0.01; scheme.num_scales(n, k)]).unwrap()
    }
}

fn products(kernels: &Kernels, random: &mut Random) {
    println!(
        "  integer products, GOP/s: product alone / with quantization of the rows (GB/s of packed weights at m = 1)"
    );
    let group = |bits| WeightScheme { bits, granularity: Granularity::PerGroup(64) };
    let schemes = [
        ("w8", WeightScheme::per_channel(WeightBits::W8)),
        ("w4", WeightScheme::per_channel(WeightBits::W4)),
        ("w3", WeightScheme::per_channel(WeightBits::W3)),
        ("w2", WeightScheme::per_channel(WeightBits::W2)),
        ("w4g64", group(WeightBits::W4)),
        ("w3g64", group(WeightBits::W3)),
    ];
    for (k, n) in [(576, 1536), (1536, 576), (512, 1024)] {
        for (name, scheme) in schemes {
            let matrix = random.matrix(n, k, scheme);
            print!("    {k} x {n} {name:6}");
            for m in [1, 4, 16, 128] {
                let x = random.floats(m * k);
                let mut rows = QuantizedRows::new();
                let mut y = vec![0f32; m * n];
                kernels.quantize_rows(&mut rows, &x, k, &[ActBits::A8], &RowQuantizer::DYNAMIC);
                let bare = time(|| {
                    kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(black_box(&mut y), m, n))
                });
                let whole = time(|| {
                    kernels.quantize_rows(
                        &mut rows,
                        black_box(&x),
                        k,
                        &[ActBits::A8],
                        &RowQuantizer::DYNAMIC,
                    );
                    kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(black_box(&mut y), m, n));
                });
                let operations = 2.0 * (m * k * n) as f64;
                print!("  m {m}: {:.0} / {:.0}", operations / bare / 1e9, operations / whole / 1e9);
                if m == 1 {
                    print!(" ({:.1} GB/s)", matrix.bytes() as f64 / bare / 1e9);
                }
            }
            println!();
        }
    }
}

fn paired(kernels: &Kernels, random: &mut Random) {
    let (k, n) = (576, 1536);
    let codes: Vec<i8> = (0..n * k).map(|_| (random.next() % 16) as i8 - 8).collect();
    let matrix =
        PackedMatrix::from_codes(n, k, WeightScheme::per_channel(WeightBits::W4), &codes, &vec![0.01; n])
            .unwrap();
    let pairs = PairedMatrix::from_codes(n, k, &codes).unwrap();
    let mut rows = QuantizedRows::new();
    kernels.quantize_rows(&mut rows, &random.floats(k), k, &[ActBits::A4], &RowQuantizer::DYNAMIC);
    let (mut y, mut sums) = (vec![0f32; n], vec![0i32; n]);
    let usual = time(|| kernels.linear(&matrix, rows.as_view(), ColumnsMut::new(black_box(&mut y), 1, n)));
    let packed = time(|| kernels.paired_product(&pairs, rows.row(0).codes, black_box(&mut sums)));
    let giga = 2.0 * (n * k) as f64 / 1e9;
    println!(
        "  w4a4 single row of {k} x {n}, GOP/s: {:.0}, with the packed multiplier {:.0}",
        giga / usual,
        giga / packed
    );
}

fn streams(kernels: &Kernels, random: &mut Random) {
    let (k, n) = (576, 1536);
    println!("  single row over many matrices of {k} x {n}, by their total size in W4: G weights/s (GB/s)");
    let counts = [1, 8, 24, 67].map(|megabytes| (megabytes, (megabytes * 1_000_000 / (k * n / 2)).max(1)));
    for bits in [WeightBits::W4, WeightBits::W3, WeightBits::W2] {
        let one = random.matrix(n, k, WeightScheme::per_channel(bits));
        let mut rows = QuantizedRows::new();
        kernels.quantize_rows(&mut rows, &random.floats(k), k, &[ActBits::A8], &RowQuantizer::DYNAMIC);
        let mut y = vec![0f32; n];
        print!("    w{}", bits.name());
        for (megabytes, count) in counts {
            let matrices: Vec<PackedMatrix> = (0..count).map(|_| one.clone()).collect();
            let seconds = time(|| {
                for matrix in &matrices {
                    kernels.linear(matrix, rows.as_view(), ColumnsMut::new(black_box(&mut y), 1, n));
                }
            });
            let giga = count as f64 / seconds / 1e9;
            print!("  {megabytes} MB {:.1} ({:.1})", giga * (k * n) as f64, giga * one.bytes() as f64);
        }
        println!();
    }
}

fn floats(kernels: &Kernels, random: &mut Random) {
    let (k, n) = (576, 1536);
    let w = random.floats(n * k);
    let halves: Vec<u16> = (0..n * k).map(|_| (random.next() as u16) & 0xbfff).collect();
    print!("  float products 576 x 1536, GFLOP/s:");
    for m in [1, 16, 128] {
        let x = random.floats(m * k);
        let mut y = vec![0f32; m * n];
        let f32s = time(|| kernels.matmul_f32(&x, &w, None, k, ColumnsMut::new(black_box(&mut y), m, n)));
        let f16s =
            time(|| kernels.matmul_f16(&x, &halves, None, k, ColumnsMut::new(black_box(&mut y), m, n)));
        let operations = 2.0 * (m * k * n) as f64 / 1e9;
        print!("  m {m}: f32 {:.1}, f16 {:.1}", operations / f32s, operations / f16s);
    }
    println!();
    print!("  functions of 576 values, ns:");
    let (x, mut y) = (random.floats(k), random.floats(k));
    let gain = random.floats(k);
    let mut codes = QuantizedRows::new();
    let report = |name: &str, seconds: f64| print!("  {name} {:.0}", seconds * 1e9);
    report(
        "dot",
        time(|| {
            black_box(kernels.dot(black_box(&x), &gain));
        }),
    );
    report("rms_norm", time(|| kernels.rms_norm(black_box(&x), &gain, 1e-5, &mut y)));
    report("silu_mul", time(|| kernels.silu_mul(black_box(&x), &gain, &mut y)));
    for (cols, name) in [
        (576, "hadamard(576)"),
        (1536, "hadamard(512)"),
        (1536, "interleaved_hadamard(64)"),
        (1536, "interleaved_hadamard(96)"),
        (1536, "interleaved_hadamard(192)"),
        (576, "interleaved_hadamard(72)"),
        (576, "interleaved_hadamard(64)"),
        (576, "hadamard(64)"),
        (768, "hadamard(64)"),
        (1536, "hadamard(128)"),
        (1536, "interleaved_hadamard(128)"),
    ] {
        let (mut x, transform) = (random.floats(cols), Transform::from_name(name).unwrap());
        report(
            &format!("{transform} of {cols}"),
            time(|| kernels.transform(black_box(&mut x), cols, transform)),
        );
    }
    y.copy_from_slice(&x);
    report("softmax", time(|| kernels.softmax(black_box(&mut y))));
    report("exp", time(|| kernels.exp(black_box(&mut y))));
    report("rope", time(|| kernels.rope(black_box(&mut y), &gain[..k / 2], &x[..k / 2])));
    report("add", time(|| kernels.add(black_box(&mut y), &gain)));
    report(
        "log_softmax",
        time(|| {
            black_box(kernels.log_softmax_at(black_box(&x), 3));
        }),
    );
    report(
        "argmax",
        time(|| {
            black_box(kernels.argmax(black_box(&x)));
        }),
    );
    report(
        "max_abs",
        time(|| {
            black_box(kernels.max_abs(black_box(&x)));
        }),
    );
    let fixed = RowQuantizer::fixed(ActBits::ALL.map(|bits| squat_quant::Affine {
        scale: 0.1,
        zero_point: 3,
        range: bits.range(),
    }))
    .unwrap();
    codes.reset(1, k);
    let (widths, quantizer) = ([ActBits::A8], RowQuantizer::DYNAMIC);
    report(
        "norm + quantize",
        time(|| {
            kernels.rms_norm_quantize_into(codes.as_mut(), black_box(&x), &gain, 1e-5, &widths, &quantizer)
        }),
    );
    let gate_up = random.floats(2 * k);
    report(
        "silu_mul + quantize",
        time(|| {
            kernels.silu_mul_quantize_into(
                codes.as_mut(),
                black_box(&gate_up),
                &mut y,
                Transform::None,
                &widths,
                &quantizer,
            )
        }),
    );
    for (name, quantizer) in [("quantize dynamic", RowQuantizer::DYNAMIC), ("static", fixed)] {
        report(
            name,
            time(|| kernels.quantize_rows(&mut codes, black_box(&x), k, &[ActBits::A8], &quantizer)),
        );
    }
    println!();
}

fn attention(kernels: &Kernels, random: &mut Random) {
    let dim = 64;
    println!("  attention, head_dim 64, nanoseconds per query and position");
    for (len, group, tokens) in
        [(64, 3, 1), (1024, 1, 1), (1024, 3, 1), (8192, 1, 1), (8192, 3, 1), (1024, 3, 64), (8192, 3, 64)]
    {
        print!("    {len:5} positions, {group} queries x {tokens:2} tokens:");
        let rows = group * tokens;
        let causal = Causal { len: len + 1 - tokens, group, window: usize::MAX };
        let pairs: usize = (0..rows).map(|r| causal.len_of(r)).sum();
        let (mut out, mut first) = (vec![0f32; rows * dim], vec![0f32; rows]);
        let (mut pair, mut queries) = (QuantizedRows::new(), QuantizedRows::new());
        let mut scratch = AttentionScratch::new();
        let q = random.floats(rows * dim);
        kernels.quantize_rows(&mut queries, &q, dim, &[ActBits::A8], &RowQuantizer::DYNAMIC);
        for (name, widths) in
            [("8 bits", [ActBits::A8; 2]), ("4 bits", [ActBits::A4; 2]), ("mixed", ActBits::ALL)]
        {
            let mut head = KvHead::new(dim, AttentionScheme::Dynamic);
            for _ in 0..len {
                let x = random.floats(2 * dim);
                let bits = widths[random.next() as usize % 2];
                kernels.quantize_rows(&mut pair, &x, dim, &[bits], &RowQuantizer::DYNAMIC);
                head.push(pair.row(0), pair.row(1)).unwrap();
            }
            let seconds = time(|| {
                kernels.attend(
                    &head,
                    causal,
                    queries.as_view(),
                    &mut scratch,
                    black_box(&mut out),
                    &mut first,
                );
            });
            print!("  {name} {:.2}", seconds * 1e9 / pairs as f64);
        }
        let mut head = FloatKvHead::new(dim);
        for _ in 0..len {
            head.push(&random.floats(dim), &random.floats(dim)).unwrap();
        }
        let seconds =
            time(|| kernels.attend_float(&head, causal, &q, &mut scratch, black_box(&mut out), &mut first));
        println!("  f32 {:.2}", seconds * 1e9 / pairs as f64);
    }
}

fn limits(kernels: &Kernels, _: &mut Random) {
    let time = std::time::Duration::from_millis(200);
    let giga = |rate: f64| format!("{:.0}", rate / 1e9);
    print!("  limits of a core: integer dots {} GOP/s", giga(probe::integer_peak(kernels, time)));
    print!(", f32 {} GFLOP/s; reading, GB/s:", giga(probe::float_peak(kernels, time)));
    for (name, bytes) in
        [("32 KB", 32 << 10), ("512 KB", 512 << 10), ("8 MB", 8 << 20), ("256 MB", 256 << 20)]
    {
        print!("  {name} {}", giga(probe::read_bandwidth(kernels, &probe::Buffer::new(bytes), time)));
    }
    println!();
}

fn main() {
    type Part = (&'static str, fn(&Kernels, &mut Random));
    let parts: [Part; 6] = [
        ("limits", limits),
        ("products", products),
        ("paired", paired),
        ("streams", streams),
        ("floats", floats),
        ("attention", attention),
    ];
    let asked: Vec<String> = std::env::args().skip(1).collect();
    let named = |name: &str| asked.iter().any(|word| word == name);
    let any_isa = !Kernels::available().any(|kernels| named(kernels.name()));
    let any_part = !parts.iter().any(|(name, _)| named(name));
    let mut random = Random(1);
    for kernels in Kernels::available().filter(|kernels| any_isa || named(kernels.name())) {
        println!("{}", kernels.name());
        for (_, part) in parts.iter().filter(|(name, _)| any_part || named(name)) {
            part(kernels, &mut random);
        }
    }
}
