//! Reading files that somebody else wrote: regular files only, of bounded size, with errors that name them.
