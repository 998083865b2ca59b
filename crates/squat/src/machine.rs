//! Facts about the machine: name, features and caches of the CPU, memory.

use std::fs;
use std::path::Path;

/// Name of the CPU, if the system reports it.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named =
        info.lines().find_map(|line| line.strip_prefix("model name").and_then(|rest| rest.split(':').nth(1)));
    named.map_or_else(|| std::env::consts::ARCH.to_owned(), |name| name.trim().to_owned())
}

/// Features of the CPU that kernels of this project use or could use.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! probe { ($($name:tt)*) => { $(if std::is_x86_feature_detected!($name) { found.push($name); })* } }
        probe!("sse4.2" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f" "avx512bw" "avx512vl" "avx512dq" "avx512vnni"
            "avx512vbmi" "avx512bf16" "gfni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! probe { ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* } }
        probe!("neon" "dotprod" "i8mm" "bf16" "sve" "sve2" "sme");
    }
    found
}

/// Memory that the system would give to this process, in bytes, where it tells (Linux).
#[cfg(feature = "train")]
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    // A container may have less.
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    Some(group.map_or(free, |group| group.min(free)))
}

/// A cache that the first core uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    pub bytes: usize,
    /// Cores that share it, as the system lists them: `0-1`.
    pub shared_by: String,
}

impl Cache {
    /// `L1 data 48 KiB`, `L3 32 MiB (cores 0-1)`.
    pub fn describe(&self) -> String {
        let kind = match self.kind.as_str() {
            "Unified" => String::new(),
            kind => format!(" {}", kind.to_lowercase()),
        };
        let shared = match self.shared_by.parse::<u32>() {
            Ok(_) => String::new(),
            Err(_) => format!(" (cores {})", self.shared_by),
        };
        format!("L{}{kind} {}{shared}", self.level, binary_size(self.bytes))
    }
}

/// Caches of the first core, smallest first; empty if the system does not report them.
pub fn caches() -> Vec<Cache> {
    read_caches(Path::new("/sys/devices/system/cpu/cpu0/cache"))
}

fn read_caches(folder: &Path) -> Vec<Cache> {
    let mut found: Vec<Cache> = (0..16)
        .map_while(|index| {
            let read = |name: &str| {
                let text = fs::read_to_string(folder.join(format!("index{index}")).join(name)).ok()?;
                Some(text.trim().to_owned())
            };
            Some(Cache {
                level: read("level")?.parse().ok()?,
                kind: read("type")?,
                bytes: bytes_of(&read("size")?)?,
                shared_by: read("shared_cpu_list").unwrap_or_default(),
            })
        })
        .collect();
    found.sort_by_key(|cache| (cache.level, cache.bytes));
    found
}

/// Bytes of a size like `48K`.
fn bytes_of(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) => (digits, &text[digits.len()..]),
        None => (text, ""),
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => 0,
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// `48 KiB`, `32 MiB`.
pub fn binary_size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_the_system_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        for (index, (level, kind, size, shared)) in
            [("3", "Unified", "32768K", "0-1"), ("1", "Data", "48K", "0")].into_iter().enumerate()
        {
            let folder = dir.path().join(format!("index{index}"));
            fs::create_dir(&folder).unwrap();
            for (name, text) in
                [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)]
            {
                fs::write(folder.join(name), format!("{text}\n")).unwrap();
            }
        }
        let told: Vec<String> = read_caches(dir.path()).iter().map(Cache::describe).collect();
        assert_eq!(told, ["L1 data 48 KiB", "L3 32 MiB (cores 0-1)"]);
        assert!(read_caches(&dir.path().join("none")).is_empty());
        assert_eq!(bytes_of("x"), None);
        assert_eq!(bytes_of("99999999999999999999K"), None);
    }
}
