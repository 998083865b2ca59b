//! `squat eval`.

use crate::args::Eval;
use crate::{forms, printer};
use anyhow::Result;
use squat_eval::table::{accuracy_table, perplexity_table};
use squat_eval::tasks::TaskKind;
use squat_eval::{Form, PairSet, ScoringOptions, TextOptions, TokenizedText, evaluate, perplexity, task};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Longest window of a perplexity, if the model takes more.
const WINDOW: usize = 512;

pub fn run(args: &Eval) -> Result<ExitCode> {
    let definition = task(&args.task)?;
    let form = args.form.as_deref().map(str::parse::<Form>).transpose()?;
    let mut subject = forms::open(&args.model, form, forms::threads(args.threads))?;
    let bar = indicatif::ProgressBar::hidden();
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
    }
    let mut options = ScoringOptions {
        on_progress: Some(Box::new(|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })),
        ..ScoringOptions::default()
    };
    if definition.kind == TaskKind::Perplexity {
        let texts = TokenizedText::read(&args.data, &subject.tokenizer, TextOptions::default())?;
        let window = args.limit.unwrap_or(WINDOW).min(subject.model.max_length());
        let bos = squat_eval::Tokenize::bos_id(&subject.tokenizer);
        let result = perplexity(subject.model.as_mut(), bos, &texts, Some(window), &mut options)?;
        bar.finish_and_clear();
        match args.json {
            true => printer::json(&serde_json::to_value(&result)?),
            false => printer::data(&perplexity_table(&[result]).to_markdown()),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let set = PairSet::read(definition, &args.data, args.limit)?;
    let result = evaluate(subject.model.as_mut(), &subject.tokenizer, &set, &mut options)?;
    bar.finish_and_clear();
    match args.json {
        true => printer::json(&serde_json::to_value(&result)?),
        false => printer::data(&accuracy_table(&[result]).to_markdown()),
    }
    Ok(ExitCode::SUCCESS)
}
