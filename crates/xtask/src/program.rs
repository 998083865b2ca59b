//! The program under test, with faults injected by `strace`.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The program in a folder.
pub struct Program<'a> {
    pub squat: &'a Path,
    pub folder: &'a Path,
}

/// A fault at the n-th call, counted from 1, of a system call.
#[derive(Clone, Copy, Debug)]
pub enum Fault<'a> {
    /// The process is killed.
    Kill(&'a str, usize),
    /// The process is stopped until it is told to go on.
    Stop(&'a str, usize),
    /// The call fails as on a full disk.
    Full(&'a str, usize),
}

impl Program<'_> {
    fn prepared(&self, mut command: Command) -> Command {
        command
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("SQUAT_DATA");
        command
    }

    /// The program itself.
    pub fn command(&self, args: &[String]) -> Command {
        let mut command = Command::new(self.squat);
        command.args(args);
        self.prepared(command)
    }

    /// Runs it; it must succeed.
    pub fn ok(&self, args: &[String]) -> Result<Output> {
        let output = self.command(args).output()?;
        if !output.status.success() {
            bail!("squat {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(output)
    }

    /// The program with a fault. (With `--seccomp-bpf`, strace 6.1 is faster and injects no signals.)
    pub fn with(&self, fault: Fault<'_>, args: &[String]) -> Command {
        let (call, inject) = match fault {
            Fault::Kill(call, n) => (call, format!("{call}:signal=SIGKILL:when={n}")),
            Fault::Stop(call, n) => (call, format!("{call}:signal=SIGSTOP:when={n}")),
            Fault::Full(call, n) => (call, format!("{call}:error=ENOSPC:when={n}")),
        };
        let mut command = Command::new("strace");
        command
            .args(["-f", "-qqq", "-o", "/dev/null", "-e"])
            .arg(format!("trace={call}"))
            .arg("-e")
            .arg(format!("inject={inject}"))
            .arg(self.squat)
            .args(args);
        self.prepared(command)
    }

    /// How often the program makes each of `calls`: the numbers, from 1, of those that are not about output. Numbers are those
    /// of a thread, and a fault hits each thread that comes so far.
    pub fn count(&self, calls: &[&str], args: &[String]) -> Result<BTreeMap<String, Vec<usize>>> {
        let log: PathBuf = self.folder.join("calls.log");
        let mut command = Command::new("strace");
        command.args(["-f", "-qqq", "-s", "0", "-o"]).arg(&log);
        command.arg("-e").arg(format!("trace={}", calls.join(","))).arg(self.squat).args(args);
        let output = self.prepared(command).output().context("strace is missing; install it")?;
        if !output.status.success() {
            bail!("strace squat {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = std::fs::read_to_string(&log)?;
        std::fs::remove_file(&log)?;
        let mut of_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.contains("<... ")) {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let Some((call, arguments)) = rest.trim_start().split_once('(') else { continue };
            let number = of_thread.entry((thread, call)).or_default();
            *number += 1;
            let is_output = call == "write" && (arguments.starts_with("1,") || arguments.starts_with("2,"));
            let numbers = found.entry(call.to_owned()).or_default();
            if !is_output && !numbers.contains(number) {
                numbers.push(*number);
            }
        }
        Ok(found)
    }
}
