//! What this program was built from, as `build.rs` found it.

/// The version, with the commit where it is known: `0.1.0 (7c89534d1f2a)`. A `+` after the commit: sources differed from it.
pub(crate) const SHORT: &str = env!("ELAPID_VERSION");

/// [`SHORT`], the target and what the program was compiled with.
pub(crate) const LONG: &str =
    concat!(env!("ELAPID_VERSION"), "\ntarget:   ", env!("ELAPID_TARGET"), "\nfeatures: ", env!("ELAPID_FEATURES"));

/// The target's triple.
pub(crate) const TARGET: &str = env!("ELAPID_TARGET");
