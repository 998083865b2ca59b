//! Every target reads what fuzzing found, its seeds, and its seeds with random damage, without a panic, in less than a second
//! and with memory in proportion to the input.
#![allow(clippy::unwrap_used)]

use squat_fuzz::{TARGETS, Target, Use};
use squat_quant::random::SplitMix64;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Damaged copies of each seed.
const DAMAGED: usize = 40;

/// Longest time for one input.
const LONGEST: Duration = Duration::from_secs(1);

fn corpus(target: &Target) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The input with some bytes changed, inserted, doubled or cut off.
fn damage(seed: &[u8], rng: &mut SplitMix64) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.below(bytes.len().max(1) as u64) as usize;
        let word = rng.next_u64();
        match rng.below(6) {
            _ if bytes.is_empty() => bytes.push(word as u8),
            0 => bytes[at] ^= 1 << (word % 8),
            1 => bytes[at] = word as u8,
            2 => bytes.insert(at, word as u8),
            3 => bytes.truncate(at),
            4 => {
                let end = (at + 1 + (word % 64) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            // A large number where one may stand.
            _ => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
        }
    }
    bytes
}

fn replay(name: &str) {
    let target = Target::named(name);
    let mut worst = Use { peak: 0, time: Duration::ZERO };
    let mut count = 0;
    let mut check = |what: &str, bytes: &[u8]| {
        let used = target.run(bytes);
        assert!(used.time < LONGEST, "{name}, {what}, {} bytes: {:?}", bytes.len(), used.time);
        worst = Use { peak: worst.peak.max(used.peak), time: worst.time.max(used.time) };
        count += 1;
    };
    let seeds = target.seeds();
    assert!(!seeds.is_empty());
    // The first run also makes what stays for the next ones.
    let _ = std::panic::catch_unwind(|| target.run(&seeds[0]));
    for path in corpus(target) {
        check(&path.display().to_string(), &std::fs::read(&path).unwrap());
    }
    let mut rng = SplitMix64::new(20_261_127);
    for seed in &seeds {
        check("a seed", seed);
        for _ in 0..DAMAGED {
            check("a damaged seed", &damage(seed, &mut rng));
        }
    }
    eprintln!("{name}: {count} inputs, at most {} KiB and {:?}", worst.peak / 1024, worst.time);
}

/// One test, because the allocator counts for the whole process.
#[test]
fn every_target_reads_anything() {
    for target in &TARGETS {
        replay(target.name);
    }
}

/// Each target has its program for the fuzzer.
#[test]
fn every_target_can_be_fuzzed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for target in &TARGETS {
        let program = std::fs::read_to_string(folder.join(format!("targets/{}.rs", target.name))).unwrap();
        assert!(program.contains(&format!("\"{}\"", target.name)), "{}", target.name);
        assert!(manifest.contains(&format!("path = \"targets/{}.rs\"", target.name)), "{}", target.name);
    }
}
