//! Processor time and memory of this process.

/// Seconds of processor time of this thread; wall-clock time where the system does not tell.
pub(crate) fn thread_seconds() -> f64 {
    #[cfg(unix)]
    {
        clock(libc::CLOCK_THREAD_CPUTIME_ID)
    }
    #[cfg(not(unix))]
    {
        wall()
    }
}

/// Seconds of processor time of all threads of the process; wall-clock time where the system does not tell.
pub fn cpu_seconds() -> f64 {
    #[cfg(unix)]
    {
        clock(libc::CLOCK_PROCESS_CPUTIME_ID)
    }
    #[cfg(not(unix))]
    {
        wall()
    }
}

#[cfg(unix)]
fn clock(id: libc::clockid_t) -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which it is given exclusively; an unknown clock leaves it at zero.
    unsafe { libc::clock_gettime(id, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn wall() -> f64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed().as_secs_f64()
}

/// Most memory that the process has held at one time, in bytes, where the system tells (Linux).
pub fn peak_resident_bytes() -> Option<u64> {
    status_line("VmHWM:")
}

/// Memory that the process holds now, in bytes, where the system tells (Linux).
pub(crate) fn resident_bytes() -> Option<u64> {
    status_line("VmRSS:")
}

fn status_line(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time() {
        let (process, thread) = (cpu_seconds(), thread_seconds());
        let mut x = 1u64;
        while thread_seconds() - thread < 0.002 {
            for _ in 0..1000 {
                x = std::hint::black_box(x.wrapping_mul(3));
            }
        }
        assert!(cpu_seconds() - process >= 0.002);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_is_at_least_what_is_held() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(peak_resident_bytes().unwrap() >= resident_bytes().unwrap());
    }
}
