//! Files and folders appear complete or not at all, and replace only what this program wrote.
