//! What the edge profile cannot say: nothing unwinds where a panic aborts, so tables for it are left out, and relocations
//! are packed where the system's C library reads them (glibc 2.36). Together 0.8 MB of 5.7.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=edge.ld");
    let is = |key: &str, value: &str| env::var(key).is_ok_and(|found| found == value);
    // Only the path tells a build script the name of the profile: target/edge/build/squat-.../out.
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
