//! `squat data`.

use crate::args::{Data, DataMerge, DataPrepare};
use crate::{printer, signals};
use anyhow::Result;
use serde_json::json;
use squat_data::{Corpus, Part, PrepareOptions, Prepared, merge_parts, prepare, prepare_part};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

pub fn run(data: &Data) -> Result<ExitCode> {
    let started = Instant::now();
    signals::tidy_up();
    let (prepared, out, json) = match data {
        Data::Prepare(args) => (prepared(args)?, args.out.as_path(), args.json),
        Data::Merge(DataMerge { out, json, force }) => (merge_parts(out, *force)?, out.as_path(), *json),
    };
    report(&prepared, out, json, started.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

fn prepared(args: &DataPrepare) -> Result<Prepared> {
    let part = args.shard.as_ref().map(|shard| shard.parse::<Part>()).transpose()?;
    let corpus = Corpus::open(&args.inputs, &args.split.parse()?)?;
    corpus.notes().iter().for_each(|note| printer::note(note));
    printer::note(&format!("{} files", corpus.files().len()));
    let options = PrepareOptions { force: args.force, ..PrepareOptions::default() };
    Ok(match part {
        None => prepare(&corpus, &args.tokenizer, &args.out, &options)?,
        Some(part) => prepare_part(&corpus, &args.tokenizer, &args.out, &options, part)?,
    })
}

fn report(prepared: &Prepared, out: &Path, json: bool, seconds: f64) {
    let m = &prepared.manifest;
    if json {
        printer::json(
            &json!({"words": m.words, "tokens": m.tokens, "documents": m.documents, "files": m.inputs.len(),
            "identity": m.identity, "reused": prepared.reused, "seconds": seconds, "out": out}),
        );
    } else {
        let how = if prepared.reused { "unchanged, nothing to do" } else { "written" };
        printer::line(&format!(
            "{} words, {} tokens, {} documents of {} files in {}: {how} ({seconds:.1} s)",
            m.words,
            m.tokens,
            m.documents,
            m.inputs.len(),
            out.display()
        ));
    }
}
