//! `squat tokenizer train`.

use crate::args::Tokenizer;
use crate::printer;
use anyhow::Result;
use squat_data::tokenizer::save;
use squat_data::{Corpus, TokenizerOptions, train_tokenizer};
use std::process::ExitCode;

pub fn run(Tokenizer::Train(args): &Tokenizer) -> Result<ExitCode> {
    let corpus = Corpus::open(&args.inputs, &args.split.parse()?)?;
    let options = TokenizerOptions { vocab_size: args.vocab_size, ..TokenizerOptions::default() };
    let tokenizer = train_tokenizer(&corpus, &options)?;
    save(&tokenizer, &args.out, options.max_length, args.force)?;
    printer::line(&format!("{} ids in {}", tokenizer.get_vocab_size(true), args.out.display()));
    Ok(ExitCode::SUCCESS)
}
