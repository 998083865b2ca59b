//! `squat eval`.

use crate::args::Eval;
use crate::forms::ModelTokenizer;
use crate::{forms, printer};
use anyhow::Result;
#[cfg(feature = "train")]
use anyhow::bail;
use squat_eval::table::{accuracy_table, perplexity_table};
use squat_eval::tasks::TaskKind;
use squat_eval::{Form, PairSet, ScoringOptions, TextOptions, TokenizedText, evaluate, perplexity, task};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

/// Longest window of a perplexity, if the model takes more.
const WINDOW: usize = 512;

/// Held-out text as token ids: prepared shards as they are, so that they are cleaned and cut as in training, or raw
/// text files.
pub fn texts(path: &Path, tokenizer: &ModelTokenizer) -> Result<Vec<TokenizedText>> {
    #[cfg(feature = "train")]
    if path.join("manifest.json").is_file() {
        let manifest = squat_data::Manifest::read(path)?;
        let shards = squat_data::TokenShards::open(path)?;
        if manifest.vocab_size != tokenizer.inner().vocab_size() {
            bail!(
                "{} was prepared with a tokenizer of {} ids, the model's has {}; prepare the text with the model's own",
                path.display(),
                manifest.vocab_size,
                tokenizer.inner().vocab_size()
            );
        }
        let count = usize::try_from(shards.len())?;
        return Ok(vec![TokenizedText {
            name: path.display().to_string(),
            tokens: shards.get(0, count),
            n_bytes: usize::try_from(manifest.inputs.iter().map(|input| input.text_bytes).sum::<u64>())?,
            n_words: usize::try_from(manifest.words)?,
        }]);
    }
    Ok(TokenizedText::read(path, tokenizer, TextOptions::default())?)
}

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
        let texts = texts(&args.data, &subject.tokenizer)?;
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
