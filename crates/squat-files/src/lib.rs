//! The one way files are written, locked and read, and the flag that asks long work to stop.
//!
//! Writing: [`write`], with [`lock`]. Reading what others wrote: [`read`]. Stopping: [`interrupt`].

pub mod interrupt;
pub mod lock;
pub mod read;
pub mod sums;
pub mod write;

#[cfg(test)]
mod rules {
    use std::path::{Path, PathBuf};

    /// Calls that write, rename or remove files.
    const CALLS: [&str; 14] = [
        "fs::write(",
        "fs::rename(",
        "fs::remove_",
        "fs::create_dir",
        "fs::copy(",
        "fs::hard_link(",
        "fs::set_permissions(",
        "fs::symlink",
        "File::create",
        "File::options(",
        "OpenOptions",
        "tempfile",
        ".set_len(",
        "libc::unlink",
    ];

    /// Files outside of this crate that may call them, and why.
    const ALLOWED: [(&str, &str); 1] = [("squat-test/src/files.rs", "copies folders for tests")];

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    /// Files are written in this crate alone; modules of tests, which stand at the end of a file, may do as they like.
    #[test]
    fn files_are_written_in_one_place() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut wrong = Vec::new();
        let mut seen = 0;
        for member in std::fs::read_dir(crates).unwrap() {
            let source = member.unwrap().path().join("src");
            if source.starts_with(env!("CARGO_MANIFEST_DIR")) || !source.is_dir() {
                continue;
            }
            let mut files = Vec::new();
            sources(&source, &mut files);
            for path in files.iter().filter(|path| path.file_name().is_some_and(|name| name != "tests.rs")) {
                let name = path.strip_prefix(crates).unwrap().to_str().unwrap().replace('\\', "/");
                let text = std::fs::read_to_string(path).unwrap();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
                seen += 1;
                let calls = code.lines().enumerate().filter(|(_, line)| {
                    !line.trim_start().starts_with("//") && CALLS.iter().any(|call| line.contains(call))
                });
                if !ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
                    wrong.extend(calls.map(|(index, line)| format!("{name}:{}: {}", index + 1, line.trim())));
                }
            }
        }
        assert!(seen > 100, "{seen} sources");
        assert!(wrong.is_empty(), "use squat_files::write here:\n{}", wrong.join("\n"));
    }
}
