//! Every verb that writes, with a fault at every place where it touches the disk. Afterwards the same command is given again:
//! the result must be, byte for byte, what it is without a fault, and nothing else may lie around.

use crate::program::{Fault, Program};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use squat_test::recipe::RECIPE;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// The short recipe of the tests, with a checkpoint after every step.
fn recipe() -> String {
    RECIPE.replace("eval_sequences = 8", "eval_sequences = 8\neval_every = 2\nsave_every = 1")
}

/// System calls before which a process is killed.
const KILLED: [&str; 8] =
    ["rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "fsync", "mkdir"];

/// System calls that a full disk refuses.
const REFUSED: [&str; 4] = ["write", "pwrite64", "mkdir", "linkat"];

/// A command that writes `out`.
struct Verb {
    name: &'static str,
    args: Vec<String>,
    /// Words that make it go on after an interruption.
    again: &'static [&'static str],
    /// A folder that `out` is a copy of before.
    before: Option<&'static str>,
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn verbs() -> Vec<Verb> {
    let verb = |name, args: &str| Verb { name, args: words(args), again: &[], before: None };
    vec![
        Verb { again: &["--resume"], ..verb("train", "train recipe.toml --out out -t 1") },
        verb("pack", "pack base --out out"),
        Verb { before: Some("packed"), ..verb("pack over a model", "pack base --out out") },
        verb("quantize", "quantize base/fp --out out --tokens 200 --eval-tokens 100 -t 1"),
        verb("tokenizer train", "tokenizer train texts --split all --vocab-size 290 --out out"),
        verb("data prepare", "data prepare texts --split all --tokenizer base/tokenizer --out out"),
        Verb { before: Some("parts"), ..verb("data merge", "data merge out") },
    ]
}

/// Files below a path with their content, and without what a clock puts into them.
fn tree(path: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?.path();
            if entry.is_dir() {
                open.push(entry);
                continue;
            }
            let mut bytes = fs::read(&entry)?;
            if entry.ends_with("metrics.jsonl") {
                bytes = without_speed(&bytes);
            }
            found.insert(entry.strip_prefix(path)?.to_path_buf(), bytes);
        }
    }
    Ok(found)
}

fn without_speed(lines: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(lines);
    let lines = text.lines().map(|line| match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut map)) => {
            map.remove("tokens_per_second");
            Value::Object(map).to_string() + "\n"
        }
        _ => line.to_owned() + "\n",
    });
    lines.collect::<String>().into_bytes()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// What differs between a folder and what it should be, in words.
fn difference(found: &BTreeMap<PathBuf, Vec<u8>>, wanted: &BTreeMap<PathBuf, Vec<u8>>) -> Option<String> {
    let extra = found
        .keys()
        .find(|path| !wanted.contains_key(*path))
        .map(|path| format!("{} is left", path.display()));
    let missing = || {
        wanted
            .keys()
            .find(|path| !found.contains_key(*path))
            .map(|path| format!("{} is missing", path.display()))
    };
    let other = || {
        wanted
            .iter()
            .find(|(path, bytes)| found.get(*path) != Some(*bytes))
            .map(|(path, _)| format!("{} differs", path.display()))
    };
    extra.or_else(missing).or_else(other)
}

/// The drills of one program.
struct Drills<'a> {
    program: Program<'a>,
    /// Every how many places.
    every: usize,
    failures: Vec<String>,
}

impl Drills<'_> {
    fn folder(&self) -> &Path {
        self.program.folder
    }

    /// The folder as it is before a command.
    fn reset(&self, verb: &Verb) -> Result<()> {
        for entry in fs::read_dir(self.folder())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ["base", "packed", "parts", "texts", "recipe.toml"].contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
        }
        if let Some(before) = verb.before {
            copy(&self.folder().join(before), &self.folder().join("out"))?;
        }
        Ok(())
    }

    fn fail(&mut self, message: String) {
        self.failures.push(message);
    }

    /// Gives the command again, without a fault: the folder must be as it should.
    fn again(&mut self, verb: &Verb, what: &str, wanted: &BTreeMap<PathBuf, Vec<u8>>) -> Result<()> {
        let mut args = verb.args.clone();
        args.extend(verb.again.iter().map(|&word| word.to_owned()));
        match self.program.ok(&args) {
            Err(error) => self.fail(format!("{}, {what}: {error}", verb.name)),
            Ok(_) => {
                if let Some(difference) = difference(&tree(self.folder())?, wanted) {
                    self.fail(format!("{}, {what}: {difference}", verb.name));
                }
            }
        }
        Ok(())
    }

    /// Kills and full disks of a verb; returns their numbers.
    fn faults(&mut self, verb: &Verb) -> Result<(usize, usize)> {
        self.reset(verb)?;
        let calls: Vec<&str> = KILLED.iter().chain(&REFUSED).copied().collect();
        let counts = self.program.count(&calls, &verb.args)?;
        let wanted = tree(self.folder())?;
        let numbers = |call: &str| -> Vec<usize> {
            counts.get(call).map(|all| all.iter().copied().step_by(self.every).collect()).unwrap_or_default()
        };
        let all = |calls: &[&'static str]| -> Vec<(&'static str, usize)> {
            calls.iter().flat_map(|&call| numbers(call).into_iter().map(move |n| (call, n))).collect()
        };
        let (kills, full) = (all(&KILLED), all(&REFUSED));
        for &(call, n) in &kills {
            let what = format!("killed before {call} {n}");
            self.reset(verb)?;
            let status = self.program.with(Fault::Kill(call, n), &verb.args).output()?.status;
            if status.success() {
                self.fail(format!("{}, {what}: it was not killed", verb.name));
            }
            if verb.before == Some("packed") && self.program.ok(&words("inspect out --verify")).is_err() {
                self.fail(format!("{}, {what}: no whole model was there meanwhile", verb.name));
            }
            self.again(verb, &what, &wanted)?;
        }
        for &(call, n) in &full {
            let what = format!("disk full at {call} {n}");
            self.reset(verb)?;
            let before = tree(self.folder())?;
            let output = self.program.with(Fault::Full(call, n), &verb.args).output()?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                // A courtesy that failed, such as the name of a lock's holder.
                if let Some(difference) = difference(&tree(self.folder())?, &wanted) {
                    self.fail(format!("{}, {what}: success, and {difference}", verb.name));
                }
            } else {
                if !stderr.contains("No space left") || stderr.contains("panicked") {
                    self.fail(format!("{}, {what}: {}", verb.name, stderr.trim()));
                }
                // Codes that were found are kept for the next try, beside the output.
                let mut now = tree(self.folder())?;
                // A folder that was there before may be marked already.
                now.retain(|path, _| !path.starts_with(".out.quantize") && !path.ends_with("out/.squat"));
                if verb.again.is_empty()
                    && let Some(difference) = difference(&now, &before)
                {
                    self.fail(format!("{}, {what}: afterwards {difference}", verb.name));
                }
            }
            self.again(verb, &what, &wanted)?;
        }
        Ok((kills.len(), full.len()))
    }

    /// A second writer while the first one is stopped in the middle.
    fn second_writer(&mut self, verb: &Verb) -> Result<()> {
        self.reset(verb)?;
        self.program.ok(&verb.args)?;
        let wanted = tree(self.folder())?;
        self.reset(verb)?;
        let mut first = self.program.with(Fault::Stop("fsync", 1), &verb.args).spawn()?;
        let process = stopped_child(first.id())?;
        let second = self.program.command(&verb.args).output()?;
        let stderr = String::from_utf8_lossy(&second.stderr);
        if second.status.success()
            || !stderr.contains("is writing it")
            || !stderr.contains(&format!("process {process} "))
        {
            self.fail(format!("{}: a second writer was told: {}", verb.name, stderr.trim()));
        }
        Command::new("kill").args(["-CONT", &process.to_string()]).status()?;
        if !first.wait()?.success() {
            self.fail(format!("{}: the first of two writers failed", verb.name));
        }
        if let Some(difference) = difference(&tree(self.folder())?, &wanted) {
            self.fail(format!("{}: after two writers {difference}", verb.name));
        }
        Ok(())
    }

    /// Files of the future and of 1970, between a kill and the next try.
    fn clock(&mut self, verb: &Verb) -> Result<usize> {
        self.reset(verb)?;
        let counts = self.program.count(&["renameat2", "rename"], &verb.args)?;
        let wanted = tree(self.folder())?;
        let times = [SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(70 * 365 * 86_400)];
        let mut done = 0;
        for (call, numbers) in &counts {
            let middle = numbers.iter().copied().skip(numbers.len() / 2).take(1);
            for (n, time) in middle.flat_map(|n| times.map(|time| (n, time))) {
                self.reset(verb)?;
                self.program.with(Fault::Kill(call, n), &verb.args).output()?;
                set_times(&self.folder().join("out"), time)?;
                self.again(verb, &format!("clock at {time:?} after {call} {n}"), &wanted)?;
                done += 1;
            }
        }
        Ok(done)
    }

    /// A model that shrinks while it is in use.
    fn truncation(&mut self) -> Result<usize> {
        let verb = Verb { name: "generate", args: vec![], again: &[], before: Some("packed") };
        let lengths = [0, 100, 5_000];
        for length in lengths {
            self.reset(&verb)?;
            // It waits for its prompt with the model open.
            let args = words("generate out --prompt - --max-tokens 20 -t 1");
            let mut child = self.program.command(&args).stdin(Stdio::piped()).spawn()?;
            let weights = self.folder().join("out/model.safetensors");
            wait_until(|| is_mapped(child.id(), &weights))?;
            fs::OpenOptions::new().write(true).open(&weights)?.set_len(length)?;
            if let Some(mut stdin) = child.stdin.take() {
                let _ = stdin.write_all(b"The dog");
            }
            let output = child.wait_with_output()?;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            // Either all of it was in memory already, or it is said.
            if output.status.code() != Some(0)
                && !(output.status.code() == Some(1) && stderr.contains("error: "))
            {
                self.fail(format!("generate, cut to {length} bytes: {:?}, {}", output.status, stderr.trim()));
            }
        }
        Ok(lengths.len())
    }
}

fn set_times(path: &Path, time: SystemTime) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut open = vec![path.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                open.push(entry?.path());
            }
        }
        fs::File::open(&path)?.set_modified(time)?;
    }
    Ok(())
}

fn wait_until(mut check: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !check()? {
        if started.elapsed() > Duration::from_secs(60) {
            bail!("a process did not come to the place where it was awaited");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn is_mapped(process: u32, path: &Path) -> Result<bool> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    Ok(maps.contains(&*fs::canonicalize(path)?.to_string_lossy()))
}

/// The child of `strace`, once it is stopped and stays so.
fn stopped_child(strace: u32) -> Result<u32> {
    let (mut found, mut seen) = (0, 0);
    wait_until(|| {
        let children =
            fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap_or_default();
        let Some(child) = children.split_whitespace().next() else { return Ok(false) };
        found = child.parse()?;
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        // At every call that is traced it stops for a moment.
        seen = if matches!(state, Some('t' | 'T')) { seen + 1 } else { 0 };
        Ok(seen > 40)
    })?;
    Ok(found)
}

/// Runs all drills, prints the table of [docs/RESULTS.md] and returns what went wrong.
pub fn run(squat: &Path, every: usize) -> Result<Vec<String>> {
    let started = Instant::now();
    let dir = tempfile::tempdir()?;
    let folder = fs::canonicalize(dir.path())?;
    let mut drills = Drills { program: Program { squat, folder: &folder }, every, failures: Vec::new() };
    fs::write(folder.join("recipe.toml"), recipe())?;
    fs::create_dir(folder.join("texts"))?;
    fs::write(folder.join("texts/a.txt"), "The cat sat on the mat. The dog ran home.\n".repeat(60))?;
    fs::write(folder.join("texts/b.txt"), "Every bird has a song, and one of them sings it.\n".repeat(60))?;
    drills.program.ok(&words("train recipe.toml --out base -t 1"))?;
    drills.program.ok(&words("pack base/fp --plan w8a8 --out packed"))?;
    for part in ["0/2", "1/2"] {
        let prepare =
            format!("data prepare texts --split all --tokenizer base/tokenizer --out parts --shard {part}");
        drills.program.ok(&words(&prepare))?;
    }
    println!("| verb | kills | full disks | second writer | clock |");
    println!("|---|---|---|---|---|");
    for verb in verbs() {
        let (kills, full) = drills.faults(&verb)?;
        drills.second_writer(&verb)?;
        let clock = drills.clock(&verb)?;
        println!("| {} | {kills} | {full} | 1 | {clock} |", verb.name);
    }
    let cut = drills.truncation()?;
    println!(
        "\n{cut} files cut while they were mapped; {} failures; {:.0} s",
        drills.failures.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(drills.failures)
}
