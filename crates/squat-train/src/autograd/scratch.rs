//! Buffers that operations borrow while they run, so that nothing is allocated or cleared again and again.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// A borrowed buffer; goes back to its thread when dropped.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

/// A buffer of `len` numbers of any value.
pub(crate) fn scratch(len: usize) -> Scratch {
    let mut buffer = FREE.with_borrow_mut(|free| {
        // The smallest that is large enough, or else the largest, which grows.
        let fits = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
        let taken = fits.or_else(|| (0..free.len()).max_by_key(|&i| free[i].len()));
        taken.map(|i| free.swap_remove(i)).unwrap_or_default()
    });
    if buffer.len() < len {
        buffer.clear();
        buffer.resize(len, 0.0);
    }
    Scratch { buffer, len }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // Fails only while the thread ends; the buffer is freed then.
        let _ = FREE.try_with(|free| free.borrow_mut().push(buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let first = scratch(100).as_ptr();
        assert_eq!(scratch(50).as_ptr(), first);
        let (a, mut b) = (scratch(80), scratch(80));
        b.fill(1.0);
        assert_eq!((a.len(), b.len(), a.as_ptr() == b.as_ptr()), (80, 80, false));
        assert_eq!(scratch(300).len(), 300);
    }
}
