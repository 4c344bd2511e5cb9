//! Puts a trained model into the binary.

use std::path::Path;

use anyhow::{Result, ensure};
use elapid::LanguageModel;
use elapid::checkpoint::{SaveDtype, SaveOptions};

/// Maximum size of the model in the binary, in bytes.
const LIMIT: u64 = 8_000_000;

/// Saves the model of `dir` in bf16 to where the library includes it from.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/elapid/assets/default");
    let options = SaveOptions { dtype: SaveDtype::BF16, ..SaveOptions::default() };
    LanguageModel::open(dir)?.save(&target, &options)?;
    let bytes = std::fs::metadata(target.join("model.safetensors"))?.len();
    ensure!(bytes <= LIMIT, "the model takes {bytes} bytes, at most {LIMIT} go into the binary");
    println!("{bytes} bytes of bf16; build again to have it in the binary, then check it with `elapid eval`");
    Ok(())
}
