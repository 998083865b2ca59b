//! `squat data prepare`.

use crate::args::Data;
use crate::printer;
use anyhow::Result;
use serde_json::json;
use squat_data::{Corpus, PrepareOptions, prepare};
use std::process::ExitCode;
use std::time::Instant;

pub fn run(Data::Prepare(args): &Data) -> Result<ExitCode> {
    let started = Instant::now();
    let corpus = Corpus::open(&args.inputs, &args.split.parse()?)?;
    printer::note(&format!("{} files", corpus.files().len()));
    let prepared = prepare(&corpus, &args.tokenizer, &args.out, &PrepareOptions::default())?;
    let m = &prepared.manifest;
    let seconds = started.elapsed().as_secs_f64();
    if args.json {
        printer::json(
            &json!({"words": m.words, "tokens": m.tokens, "documents": m.documents, "identity": m.identity,
            "reused": prepared.reused, "seconds": seconds, "out": args.out}),
        );
    } else {
        let how = if prepared.reused { "unchanged, nothing to do" } else { "written" };
        printer::line(&format!(
            "{} words, {} tokens, {} documents in {}: {how} ({seconds:.1} s)",
            m.words,
            m.tokens,
            m.documents,
            args.out.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}
