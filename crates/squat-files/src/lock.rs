//! One writer of a folder at a time.
