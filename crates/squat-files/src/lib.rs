//! Between this program and what it does not control: files that others wrote ([`read`]), places that others write to or
//! read from ([`write`], with [`sums`]), the wish that long work stop ([`interrupt`]), panics of libraries
//! ([`contain`]).

pub mod contain;
pub mod interrupt;
pub mod read;
pub mod sums;
pub mod write;
