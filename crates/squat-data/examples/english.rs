//! Writes the generated English of a seed: `cargo run --release -p squat-data --example english -- DIR [SEED] [WORDS]`.
//! DIR gets `english.train.txt`, `pairs/*.jsonl` and a `tokenizer/` of 1024 ids.

use squat_data::english::{write_corpus, write_pairs};
use squat_data::tokenizer::{save, train_tokenizer};
use squat_data::{Corpus, Split, TokenizerOptions};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: english DIR [SEED] [WORDS]")?);
    let seed = args.next().map_or(Ok(1), |a| a.parse())?;
    let words = args.next().map_or(Ok(1_000_000), |a| a.parse())?;
    let corpus = write_corpus(&dir, seed, words)?;
    write_pairs(&dir.join("pairs"), seed, 200)?;
    let options = TokenizerOptions { vocab_size: 1024, ..TokenizerOptions::default() };
    let tokenizer = train_tokenizer(&Corpus::open(&[corpus], &Split::All)?, &options)?;
    save(&tokenizer, &dir.join("tokenizer"), 128, false)?;
    Ok(())
}
