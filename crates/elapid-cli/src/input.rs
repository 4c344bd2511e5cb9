//! Text from stdin, up to a limit.

use std::io::{self, Read};

use anyhow::Result;

use crate::failure::wrong;

/// Maximum size of a text, in bytes.
const LIMIT: u64 = 1 << 30;

/// All of stdin.
pub(crate) fn read_stdin() -> Result<Vec<u8>> {
    let mut text = Vec::new();
    io::stdin().lock().take(LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > LIMIT {
        return Err(wrong(format!("stdin has over {} MiB of text; give less", LIMIT >> 20)));
    }
    Ok(text)
}
