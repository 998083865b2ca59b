//! Real data and models, in the folder that the variable `SQUAT_DATA` names.

use std::path::PathBuf;

/// First words of the story that the model `stories260K` tells greedily after BOS.
pub const KNOWN_STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
     One day, she saw a big, red ball. She wanted to play with it, but it was too high.";

/// `path` below the folder that `SQUAT_DATA` names; none, with a line on stderr, where that does not exist, so that
/// the test can return.
pub fn data(path: &str) -> Option<PathBuf> {
    let found = std::env::var_os("SQUAT_DATA").map(|folder| PathBuf::from(folder).join(path));
    let found = found.filter(|found| found.exists());
    if found.is_none() {
        eprintln!("skipped: set SQUAT_DATA to a folder that holds {path} to run this test");
    }
    found
}

/// The folder of the llama2.c model `stories260K`: `stories260K.bin` and `tok512.bin`.
pub fn stories() -> Option<PathBuf> {
    data("stories260K")
}
