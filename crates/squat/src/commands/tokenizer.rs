//! `squat tokenizer train`.

use crate::args::Tokenizer;
use crate::{printer, signals};
use anyhow::Result;
use squat_data::tokenizer::save;
use squat_data::{Corpus, TokenizerOptions, train_tokenizer};
use std::process::ExitCode;

pub fn run(Tokenizer::Train(args): &Tokenizer) -> Result<ExitCode> {
    signals::tidy_up();
    let corpus = Corpus::open(&args.inputs, &args.split.parse()?)?;
    corpus.notes().iter().for_each(|note| printer::note(note));
    let options = TokenizerOptions { vocab_size: args.vocab_size, ..TokenizerOptions::default() };
    let tokenizer = train_tokenizer(&corpus, &options)?;
    save(&tokenizer, &args.out, options.max_length, args.force)?;
    let ids = tokenizer.get_vocab_size(true);
    match args.json {
        true => printer::json(&serde_json::json!({"ids": ids, "out": args.out})),
        false => printer::line(&format!("{ids} ids in {}", args.out.display())),
    }
    Ok(ExitCode::SUCCESS)
}
