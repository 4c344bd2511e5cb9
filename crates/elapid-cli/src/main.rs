//! The `elapid` command line.
fn main() {}
