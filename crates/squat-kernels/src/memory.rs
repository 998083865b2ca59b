//! Memory for the weights of a whole model, in one piece.
//!
//! A decoded token reads every weight once. In pages of 4 KB that is a page walk every few hundred instructions, and at load
//! a page fault for each; Linux backs aligned pieces of 2 MB by one page when asked to. Matrices are smaller than that or no
//! multiple of it, so those of a model share one [`WeightMemory`].

use alloc::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use alloc::sync::Arc;
use core::fmt;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// A large page of Linux on x86-64, and on ARM with pages of 4 KB.
const LARGE_PAGE: usize = 2 << 20;

/// Every piece begins on a cache line.
const ALIGN: usize = 64;

/// Bytes that pieces are cut from, one after another; freed with the last of them.
pub struct WeightMemory {
    start: NonNull<u8>,
    layout: Layout,
    /// Bytes that have been given away.
    used: AtomicUsize,
}

// SAFETY: each byte belongs to at most one piece, which alone reads and writes it.
unsafe impl Send for WeightMemory {}
// SAFETY: as above; `used` is atomic.
unsafe impl Sync for WeightMemory {}

impl WeightMemory {
    /// Reserves room for `bytes` bytes of pieces; [`Self::room`] says how many a piece needs. Pages are taken from the
    /// system when they are first written. None when the system refuses so much.
    pub fn reserve(bytes: usize) -> Option<Arc<Self>> {
        Self::allocate(Self::layout(bytes)?)
    }

    fn layout(bytes: usize) -> Option<Layout> {
        let align = if bytes < LARGE_PAGE { ALIGN } else { LARGE_PAGE };
        Layout::from_size_align(bytes.max(ALIGN), align).ok()
    }

    fn allocate(layout: Layout) -> Option<Arc<Self>> {
        // SAFETY: the layout has a size.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        #[cfg(all(feature = "std", target_os = "linux", not(miri)))]
        if layout.align() == LARGE_PAGE {
            // SAFETY: this range was just allocated and begins on a page; the advice changes nothing but its backing.
            // A system that refuses it goes on with small pages.
            unsafe { libc::madvise(start.as_ptr().cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        Some(Arc::new(Self { start, layout, used: AtomicUsize::new(0) }))
    }

    /// Bytes that a piece of `len` values takes; none for more than the address space has.
    pub fn room<T>(len: usize) -> Option<usize> {
        len.checked_mul(size_of::<T>())?
            .checked_next_multiple_of(ALIGN)
            .filter(|&bytes| bytes <= isize::MAX as usize)
    }

    /// The next `bytes` bytes, if there are as many.
    fn take(&self, bytes: usize) -> Option<NonNull<u8>> {
        let end = |used: usize| used.checked_add(bytes).filter(|&end| end <= self.layout.size());
        let at = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok()?;
        // SAFETY: `at + bytes` is within the allocation.
        Some(unsafe { self.start.add(at) })
    }
}

impl Drop for WeightMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate` with this layout; no piece is left, since each holds a reference.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// `len` values in a [`WeightMemory`].
pub struct Piece<T: Copy> {
    start: NonNull<T>,
    len: usize,
    memory: Arc<WeightMemory>,
}

// SAFETY: a piece owns its values, as a `Vec` does.
unsafe impl<T: Copy + Send> Send for Piece<T> {}
// SAFETY: as above.
unsafe impl<T: Copy + Sync> Sync for Piece<T> {}

impl<T: Copy> Piece<T> {
    /// A piece of `len` values that are yet to be written, from `memory`, or from memory of its own where there is none or
    /// too little.
    ///
    /// # Panics
    /// For more than the address space has. As every allocation it ends the process when there is no memory.
    pub(crate) fn uninit(memory: Option<&Arc<WeightMemory>>, len: usize) -> Piece<MaybeUninit<T>> {
        const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
        let bytes = WeightMemory::room::<T>(len).expect("values that fit the address space");
        let shared = memory.and_then(|memory| Some((memory.take(bytes)?, memory.clone())));
        let (start, memory) = shared.unwrap_or_else(|| {
            let layout = WeightMemory::layout(bytes).expect("values that fit the address space");
            let own = WeightMemory::allocate(layout).unwrap_or_else(|| handle_alloc_error(layout));
            (own.take(bytes).expect("memory of its size"), own)
        });
        Piece { start: start.cast(), len, memory }
    }

    /// `len` values of an iterator, from `memory`, or from memory of their own where there is none or too little.
    ///
    /// # Panics
    /// When the iterator has fewer, and as a `Vec` for more than the address space has.
    pub fn new(memory: Option<&Arc<WeightMemory>>, len: usize, values: impl IntoIterator<Item = T>) -> Self {
        let mut piece = Self::uninit(memory, len);
        let mut written = 0;
        for (slot, value) in piece.iter_mut().zip(values) {
            slot.write(value);
            written += 1;
        }
        assert_eq!(written, len, "fewer values than the piece has");
        // SAFETY: every value has been written.
        unsafe { piece.assume_init() }
    }
}

impl<T: Copy> Piece<MaybeUninit<T>> {
    /// # Safety
    /// Every value has been written.
    pub(crate) unsafe fn assume_init(self) -> Piece<T> {
        Piece { start: self.start.cast(), len: self.len, memory: self.memory }
    }
}

impl<T: Copy> Deref for Piece<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` aligned values that live as long as the memory, which `self` holds; they are initialised, or their
        // type says that they need not be.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Copy> DerefMut for Piece<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; no other piece has these bytes.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// In memory of its own.
impl<T: Copy> Clone for Piece<T> {
    fn clone(&self) -> Self {
        Self::new(None, self.len, self.iter().copied())
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for Piece<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

impl<T: Copy + PartialEq> PartialEq for Piece<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_each_other_and_outlive_the_handle() {
        let room = WeightMemory::room::<u8>(65).unwrap() + WeightMemory::room::<u32>(3).unwrap();
        assert_eq!(room, 128 + 64);
        let memory = WeightMemory::reserve(room).unwrap();
        let a = Piece::new(Some(&memory), 65, 0u8..);
        let mut b = Piece::new(Some(&memory), 3, [7u32, 8, 9]);
        // What does not fit has memory of its own.
        let c = Piece::new(Some(&memory), 1, [5u8]);
        assert_eq!(b.start.as_ptr() as usize - a.start.as_ptr() as usize, 128);
        assert!(Arc::ptr_eq(&a.memory, &b.memory) && !Arc::ptr_eq(&a.memory, &c.memory));
        drop(memory);
        b[1] = 80;
        let copy = b.clone();
        drop(b);
        assert!(a.iter().copied().eq(0..65) && *copy == [7, 80, 9] && *c == [5]);
    }

    #[test]
    fn an_empty_piece() {
        let empty = Piece::<u64>::new(None, 0, []);
        assert!(empty.is_empty() && empty.clone() == empty);
    }

    #[test]
    fn large_memory_begins_on_a_large_page() {
        let memory = WeightMemory::reserve(LARGE_PAGE + 1).unwrap();
        let first = Piece::new(Some(&memory), 1, [1u8]);
        assert_eq!(first.start.as_ptr() as usize % LARGE_PAGE, 0);
    }

    #[test]
    fn more_than_there_is() {
        assert!(WeightMemory::reserve(usize::MAX).is_none());
        assert!(WeightMemory::room::<f32>(usize::MAX / 4 + 2).is_none());
        assert!(WeightMemory::room::<u8>(usize::MAX).is_none());
    }

    #[test]
    #[should_panic = "address space"]
    fn a_length_that_wraps() {
        let _ = Piece::<f32>::new(None, usize::MAX / 4 + 2, core::iter::repeat(0.0));
    }
}
