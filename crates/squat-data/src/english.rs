//! A small generated English.
