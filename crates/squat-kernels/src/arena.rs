//! One allocation for all weights of a model.
//!
//! Decoding a token reads every weight once. With 4 KB pages that costs a page walk every few hundred instructions, and a
//! page fault per page while loading. Linux backs aligned ranges of 2 MB with a single page on request. Matrices are
//! smaller than that, or not a multiple of it, so the matrices of a model share one [`WeightArena`].

use alloc::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Size in bytes of a large page: Linux on x86-64, and on ARM with base pages of 4 KB.
const LARGE_PAGE: usize = 2 << 20;

/// Every slice starts on a cache line.
const ALIGN: usize = 64;

/// A bump allocator: slices are taken one after another, and the memory is freed with the last of them.
pub struct WeightArena {
    start: NonNull<u8>,
    layout: Layout,
    /// Bytes handed out so far.
    used: AtomicUsize,
}

// SAFETY: each byte belongs to at most one slice, which alone reads and writes it.
unsafe impl Send for WeightArena {}
// SAFETY: as above; `used` is atomic.
unsafe impl Sync for WeightArena {}

impl WeightArena {
    /// Reserves `bytes` bytes; [`Self::bytes_needed`] gives the size of each slice. The system provides pages when they
    /// are first written. Returns `None` when the system refuses the reservation.
    pub fn reserve(bytes: usize) -> Option<Arc<Self>> {
        Self::allocate(Self::layout(bytes)?)
    }

    fn layout(bytes: usize) -> Option<Layout> {
        let align = if bytes < LARGE_PAGE { ALIGN } else { LARGE_PAGE };
        Layout::from_size_align(bytes.max(ALIGN), align).ok()
    }

    fn allocate(layout: Layout) -> Option<Arc<Self>> {
        // SAFETY: the size of the layout is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        #[cfg(all(feature = "std", target_os = "linux", not(miri)))]
        if layout.align() == LARGE_PAGE {
            // SAFETY: the range was just allocated and starts on a page boundary; the advice changes only how it is
            // backed. If the system refuses, small pages remain.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Some(Arc::new(Self { start, layout, used: AtomicUsize::new(0) }))
    }

    /// Bytes that a slice of `len` values takes; `None` if they exceed the address space.
    pub fn bytes_needed<T>(len: usize) -> Option<usize> {
        len.checked_mul(size_of::<T>())?
            .checked_next_multiple_of(ALIGN)
            .filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// The next `bytes` bytes, or `None` if fewer are left.
    fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let end = |used: usize| used.checked_add(bytes).filter(|&end| end <= self.layout.size());
        let at = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok()?;
        // SAFETY: `at + bytes` is within the allocation.
        Some(unsafe { self.start.add(at) })
    }
}

impl Drop for WeightArena {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate` with this layout; each slice holds a reference, so none is left.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// An owned slice of `len` values in a [`WeightArena`].
pub struct ArenaSlice<T: Copy> {
    start: NonNull<T>,
    len: usize,
    arena: Arc<WeightArena>,
}

// SAFETY: a slice owns its values, as a `Vec` does.
unsafe impl<T: Copy + Send> Send for ArenaSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for ArenaSlice<T> {}

impl<T: Copy> ArenaSlice<T> {
    /// `len` uninitialised values from `arena`, or from an allocation of their own if there is no arena or it is full.
    ///
    /// # Panics
    /// If the values exceed the address space. Like any allocation, aborts the process when memory runs out.
    pub(crate) fn uninit(arena: Option<&Arc<WeightArena>>, len: usize) -> ArenaSlice<MaybeUninit<T>> {
        const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
        let bytes = WeightArena::bytes_needed::<T>(len).expect("values that fit the address space");
        let shared = arena.and_then(|arena| Some((arena.take(bytes)?, arena.clone())));
        let (start, arena) = shared.unwrap_or_else(|| {
            let layout = WeightArena::layout(bytes).expect("values that fit the address space");
            let own = WeightArena::allocate(layout).unwrap_or_else(|| handle_alloc_error(layout));
            (own.take(bytes).expect("an arena of this size"), own)
        });
        ArenaSlice { start: start.cast(), len, arena }
    }

    /// `len` values of an iterator, in `arena`, or in an allocation of their own if there is no arena or it is full.
    ///
    /// # Panics
    /// If the iterator yields fewer values; like a `Vec`, if they exceed the address space.
    pub fn new(arena: Option<&Arc<WeightArena>>, len: usize, values: impl IntoIterator<Item = T>) -> Self {
        let mut slice = Self::uninit(arena, len);
        let mut written = 0;
        for (slot, value) in slice.iter_mut().zip(values) {
            slot.write(value);
            written += 1;
        }
        assert_eq!(written, len, "values of an arena slice");
        // SAFETY: every value has been written.
        unsafe { slice.assume_init() }
    }
}

impl<T: Copy> ArenaSlice<MaybeUninit<T>> {
    /// # Safety
    /// Every value has been written.
    pub(crate) unsafe fn assume_init(self) -> ArenaSlice<T> {
        ArenaSlice { start: self.start.cast(), len: self.len, arena: self.arena }
    }
}

impl<T: Copy> Deref for ArenaSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` aligned values that live as long as the arena, which `self` keeps alive; they are initialised, or
        // their type is `MaybeUninit`.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for ArenaSlice<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; no other slice covers these bytes.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// The copy has an allocation of its own.
impl<T: Copy> Clone for ArenaSlice<T> {
    fn clone(&self) -> Self {
        Self::new(None, self.len, self.iter().copied())
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for ArenaSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

impl<T: Copy + PartialEq> PartialEq for ArenaSlice<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_each_other_and_outlive_the_handle() {
        let bytes =
            WeightArena::bytes_needed::<u8>(65).unwrap() + WeightArena::bytes_needed::<u32>(3).unwrap();
        assert_eq!(bytes, 128 + 64);
        let arena = WeightArena::reserve(bytes).unwrap();
        let a = ArenaSlice::new(Some(&arena), 65, 0u8..);
        let mut b = ArenaSlice::new(Some(&arena), 3, [7u32, 8, 9]);
        // The arena is full: this one gets an allocation of its own.
        let c = ArenaSlice::new(Some(&arena), 1, [5u8]);
        assert_eq!(b.start.as_ptr() as usize - a.start.as_ptr() as usize, 128);
        assert!(Arc::ptr_eq(&a.arena, &b.arena) && !Arc::ptr_eq(&a.arena, &c.arena));
        drop(arena);
        b[1] = 80;
        let copy = b.clone();
        drop(b);
        assert!(a.iter().copied().eq(0..65) && *copy == [7, 80, 9] && *c == [5]);
    }

    #[test]
    fn an_empty_slice() {
        let empty = ArenaSlice::<u64>::new(None, 0, []);
        assert!(empty.is_empty() && empty.clone() == empty);
    }

    #[test]
    fn a_large_arena_starts_on_a_large_page() {
        let arena = WeightArena::reserve(LARGE_PAGE + 1).unwrap();
        let first = ArenaSlice::new(Some(&arena), 1, [1u8]);
        assert_eq!(first.start.as_ptr() as usize % LARGE_PAGE, 0);
    }

    #[test]
    fn more_than_the_address_space_is_refused() {
        assert!(WeightArena::reserve(usize::MAX).is_none());
        assert!(WeightArena::bytes_needed::<f32>(usize::MAX / 4 + 2).is_none());
        assert!(WeightArena::bytes_needed::<u8>(usize::MAX).is_none());
    }

    #[test]
    #[should_panic = "address space"]
    fn a_length_that_wraps_is_refused() {
        let _ = ArenaSlice::<f32>::new(None, usize::MAX / 4 + 2, core::iter::repeat(0.0));
    }
}
