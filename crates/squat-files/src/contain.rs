//! Libraries that panic on foreign input: the panic becomes an error of the caller.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs code of a library on foreign input. Its state must not be used again after an error.
///
/// # Errors
/// The message of a panic.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
    })
}

/// Keeps contained panics from printing; a program calls it once. Where panics cannot be caught (`panic = "abort"`), `last`
/// gets the message of a contained one, and must end the program.
pub fn quiet(last: fn(&str)) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !CONTAINED.get() {
            return usual(panic);
        }
        if cfg!(panic = "abort") {
            last(&panic.to_string());
        }
    }));
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_is_a_message() {
        assert_eq!(super::contain(|| 3), Ok(3));
        assert_eq!(super::contain(|| -> u8 { panic!("byte {}", 7) }), Err("byte 7".to_owned()));
        assert_eq!(super::contain(|| -> u8 { panic!("bad") }), Err("bad".to_owned()));
    }
}
