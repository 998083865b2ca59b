//! Linker options of the edge profile: unwind tables are dropped, since a panic aborts, and relocations are packed if
//! the C library supports that (glibc 2.36). Together they save 0.8 of 5.7 MB.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=edge.ld");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found == value);
    // A build script learns the name of the profile only from the path: target/edge/build/squat-.../out.
    let out = PathBuf::from(env::var("OUT_DIR").unwrap_or_default());
    let edge = out.ancestors().nth(3).is_some_and(|folder| folder.ends_with("edge"));
    if !edge || !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{folder}/edge.ld");
    if env::var("HOST").ok() == env::var("TARGET").ok() && glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Version of the C library of this system, from `getconf`: "glibc 2.36".
fn glibc() -> Option<(u32, u32)> {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
