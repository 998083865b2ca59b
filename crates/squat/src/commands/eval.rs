//! `squat eval`.

use crate::Usage;
use crate::args::Eval;
use crate::forms::ModelTokenizer;
use crate::{forms, printer};
use anyhow::Result;
use squat_eval::table::{accuracy_table, perplexity_table};
use squat_eval::tasks::{TaskDefinition, TaskKind};
use squat_eval::{PairSet, ScoringOptions, TokenizedText, Windows, evaluate, perplexity, task};
use std::path::Path;
use std::process::ExitCode;

/// Context of a perplexity without `--context`, for models that take longer sequences.
const DEFAULT_CONTEXT: usize = 512;

/// Held-out text as token ids: prepared shards unchanged, so that cleaning and tokenization are those of training, or
/// raw text files.
pub fn texts(path: &Path, tokenizer: &ModelTokenizer) -> Result<Vec<TokenizedText>> {
    #[cfg(feature = "train")]
    if path.join("manifest.json").is_file() {
        let manifest = squat_data::Manifest::read(path)?;
        let shards = squat_data::TokenShards::open(path)?;
        if manifest.vocab_size != tokenizer.inner().vocab_size() {
            anyhow::bail!(
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
    Ok(TokenizedText::read(path, tokenizer)?)
}

/// Refuses options that the task does not use.
fn check_options(args: &Eval, definition: &TaskDefinition) -> Result<()> {
    match definition.kind {
        TaskKind::Perplexity if args.limit.is_some() => Err(Usage(
            "--limit counts pairs, and the task perplexity has none; --context N sets the length of its windows, --stride N \
             the tokens that each of them scores".to_owned()).into()),
        TaskKind::MinimalPairs if args.context.is_some() || args.stride.is_some() => Err(Usage(
            "--context and --stride cut running text into windows, for the task perplexity; --limit N takes the first \
             pairs of each paradigm".to_owned()).into()),
        _ => Ok(()),
    }
}

pub fn run(args: &Eval) -> Result<ExitCode> {
    let definition = task(&args.task)?;
    check_options(args, definition)?;
    let mut subject = forms::open(&args.model, args.form, forms::threads(args.threads))?;
    squat_files::sums::verify(&squat_model::open::locate(&args.model)?)?;
    let bar = printer::bar(0);
    let mut options = ScoringOptions {
        on_progress: Some(Box::new(|done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        })),
        ..ScoringOptions::default()
    };
    if definition.kind == TaskKind::Perplexity {
        let texts = texts(&args.data, &subject.tokenizer)?;
        let context = args.context.unwrap_or(DEFAULT_CONTEXT.min(subject.model.max_length()));
        let windows = Windows { context: Some(context), stride: args.stride };
        let bos = squat_eval::Tokenize::bos_id(&subject.tokenizer);
        let result = perplexity(subject.model.as_mut(), bos, &texts, windows, &mut options)?;
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
