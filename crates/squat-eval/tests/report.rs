//! The page of a run: its content, and that generated text cannot break the HTML.

mod common;

use std::collections::BTreeMap;

use squat_eval::report::{
    FormValue, LossPoint, Parity, QuickstartReport, RunInfo, Sample, Setting, TokenBits, render_html,
    write_html,
};
use squat_eval::tasks::ParadigmResult;
use squat_eval::{EvalError, Form, PerplexityResult, TaskResult};

const HOSTILE: &str = "</text></svg><script>alert('x')</script> \"q\" & <s> ]]>\u{7}";

/// Numbers in 0..1 that depend only on `seed`.
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn accuracy(form: Form, shift: f64) -> TaskResult {
    let names = [
        "anaphor_agreement",
        "argument_structure",
        "binding",
        "determiner_noun_agreement",
        "filler_gap_dependency",
        "irregular_forms",
        "island_effects",
        "npi_licensing",
        "quantifiers",
        "subject_verb_agreement",
    ];
    let mut random = random(7);
    let groups: BTreeMap<String, f64> = names
        .iter()
        .map(|name| ((*name).to_owned(), (99.0 - 16.0 * random() - shift * random()).min(100.0)))
        .collect();
    let average = groups.values().sum::<f64>() / groups.len() as f64;
    let paradigm = |(name, accuracy): (&String, &f64)| {
        (name.clone(), ParadigmResult { group: name.clone(), accuracy: *accuracy, n: 200, ties: 0 })
    };
    TaskResult {
        task: "pairs".to_owned(),
        model: "student".to_owned(),
        form,
        average,
        standard_error: 0.61,
        paradigm_average: average,
        paradigms: groups.iter().map(paradigm).collect(),
        groups,
        n: 2000,
        ties: 3,
        identical: 0,
    }
}

fn perplexity(form: Form, value: f64) -> PerplexityResult {
    PerplexityResult {
        task: "perplexity".to_owned(),
        model: "student".to_owned(),
        form,
        perplexity: value,
        standard_error: Some(0.11),
        nll_per_token: value.ln(),
        word_perplexity: Some(value * 1.8),
        bits_per_byte: 0.71,
        bits_per_byte_standard_error: Some(0.004),
        n_tokens: 40_213,
        n_words: 30_100,
        n_bytes: 161_000,
        n_windows: 320,
        context: 128,
        stride: 127,
        texts: BTreeMap::new(),
    }
}

fn example() -> QuickstartReport {
    let mut noise = random(3);
    let mut losses = Vec::new();
    for (stage, terms, steps) in [
        ("pretrain", &[("cross_entropy", 1.6, 5.2)][..], 600),
        ("distill", &[("cross_entropy", 1.5, 5.0), ("kl", 0.1, 3.4)][..], 500),
        (
            "qat",
            &[
                ("cross_entropy", 1.55, 0.5),
                ("kl", 0.05, 0.3),
                ("entropy", -2.1, 0.4),
                ("alignment", 0.02, 0.12),
            ][..],
            300,
        ),
    ] {
        for step in (0..steps).step_by(2) {
            for (term, floor, start) in terms {
                let decay = (-(step as f64) / (0.15 * f64::from(steps))).exp();
                let value = floor + start * decay + 0.05 * start * (noise() - 0.5);
                losses.push(LossPoint {
                    stage: stage.to_owned(),
                    step: step as u64,
                    term: (*term).to_owned(),
                    value,
                });
            }
        }
    }
    let sentence = |text: &str| -> TokenBits {
        let tokens: Vec<String> =
            std::iter::once("<s>".to_owned()).chain(text.split(' ').map(|word| format!(" {word}"))).collect();
        let mut random = random(text.len() as u64);
        let layer = |layer: usize, random: &mut dyn FnMut() -> f64| -> Vec<u8> {
            (0..tokens.len()).map(|i| if i == 0 || layer == 0 || random() < 0.45 { 8 } else { 4 }).collect()
        };
        let layers = (0..4).map(|i| layer(i, &mut random)).collect();
        TokenBits { tokens, layers }
    };
    let setting = |section: &str, name: &str, value: &str| Setting {
        section: section.to_owned(),
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let sample =
        |form, prompt: &str, text: &str| Sample { form, prompt: prompt.to_owned(), text: text.to_owned() };
    QuickstartReport {
        title: "Squat quickstart".to_owned(),
        run: RunInfo {
            version: "0.1.0".to_owned(),
            seed: 42,
            seconds: 287.4,
            threads: 2,
            cpu: "x86-64".to_owned(),
            kernel: "avx512vnni-w4a8".to_owned(),
        },
        settings: vec![
            setting("data", "words", "2 000 000 generated, seed 42"),
            setting("model", "shape", "hidden_size 128, 4 layers, 4 heads, vocabulary 1024"),
            setting("model", "parameters", "1 180 000"),
            setting("qat", "weights", "4 bits, symmetric, per channel"),
            setting("qat", "activations", "8 or 4 bits by token, rho 0.5"),
        ],
        losses,
        accuracy: vec![accuracy(Form::Fp, 0.0), accuracy(Form::Fake, 3.0), accuracy(Form::Packed, 3.2)],
        perplexity: vec![
            perplexity(Form::Fp, 5.12),
            perplexity(Form::Fake, 5.31),
            perplexity(Form::Packed, 5.31),
        ],
        bytes: vec![
            FormValue { form: Form::Fp, value: 4_720_000.0 },
            FormValue { form: Form::Packed, value: 812_000.0 },
        ],
        decode_tokens_per_second: vec![
            FormValue { form: Form::Fp, value: 3120.0 },
            FormValue { form: Form::Packed, value: 7410.0 },
        ],
        parity: Some(Parity { max_abs_logit_diff: 3.1e-5, prefill_decode_max_abs_diff: 0.0 }),
        samples: vec![
            sample(Form::Packed, "The small dogs", " chase the cat that sees the old teachers.</s>"),
            sample(Form::Packed, "\"Who did", " the girl help?\" asked the boy & the other one <smiled>."),
            sample(Form::Fp, "The small dogs", " chase the birds near the house."),
        ],
        token_bits: vec![
            sentence("the small dogs near the old house chase the cat that the teachers saw."),
            sentence("no boy has ever seen himself in the mirror."),
        ],
    }
}

#[test]
fn the_page_holds_every_part_and_nothing_from_outside() {
    let report = example();
    let page = render_html(&report).expect("made");
    for id in ["result", "accuracy", "size-and-speed", "token-bits", "losses", "samples", "configuration"] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    // One plot of accuracy, three of bars, two grids, seven curves.
    assert_eq!(page.matches("<svg").count(), 1 + 3 + 2 + 7);
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "NaN", "inf\""] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("npi licensing") && page.contains("5.8 times smaller than 4.72 MB"));
    assert_eq!(page, render_html(&report).expect("made"), "the page depends on the report alone");
    let cells = page.matches("class=\"bits8\"").count() + page.matches("class=\"bits4\"").count();
    let tokens: usize = report.token_bits.iter().map(|grid| 4 * grid.tokens.len()).sum();
    assert_eq!(cells, tokens + 2, "a cell per token and layer, and two keys");
    let json = serde_json::to_string(&report).expect("JSON");
    assert!(
        serde_json::from_str::<QuickstartReport>(&json).expect("read") == report,
        "JSON keeps every figure"
    );
    // To look at the page: SQUAT_REPORT_OUT=/some/file.html
    if let Some(path) = std::env::var_os("SQUAT_REPORT_OUT") {
        write_html(&report, path.as_ref()).expect("written");
    }
}

#[test]
fn text_cannot_break_out_of_the_page() {
    let mut report = example();
    report.title = HOSTILE.to_owned();
    report.run.cpu = HOSTILE.to_owned();
    report.settings[0] = Setting { section: HOSTILE.into(), name: HOSTILE.into(), value: HOSTILE.into() };
    report.samples[0] = Sample { form: Form::Fp, prompt: HOSTILE.into(), text: HOSTILE.into() };
    report.token_bits[0].tokens[1] = HOSTILE.to_owned();
    report.losses.push(LossPoint { stage: HOSTILE.into(), step: 1, term: HOSTILE.into(), value: 1.0 });
    report.accuracy[0].task = HOSTILE.to_owned();
    report.accuracy[0].groups.insert(HOSTILE.to_owned(), 60.0);
    let page = render_html(&report).expect("made");
    assert!(!page.contains("<script"), "escaped");
    assert!(!page.contains("<s>"), "escaped");
    assert!(!page.contains('\u{7}'), "HTML forbids control characters");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn a_report_of_little_or_odd_figures_is_a_page_too() {
    let mut report = example();
    report.losses = vec![
        LossPoint { stage: "a".into(), step: 5, term: "x".into(), value: 2.0 },
        LossPoint { stage: "a".into(), step: 5, term: "nan".into(), value: f64::NAN },
        LossPoint { stage: "b".into(), step: 0, term: "flat".into(), value: 0.0 },
        LossPoint { stage: "b".into(), step: 1, term: "flat".into(), value: 0.0 },
    ];
    report.losses.extend((0..5000).map(|i| LossPoint {
        stage: "b".into(),
        step: i,
        term: "long".into(),
        value: if i % 7 == 0 { f64::INFINITY } else { i as f64 },
    }));
    report.bytes[0].value = f64::INFINITY;
    report.perplexity[1].standard_error = Some(f64::NAN);
    report.accuracy.truncate(1);
    let page = render_html(&report).expect("made");
    assert!(!page.contains("\"NaN") && !page.contains("=\"inf"), "every position is a number");
    assert!(page.len() < 100_000, "long curves are thinned: {}", page.len());

    let empty = QuickstartReport {
        settings: vec![],
        losses: vec![],
        accuracy: vec![],
        perplexity: vec![],
        bytes: vec![],
        decode_tokens_per_second: vec![],
        parity: None,
        samples: vec![],
        token_bits: vec![],
        ..example()
    };
    let page = render_html(&empty).expect("made");
    assert!(!page.contains("<section") && !page.contains("<svg"));

    assert!(render_html(&report).expect("made").contains("have 8 bits throughout"));
    report.token_bits[1].layers[0][1] = 4;
    assert!(
        !render_html(&report).expect("made").contains("throughout"),
        "another rule is not called the usual one"
    );
    report.token_bits[0].layers[2].pop();
    assert!(matches!(render_html(&report), Err(EvalError::Mismatch { .. })));
}

#[test]
fn the_file_is_written_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("report.html");
    write_html(&example(), &path).expect("written");
    assert_eq!(std::fs::read_to_string(&path).expect("read"), render_html(&example()).expect("made"));
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1, "no temporary file is left");
    assert!(matches!(
        write_html(&example(), &folder.path().join("no/report.html")),
        Err(EvalError::Write(_))
    ));
    assert!(matches!(write_html(&example(), folder.path()), Err(EvalError::Write(_))));
    let beside = folder.path().parent().expect("a parent");
    let left = std::fs::read_dir(beside).expect("listed").flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&*folder.path().file_name().expect("a name").to_string_lossy())
            && name.ends_with(".tmp")
    });
    assert_eq!(left.count(), 0, "a failed write leaves nothing");
}

#[test]
fn the_summary_has_a_row_per_form() {
    let mut report = example();
    for (result, average) in report.accuracy.iter_mut().zip([91.05, 89.85, 89.7654]) {
        result.average = average;
    }
    assert_eq!(
        report.summary_table().to_markdown(),
        "| form           |  accuracy, % |    perplexity |    size | decode, tokens/s |\n\
         |:---------------|-------------:|--------------:|--------:|-----------------:|\n\
         | full precision | 91.05 ± 0.61 | 5.120 ± 0.110 | 4.72 MB |             3120 |\n\
         | fake-quantized | 89.85 ± 0.61 | 5.310 ± 0.110 |       - |                - |\n\
         | packed         | 89.77 ± 0.61 | 5.310 ± 0.110 |  812 kB |             7410 |\n"
    );
}
