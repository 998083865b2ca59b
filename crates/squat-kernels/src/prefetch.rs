//! Prefetching. Only x86 has prefetch instructions here; elsewhere these functions do nothing.

/// Prefetches the cache lines that `values` cover; reads nothing. Does nothing on CPUs other than x86.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for offset in (0..size_of_val(values) + values.as_ptr().addr() % 64).step_by(64) {
        prefetch_line(values.as_ptr().wrapping_byte_add(offset));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = values;
}

/// Prefetches the cache line of an address, which may be any.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch_line<T>(address: *const T) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch of any address has no effect that a program can see, and needs only SSE, part of x86-64.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}
