//! Files that are cut while they are mapped: one line on stderr and exit code 1 instead of death by a signal.
//!
//! A signal handler costs a read nothing. Checking lengths before each access would not be sound, since a file can be cut
//! right after, and copying would double the memory and the time to the first token.

/// Installs the handler, once for the program. Touching a page that is gone then prints which file it belongs to and ends
/// the process with exit code 1. What is not a page of a [`super::Map`] ends as before.
pub fn report_cut_maps() {
    #[cfg(unix)]
    unix::install();
}

#[cfg(unix)]
pub(super) use unix::Watched;

#[cfg(not(unix))]
#[derive(Debug)]
pub(super) struct Watched;

#[cfg(not(unix))]
impl Watched {
    /// Mapped files cannot be cut here.
    pub(super) fn new(_path: &std::path::Path, _bytes: &[u8]) -> Option<Self> {
        None
    }
}

#[cfg(unix)]
mod unix {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

    /// Maps that are remembered by name; more than any model or corpus has at a time, as a rule.
    const PLACES: usize = 256;

    /// A handler may not wait for a lock, so the list is one of atomics. `end` is 0 where a place is free.
    struct Place {
        end: AtomicUsize,
        start: AtomicUsize,
        name: AtomicPtr<libc::c_char>,
    }

    static MAPS: [Place; PLACES] = [const {
        Place { end: AtomicUsize::new(0), start: AtomicUsize::new(0), name: AtomicPtr::new(null_mut()) }
    }; PLACES];

    /// A map in the list, for as long as this lives.
    #[derive(Debug)]
    pub(in crate::read) struct Watched(usize);

    impl Watched {
        /// `None` where the list is full: such a file is not named.
        pub(in crate::read) fn new(path: &Path, bytes: &[u8]) -> Option<Self> {
            let name = CString::new(path.as_os_str().as_bytes()).ok()?.into_raw();
            let start = bytes.as_ptr() as usize;
            // A place is taken by its name and becomes visible with its end.
            let taken = MAPS.iter().position(|place| {
                place.name.compare_exchange(null_mut(), name, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            });
            let Some(index) = taken else {
                // SAFETY: the pointer comes from `into_raw` above, and nobody else has it.
                drop(unsafe { CString::from_raw(name) });
                return None;
            };
            MAPS[index].start.store(start, Ordering::Relaxed);
            MAPS[index].end.store(start + bytes.len(), Ordering::Release);
            Some(Self(index))
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            let place = &MAPS[self.0];
            place.end.store(0, Ordering::Release);
            let name = place.name.swap(null_mut(), Ordering::AcqRel);
            // SAFETY: the pointer comes from `into_raw`; the place was this value's alone until the swap.
            drop(unsafe { CString::from_raw(name) });
        }
    }

    pub(super) fn install() {
        // SAFETY: the handler calls only functions that are allowed in signal handlers, and the structure is valid.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, null_mut());
        }
    }

    extern "C" fn handle(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        // SAFETY: the system gives a valid structure to a handler with SA_SIGINFO.
        let address = unsafe { (*info).si_addr() } as usize;
        let found = MAPS.iter().find(|place| {
            let end = place.end.load(Ordering::Acquire);
            end != 0
                && (place.start.load(Ordering::Relaxed)..end.next_multiple_of(1 << 16)).contains(&address)
        });
        let Some(place) = found else {
            // Not one of our maps: the next fault ends the process as it would have.
            // SAFETY: as in `install`.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            return;
        };
        let name = place.name.load(Ordering::Acquire);
        let say = |bytes: *const u8, length: usize| {
            // SAFETY: write is allowed in handlers; the bytes are valid for this length.
            unsafe { libc::write(libc::STDERR_FILENO, bytes.cast(), length) };
        };
        let words = |text: &str| say(text.as_ptr(), text.len());
        words("error: ");
        if !name.is_null() {
            // SAFETY: names end with zero and live as long as their place is taken.
            let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_bytes();
            // Control characters of a name do not reach the terminal.
            name.iter().for_each(|byte| say(if byte.is_ascii_control() { b"?".as_ptr() } else { byte }, 1));
        }
        words(
            ": the file was cut or cannot be read any more while it was in use; copy it again and leave it alone meanwhile\n",
        );
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(1) };
    }
}
