//! The choice of kernels for a CPU.

use squat_kernels::Kernels;

/// `SQUAT_EXPECT_ISA` names the expected best set of this CPU; `.ci/cross` sets it for the CPUs it emulates.
#[test]
fn the_best_set_is_the_expected_one() {
    let best = Kernels::available().next_back().map(Kernels::name);
    if let Ok(expected) = std::env::var("SQUAT_EXPECT_ISA") {
        assert_eq!(best, Some(expected.as_str()));
    }
    if std::env::var_os("SQUAT_ISA").is_none_or(|name| name.is_empty()) {
        let chosen = Kernels::detect().name();
        let alternative = Kernels::available().next_back().and_then(Kernels::alternative).map(Kernels::name);
        assert!(best == Some(chosen) || alternative == Some(chosen), "{chosen}");
        assert_eq!(Kernels::detect().name(), chosen, "measured once");
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_alternative_is_a_set_of_this_cpu() {
    for kernels in Kernels::available() {
        let alternative = kernels.alternative().map(Kernels::name);
        assert_eq!(alternative, (kernels.name() == "avxvnni").then_some("avx2"));
    }
}
