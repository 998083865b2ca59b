//! Vocabularies of real models in GGUF files, with texts and ids that their own tokenizers gave: the folder
//! `vendor/llama.cpp/models` of the source package of llama-cpp-python 0.3.36, named by `SQUAT_VOCABULARIES`; and the file
//! of Gemma 3 270M, named by `SQUAT_GEMMA3`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use squat_model::format::gguf::GgufFile;
use squat_model::{ModelSpec, Tokenizer, TokenizerFiles};
use squat_test::model::llama;

/// The path in an environment variable; says that a test is skipped where there is none.
fn named(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: {variable} names no path");
    }
    path
}

fn tokenizer(path: &Path) -> Result<Tokenizer, String> {
    let start = std::time::Instant::now();
    let files = TokenizerFiles::read(path).map_err(|error| error.to_string())?;
    eprintln!("{}: converted in {:?}", path.display(), start.elapsed());
    let file = GgufFile::open(path).unwrap();
    let vocab_size = file.metadata("tokenizer.ggml.tokens").unwrap().as_array().unwrap().len();
    let spec = ModelSpec { vocab_size, ..llama(true) };
    Tokenizer::from_json(files.get("tokenizer.json").unwrap(), "tokenizer", &spec)
        .map_err(|error| error.to_string())
}

/// Texts of a `.inp` file are separated by a line of its own; a line of the `.out` file has the ids of one.
fn expected(path: &Path) -> Option<Vec<(String, Vec<u32>)>> {
    let read = |end: &str| fs::read_to_string(format!("{}{end}", path.display())).ok();
    let (texts, ids) = (read(".inp")?, read(".out")?);
    let texts: Vec<String> = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect();
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    assert!(ids.len() <= texts.len() && ids.len() + 1 >= texts.len(), "{}", path.display());
    Some(texts.into_iter().zip(ids).collect())
}

#[test]
fn vocabularies_of_real_models() {
    let Some(folder) = named("SQUAT_VOCABULARIES") else { return };
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    files.sort();
    assert!(!files.is_empty(), "no GGUF files in {}", folder.display());
    let mut wrong = Vec::new();
    let mut agreed = 0;
    for path in &files {
        let name = path.file_stem().unwrap().to_string_lossy().replace("ggml-vocab-", "");
        let tokenizer = match tokenizer(path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                eprintln!("{name}: not read: {error}");
                if !["bert-bge", "nomic-bert-moe"].contains(&name.as_str()) {
                    wrong.push(name);
                }
                continue;
            }
        };
        let Some(pairs) = expected(path) else {
            // Without golden ids: what is encoded comes back.
            let text = "Hello, world! 123 \u{e9}\u{4e2d}\n  x";
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
            eprintln!("{name}: round trip");
            continue;
        };
        let bad: Vec<_> = pairs
            .iter()
            .filter(|(text, ids)| tokenizer.encode(text).unwrap() != *ids)
            .map(|(text, ids)| (text, tokenizer.encode(text).unwrap(), ids))
            .collect();
        eprintln!("{name}: {} of {} texts agree", pairs.len() - bad.len(), pairs.len());
        bad.iter().take(3).for_each(|(text, got, want)| eprintln!("  {text:?}\n    {got:?}\n    {want:?}"));
        match bad.is_empty() {
            true => agreed += 1,
            false => wrong.push(name),
        }
    }
    eprintln!("{agreed} vocabularies agree on all texts");
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn gemma_3_reads_texts() {
    let Some(path) = named("SQUAT_GEMMA3") else { return };
    let start = std::time::Instant::now();
    let tokenizer = tokenizer(&path).unwrap();
    eprintln!("ready after {:?}", start.elapsed());
    // Spaces and line ends in a row are tokens of their own; the first word has no space in front.
    let ids = tokenizer.encode("Hello  world\n\n\t<start_of_turn>\u{1F9D9}x").unwrap();
    let pieces: Vec<String> = ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect();
    eprintln!("{ids:?} {pieces:?}");
    assert_eq!(tokenizer.id("Hello"), Some(ids[0]));
    assert!(pieces.contains(&"  ".to_owned()) && pieces.contains(&"\n\n".to_owned()));
    assert!(ids.contains(&105));
}
